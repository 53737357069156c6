"""Random schedules against a model of the scheduler: who comes, reads, cancels, closes, fails or is late;
and a mixed batch of 32.
"""

import contextlib
import gc
import threading

import numpy as np
import pytest
from checkpoints import DATA
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test

import bitnet
from bitnet import EngineConfig, GenerationConfig, Grammar, InferenceEngine
from bitnet._core import memory

EXACT = {"kv_dtype": "float32", "head_dtype": "float32", "num_threads": 1}
MODEL = InferenceEngine(EngineConfig(**EXACT)).load_model(DATA / "bitnet-packed-auto")
# Few prompts, so that some begin alike: of one token, of a page and more, of the same page and another end.
PROMPTS = [[5], [6, 7], [8] * 70, [8] * 69 + [9], [8] * 64 + [4] * 20, list(range(3, 103)), [11] * 30, [11] * 30 + [12]]
WAYS = [
    {"max_new_tokens": 1}, {"max_new_tokens": 10}, {"max_new_tokens": 28}, {"max_new_tokens": 90},
    {"max_new_tokens": 12, "do_sample": True, "seed": 3}, {"max_new_tokens": 20, "repetition_penalty": 1.3},
    {"max_new_tokens": 15, "do_sample": True, "temperature": 3.0, "top_p": 0.9, "seed": 8},
]  # fmt: skip
CONFIGS = [GenerationConfig(eos_token_id=(), **way) for way in WAYS]
KNOWN = {}


def alone(prompt, config):
    """The answer that a prompt has when nothing else runs, and nothing is remembered."""
    if (prompt, config) not in KNOWN:
        with InferenceEngine(EngineConfig(**EXACT, prefix_cache=False)) as engine:
            KNOWN[prompt, config] = engine.generate(MODEL, PROMPTS[prompt], CONFIGS[config]).tokens
    return KNOWN[prompt, config]


class Fails:
    """A processor of logits that raises at some token, and changes nothing before."""

    def __init__(self, at):
        self.at = at

    def __call__(self, ids, logits):
        if len(ids) >= self.at:
            raise ZeroDivisionError("at last")


