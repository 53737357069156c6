"""What a scheduler runs: the state of one generation, or of one text whose logits are wanted.

A request knows its tokens and what is to be done with logits; a scheduler gives it pages and turns. `take` is called by
the thread that drives the scheduler, and nothing of a request is changed by another one but flags and `read`.
"""

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitnet.completion import Completion, Piece
from bitnet.errors import InferenceError
from bitnet.lookup import Lookup
from bitnet.sampling import Sampler, StopStrings

__all__ = ["MAX_UNREAD", "Activity", "Generation", "Inbox", "Reading", "Request"]

MAX_UNREAD = 64  # pieces that wait for a consumer; then others go first


@dataclass(frozen=True)
class Activity:
    """What an engine does with a model now, and has done.

    Attributes
    ----------
    waiting, running : int
        Requests that wait for their turn, and that take part in steps.
    kv_pages, kv_pages_used : int
        Pages of 64 positions that have memory, and those of running requests.
    pauses : int
        How often a request gave its pages back for others.
    steps, step_tokens : int
        Steps so far, and all their tokens.
    """

    waiting: int
    running: int
    kv_pages: int
    kv_pages_used: int
    pauses: int
    steps: int
    step_tokens: int


class Inbox:
    """Where what comes of the requests of one consumer arrives.

    Parameters
    ----------
    wants_pieces : bool
        Or else only ends are news.

    Attributes
    ----------
    pieces : deque of Piece
    requests : set
        Those that have not ended.
    until : int
        That so many have not is news.
    waiter : object or None
        What to release when something comes, while the consumer sleeps.
    """

    __slots__ = ("pieces", "requests", "until", "waiter", "wants_pieces")

    def __init__(self, wants_pieces=True):
        self.wants_pieces, self.pieces, self.requests = wants_pieces, deque(), set()
        self.until, self.waiter = 0, None

    def has_news(self):
        return self.pieces or len(self.requests) <= self.until

    def deadline(self):
        """When the first of the requests runs out of time; None for never."""
        waiting = [one for one in list(self.requests) if one.deadline is not None and not one.is_late]
        return min((one.deadline for one in waiting), default=None)


class Request:
    """What a scheduler sees of a request.

    Attributes
    ----------
    ids : ndarray of int32
        Its tokens, and room for more.
    count : int
        How many are known.
    logits_from : int or None
        From which token on all logits are wanted; None for those of the last known one.
    is_scored : bool
        Whether looking at logits takes about as long as computing them.
    sees : bool
        Whether it wants the vectors of its tokens instead, by `see`.
    leaders : int
        How many of a token's largest logits are looked at; 0 for all.
    sequence : Sequence or None
        Its keys and values, while it runs.
    """

    shares = True  # texts that begin alike
    logits_from: int | None = None
    is_scored = sees = False
    leaders = 0
    chooses = False  # what follows, by `prepare`
    lookup = None
    reason = "read"  # why it ended

    def __init__(self, ids: Any, count: int, inbox: Any, priority: int = 0, deadline: float | None = None) -> None:
        self.ids, self.count, self.inbox = ids, count, inbox
        self.priority, self.deadline = priority, deadline
        self.number = -1
        self.sequence: Any = None
        self.has_ended = self.is_cancelled = self.is_late = self.is_stalled = False
        self.error: BaseException | None = None  # with which a cancel ends it
        self.put = self.read = 0

    @property
    def unread(self):
        return self.put - self.read

    @property
    def left(self):
        """Known tokens that are not computed."""
        return self.count - self.sequence.length

    @property
    def findable(self):
        """How many tokens may be looked for in what was computed before; the last of them is never found."""
        return self.count if self.logits_from is None else min(self.logits_from + 1, self.count)

    def outputs(self, at, count):
        """Of how many tokens the logits are wanted, of `count` from `at` on; the last ones."""
        if self.logits_from is None:
            return int(at + count == self.count)
        return max(at + count - max(at, self.logits_from), 0)

    def order(self):
        """By which requests are compared: the higher priority first, then who came first."""
        return -self.priority, self.number

    def paused(self):
        """It gave its pages back; all will be computed anew."""


