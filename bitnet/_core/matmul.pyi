from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from bitnet._core.packing import PackedWeight

def panel_units(panels: int, threads: int) -> list[int]: ...
def matmul(
    weight: PackedWeight,
    x: npt.NDArray[np.float32],
    out: npt.NDArray[np.float32] | None = None,
    num_threads: SupportsIndex | None = None,
) -> npt.NDArray[Any]: ...
def matmul_float(
    weight: PackedWeight,
    x: npt.NDArray[np.float32],
    out: npt.NDArray[np.float32] | None = None,
    num_threads: SupportsIndex | None = None,
) -> npt.NDArray[np.float32]: ...
def matmul_int(
    weight: PackedWeight,
    x: npt.NDArray[np.int8],
    out: npt.NDArray[np.int32] | None = None,
    num_threads: SupportsIndex | None = None,
) -> npt.NDArray[Any]: ...
