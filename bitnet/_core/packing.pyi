from typing import NoReturn, SupportsIndex, final

import numpy as np
import numpy.typing as npt

PACKINGS: tuple[str, ...]

@final
class PackedWeight:
    rows: int
    cols: int
    group_size: int | None
    scale: npt.NDArray[np.float32]
    def __init__(self, /, *args: object, **kwargs: object) -> NoReturn: ...  # made by pack_codes and the like
    @property
    def packing(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def packed_bytes(self) -> npt.NDArray[np.uint8]: ...
    def unpack(self, num_threads: SupportsIndex | None = None) -> npt.NDArray[np.int8]: ...

def kernel_name(packing: str) -> str: ...
def tile_cols(packing: str) -> int: ...
def pack_codes(
    codes: npt.NDArray[np.int8],
    scale: npt.ArrayLike,
    packing: str,
    group_size: int | None = None,
    num_threads: SupportsIndex | None = None,
) -> PackedWeight: ...
def pack_hugging_face_bytes(
    data: npt.NDArray[np.uint8],
    scale: npt.ArrayLike,
    packing: str,
    num_threads: SupportsIndex | None = None,
) -> PackedWeight: ...
def pack_numbers(
    w: npt.NDArray[np.float32],
    s: npt.ArrayLike,
    packing: str,
    group_size: int | None = None,
    num_threads: SupportsIndex | None = None,
) -> PackedWeight: ...
def view_packed_bytes(
    data: npt.NDArray[np.uint8],
    rows: int,
    cols: int,
    scale: npt.ArrayLike,
    packing: str,
    group_size: int | None = None,
) -> PackedWeight: ...
def from_packed_bytes(
    data: npt.NDArray[np.uint8],
    rows: int,
    cols: int,
    scale: npt.ArrayLike,
    packing: str,
    group_size: int | None = None,
) -> PackedWeight: ...
