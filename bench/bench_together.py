"""Requests together, on the shape of 2B-4T: what many give, how long a short one waits, a second turn.

python -m pytest bench/bench_together.py -s
"""

import statistics
import threading
import time

import numpy as np
import pytest
from shapes import MODEL

import bitnet
from bitnet import EngineConfig, GenerationConfig, InferenceEngine
from bitnet._core.program import add_recorder, remove_recorder

REQUESTS = 16
TOKENS = 16


@pytest.fixture(scope="module")
def model():
    return bitnet.random_model(MODEL, EngineConfig())


def prompts(count, length, seed=0):
    return np.random.default_rng(seed).integers(5, 30_000, (count, length)).tolist()


def test_sixteen_together(model):
    """Target: at least 2.5 times the tokens a second of one."""
    config = GenerationConfig(max_new_tokens=TOKENS, eos_token_id=())
    asked = prompts(REQUESTS, 4)  # so short that one step reads them all
    with InferenceEngine(EngineConfig(prefix_cache=False)) as engine:
        expected = [engine.generate(model, prompt, config).tokens for prompt in asked[:2]]
        ratios, rates = [], []
        for _ in range(3):
            # Without the prompts: what a second of steps gives.
            one = engine.generate(model, asked[0], config)
            many = engine.generate(model, asked, config)
            assert [answer.tokens for answer in many[:2]] == expected
            alone = (TOKENS - 1) / one.generate_s
            together = REQUESTS * (TOKENS - 1) / statistics.median(answer.generate_s for answer in many)
            ratios.append(together / alone)
            rates.append((alone, together))
    alone, together = (statistics.median(column) for column in zip(*rates, strict=True))
    ratio = statistics.median(ratios)
    print(f"\n{alone:.1f} tokens/s of one request, {together:.1f} of {REQUESTS} together: {ratio:.2f}")


def test_a_short_request_beside_a_long_prompt(model):
    """Target: a short request that comes while 2000 tokens are read waits two chunks at most."""
    long, short = prompts(1, 2000)[0], prompts(1, 16, 1)[0]
    config = GenerationConfig(max_new_tokens=2, eos_token_id=())
    chunk = []

    def record(program, began, times, tokens, *_):
        chunk.append((time.perf_counter(), tokens, int(times.sum()) / 1e9))

    with InferenceEngine(EngineConfig(prefix_cache=False)) as engine:
        expected = engine.generate(model, short, config).tokens
        add_recorder(record)
        try:
            reader = threading.Thread(target=lambda: engine.generate(model, long, config))
            reader.start()
            while len(chunk) < 2:  # it is being read
                time.sleep(0.01)
            answer = engine.generate(model, short, config)
            reader.join()
        finally:
            remove_recorder(record)
    assert answer.tokens == expected
    chunks = [took for _, tokens, took in chunk if tokens >= 128]
    wait, one = answer.first_token_s, statistics.median(chunks)
    print(f"\na chunk takes {one:.2f} s, the short one's first token {wait:.2f} s: {wait / one:.2f} chunks")


def test_a_second_turn(model):
    """Target: with 1000 tokens of history its first token comes in at most 15 % of the first turn's time."""
    history, more = prompts(1, 1000)[0], prompts(1, 20, 1)[0]
    config = GenerationConfig(max_new_tokens=4, eos_token_id=())
    ratios = []
    with InferenceEngine(EngineConfig(prefix_cache=False)) as fresh:
        first = fresh.generate(model, history, config)
        turn = [*history, *first.tokens, *more]
        expected = fresh.generate(model, turn, config).tokens
    for _ in range(2):
        with InferenceEngine(EngineConfig()) as engine:
            first = engine.generate(model, history, config)
            second = engine.generate(model, turn, config)
            assert second.tokens == expected
            ratios.append(second.first_token_s / first.first_token_s)
    print(f"\nthe first turn's first token after {first.first_token_s:.2f} s, the second's {second.first_token_s:.2f}: "
          f"{max(ratios):.3f}")
