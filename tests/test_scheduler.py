"""Requests together: each answer is the one it would have alone, whatever else is asked for, cancelled or fails."""

import gc
import os
import threading
import time

import numpy as np
import pytest
from checkpoints import DATA

import bitnet
from bitnet import GenerationConfig
from bitnet._core.memory import new_block
from bitnet._core.program import add_recorder, remove_recorder
from bitnet.engine import InferenceEngine

NAME = "bitnet-packed-auto"
EXACT = {"kv_dtype": "float32", "head_dtype": "float32", "num_threads": 1}
FEW = GenerationConfig(max_new_tokens=12, eos_token_id=())


@pytest.fixture(scope="module")
def model():
    with InferenceEngine(bitnet.EngineConfig(**EXACT)) as one:
        yield one.load_model(DATA / NAME)


@pytest.fixture
def engine(model):
    with InferenceEngine(bitnet.EngineConfig(**EXACT)) as one:
        yield one


def prompts(count, seed=0, longest=80):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 500, rng.integers(1, longest)).tolist() for _ in range(count)]


def configs(count, seed=1):
    """Different lengths and ways to choose."""
    rng = np.random.default_rng(seed)
    ways = [
        {}, {"do_sample": True}, {"do_sample": True, "temperature": 2.0, "top_p": 0.9}, {"repetition_penalty": 1.3},
        {"do_sample": True, "top_k": 5, "min_p": 0.01},
        {"min_new_tokens": 3, "eos_token_id": list(range(0, 512, 2))},
    ]  # fmt: skip
    made = []
    for number in range(count):
        way = ways[number % len(ways)]
        seed = {"seed": number} if way.get("do_sample") else {}
        made.append(GenerationConfig(**{"eos_token_id": (), "max_new_tokens": int(rng.integers(3, 40)), **way, **seed}))
    return made


def alone(model, prompt, config, **engine):
    with InferenceEngine(bitnet.EngineConfig(**{**EXACT, **engine})) as one:
        return one.generate(model, prompt, config)


def facts(completion):
    return completion.tokens, completion.text, completion.finish_reason, completion.prompt_tokens


def pages_in_use(engine):
    return sum(one.cache.used for one in engine._schedulers.values())


# ---- together as alone


@pytest.mark.parametrize("settings", [
    {}, {"max_batch_size": 3}, {"max_batch_tokens": 32, "prefill_chunk": 7}, {"num_threads": 2},
    {"prefix_cache": False}, {"max_kv_tokens": 256}, {"max_kv_tokens": 192, "max_batch_size": 8, "prefix_cache": False},
], ids=str)  # fmt: skip
def test_each_answer_of_a_batch_is_the_one_it_has_alone(model, settings):
    asked, how = prompts(16), configs(16)
    with InferenceEngine(bitnet.EngineConfig(**{**EXACT, **settings})) as engine:
        together = engine.generate(model, asked, how)
        assert pages_in_use(engine) == 0
    for prompt, config, answer in zip(asked, how, together, strict=True):
        assert answer.error is None
        assert facts(answer) == facts(alone(model, prompt, config, prefix_cache=False))


def test_streams_read_in_turn_are_those_read_alone(engine, model):
    asked, how = prompts(5, seed=3), configs(5)
    streams = [engine.stream(model, prompt, config) for prompt, config in zip(asked, how, strict=True)]
    tokens, open_ones = [[] for _ in streams], set(range(5))
    while open_ones:
        for number in sorted(open_ones):
            piece = next(streams[number], None)
            if piece is None:
                open_ones.discard(number)
            elif piece.token is not None:
                tokens[number].append(piece.token)
    for prompt, config, stream, found in zip(asked, how, streams, tokens, strict=True):
        assert found == stream.completion.tokens == alone(model, prompt, config).tokens


def test_many_threads_get_what_each_would_have_alone(engine, model):
    asked, how, found = prompts(12, seed=4), configs(12), {}

    def ask(number):
        if number % 3:
            found[number] = engine.generate(model, asked[number], how[number]).tokens
        else:
            found[number] = [piece.token for piece in engine.stream(model, asked[number], how[number])]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {number: alone(model, asked[number], how[number]).tokens for number in range(12)}
    assert pages_in_use(engine) == 0


