"""drawing: tokens from a vocabulary of 128 256, side by side, against reading the rows and NumPy's exp of them."""

import time

import numpy as np
import pytest
from shapes import THREADS

from bitnet._core.drawing import Draws

VOCAB, ROWS = 128256, 16
WAYS = {
    "all": {}, "top_k 50": {"top_k": 50}, "top_p 0.9": {"top_p": 0.9},
    "top_k 50, top_p 0.9": {"top_k": 50, "top_p": 0.9, "temperature": 0.7}, "min_p 0.05": {"min_p": 0.05},
    "typical_p 0.9": {"typical_p": 0.9},
}  # fmt: skip


def fastest(function, rounds=9):
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("num_threads", THREADS)
def test_draws(measure, num_threads, way):
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 3, (ROWS, VOCAB)).astype(np.float32)
    draws, settings = Draws(VOCAB), WAYS[way]
    alone = []
    for row in rows:
        draws.clear()
        draws.add(row, 0.6, **settings)
        draws.make(1)
        alone.append(draws.token(0))
    draws.clear()
    for row in rows:
        draws.add(row, 0.6, **settings)
    draws.make(num_threads)
    assert [draws.token(number) for number in range(ROWS)] == alone
    measure(lambda: draws.make(num_threads), group="drawing", rounds=15, per_call=ROWS,
            columns={"what": way, "threads": num_threads},
            figures=lambda seconds: {"ms a token": f"{1e3 * seconds / ROWS:.3f}"},
            limits={"read once": lambda: fastest(lambda: rows.max(axis=1)) / num_threads,
                    "NumPy's exp": lambda: fastest(lambda: np.exp(rows)) / num_threads})  # fmt: skip