class Reading(Request):
    """A text whose logits are wanted.

    Attributes
    ----------
    logits : ndarray of float32, shape (tokens, vocab_size), or (vocab_size,) of the last
    """

    def __init__(self, ids, program, last_only, inbox):
        super().__init__(ids, len(ids), inbox)
        self._head = program.names[-1]
        self.logits_from, self.shares = None if last_only else 0, last_only
        self.logits = np.empty((1 if last_only else len(ids), program.vocab_size), np.float32)
        self._done, self._last_only = 0, last_only

    def take(self, batch, first, count, draws):
        self.logits[self._done : self._done + count] = batch.logits[first : first + count]
        self._done += count
        if min(map(batch.best, range(first, first + count))) < 0:
            raise InferenceError.not_finite(self._head)
        if self._done == len(self.logits):
            self.end(None)

    def paused(self):
        self._done = 0

    def end(self, reason, error=None):
        self.error, self.has_ended = error, True
        if self._last_only:
            self.logits = self.logits[0]


class Generation(Request):
    """A prompt and what is to follow.

    Parameters
    ----------
    model : Model
    ids : ndarray of int32
        The prompt.
    config : GenerationConfig
    inbox : Inbox
    number : int
        Which completion of a list it is.
    sample : int
        Which of several of one prompt: a given seed counts up with it.
    context : int
        The most tokens, prompt included.
    before : Completion, optional
        An answer to go on from.
    kept : int, optional
        How many tokens of it stay.
    """

    chooses = True

    def __init__(
        self, model, ids, config, inbox, context, *, number=0, sample=0, priority=0, timeout=None, processor=None,
        grammar=None, before=None, kept=0,
    ):  # fmt: skip
        self.started = time.perf_counter()
        most = min(context, len(ids) + config.max_new_tokens)
        room = np.empty(most + 1, np.int32)
        room[: len(ids)] = ids
        super().__init__(room, len(ids), inbox, priority, None if timeout is None else self.started + timeout)
        self.config, self.completion_number, self._most = config, number, most
        if sample and config.seed is not None:
            config = config.replace(seed=(config.seed + sample) % 2**64)
        self.sampler = Sampler(config, model.program.vocab_size)
        self.completion = Completion(prompt_tokens=len(ids), seed=self.sampler.seed if config.do_sample else None)
        if config.logprobs is not None:
            self.completion.logprobs, self.completion.top_logprobs = [], []
        self._decoder = model.tokenizer.stream_decoder() if model.tokenizer else None
        self._stop = StopStrings(config.stop_strings) if config.stop_strings else None
        ends = model.eos_token_ids if config.eos_token_id is None else config.eos_token_id
        self._ends, self._forbidden = frozenset(ends), [id for id in ends if id < model.program.vocab_size]
        self._few = config.min_new_tokens
        self._processor, self._head = processor, model.program.names[-1]
        self._grammar = None if grammar is None else grammar.matcher(model)
        if grammar is not None:  # which says when the model's own end may come
            self._ends |= frozenset(model.eos_token_ids)
        if config.prompt_lookup_num_tokens:
            self.lookup = Lookup(config.prompt_lookup_num_tokens)
        if not (self._few or processor or grammar):  # those look at all, or change some
            self.leaders = self.sampler.leaders
        self._is_plain = self.sampler.is_greedy and not self._few and processor is None and grammar is None
        if kept:
            self.sampler.skip(kept)
            for token in before.tokens[:kept]:
                self._append(token)
            if config.logprobs is not None and before.logprobs is not None:
                self.completion.logprobs += before.logprobs[:kept]
                self.completion.top_logprobs += before.top_logprobs[:kept]

    def guess(self, room, costs, others):
        """Write guesses of the next tokens behind the known ones; returns how many."""
        found = self.lookup.find(self.ids, self.count, min(room, self._most - self.count))
        found = found[: self.lookup.worth(len(found), costs, others)]
        if not len(found):
            return 0
        self.ids[self.count : self.count + len(found)] = self._guesses = found
        return len(found)

    def prepare(self, batch, first, draws):
        """Choose the next token by the logits of an output of a batch, but for a draw, which is added to others."""
        self._failure = None
        if self._is_plain:
            self._likeliest = batch.best(first)
        else:
            try:
                self._prepare(batch, first, draws)
            except Exception as error:  # of a processor
                self._failure = error

    def _prepare(self, batch, output, draws):
        few = len(self.completion.tokens) < self._few
        self.sampler.prepare(
            batch, output, draws, self.ids[: self.count], self.completion.prompt_tokens,
            self._forbidden if few else (), self._processor,
            None if self._grammar is None else self._grammar.allowed(),
        )  # fmt: skip

    def take(self, batch, first, count, draws):
        """Take the token that was chosen, and choose more while guesses are right."""
        if self._failure is not None:
            raise self._failure
        self._take(self._likeliest if self._is_plain else self.sampler.chosen(draws))
        if count == 1:
            return
        before, accepted = self.count - 1, 0
        while accepted < count - 1 and not self.has_ended and self.ids[before + accepted] == self._guesses[accepted]:
            accepted += 1
            if self._is_plain:
                token = batch.best(first + accepted)
            else:
                draws = self.sampler.new_draws()  # those of others wait to be read
                self._prepare(batch, first + accepted, draws)
                draws.make(1)
                token = self.sampler.chosen(draws)
            self._take(token)
        self.lookup.learn(count - 1, accepted)

    def _take(self, token):
        if token < 0:
            raise InferenceError.not_finite(self._head)
        done, now = self.completion, time.perf_counter() - self.started
        if not done.prompt_s:
            done.first_token_s = done.prompt_s = now
            done.cached_tokens = self.sequence.shared
        done.generate_s = now - done.prompt_s
        if token in self._ends:
            self.end("eos")
            return
        text, is_stopped = self._append(token)
        logprob = top = None
        if done.logprobs is not None:
            logprob, top = self.sampler.logprob, self.sampler.top_logprobs
            done.logprobs.append(logprob)
            done.top_logprobs.append(top)
        if self.inbox.wants_pieces:
            self.put += 1
            self.inbox.pieces.append(Piece(text, token, logprob, top, self.completion_number))
        if is_stopped:
            self.end("stop")
        elif self.count >= self._most:
            self.end("length")

    def _append(self, token):
        """Put a token behind the others; the text that is certain now, and whether it ends the answer."""
        self.ids[self.count] = token
        self.count += 1
        self.completion.tokens.append(token)
        text, is_stopped = "", False
        if self._decoder is not None:
            text = self._decoder.put(token)
            if self._stop is not None:
                text, is_stopped = self._stop.put(text)
            self.completion.text += text
        if self._grammar is not None:
            is_stopped |= self._grammar.accept(token)
        return text, is_stopped

    @property
    def reason(self):
        return self.completion.finish_reason

    def end(self, reason, error=None):
        done = self.completion
        done.finish_reason, done.error = reason, error
        if self._decoder is not None and reason in ("length", "eos", "timeout"):
            text = self._decoder.flush()
            if self._stop is not None:
                text, is_stopped = self._stop.put(text)
                text += "" if is_stopped else self._stop.flush()
                done.finish_reason = "stop" if is_stopped else reason
            done.text += text
            if text and self.inbox.wants_pieces:
                self.put += 1
                self.inbox.pieces.append(Piece(text, None, None, None, self.completion_number))
        self.has_ended, self.error = True, error