def test_logits_of_texts_come_beside_answers(engine, model):
    texts = prompts(4, seed=5)
    stream = engine.stream(model, [5, 6, 7], FEW)
    next(stream)
    together = engine.infer_batch(model, texts)
    for text, found in zip(texts, together, strict=True):
        np.testing.assert_array_equal(found, engine.infer(model, text))
    assert stream.completion.tokens[: len(list(stream)) + 1] == alone(model, [5, 6, 7], FEW).tokens


# ---- pages that texts share


def test_a_prompt_that_was_read_before_is_not_read_again(engine, model):
    shared = prompts(1, seed=6, longest=2)[0] * 100
    first = engine.generate(model, [*shared, 7], FEW)
    again = engine.generate(model, [*shared, 8, 9], FEW)
    assert (first.cached_tokens, again.cached_tokens) == (0, 100)
    assert facts(again) == facts(alone(model, [*shared, 8, 9], FEW, prefix_cache=False))
    # The next turn of a conversation begins with the answer, too.
    turn = [*shared, 8, 9, *again.tokens, 11, 12]
    third = engine.generate(model, turn, FEW)
    assert third.cached_tokens == len(turn) - 3  # the last token of the answer was never computed
    assert facts(third) == facts(alone(model, turn, FEW, prefix_cache=False))


def test_what_prompts_of_one_batch_share_is_computed_once(model):
    system = prompts(1, seed=7, longest=2)[0] * 70
    asked = [[*system, 20 + number] for number in range(6)]
    steps = []

    def record(program, began, times, tokens, *_):
        steps.append(tokens)

    one = GenerationConfig(max_new_tokens=2, eos_token_id=())
    with InferenceEngine(bitnet.EngineConfig(**EXACT)) as engine:
        add_recorder(record)
        try:
            answers = engine.generate(model, asked, one)
        finally:
            remove_recorder(record)
    assert sum(steps) == 64 + 6 * 7 + 6  # the whole page once, and what each does not share, or only in part of one
    assert [answer.tokens for answer in answers] == [alone(model, prompt, one).tokens for prompt in asked]


def test_without_sharing_nothing_is_found(model):
    with InferenceEngine(bitnet.EngineConfig(**EXACT, prefix_cache=False)) as engine:
        for _ in range(2):
            assert engine.generate(model, [5] * 90, FEW).cached_tokens == 0


def test_too_few_pages_pause_the_youngest_which_loses_nothing(model):
    asked = [[number + 3] * 60 for number in range(4)]
    config = GenerationConfig(max_new_tokens=60, eos_token_id=(), do_sample=True, seed=3)
    with InferenceEngine(bitnet.EngineConfig(**EXACT, max_kv_tokens=256)) as engine:
        answers = engine.generate(model, asked, config)
        scheduler = engine._schedulers[model]
        assert scheduler.pauses > 0
        assert scheduler.cache.pages <= 4
    assert [facts(one) for one in answers] == [facts(alone(model, prompt, config)) for prompt in asked]


# ---- one at a time


def test_a_full_queue_refuses(model):
    with InferenceEngine(bitnet.EngineConfig(**EXACT, max_queue=2, max_batch_size=1)) as engine:
        first, second = engine.stream(model, [5], FEW), engine.stream(model, [6], FEW)
        with pytest.raises(bitnet.QueueFullError) as caught:
            engine.stream(model, [7], FEW)
        assert caught.value.facts == {"waiting": 2}
        next(first)  # it waits no longer
        third = engine.stream(model, [7], FEW)
        assert [len(list(one)) for one in (first, second, third)] == [11, 12, 12]
        # A list waits for its own turn.
        assert len(engine.generate(model, prompts(9), FEW)) == 9


