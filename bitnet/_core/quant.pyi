from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

def kernel_name() -> str: ...
def reciprocal_scales(
    w: npt.NDArray[np.float32],
    per_row: bool = False,
    group_size: int | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any: ...
def scales_of(s: Any) -> Any: ...
def ternarize(
    w: npt.NDArray[np.float32],
    s: Any,
    group_size: int | None = None,
    out: npt.NDArray[np.int8] | None = None,
    num_threads: SupportsIndex | None = None,
) -> npt.NDArray[np.int8]: ...
def quantize_activations(
    x: npt.NDArray[np.float32],
    out: npt.NDArray[np.int8] | None = None,
    num_threads: SupportsIndex | None = None,
) -> tuple[npt.NDArray[np.int8], Any]: ...
