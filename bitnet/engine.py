"""The engine: loads models, runs them, and decides which tokens come next."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as ListOf
from dataclasses import dataclass, field
from typing import Any, Self
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from bitnet._core.program import Execution
from bitnet.assets import BUNDLED
from bitnet.config import EngineConfig, GenerationConfig
from bitnet.errors import ErrorContext, InferenceError
from bitnet.kv_cache import KVCache, Sequence
from bitnet.memory import MemoryReport, memory_report
from bitnet.model import Model, load_model
from bitnet.sampling import Sampler, StopStrings
from bitnet.texts import TextMethods

__all__ = ["Completion", "InferenceEngine", "Piece", "Stream"]

Prompt = str | ListOf[int] | npt.NDArray[Any]
Logits = npt.NDArray[np.float32]
Progress = Callable[[int, int, str], object]  # bytes read, of how many, and the tensor

RUN_TOKENS = 256  # tokens of a run at most: enough to keep the multipliers busy, and little scratch memory


@dataclass(frozen=True)
class Piece:
    """What a stream gives: some text, and the token it came with.

    Attributes
    ----------
    text : str
        Empty while a character or a possible stop string is incomplete, or where there is no tokenizer.
    token : int or None
        None for text that was held back until the end.
    """

    text: str
    token: int | None


@dataclass
class Completion:
    """An answer.

    Attributes
    ----------
    text : str
    tokens : list of int
        The answer's tokens, without the one that ended it.
    prompt_tokens : int
    finish_reason : {"length", "eos", "stop", "cancelled"} or None
        None until it ends; "cancelled" where a cancel, an error or the caller ended it early.
    first_token_s, prompt_s, generate_s : float
        Seconds until the first token; for the prompt; and for all tokens after the first.
    """

    text: str = ""
    tokens: list = field(default_factory=list)
    prompt_tokens: int = 0
    finish_reason: str | None = None
    first_token_s: float = 0.0
    prompt_s: float = 0.0
    generate_s: float = 0.0


class InferenceEngine(TextMethods):
    """Runs models on this machine. A context manager; after `close` use is an error.

    Parameters
    ----------
    config : EngineConfig, optional

    Notes
    -----
    Threads may share an engine: its runs wait for each other. Models are immutable, and may be used by several engines.
    """

    def __init__(self, config: EngineConfig | None = None) -> None:
        self.config = config or EngineConfig()
        self._lock = threading.Lock()
        # As long as the models live: a state does not keep its model.
        self._states: WeakKeyDictionary[Model, tuple[Any, KVCache]] = WeakKeyDictionary()
        self._is_closed = False
        self._cancels = 0  # how often `cancel` was called: what began before the last time is to stop
        self._cancels_lock = threading.Lock()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the scratch memory and the caches back."""
        self._is_closed = True
        with self._lock:
            self._states.clear()

    def cancel(self) -> None:
        """Stop all that is in progress, runs and streams, from any thread; they raise InferenceError.

        What begins afterwards is not concerned.
        """
        with self._cancels_lock:
            self._cancels += 1
        for execution, _ in list(self._states.values()):
            execution.cancel()

    def memory_report(self) -> MemoryReport:
        """Say where the memory of this process is: weights, head, keys and values, scratch, and the rest.

        Returns
        -------
        MemoryReport
            Of all models and engines of the process. As text it is a table.
        """
        self._check_open()
        return memory_report()

    def load_model(self, path: str | os.PathLike[str] | None = None, progress: Progress | None = None) -> Model:
        """Load a checkpoint.

        Parameters
        ----------
        path : str, optional
            A Hugging Face folder, or a GGUF file; by default the model that comes with the package.
        progress : callable, optional
            Called as ``progress(done_bytes, total_bytes, name)``.

        Returns
        -------
        Model

        Raises
        ------
        FormatError, ModelLoadError
            If it is damaged, or no model that is known.
        """
        self._check_open()
        path = BUNDLED if path is None else path
        with ErrorContext.during("load_model", path=os.fspath(path)):
            return load_model(path, self.config, progress)

    def infer(self, model: Model, tokens: Prompt, *, last_only: bool = False) -> Logits:
        """Compute the logits of one sequence.

        Parameters
        ----------
        model : Model
        tokens : str or sequence of int
        last_only : bool, optional
            Only those after the last token.

        Returns
        -------
        ndarray of float32, shape (tokens, vocab_size), or (vocab_size,) of the last

        Raises
        ------
        InferenceError
            If a token is not in the vocabulary, or there are more than the context holds.
        """
        return self.infer_batch(model, [tokens], last_only=last_only)[0]

    @ErrorContext.during("infer_batch")
    def infer_batch(self, model: Model, batch: Iterable[Prompt], *, last_only: bool = False) -> list[Logits]:
        """Compute the logits of several sequences together; each as if it were alone, bit for bit.

        Parameters
        ----------
        model : Model
        batch : list of (str or sequence of int)
        last_only : bool, optional

        Returns
        -------
        list of ndarray
            As of `infer`.
        """
        cancels = self._cancels
        ids = [model.encode(tokens) for tokens in batch]
        if not all(map(len, ids)):
            raise InferenceError.empty_prompt()
        with self._run_of(model) as (execution, cache):
            sequences = [Sequence(cache) for _ in ids]
            try:
                return self._logits(execution, sequences, ids, last_only, cancels)
            finally:
                for sequence in sequences:
                    sequence.close()

    def generate(self, model: Model, prompt: Prompt, config: GenerationConfig | None = None) -> Completion:
        """Go on from a prompt.

        Parameters
        ----------
        model : Model
        prompt : str or sequence of int
        config : GenerationConfig, optional
            By default the model's own, `Model.generation_config`.

        Returns
        -------
        Completion
        """
        stream = self.stream(model, prompt, config)
        for _ in stream:
            pass
        return stream.completion

    def stream(self, model: Model, prompt: Prompt, config: GenerationConfig | None = None) -> "Stream":
        """Go on from a prompt, piece by piece.

        Parameters
        ----------
        model : Model
        prompt : str or sequence of int
        config : GenerationConfig, optional
            By default the model's own, `Model.generation_config`.

        Returns
        -------
        Stream
            An iterator of `Piece`; its ``completion`` is whole when it ends.
        """
        self._check_open()
        ids = model.encode(prompt)
        if not len(ids):
            raise InferenceError.empty_prompt()
        if len(ids) > model.program.context:
            raise InferenceError.beyond_context(len(ids) - 1, model.program.context)
        return Stream(self, model, ids, config or model.generation_config)

    def _check_open(self):
        if self._is_closed:
            raise InferenceError.closed()

    @contextlib.contextmanager
    def _run_of(self, model):
        """The memory in which a model runs here, for one run at a time."""
        with self._lock, ErrorContext.during("run", model=model.path, num_threads=self.config.num_threads):
            self._check_open()
            if model not in self._states:
                execution = Execution(model.program, min(RUN_TOKENS, model.program.context))
                self._states[model] = (execution, KVCache(model.program.page_bytes))
            yield self._states[model]

    def _logits(self, execution, sequences, ids, last_only, cancels, pool=None):
        """Run the tokens of some sequences, in runs of as many tokens as fit; unless `cancel` has been called since it
        had been called `cancels` times. With a `pool` that takes the vectors of tokens, there are no logits."""
        found = [[] for _ in ids]
        todo = [(number, at) for number, tokens in enumerate(ids) for at in range(len(tokens))]
        context = execution.program.context
        for sequence, tokens in zip(sequences, ids, strict=True):
            if sequence.length + len(tokens) > context:
                raise InferenceError.beyond_context(sequence.length + len(tokens) - 1, context)
            sequence.reserve(sequence.length + len(tokens))
        for start in range(0, len(todo), execution.max_tokens):
            part = todo[start : start + execution.max_tokens]
            wanted = [i for i, (number, at) in enumerate(part) if not last_only or at == len(ids[number]) - 1]
            wanted = [] if pool is not None else wanted
            execution.forget_cancel()
            if self._cancels != cancels:  # after this the flag of `execution` tells
                raise InferenceError.cancelled(execution.program.names[0])
            logits = execution.run(
                np.array([ids[number][at] for number, at in part], np.int32),
                np.array([sequences[number].length + at for number, at in part], np.int32),
                np.array([number for number, _ in part], np.int32),
                [sequence.table for sequence in sequences],
                np.array(wanted, np.int32), self.config.num_threads,
            )  # fmt: skip
            if pool is not None:
                for (number, at), row in zip(part, execution.last_hidden(len(part)), strict=True):
                    pool.add(number, at, row)
            for i, row in zip(wanted, logits, strict=True):
                found[part[i][0]].append(row)
        for sequence, tokens in zip(sequences, ids, strict=True):
            sequence.length += len(tokens)
        if pool is not None:
            return []
        return [rows[-1] if last_only else np.stack(rows) for rows in found]