def test_a_higher_priority_begins_first(model):
    with InferenceEngine(bitnet.EngineConfig(**EXACT, max_batch_size=1)) as engine:
        low, high = engine.stream(model, [5], FEW), engine.stream(model, [6], FEW, priority=1)
        next(low)  # nobody runs yet: this drives
        assert high.completion.finish_reason == "length"
        assert low.completion.finish_reason is None


def test_a_short_prompt_is_answered_while_a_long_one_is_read(model):
    with InferenceEngine(bitnet.EngineConfig(**EXACT, max_batch_tokens=32)) as engine:
        long = engine.stream(model, [5] * 110, FEW)
        short = engine.stream(model, [6, 7], FEW)
        next(short)
        assert long.completion.prompt_s == 0.0  # it is still being read
        assert len(list(long)) == 12


def test_who_does_not_read_does_not_hold_others_up(model):
    many = GenerationConfig(max_new_tokens=120, eos_token_id=())
    with InferenceEngine(bitnet.EngineConfig(**EXACT, max_batch_size=2)) as engine:
        idle = [engine.stream(model, [number], many) for number in range(5, 9)]
        for one in idle:
            next(one)
        assert engine.generate(model, [9], many).tokens == alone(model, [9], many).tokens
        assert all(len(one.completion.tokens) < 120 for one in idle)
        assert [len(list(one)) for one in idle] == [119] * 4


# ---- ends


def test_a_closed_stream_ends_its_request(engine, model):
    stream = engine.stream(model, [5, 6], FEW)
    next(stream)
    stream.close()
    assert stream.completion.finish_reason == "cancelled"
    assert list(stream) == []
    assert pages_in_use(engine) == 0


def test_a_dropped_stream_ends_its_request(engine, model):
    stream = engine.stream(model, [5, 6], FEW)
    next(stream)
    completion = stream.completion
    del stream
    gc.collect()
    assert completion.finish_reason == "cancelled"
    assert pages_in_use(engine) == 0


def test_a_cancelled_stream_gives_what_has_come(engine, model):
    first, second = engine.stream(model, [5], FEW), engine.stream(model, [6], FEW)
    for _ in range(3):
        next(first)
    second.cancel()
    assert len(list(second)) == 3
    assert second.completion.finish_reason == "cancelled"
    assert len(list(first)) == 9


class Operations:
    """Looks at the operations of an engine's steps; at one of the first, where prompts are read, it does something."""

    def __init__(self, engine, model, at, act):
        self.execution = engine._scheduler(model).execution
        self.execution.observer = self
        self.at, self.act, self.seen, self.acted = at, act, 0, None

    def __call__(self, number, *_):
        self.seen += 1
        if self.seen == self.at:
            self.acted = (number, self.execution.program.names[number])
            self.act()


def test_a_prompt_can_be_cancelled_while_it_is_read(engine, model):
    stream = engine.stream(model, [5] * 110, FEW)
    looked = Operations(engine, model, 7, stream.cancel)
    assert list(stream) == []
    assert stream.completion.finish_reason == "cancelled"
    assert (looked.seen, looked.acted[0]) == (7, 6)  # the operation after it was not begun
    assert pages_in_use(engine) == 0


def test_a_prompt_can_run_out_of_time_while_it_is_read(engine, model):
    stream = engine.stream(model, [5] * 110, FEW, timeout=0.2)
    looked = Operations(engine, model, 7, lambda: time.sleep(0.25))
    assert list(stream) == []
    assert stream.completion.finish_reason == "timeout"
    assert (looked.seen, looked.acted[0]) == (7, 6)
    looked.execution.observer = None
    assert pages_in_use(engine) == 0
    assert engine.generate(model, [5] * 110, FEW, timeout=60).tokens == alone(model, [5] * 110, FEW).tokens


def test_a_step_that_is_another_one_s_for_the_most_part_goes_on(engine, model):
    # The late one would take the others' work with it, which had to be done again.
    short = engine.stream(model, [5], FEW, timeout=0.2)
    long = engine.stream(model, [7] * 100, FEW)
    looked = Operations(engine, model, 7, lambda: time.sleep(0.25))
    found = [piece.token for piece in long]
    assert looked.acted is not None
    assert len(list(short)) <= 1  # of the step that it was in
    assert short.completion.finish_reason == "timeout"
    assert found == alone(model, [7] * 100, FEW).tokens
    assert looked.seen % len(looked.execution.program.names) == 0  # no step was broken off