class Schedules(RuleBasedStateMachine):
    """What is expected of each stream is kept beside it; the engine has pages for two long ones."""

    streams = Bundle("streams")

    @staticmethod
    def settings():
        return {"max_kv_tokens": 256, "max_batch_size": 3, "max_queue": 6, "prefill_chunk": 24, "max_batch_tokens": 48}

    def __init__(self):
        super().__init__()
        self.engine = InferenceEngine(EngineConfig(**EXACT, **self.settings()))
        self.open = []

    @rule(target=streams, prompt=st.integers(0, len(PROMPTS) - 1), config=st.integers(0, len(CONFIGS) - 1),
          priority=st.integers(-1, 1), fails=st.sampled_from([None, None, None, 0, 3]),
          timeout=st.sampled_from([None, None, None, 0.0, 100.0]))  # fmt: skip
    def arrive(self, prompt, config, priority, fails, timeout):
        processor = None if fails is None else Fails(len(PROMPTS[prompt]) + fails)
        try:
            stream = self.engine.stream(MODEL, PROMPTS[prompt], CONFIGS[config], priority=priority, timeout=timeout,
                                        logits_processor=processor)  # fmt: skip
        except bitnet.QueueFullError:
            # No more wait than may; those that ended are taken out first.
            assert self.waiting() >= 6
            return {"stream": None, "over": True}
        entry = {"stream": stream, "over": False, "expected": alone(prompt, config), "read": [], "fails": fails,
                 "timeout": timeout, "cancelled": False}  # fmt: skip
        self.open.append(entry)
        return entry

    def waiting(self):
        scheduler = self.engine._scheduler(MODEL)
        return len(scheduler._waiting) + len(scheduler._arrivals)

    @rule(entry=streams, count=st.integers(1, 40))
    def read(self, entry, count):
        if entry["over"]:
            return
        for _ in range(count):
            try:
                piece = next(entry["stream"], None)
            except ZeroDivisionError:
                assert entry["fails"] is not None
                assert len(entry["read"]) == entry["fails"]
                assert entry["stream"].completion.finish_reason == "error"
                piece = None
            if piece is None:
                self.check_end(entry)
                return
            entry["read"].append(piece.token)
        assert entry["read"] == entry["expected"][: len(entry["read"])]

    def forget(self, entry):
        entry["over"], entry["stream"] = True, None
        self.open.remove(entry)

    def check_end(self, entry):
        completion = entry["stream"].completion
        assert entry["read"] == completion.tokens == entry["expected"][: len(entry["read"])]
        reason = completion.finish_reason
        if reason == "length":
            assert entry["read"] == entry["expected"]
        elif reason == "timeout":
            assert entry["timeout"] == 0.0
        else:
            # It may have failed before it was cancelled, when another stream was read.
            assert (reason, True) in (("cancelled", entry["cancelled"]), ("error", entry["fails"] is not None))
        self.forget(entry)

    @rule(entry=streams)
    def cancel(self, entry):
        if not entry["over"]:
            entry["cancelled"] = True
            entry["stream"].cancel()

    @rule(entry=consumes(streams))
    def close(self, entry):
        if not entry["over"]:
            entry["stream"].close()
            assert list(entry["stream"]) == []
            assert entry["stream"].completion.finish_reason is not None
            self.forget(entry)

    @rule(entry=consumes(streams))
    def drop(self, entry):
        if not entry["over"]:
            self.forget(entry)
            gc.collect(0)

    @rule(prompts=st.lists(st.integers(0, len(PROMPTS) - 1), min_size=1, max_size=4))
    def ask_for_a_list(self, prompts):
        answers = self.engine.generate(MODEL, [PROMPTS[one] for one in prompts], CONFIGS[1])
        for prompt, answer in zip(prompts, answers, strict=True):
            if isinstance(answer.error, bitnet.QueueFullError):  # others wait, and read nothing
                continue
            assert answer.tokens == alone(prompt, 1)

    @rule(at=st.integers(0, 5))
    def raise_in_a_callback(self, at):
        seen = []

        def look(piece):
            seen.append(piece)
            if len(seen) > at:
                raise KeyError("enough")

        try:
            self.engine.generate(MODEL, PROMPTS[1], CONFIGS[1], on_piece=look)
        except KeyError:
            assert len(seen) == at + 1
        except bitnet.QueueFullError:
            assert not seen

    @rule()
    def logits_of_a_text(self):
        try:
            found = self.engine.infer(MODEL, PROMPTS[5])
        except bitnet.QueueFullError:
            return
        np.testing.assert_array_equal(found, logits())

    @rule()
    def cancel_all(self):
        self.engine.cancel()
        for entry in list(self.open):
            with contextlib.suppress(bitnet.InferenceError, ZeroDivisionError):
                entry["read"] += [piece.token for piece in entry["stream"]]
            assert entry["read"] == entry["expected"][: len(entry["read"])]
            self.forget(entry)

    @invariant()
    def no_page_is_lost(self):
        scheduler = self.engine._schedulers.get(MODEL)
        if scheduler is None:
            return
        cache = scheduler.cache
        running = [one.sequence for one in scheduler._running if one.sequence is not None]
        used = {id(page) for sequence in running for page in sequence._pages}
        assert cache.used == len(used)
        assert cache.pages <= 4
        if not self.open:
            assert not [one for one in scheduler._running if not one.has_ended and not one.is_cancelled]

    def teardown(self):
        for entry in list(self.open):
            rest, entry["stream"] = entry["stream"], None
            try:
                tokens = entry["read"] + [piece.token for piece in rest]
            except ZeroDivisionError:
                continue
            finally:
                del rest
            assert tokens == entry["expected"][: len(tokens)]
        scheduler = self.engine._schedulers.get(MODEL)
        if scheduler is not None:
            assert scheduler.cache.used == 0
            assert self.waiting() == len(scheduler._running) == 0
        assert self.engine.generate(MODEL, PROMPTS[2], CONFIGS[1]).tokens == alone(2, 1)
        self.engine.close()
        del scheduler
        self.engine = None
        gc.collect()
        assert memory.statistics()["live_blocks"] == level()