class Stream(Iterator):
    """An answer as it comes: an iterator of `Piece`.

    Attributes
    ----------
    completion : Completion
        What has come so far; whole when the iterator has ended.
    """

    def __init__(self, engine, model, ids, config):
        self.completion = Completion(prompt_tokens=len(ids))
        self._pieces = self._run(engine, model, ids, config, engine._cancels)

    @ErrorContext.during("stream")
    def __next__(self) -> Piece:
        return next(self._pieces)

    def close(self) -> None:
        """Stop here."""
        self._pieces.close()

    def _run(self, engine, model, ids, config, cancels):
        done = self.completion
        sampler = Sampler(config, model.program.vocab_size)
        decoder = model.tokenizer.stream_decoder() if model.tokenizer else None
        stop = StopStrings(config.stop_strings or ())
        ends = model.eos_token_ids if config.eos_token_id is None else _listed(config.eos_token_id)
        history = ids.tolist()
        sequence, next_ids, start = None, ids, time.perf_counter()
        try:
            while True:
                with engine._run_of(model) as (execution, cache):
                    sequence = sequence or Sequence(cache)
                    logits = engine._logits(execution, [sequence], [next_ids], True, cancels)[0]
                few = len(done.tokens) < config.min_new_tokens
                token = sampler.pick(logits, history, forbidden=ends if few else ())
                now = time.perf_counter() - start
                if not done.prompt_s:
                    done.first_token_s = done.prompt_s = now
                done.generate_s = now - done.prompt_s
                if token in ends:
                    done.finish_reason = "eos"
                    break
                done.tokens.append(token)
                history.append(token)
                text, is_stopped = stop.put(decoder.put(token)) if decoder else ("", False)
                done.text += text
                yield Piece(text, token)
                if is_stopped:
                    done.finish_reason = "stop"
                    return
                if len(done.tokens) >= config.max_new_tokens or len(history) >= model.program.context:
                    done.finish_reason = "length"
                    break
                next_ids = np.array([token], np.int32)
            if decoder:
                text, is_stopped = stop.put(decoder.flush())
                text += "" if is_stopped else stop.flush()
                done.finish_reason = "stop" if is_stopped else done.finish_reason
                done.text += text
                if text:
                    yield Piece(text, None)
        finally:
            done.finish_reason = done.finish_reason or "cancelled"
            if sequence is not None:
                sequence.close()


def _listed(ids):
    return (ids,) if isinstance(ids, int) else tuple(ids)