@pytest.mark.parametrize("timeout", [0.0, 0.05])
def test_a_timeout_ends_with_what_there_is(engine, model, timeout):
    slow = GenerationConfig(max_new_tokens=100, eos_token_id=())
    answer = engine.generate(model, [5], slow, timeout=timeout, logits_processor=lambda *_: time.sleep(0.01))
    assert answer.finish_reason == "timeout"
    assert answer.tokens == alone(model, [5], slow).tokens[: len(answer.tokens)]
    assert len(answer.tokens) <= timeout / 0.01 + 1
    assert pages_in_use(engine) == 0


def test_an_error_is_its_own_request_s_only(engine, model):
    def fail(ids, logits):
        if ids[0] == 6:
            raise ValueError("no")

    answers = engine.generate(model, [[5], [6], [7], [], [600]], FEW, logits_processor=fail)
    assert [type(one.error).__name__ for one in answers] == [
        "NoneType", "ValueError", "NoneType", "InferenceError", "InferenceError"
    ]  # fmt: skip
    assert [one.finish_reason for one in answers] == ["length", "error", "length", "error", "error"]
    assert answers[2].tokens == alone(model, [7], FEW).tokens
    with pytest.raises(ValueError, match="no"):
        engine.generate(model, [6], FEW, logits_processor=fail)
    stream = engine.stream(model, [6], FEW, logits_processor=fail)
    with pytest.raises(ValueError, match="no"):
        list(stream)
    assert list(stream) == []
    assert pages_in_use(engine) == 0


def test_a_processor_changes_the_logits_or_gives_others(engine, model):
    def change(ids, logits):
        logits[:] = 0
        logits[100 + len(ids)] = 1

    def give(ids, logits):
        return np.eye(512, dtype=np.float64)[100 + len(ids)]

    for processor in (change, give):
        assert engine.generate(model, [5, 6], FEW, logits_processor=processor).tokens == list(range(102, 114))


def test_what_a_callback_raises_ends_its_own_answer(engine, model):
    seen = []

    def look(piece):
        seen.append(piece)
        if len(seen) == 4:
            raise KeyError("enough")

    with pytest.raises(KeyError):
        engine.generate(model, [[5], [6]], FEW, on_piece=look)
    assert pages_in_use(engine) == 0
    assert {piece.number for piece in seen} == {0, 1}
    seen.clear()
    stream = engine.stream(model, [5], FEW, on_piece=look)
    with pytest.raises(KeyError):
        list(stream)
    assert stream.completion.finish_reason == "cancelled"
    assert engine.generate(model, [5], FEW).tokens == alone(model, [5], FEW).tokens


def test_closing_an_engine_ends_what_runs(model):
    engine = InferenceEngine(bitnet.EngineConfig(**EXACT))
    stream = engine.stream(model, [5], FEW)
    next(stream)
    engine.close()
    with pytest.raises(bitnet.InferenceError, match="closed"):
        list(stream)
    with pytest.raises(bitnet.InferenceError, match="closed"):
        engine.stream(model, [5], FEW)


def test_lists_have_a_configuration_each_or_one_for_all(engine, model):
    assert engine.generate(model, [[5]], [FEW])[0].tokens == alone(model, [5], FEW).tokens
    with pytest.raises(bitnet.ConfigurationError, match="2 prompts have 1 configurations"):
        engine.generate(model, [[5], [6]], [FEW])


def test_a_child_process_goes_on_by_itself(engine, model):
    stream = engine.stream(model, [5], FEW)
    next(stream)
    expected = alone(model, [5], FEW).tokens
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        right = [piece.token for piece in stream] == expected[1:]
        right &= engine.generate(model, [5], FEW).tokens == expected
        os.write(writer, b"1" if right else b"0")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 1) == b"1"
    assert [piece.token for piece in stream] == expected[1:]