def logits(known=[]):  # noqa: B006 - computed once
    if not known:
        with InferenceEngine(EngineConfig(**EXACT)) as engine:
            known.append(engine.infer(MODEL, PROMPTS[5]))
    return known[0]


def level(known=[]):  # noqa: B006
    """Live blocks when no engine is open."""
    if not known:
        gc.collect()
        known.append(memory.statistics()["live_blocks"])
    return known[0]


def test_a_thousand_random_schedules():
    logits()
    for prompt in range(len(PROMPTS)):
        for config in range(len(CONFIGS)):
            alone(prompt, config)
    level()
    gc.freeze()  # each schedule collects all garbage: what is here now need not be looked at
    try:
        # Each has up to so many of the rules above.
        some = settings(max_examples=1000, stateful_step_count=8, phases=[Phase.generate, Phase.shrink])
        run_state_machine_as_test(Schedules, settings=some)
    finally:
        gc.unfreeze()


# ---- a mixed batch


@pytest.fixture(scope="module")
def bundled():
    with bitnet.load(num_threads=1) as one:
        yield one.model


TEXTS = ["Once upon a time", "The little fox", "One day, Tom and Mia went to the park", "She", "A big dog saw a cat"]


def mixed_requests():
    """32 requests: different lengths and samplers, some of a schema, some cancelled on the way."""
    rng = np.random.default_rng(5)
    grammars = [
        Grammar.json_schema({"type": "object", "properties": {"name": {"type": "string", "maxLength": 6}},
                             "required": ["name"], "additionalProperties": False}),
        Grammar.regex("[a-z]{4,9}( [a-z]{2,5}){2}"),
    ]  # fmt: skip
    for number in range(32):
        way = [
            {}, {"do_sample": True, "seed": number}, {"do_sample": True, "seed": number, "top_p": 0.8, "top_k": 0},
            {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3}, {"stop_strings": ["."]},
            {"do_sample": True, "typical_p": 0.9, "min_p": 0.02, "seed": 1}, {"frequency_penalty": 0.7, "logprobs": 2},
            {"prompt_lookup_num_tokens": 5},
        ][number % 8]  # fmt: skip
        text = TEXTS[number % 5] + " and so on" * int(rng.integers(0, 40))
        config = GenerationConfig(max_new_tokens=int(rng.integers(1, 60)), **way)
        yield text, config, grammars[number % 2] if number % 5 == 2 else None, number % 8 == 5


@pytest.mark.parametrize("settings", [
    {}, {"prefix_cache": False}, {"num_threads": 2}, {"max_kv_tokens": 1024, "max_batch_size": 12},
    {"prefill_chunk": 5, "max_batch_tokens": 40},
], ids=str)  # fmt: skip
def test_each_of_32_different_requests_is_what_it_is_alone(bundled, settings):
    requests = list(mixed_requests())
    with InferenceEngine(EngineConfig(**{"num_threads": 1, **settings})) as engine:
        streams = [engine.stream(bundled, text, config, grammar=grammar) for text, config, grammar, _ in requests]

        def consume(number):
            for count, _ in enumerate(streams[number]):
                if requests[number][3] and count == 4:
                    streams[number].close()

        threads = [threading.Thread(target=consume, args=(number,)) for number in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive()
        assert all(one.cache.used == 0 for one in engine._schedulers.values())
    for (text, config, grammar, is_cancelled), stream in zip(requests, streams, strict=True):
        answer, expected = stream.completion, lone(bundled, text, config, grammar)
        if is_cancelled:
            assert answer.tokens == expected.tokens[: len(answer.tokens)]
        else:
            assert (answer.tokens, answer.text, answer.finish_reason) == (expected.tokens, expected.text,
                                                                          expected.finish_reason)  # fmt: skip
            assert answer.top_logprobs == expected.top_logprobs


def lone(model, text, config, grammar, known={}):  # noqa: B006
    key = text, config, grammar
    if key not in known:
        with InferenceEngine(EngineConfig(num_threads=1, prefix_cache=False)) as engine:
            known[key] = engine.generate(model, text, config, grammar=grammar)
    return known[key]
