"""Streams in an event loop, and for streamers of Transformers."""

import asyncio
import threading

import numpy as np
import pytest
from checkpoints import DATA

import bitnet
from bitnet import GenerationConfig

EXACT = {"kv_dtype": "float32", "head_dtype": "float32", "num_threads": 1}
MANY = GenerationConfig(max_new_tokens=40, eos_token_id=())


@pytest.fixture(scope="module")
def loaded():
    with bitnet.load(DATA / "bitnet-packed-auto", **EXACT) as one:
        yield one


async def tokens_of(stream):
    return [piece.token async for piece in stream]


def used(loaded):
    return sum(one.cache.used for one in loaded.engine._schedulers.values())


def settle(loaded, timeout=10.0):
    """Wait until the thread that drives for event loops has gone."""
    for scheduler in loaded.engine._schedulers.values():
        thread = scheduler._thread
        if thread is not None:
            thread.join(timeout)
            assert not thread.is_alive()


def test_tasks_get_what_each_would_have_alone(loaded):
    prompts = [[number, 7, 8] for number in range(5, 12)]
    expected = [loaded.generate(prompt, MANY).tokens for prompt in prompts]

    async def main():
        return await asyncio.gather(*(tokens_of(loaded.stream(prompt, MANY)) for prompt in prompts))

    assert asyncio.run(main()) == expected
    settle(loaded)
    assert used(loaded) == 0


def test_the_loop_goes_on_meanwhile_and_threads_beside_it(loaded):
    expected, found, beats = loaded.generate([5], MANY).tokens, [], 0

    def ask():
        found.append(loaded.generate([5], MANY).tokens)

    async def beat(until):
        nonlocal beats
        while not until.done():
            beats += 1
            await asyncio.sleep(0)

    async def main():
        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        task = asyncio.ensure_future(tokens_of(loaded.stream([5], MANY)))
        await beat(task)
        for thread in threads:
            await asyncio.to_thread(thread.join)
        return await task

    assert asyncio.run(main()) == expected
    assert found == [expected] * 3
    assert beats > 1


def test_a_cancelled_task_ends_its_answer(loaded):
    completions = []

    async def read(stream):
        completions.append(stream.completion)
        async for _ in stream:
            pass

    async def main():
        endless = GenerationConfig(max_new_tokens=120, eos_token_id=())
        stream = loaded.stream([5], endless, logits_processor=lambda *_: threading.Event().wait(0.01))
        task = asyncio.ensure_future(read(stream))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        slow = loaded.stream([6], endless, logits_processor=lambda *_: threading.Event().wait(0.01))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(read(slow), 0.05)

    asyncio.run(main())
    settle(loaded)
    assert [one.finish_reason for one in completions] == ["cancelled", "cancelled"]
    assert all(len(one.tokens) < 120 for one in completions)
    assert used(loaded) == 0


def test_an_error_comes_out_of_the_iteration(loaded):
    def fail(ids, logits):
        if len(ids) == 4:
            raise ValueError("no")

    async def main():
        seen = 0
        async with loaded.stream([5, 6], MANY, logits_processor=fail) as stream:
            while seen < 2:
                seen += (await anext(stream)).token is not None
            with pytest.raises(ValueError, match="no"):
                await anext(stream)
            assert [piece async for piece in stream] == []
        closed = loaded.stream([5, 6], MANY)
        assert (await anext(closed)).token is not None
        await closed.aclose()
        assert [piece async for piece in closed] == []
        return seen

    assert asyncio.run(main()) == 2
    settle(loaded)
    assert used(loaded) == 0


def test_a_task_that_does_not_read_holds_nobody_up(loaded):
    longest = GenerationConfig(max_new_tokens=120, eos_token_id=())

    async def main():
        idle = loaded.stream([5], longest)
        await anext(idle)
        other = await tokens_of(loaded.stream([6], longest))
        return other, await tokens_of(idle)

    other, rest = asyncio.run(main())
    assert other == loaded.generate([6], longest).tokens
    assert rest == loaded.generate([5], longest).tokens[1:]


class Streamer:
    """What Transformers' streamers are to ``generate``."""

    def __init__(self, fails_at=None):
        self.calls, self.fails_at = [], fails_at

    def put(self, value):
        self.calls.append((value.shape, value.tolist()))
        if len(self.calls) == self.fails_at:
            raise KeyError("enough")

    def end(self):
        self.calls.append("end")


def test_a_streamer_gets_the_prompt_the_tokens_and_the_end(loaded):
    streamer = Streamer()
    answer = loaded.generate([5, 6], MANY, streamer=streamer)
    assert streamer.calls == [((1, 2), [[5, 6]]), *(((1,), [token]) for token in answer.tokens), "end"]
    failing = Streamer(fails_at=4)
    with pytest.raises(KeyError):
        loaded.generate(np.array([5, 6]), MANY, streamer=failing)
    assert failing.calls[-1] == "end"
    assert used(loaded) == 0
