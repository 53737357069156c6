from collections.abc import Callable
from typing import Any, SupportsIndex, final

import numpy as np
import numpy.typing as npt

from bitnet._core.batch import Batch
from bitnet._core.builder import Builder

PAGE_TOKENS: int
DTYPES: dict[str, int]

def add_recorder(function: Callable[..., object]) -> None: ...
def remove_recorder(function: Callable[..., object]) -> None: ...

@final
class Program:
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    widths: tuple[int, ...]
    operations: list[dict[str, Any]]
    windows: tuple[int, ...]
    vocab_size: int
    scratch_token_bytes: int
    def __init__(self, builder: Builder, kv_dtype: str = "float16") -> None: ...
    def work(
        self, tokens: int, outputs: int, attended: int, read: int, within: dict[int, tuple[int, int]] | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]: ...
    @property
    def page_bytes(self) -> int: ...
    @property
    def context(self) -> int: ...

@final
class Execution:
    program: Program
    max_tokens: int
    observer: Callable[[int, npt.NDArray[np.float32], npt.NDArray[np.float32] | None], object] | None
    def __init__(self, program: Program, max_tokens: SupportsIndex) -> None: ...
    def cancel(self) -> None: ...
    def forget_cancel(self) -> None: ...
    def run(
        self,
        ids: npt.NDArray[np.int32],
        positions: npt.NDArray[np.int32],
        sequences: npt.NDArray[np.int32],
        pages: list[npt.NDArray[np.uint64]],
        outputs: npt.NDArray[np.int32],
        num_threads: SupportsIndex | None = None,
    ) -> npt.NDArray[np.float32] | None: ...
    def step(
        self, batch: Batch, num_threads: SupportsIndex | None = None, seconds: float | None = None
    ) -> None: ...
    def last_hidden(self, tokens: int) -> npt.NDArray[np.float32]: ...
    def _values(self, index: int, tokens: int) -> npt.NDArray[np.float32]: ...
