from typing import final

import numpy as np
import numpy.typing as npt

@final
class Draws:
    vocab_size: int
    count: int
    def __init__(self, vocab_size: int) -> None: ...
    def add(
        self,
        logits: npt.NDArray[np.float32],
        uniform: float,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        typical_p: float = 1.0,
    ) -> int: ...
    def make(self, num_threads: int | None = None) -> None: ...
    def token(self, number: int) -> int: ...
    def clear(self) -> None: ...
