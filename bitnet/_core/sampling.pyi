from typing import final

import numpy as np
import numpy.typing as npt

@final
class History:
    vocab_size: int
    def __init__(self, vocab_size: int) -> None: ...
    def add(self, ids: npt.NDArray[np.int32], is_answer: bool) -> None: ...
    def penalize(
        self, logits: npt.NDArray[np.float32], repetition: float, frequency: float, presence: float
    ) -> None: ...

def keep_only(logits: npt.NDArray[np.float32], bits: npt.NDArray[np.int32]) -> int: ...
