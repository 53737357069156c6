"""Numbers to codes and back, for users: the face of ``_core/quant.pyx``, which has the formulas."""

from typing import SupportsIndex

import numpy as np
import numpy.typing as npt

from bitnet._core import quant as _core
from bitnet._core.arrays import as_numbers, checked, checked_group_size
from bitnet.config import QuantizationConfig
from bitnet.errors import ConfigurationError, ShapeError

__all__ = ["dequantize", "quantize_activations", "quantize_weights"]


def checked_config(config: QuantizationConfig | None, owner: str) -> QuantizationConfig:
    """Hold a configuration to its type; None is the default one."""
    if config is None:
        return QuantizationConfig()
    if not isinstance(config, QuantizationConfig):
        raise ConfigurationError.value(owner, "config", config, "a QuantizationConfig")
    return config


def quantize_weights(
    w: npt.NDArray[np.float32],
    config: QuantizationConfig | None = None,
    *,
    out: npt.NDArray[np.int8] | None = None,
    num_threads: SupportsIndex | None = None,
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Round a float weight to ternary codes by its mean magnitude (absmean).

    Parameters
    ----------
    w : ndarray of float32, shape (rows, cols)
        C-contiguous and finite.
    config : QuantizationConfig, optional
        Whether the weight, each row, or each group of columns has a scale; by default the weight.
    out : ndarray of int8, shape (rows, cols), optional
        Where to write the codes.
    num_threads : int, optional

    Returns
    -------
    codes : ndarray of int8, shape (rows, cols)
        -1, 0 or 1.
    scale : ndarray of float32, shape (), (rows,) or (rows, groups)
        What a code of 1 stands for: ``w`` is close to `dequantize` of the two.

    Raises
    ------
    QuantizationError
        If a number is not finite; the message says where.
    TensorError, ShapeError
        If an array has the wrong dtype, layout or shape.

    Notes
    -----
    m = max(mean |w|, 1e-5), s = 1 / m, codes = clamp(round(w s), -1, 1) with halves to even, scale = 1 / s; in
    float32, the mean summed in double.

    References
    ----------
    Ma et al., The Era of 1-bit LLMs, arXiv:2402.17764, section 2.
    """
    config = checked_config(config, "quantize_weights")
    s = _core.reciprocal_scales(w, config.per_channel, config.group_size, num_threads)
    return _core.ternarize(w, s, config.group_size, out, num_threads), _core.scales_of(s)


def quantize_activations(
    x: npt.NDArray[np.float32],
    *,
    out: npt.NDArray[np.int8] | None = None,
    num_threads: SupportsIndex | None = None,
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Quantise each token to int8 by its largest magnitude (absmax).

    Parameters
    ----------
    x : ndarray of float32, shape (..., cols)
        The last axis is one token. C-contiguous and finite.
    out : ndarray of int8, shape (..., cols), optional
        Where to write the integers.
    num_threads : int, optional

    Returns
    -------
    q : ndarray of int8, shape (..., cols)
        -127 to 127.
    scale : ndarray of float32, shape (...)
        `x` is close to ``q * scale[..., None]``, within half a scale.

    Raises
    ------
    QuantizationError
        If a number is not finite; the message says where. `out` may then be written in part.
    TensorError, ShapeError
        If an array has the wrong dtype, layout or shape.

    Notes
    -----
    a = 127 / max(max |x|, 1e-5), q = round(x a) with halves to even, scale = 1 / a; in float32.
    """
    return _core.quantize_activations(x, out, num_threads)


def dequantize(
    codes: npt.NDArray[np.int8], scale: npt.ArrayLike, *, group_size: int | None = None
) -> npt.NDArray[np.float32]:
    """Multiply codes with their scales.

    Parameters
    ----------
    codes : ndarray of int8, shape (rows, cols) or (..., cols)
    scale : array of float32
        For weights of shape (), (rows,), or (rows, groups) with `group_size`; for activations of shape (...).
    group_size : int, optional
        Columns that share a scale.

    Returns
    -------
    ndarray of float32, shape of `codes`

    Raises
    ------
    TensorError, ShapeError
        If `codes` is no array, or `scale` has another shape.
    """
    checked(codes, "codes", np.int8)
    factor = as_numbers(scale, "scale")
    group_size = checked_group_size(group_size)
    if group_size is not None:
        if codes.ndim != 2:
            raise ShapeError.dimensions("codes", "(rows, cols)", codes.shape)
        needed = (len(codes), -(-codes.shape[-1] // group_size))
        if factor.shape != needed:
            raise ShapeError.mismatch("scale", needed, factor.shape)
        factor = np.repeat(factor, group_size, axis=1)[:, : codes.shape[-1]]
    elif factor.ndim:
        if factor.shape != codes.shape[:-1]:
            raise ShapeError.mismatch("scale", codes.shape[:-1], factor.shape)
        factor = factor[..., None]
    numbers: npt.NDArray[np.float32] = codes.astype(np.float32) * factor
    return numbers
