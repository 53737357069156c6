"""A ternary weight you can multiply with: the public face of the kernels."""

from typing import Any, Self, SupportsIndex

import numpy as np
import numpy.typing as npt

from bitnet._core import matmul, quant
from bitnet._core import packing as packings
from bitnet.config import QuantizationConfig
from bitnet.quant import checked_config, dequantize
from bitnet.tuning import choose_packing

__all__ = ["TernaryWeight"]


class TernaryWeight:
    """An immutable matrix of ternary weights, packed for products with int8 activations.

    Made by `from_float` or `from_codes`. Safe to use from several threads at the same time.

    Attributes
    ----------
    shape : tuple of int
        (rows, cols): outputs and inputs.
    packing : str
        ``"i2"`` (2 bits a weight) or ``"t5"`` (1.6 bits).
    scale : ndarray of float32, shape (), (rows,) or (rows, groups)
        What a code of 1 stands for. Read-only.
    group_size : int or None
        Columns that share a scale, where a row has several.
    nbytes : int
        Bytes of the packed codes, padding included.

    Examples
    --------
    >>> import numpy as np, bitnet
    >>> w = bitnet.TernaryWeight.from_codes(np.array([[1, -1, 0], [1, 1, 1]], np.int8), scale=0.5)
    >>> w.matmul_int(np.array([3, 4, 5], np.int8))
    array([-1, 12], dtype=int32)
    """

    __slots__ = ("_packed",)

    _packed: packings.PackedWeight

    def __init__(self) -> None:
        raise TypeError("a TernaryWeight is made by TernaryWeight.from_float() or TernaryWeight.from_codes()")

    @classmethod
    def _of(cls, packed: packings.PackedWeight) -> Self:
        weight = object.__new__(cls)
        weight._packed = packed
        return weight

    @classmethod
    def from_float(
        cls,
        w: npt.NDArray[np.float32],
        config: QuantizationConfig | None = None,
        packing: str = "auto",
        *,
        num_threads: SupportsIndex | None = None,
    ) -> Self:
        """Quantise a float weight to ternary and pack it.

        Parameters
        ----------
        w : ndarray of float32, shape (rows, cols)
            C-contiguous and finite.
        config : QuantizationConfig, optional
            Whether the weight, each row, or each group of columns has a scale; by default the weight.
        packing : {"auto", "i2", "t5"}, optional
            ``"auto"`` is `choose_packing`.
        num_threads : int, optional

        Returns
        -------
        TernaryWeight

        Raises
        ------
        QuantizationError
            If a number is not finite; the message says where.
        TensorError, ShapeError
            If `w` is not such an array.
        KernelError
            If the packing is unknown, or cannot have the groups of `config`.
        """
        config = checked_config(config, "TernaryWeight.from_float")
        s = quant.reciprocal_scales(w, config.per_channel, config.group_size, num_threads)
        name = _named(packing, w, config.group_size, num_threads)
        return cls._of(packings.pack_numbers(w, s, name, config.group_size, num_threads))

    @classmethod
    def from_codes(
        cls,
        codes: npt.NDArray[np.int8],
        scale: npt.ArrayLike,
        packing: str = "auto",
        *,
        group_size: int | None = None,
        num_threads: SupportsIndex | None = None,
    ) -> Self:
        """Pack ternary codes.

        Parameters
        ----------
        codes : ndarray of int8, shape (rows, cols)
            -1, 0 or 1. C-contiguous.
        scale : float or array of float, shape (), (rows,) or (rows, groups)
            What a code of 1 stands for.
        packing : {"auto", "i2", "t5"}, optional
            ``"auto"`` is `choose_packing`.
        group_size : {None, 64, 128}, optional
            Columns that share a scale.
        num_threads : int, optional

        Returns
        -------
        TernaryWeight

        Raises
        ------
        QuantizationError
            If a code is not ternary, or a scale not finite; the message says where.
        TensorError, ShapeError
            If an array does not fit.
        KernelError
            If the packing is unknown, or cannot have such groups.
        """
        name = _named(packing, codes, group_size, num_threads)
        return cls._of(packings.pack_codes(codes, scale, name, group_size, num_threads))

    @property
    def shape(self) -> tuple[int, int]:
        return (self._packed.rows, self._packed.cols)

    @property
    def packing(self) -> str:
        return self._packed.packing

    @property
    def scale(self) -> npt.NDArray[np.float32]:
        return self._packed.scale

    @property
    def group_size(self) -> int | None:
        return self._packed.group_size

    @property
    def nbytes(self) -> int:
        return self._packed.nbytes

    def matmul(
        self,
        x: npt.NDArray[np.float32],
        *,
        out: npt.NDArray[np.float32] | None = None,
        num_threads: SupportsIndex | None = None,
    ) -> npt.NDArray[np.float32]:
        """Multiply activations with the weight: quantise them to int8, multiply exactly, scale.

        Parameters
        ----------
        x : ndarray of float32, shape (..., cols)
            The last axis is one token. C-contiguous and finite.
        out : ndarray of float32, shape (..., rows), optional
            Where to write the result.
        num_threads : int, optional
            At most so many threads; by default ``BITNET_NUM_THREADS``, ``OMP_NUM_THREADS`` or the CPUs of this
            process. The result does not depend on it.

        Returns
        -------
        ndarray of float32, shape (..., rows)
            About ``x @ dequantize().T``.

        Raises
        ------
        QuantizationError
            If a number of `x` is not finite; the message says where.
        TensorError, ShapeError
            If an array does not fit.

        Notes
        -----
        y = float32(sum) * (scale * (1 / a)), where sum is the exact int32 product of the codes and of
        q = round(x a), and a = 127 / max(max |x|, 1e-5).
        """
        return matmul.matmul(self._packed, x, out, num_threads)

    def matmul_float(
        self,
        x: npt.NDArray[np.float32],
        *,
        out: npt.NDArray[np.float32] | None = None,
        num_threads: SupportsIndex | None = None,
    ) -> npt.NDArray[np.float32]:
        """Multiply activations with the weight as they are, for models that were trained so.

        Parameters
        ----------
        x : ndarray of float32, shape (..., cols)
            C-contiguous.
        out : ndarray of float32, shape (..., rows), optional
        num_threads : int, optional

        Returns
        -------
        ndarray of float32, shape (..., rows)
            ``x @ dequantize().T``, the same bits on each instruction set and any number of threads.

        Raises
        ------
        TensorError, ShapeError
            If an array does not fit.
        KernelError
            If the packing is not ``"i2"``.
        """
        return matmul.matmul_float(self._packed, x, out, num_threads)

    def matmul_int(
        self,
        x: npt.NDArray[np.int8],
        *,
        out: npt.NDArray[np.int32] | None = None,
        num_threads: SupportsIndex | None = None,
    ) -> npt.NDArray[np.int32]:
        """Multiply integers with the codes; the scale takes no part.

        Parameters
        ----------
        x : ndarray of int8, shape (..., cols)
        out : ndarray of int32, shape (..., rows), optional
        num_threads : int, optional

        Returns
        -------
        ndarray of int32, shape (..., rows)
            Exact: the same bits for each packing, instruction set and number of threads.
        """
        return matmul.matmul_int(self._packed, x, out, num_threads)

    def codes(self) -> npt.NDArray[np.int8]:
        """Unpack the codes.

        Returns
        -------
        ndarray of int8, shape (rows, cols)
            -1, 0 or 1.
        """
        return self._packed.unpack()

    def dequantize(self) -> npt.NDArray[np.float32]:
        """Unpack the weight as numbers.

        Returns
        -------
        ndarray of float32, shape (rows, cols)
            Codes times scales.
        """
        return dequantize(self.codes(), self.scale, group_size=self.group_size)

    def repack(self, packing: str) -> Self:
        """Make the same weight in another packing.

        Parameters
        ----------
        packing : {"auto", "i2", "t5"}

        Returns
        -------
        TernaryWeight
        """
        return type(self).from_codes(self.codes(), self.scale, packing, group_size=self.group_size)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TernaryWeight):
            return NotImplemented
        return (
            self.shape == other.shape
            and self.group_size == other.group_size
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.codes(), other.codes())
        )

    __hash__ = None  # type: ignore[assignment]  # how Python itself says that it has none

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self  # immutable

    def __reduce__(self) -> tuple[Any, ...]:
        packed = self._packed
        data = np.array(packed.packed_bytes)
        return (_from_packed_bytes, (type(self), data, self.shape, np.array(self.scale), self.packing, self.group_size))

    def __repr__(self) -> str:
        scales = {0: "one scale", 1: "a scale per row", 2: f"a scale per {self.group_size} columns"}[self.scale.ndim]
        return f"TernaryWeight(shape={self.shape}, packing='{self.packing}', {scales}, nbytes={self.nbytes:,})"


def _from_packed_bytes(
    cls: type[TernaryWeight],
    data: npt.NDArray[np.uint8],
    shape: tuple[int, int],
    scale: npt.NDArray[np.float32],
    name: str,
    group_size: int | None,
) -> TernaryWeight:
    return cls._of(packings.from_packed_bytes(data, *shape, scale, name, group_size))


def _named(packing: str, array: Any, group_size: int | None, num_threads: SupportsIndex | None) -> str:
    if isinstance(packing, str) and packing == "auto":
        return choose_packing(getattr(array, "shape", ()), group_size, num_threads)
    return packing