def test_the_pool_being_full_pauses_too(model):
    pool = bitnet.HybridMemoryPool.instance()
    asked = [[number + 3] * 60 for number in range(3)]
    config = GenerationConfig(max_new_tokens=60, eos_token_id=())
    with InferenceEngine(bitnet.EngineConfig(**EXACT, prefix_cache=False)) as engine:
        engine.generate(model, asked[0], config)  # pages for one, kept for the next
        new_block(1)
        pool.limit = pool.get_stats().allocated + model.program.page_bytes
        try:
            answers = engine.generate(model, asked, config)
        finally:
            pool.limit = None
    assert [facts(one) for one in answers] == [facts(alone(model, prompt, config)) for prompt in asked]


def test_a_cancel_ends_prompts_that_have_not_begun(model):
    with InferenceEngine(bitnet.EngineConfig(**EXACT, max_batch_size=1)) as one:
        answers = one.generate(model, prompts(10), FEW, on_piece=lambda piece: one.cancel())
        assert {str(answer.error.message) for answer in answers} == {"the request was cancelled"}
        assert one.generate(model, [5], FEW).finish_reason == "length"  # what begins later is not concerned


def test_a_cancel_that_comes_late_hits_nobody_else(engine, model):
    expected = alone(model, [5], FEW).tokens
    scheduler = engine._scheduler(model)
    is_over = threading.Event()

    def cancel():
        while not is_over.wait(2e-4):
            scheduler.execution.cancel()  # as one that was meant for a request that has just ended

    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        for _ in range(20):
            assert engine.generate(model, [5], FEW).tokens == expected
    finally:
        is_over.set()
        thread.join()


def test_a_younger_request_does_not_make_an_older_one_pause(model):
    long = GenerationConfig(max_new_tokens=100, eos_token_id=())
    with InferenceEngine(bitnet.EngineConfig(**EXACT, max_kv_tokens=128, prefix_cache=False)) as engine:
        old = engine.stream(model, [5] * 60, GenerationConfig(max_new_tokens=60, eos_token_id=()))
        next(old)
        young = engine.stream(model, [6], long)
        rest = [piece.token for piece in old]
        assert old.completion.tokens[1:] == rest
        assert old._request.sequence is None
        assert [piece.token for piece in young] == alone(model, [6], long).tokens
        assert rest == alone(model, [5] * 60, GenerationConfig(max_new_tokens=60, eos_token_id=())).tokens[1:]


# ---- of the head only what is looked at


@pytest.mark.parametrize("ways", [
    [{}], [{"do_sample": True, "top_k": 5, "temperature": 1.5}],
    [{}, {"do_sample": True, "top_k": 40, "top_p": 0.9, "min_p": 0.01}, {"do_sample": True, "top_k": 1}],
    [{}, {"do_sample": True}],  # one that may choose any token, so all logits are computed
], ids=["greedy", "top-k", "mixed", "all"])  # fmt: skip
def test_a_head_that_leaves_out_what_nobody_looks_at_gives_the_same_answers(ways):
    with bitnet.load(num_threads=2) as loaded:
        model, engine = loaded.model, loaded.engine
        made = [GenerationConfig(max_new_tokens=20, eos_token_id=(), repetition_penalty=1.0, seed=number, **way)
                for number, way in enumerate(ways * 8)][:8]  # fmt: skip
        asked = [model.encode(f"Once there was a {word}") for word in
                 ("cat", "dog", "bird", "frog", "girl", "boy", "tree", "king")]  # fmt: skip
        alone = [engine.generate(model, one, config).tokens for one, config in zip(asked, made, strict=True)]
        table = model.program.operations[-1]["table"]
        assert table.reach is None  # alone nothing is left out
        threads, found = [], {}
        for number, (one, config) in enumerate(zip(asked, made, strict=True)):
            def ask(number=number, one=one, config=config):
                found[number] = engine.generate(model, one, config).tokens
            threads.append(threading.Thread(target=ask))
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert [found[number] for number in range(8)] == alone
        many = engine.generate(model, asked, made[0])
        assert many[0].tokens == alone[0]
        assert table.reach is not None
