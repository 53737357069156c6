"""Continuous batching: requests come, take part in steps, get what comes of them, and go.

`driving.py` says who calls all this, `gathering.py` which tokens of whom make a step. Only the driver touches requests,
pages and lists. Everybody else leaves word, in flags and in the queue of arrivals, and raises `_is_changed`.
"""

import heapq
import itertools
import logging
import os
import time
import weakref
from collections import deque

import numpy as np

from bitnet import steps
from bitnet._core.batch import Batch
from bitnet._core.drawing import Draws
from bitnet._core.program import PAGE_TOKENS, Execution
from bitnet.driving import Driving
from bitnet.errors import BitNetError, ErrorContext, InferenceError, QueueFullError
from bitnet.gathering import Gathering
from bitnet.kv_cache import KVCache, Sequence
from bitnet.lookup import Costs
from bitnet.request import MAX_UNREAD, Activity

__all__ = ["Scheduler"]

_log = logging.getLogger(__name__)


class Scheduler(Gathering, Driving):
    """The requests of one model on one engine. Threads may share it.

    Parameters
    ----------
    model : Model
        It is not kept.
    config : EngineConfig
    turn : Turn
        Of the engine: its models run one after the other.
    """

    def __init__(self, model, config, turn):
        program = model.program
        self._config, self._turn = config, turn
        self._where = {"model": model.path, "num_threads": config.num_threads}
        self._max_tokens = min(config.max_batch_tokens, max(program.context, config.max_batch_size))
        self.execution = Execution(program, self._max_tokens)
        self._batch, self._draws = Batch(self._max_tokens, program.vocab_size), Draws(program.vocab_size)
        limit = None if config.max_kv_tokens is None else config.max_kv_tokens // PAGE_TOKENS
        self.context = program.context if limit is None else min(program.context, limit * PAGE_TOKENS)
        keep = -(-program.context // PAGE_TOKENS)
        self.cache = KVCache(program.page_bytes, limit, keep, config.prefix_cache)
        self._numbers = itertools.count()
        self._is_closed = False
        self.pauses = 0  # how often a request gave its pages back for others
        self.steps = self.step_tokens = 0
        self._costs = Costs()  # of steps without prompts
        self._begin()
        _schedulers.add(self)

    def _begin(self):
        self._begin_driving()
        # By priority, then by time. Others than the driver read both, so both change with `_entrance` held.
        self._arrivals, self._waiting = deque(), []
        self._running = []  # all that have pages
        self._decoding, self._reading = [], []  # of these, who takes part in the next step
        self._guesses = False  # whether somebody does who guesses
        self._parts = []  # who has how many tokens and outputs in the batch
        self._short = None  # who asks for pages
        self._is_short = False  # somebody paused, and nobody has ended since
        self._deadline = None  # the first of all
        self._clock = None  # of the present step, while somebody wants to know

    @property
    def max_batch_size(self):
        return self._config.max_batch_size

    # ---- for everybody

    def activity(self):
        """Say what is going on, from any thread."""
        waiting, running = (sum(not one.has_ended for one in requests)
                            for requests in (self._waiting_requests(), list(self._running)))  # fmt: skip
        return Activity(waiting, running, self.cache.pages, self.cache.used, self.pauses, self.steps, self.step_tokens)

    def submit(self, request):
        """Let a request wait for its turn.

        Raises
        ------
        InferenceError
            If the engine is closed; a `QueueFullError` if too many wait.
        """
        with self._entrance:
            if self._is_closed:
                raise InferenceError.closed()
            waiting = len(self._waiting) + len(self._arrivals)
            if waiting >= self._config.max_queue:
                raise QueueFullError.waiting(waiting)
            request.number = next(self._numbers)
            request.inbox.requests.add(request)
            self._arrivals.append(request)
        self.changed()

    def cancel(self, requests, error=None):
        """End requests, before the operation after the present one where a step is theirs for the most part."""
        tokens = 0
        for request in requests:
            if not request.has_ended and not request.is_cancelled:
                request.error, request.is_cancelled = error, True
                tokens += sum(count for one, count, _ in self._parts if one is request)
        self._is_changed = True
        if 2 * tokens > self._batch.tokens:
            self.execution.cancel()
        self.tidy()

    def cancel_all(self, error):
        """End all requests with an error."""
        self.cancel([*self._running, *self._waiting_requests()], error)

    def _waiting_requests(self):
        with self._entrance:
            arrivals, waiting = self._arrivals.copy(), self._waiting.copy()
        return [*arrivals, *(entry[-1] for entry in waiting)]

    def look_up(self, ids, see):
        """Find the pages of a text that was read before, and show them to a function while nobody changes them.

        Parameters
        ----------
        ids : ndarray of int32
        see : callable
            Called with the number of tokens that were found, and the blocks.
        """
        with self._driving:
            sequence = Sequence(self.cache)
            try:
                sequence.find(np.append(ids, np.int32(0)))  # which never finds the last one
                sequence.abandon()
                see(sequence.length, sequence.blocks)
            finally:
                sequence.close()
        self.changed()

    def put_in(self, read):
        """Remember the pages of a text that come from elsewhere.

        Parameters
        ----------
        read : callable
            Called with a function that gives blocks for so many tokens; returns the tokens.

        Returns
        -------
        ndarray of int32
            What ``read`` returned.
        """
        with self._driving:
            sequence, ids = Sequence(self.cache), None

            def new_pages(tokens):
                sequence.reserve(tokens)
                return sequence.blocks

            try:
                ids = read(new_pages)
                sequence.length = len(ids)
            finally:
                sequence.close(ids)
        self.changed()
        return ids

    def close(self, error):
        with self._entrance:
            self._is_closed = True
        self.cancel_all(error)
        with self._driving:
            self._arrange()
            self.cache.forget()

    # ---- for the driver

    def _step(self):
        """Run a batch; False where there is nothing to do."""
        clock = self._clock = steps.clock()
        if self._is_changed:
            self._arrange()
        if self._deadline is not None and time.perf_counter() >= self._deadline:
            self._expire(self._running + self._waiting_requests())
            return True
        if not self._decoding and not self._reading:
            return self._is_changed
        if not self._gather():
            return True
        start = time.perf_counter() if self._guesses and not self._reading else None
        if clock is not None:
            clock.lap("gather")
        try:
            if not self._run():
                return True
        except (BitNetError, MemoryError) as error:
            self._run_one_by_one(error)
            return True
        if start is not None:
            self._costs.add(self._batch.tokens, time.perf_counter() - start)
        self.steps, self.step_tokens = self.steps + 1, self.step_tokens + self._batch.tokens
        if clock is not None:
            clock.lap("run")
        self._deliver(self._parts)
        if clock is not None:
            clock.tell()
        return True

    def _run(self):
        """Run the batch; False where it was cancelled, whoever was meant: it can be run again."""
        with self._turn:
            self.execution.forget_cancel()
            if self._is_changed:  # whoever cancels raises this before
                return False
            try:
                self.execution.step(self._batch, self._config.num_threads, self._time_left())
            except InferenceError as error:
                if error.message.startswith("the run was cancelled"):
                    self._is_changed = True
                    return False
                raise
        return True

    def _time_left(self):
        """In how many seconds the batch is late for the most part, as `cancel` has it; None for never."""
        if self._deadline is None:
            return None
        tokens = 0
        limited = [(one.deadline, count) for one, count, _ in self._parts if one.deadline is not None]
        for deadline, count in sorted(limited):
            tokens += count
            if 2 * tokens > self._batch.tokens:
                return max(deadline - time.perf_counter(), 0.0)
        return None

    def _arrange(self):
        """Let requests in and out, and see who has how much to do."""
        self._is_changed = False
        if self._arrivals:
            with self._entrance:
                while self._arrivals:
                    self._wait(self._arrivals.popleft())
        for request in [*self._running, *(entry[-1] for entry in self._waiting)]:
            if not request.has_ended and (request.is_cancelled or request.is_late):
                reason = "cancelled" if request.is_cancelled else "timeout"
                self._end(request, reason, request.error)
        if any(entry[-1].has_ended for entry in self._waiting):
            waiting = [entry for entry in self._waiting if not entry[-1].has_ended]
            heapq.heapify(waiting)
            with self._entrance:
                self._waiting = waiting
        running, active = [], []
        for request in self._running:
            if not request.has_ended:
                running.append(request)
                request.is_stalled = request.unread >= MAX_UNREAD
                if not request.is_stalled:
                    active.append(request)
        stalled = []
        while self._waiting and len(active) < self._config.max_batch_size:
            request = self._waiting[0][-1]
            if active and (self._is_short or self.cache.available < -(-request.count // PAGE_TOKENS) + 1):
                break  # those that run will end
            with self._entrance:
                entry = heapq.heappop(self._waiting)
            request.is_stalled = request.unread >= MAX_UNREAD
            if request.is_stalled:
                stalled.append(entry)
                continue
            request.sequence = Sequence(self.cache)
            running.append(request)
            active.append(request)
        for request in running:
            if request.sequence.length >= request.count:  # its last token was computed, and something came between
                request.sequence.rewind(request.count - 1)
        if stalled:
            with self._entrance:
                for entry in stalled:
                    heapq.heappush(self._waiting, entry)
        self._running = running
        self._decoding = [one for one in active if one.count - one.sequence.length == 1 and one.logits_from is None]
        self._guesses = any(one.lookup is not None for one in self._decoding)
        decoding = set(self._decoding)
        self._reading = [one for one in active if one not in decoding]
        self._parts = []
        deadlines = [one.deadline for one in (*running, *(entry[-1] for entry in self._waiting))
                     if one.deadline is not None]  # fmt: skip
        self._deadline = min(deadlines, default=None)

    def _wait(self, request):
        heapq.heappush(self._waiting, (*request.order(), request))

    def _run_one_by_one(self, error):
        """Find whose fault an error is: nobody else's request is to end."""
        parts = self._parts
        if len(parts) == 1:
            self._end(parts[0][0], "error", error)
            return
        for part in parts:
            request, count, outputs = part
            sequence = request.sequence
            self._batch.clear()
            at = sequence.length
            self._batch.add(sequence.pages, at, request.ids[at : at + count], outputs)
            self._parts = [part]
            try:
                if not self._run():
                    return  # they will be arranged anew
            except (BitNetError, MemoryError) as its:
                self._run_one_by_one(its)
            else:
                self._deliver(self._parts)
            self._is_changed = False  # who has ended is looked at when all have been tried
        self._is_changed = True

    def _deliver(self, parts):
        """Give the logits to those who wait for them."""
        batch, draws, output = self._batch, self._draws, 0
        draws.clear()
        chosen = False
        for request, _, outputs in parts:
            if outputs and request.chooses:
                request.prepare(batch, output, draws)
                chosen = True
            output += outputs
        if draws.count:
            draws.make(self._config.num_threads)
        if chosen and self._clock is not None:
            self._clock.lap("choose")
        output, token, hidden = 0, 0, None
        for request, count, outputs in parts:
            sequence = request.sequence
            length = sequence.length
            is_text = request.logits_from is not None
            if outputs <= 1 or is_text:
                length = sequence.length = length + count
                if length % PAGE_TOKENS < count:
                    sequence.remember(request.ids)
            if outputs or request.sees:
                try:
                    if request.sees:
                        hidden = self.execution.last_hidden(batch.tokens) if hidden is None else hidden
                        request.see(hidden[token : token + count], length - count)
                    else:
                        request.take(batch, output, outputs, draws)
                except Exception as error:  # of a processor of logits, or for want of a finite number
                    if not request.has_ended:
                        self._end(request, "error", error)
                output += outputs
                if outputs > 1 and not is_text:  # of guesses only the right ones stay
                    length, before = min(length + count, request.count - 1), length
                    sequence.length = length
                    if length % PAGE_TOKENS < length - before:
                        sequence.remember(request.ids)
                if request.has_ended:
                    if request.sequence is not None:
                        self._end(request)
                elif request.put - request.read >= MAX_UNREAD:
                    self._is_changed = True
                waiter = request.inbox.waiter
                if waiter is not None and request.inbox.has_news():
                    self._wake(waiter)
            token += count
        if self._reading:
            self._is_changed = True

    def _end(self, request, reason=None, error=None):
        """End a request, or take back what an ended one has."""
        if not request.has_ended:
            if reason == "error":
                try:
                    with ErrorContext.during("run", **self._where):
                        raise error
                except Exception as told:
                    error = told
            request.end(reason, error)
        if request.sequence is not None:
            if _log.isEnabledFor(logging.DEBUG):
                _log.debug("request %d ends (%s): %d tokens, of which %d were in memory", request.number,
                           error or request.reason, request.count, request.sequence.shared)  # fmt: skip
            request.sequence.close(None if error is not None else request.ids)
            request.sequence = None
        self._is_changed, self._is_short = True, False
        inbox = request.inbox
        inbox.requests.discard(request)
        self._leave_background(request)
        if inbox.waiter is not None and inbox.has_news():
            self._wake(inbox.waiter)

    # ---- after a fork

    def renew(self):
        """Begin in a child process: other threads are not there, and what they held stays locked."""
        was_driven = self._driving.locked()
        arrivals, waiting, running = self._arrivals, self._waiting, self._running
        requests = [*running, *arrivals, *(entry[-1] for entry in waiting)]
        self._turn.renew()
        self._begin()
        self._is_changed = True
        if not was_driven:
            self._arrivals, self._waiting, self._running = arrivals, waiting, running
            return
        cache = self.cache
        self.cache = KVCache(cache.page_bytes, cache.limit, cache.keep, cache.shares)
        for request in requests:
            request.sequence = None
            if not request.has_ended:
                self._end(request, "error", InferenceError.forked())


_schedulers: weakref.WeakSet[Scheduler] = weakref.WeakSet()


def _after_fork_in_child():
    for scheduler in list(_schedulers):
        scheduler.renew()


os.register_at_fork(after_in_child=_after_fork_in_child)
