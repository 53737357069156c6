from typing import Any

import numpy as np
import numpy.typing as npt

def checked(array: Any, what: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]: ...
def checked_matrix(array: Any, what: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]: ...
def checked_output(
    out: Any, shape: tuple[int, ...], dtype: npt.DTypeLike, *inputs: npt.NDArray[np.generic]
) -> npt.NDArray[Any]: ...
