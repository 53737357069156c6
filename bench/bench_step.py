"""What one step of the bundled model costs beyond its arithmetic: products, attention and head.

python -m pytest bench/bench_step.py -s
"""

import statistics

import numpy as np
import pytest

import bitnet
from bitnet._core.program import add_recorder, remove_recorder

ARITHMETIC = ("linear", "attention", "head")
STEPS = 2500
PROMPT = list(range(5, 37))


def timed_steps(num_threads):
    """(times of each operation, kinds, time of a token) of generations, in microseconds: a row of times a step.

    Recording takes time itself, so every other generation is not recorded, and the time of a token is theirs.
    """
    seen = []

    def record(program, began, times, tokens, *_):
        if tokens == 1:
            seen.append(np.array(times) / 1e3)

    with bitnet.load(num_threads=num_threads) as model:
        settings = {"max_new_tokens": 400, "eos_token_id": [], "do_sample": False, "repetition_penalty": 1.0}
        expected = model.generate(PROMPT, **settings).tokens
        walls = []
        while len(seen) < STEPS:
            done = model.generate(PROMPT, **settings)
            assert done.tokens == expected
            walls.append(done.generate_s * 1e6 / (len(done.tokens) - 1))
            add_recorder(record)
            try:
                assert model.generate(PROMPT, **settings).tokens == expected
            finally:
                remove_recorder(record)
        kinds = model.model.program.kinds
    return np.array(seen), kinds, statistics.median(walls)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_step(num_threads):
    """Target: 30 us beyond the arithmetic, the choice of the token and its text included."""
    times, kinds, wall = timed_steps(num_threads)
    step = np.median(times, axis=0)  # the checks before, each operation, the look at the logits
    arithmetic = sum(one for one, kind in zip(step[1:-1], kinds, strict=True) if kind in ARITHMETIC)
    others = step[1:-1].sum() - arithmetic
    print(
        f"\n{num_threads} threads: a token {wall:.0f} us, of which products, attention and head {arithmetic:.0f} us, "
        f"other operations {others:.0f} us, the engine around them {wall - arithmetic - others:.0f} us"
    )
    assert arithmetic > 0
