"""The engine: loads models, runs them, and decides which tokens come next."""

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterable
from collections.abc import Sequence as ListOf
from typing import Any, Self
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from bitnet.assets import BUNDLED
from bitnet.completion import Completion, Piece
from bitnet.config import EngineConfig, GenerationConfig
from bitnet.driving import Turn
from bitnet.errors import ConfigurationError, ErrorContext, InferenceError
from bitnet.generation import complete_all, read_all
from bitnet.grammar import Grammar
from bitnet.kv_cache import KVCache
from bitnet.kv_state import read_state, write_state
from bitnet.memory import MemoryReport, memory_report
from bitnet.model import Model, load_model
from bitnet.request import Activity, Generation, Inbox, Reading
from bitnet.scheduler import Scheduler
from bitnet.stream import Stream, for_streamer
from bitnet.texts import TextMethods

__all__ = ["Completion", "InferenceEngine", "Piece", "Stream"]

Prompt = str | ListOf[int] | npt.NDArray[Any]
Logits = npt.NDArray[np.float32]
Progress = Callable[[int, int, str], object]  # bytes read, of how many, and the tensor
OnPiece = Callable[[Piece], object]
Processor = Callable[[npt.NDArray[np.int32], Logits], object]


class InferenceEngine(TextMethods):
    """Runs models on this machine. A context manager; after `close` use is an error.

    Parameters
    ----------
    config : EngineConfig, optional

    Notes
    -----
    Threads may share an engine, and what they ask of one model runs together. Models are immutable, and may be used by
    several engines.
    """

    def __init__(self, config: EngineConfig | None = None) -> None:
        self.config = config or EngineConfig()
        self._lock = threading.Lock()
        self._turn = Turn()  # of runs: one after the other
        # As long as the models live: a scheduler does not keep its model.
        self._schedulers: WeakKeyDictionary[Model, Scheduler] = WeakKeyDictionary()
        self._caches: WeakKeyDictionary[Model, KVCache] = WeakKeyDictionary()
        self._is_closed = False
        self._cancels = 0  # how often `cancel` was called: what began before the last time is to stop

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the scratch memory and the caches back; what runs ends with an InferenceError."""
        self._is_closed = True
        with self._lock:
            schedulers = list(self._schedulers.values())
        for scheduler in schedulers:
            scheduler.close(InferenceError.closed())
        with self._lock, self._turn:
            self._schedulers.clear()
            self._caches.clear()

    def cancel(self) -> None:
        """Stop all that is in progress, runs and streams, from any thread; they raise InferenceError.

        What begins afterwards is not concerned. `Stream.cancel` stops one, without an error.
        """
        with self._lock:
            self._cancels += 1
            schedulers = list(self._schedulers.values())
        for scheduler in schedulers:
            scheduler.cancel_all(InferenceError.stopped())
            scheduler.execution.cancel()

    def memory_report(self) -> MemoryReport:
        """Say where the memory of this process is: weights, head, keys and values, scratch, and the rest.

        Returns
        -------
        MemoryReport
            Of all models and engines of the process. As text it is a table.
        """
        self._check_open()
        return memory_report()

    def activity(self, model: Model) -> Activity:
        """Say what requests there are, and what they have.

        Parameters
        ----------
        model : Model

        Returns
        -------
        Activity
        """
        found: Activity = self._scheduler(model).activity()
        return found

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
        ids = [self._ids(model, tokens) for tokens in batch]
        makers = [lambda inbox, one=one: Reading(one, model.program, last_only, inbox) for one in ids]
        return [one.logits for one in self._read_texts(model, makers)]

    def generate(
        self,
        model: Model,
        prompt: Prompt | ListOf[Prompt],
        config: GenerationConfig | ListOf[GenerationConfig] | None = None,
        *,
        priority: int = 0,
        timeout: float | None = None,
        logits_processor: Processor | None = None,
        grammar: Grammar | None = None,
        on_piece: OnPiece | None = None,
        streamer: Any = None,
    ) -> Any:
        """Go on from a prompt, or from many together.

        Parameters
        ----------
        model : Model
        prompt : str or sequence of int, or list of (str or sequence of int)
        config : GenerationConfig, optional
            By default the model's own, `Model.generation_config`. Or one for each prompt of a list.
        priority, timeout, logits_processor, grammar
            As of `stream`.
        on_piece : callable, optional
            Called with each `Piece`, in this thread, as it comes; ``piece.number`` says of which prompt. What it raises
            ends everything.
        streamer : object, optional
            Such as Transformers' ``TextStreamer``: its ``put`` is called with the prompt's tokens and then each token,
            in arrays, and its ``end`` in any case. For one answer to one prompt.

        Returns
        -------
        Completion or list of Completion
            A list for a list, in its order. Of these each is the one that its prompt would have alone; what fails says
            so in ``error``, and the others go on. With ``num_return_sequences`` above 1 a list, too, which has so many
            for each prompt, one after the other.

        Raises
        ------
        InferenceError
            Where one prompt fails.
        """
        is_one = not _is_list_of_prompts(prompt)
        prompts: Any = [prompt] if is_one else list(prompt)
        configs: Any = list(config) if isinstance(config, list | tuple) else [config] * len(prompts)
        if len(configs) != len(prompts):
            raise ConfigurationError.conflict("generate", f"{len(prompts)} prompts have {len(configs)} configurations")
        scheduler = self._scheduler(model)
        configs = [one or model.generation_config for one in configs]
        asked = [(i, sample) for i, one in enumerate(configs) for sample in range(one.num_return_sequences)]
        is_one = is_one and len(asked) == 1
        options = {"priority": priority, "timeout": timeout, "processor": logits_processor, "grammar": grammar}
        makers = [
            lambda inbox, number=number, i=i, sample=sample: self._generation(
                scheduler, model, prompts[i], configs[i], inbox, number=number, sample=sample, **options)
            for number, (i, sample) in enumerate(asked)
        ]  # fmt: skip
        if streamer is not None:
            if not is_one or on_piece is not None:
                raise ConfigurationError.conflict("generate", "a streamer is for one answer, and instead of on_piece")
            on_piece = for_streamer(streamer, self._ids(model, prompt, scheduler.context))
        try:
            with ErrorContext.during("generate"):
                found = complete_all(scheduler, self._until_cancel(makers), on_piece)
                if is_one and found[0].error is not None:
                    raise found[0].error
        finally:
            if streamer is not None:
                streamer.end()
        return found[0] if is_one else found

    def stream(
        self,
        model: Model,
        prompt: Prompt,
        config: GenerationConfig | None = None,
        *,
        priority: int = 0,
        timeout: float | None = None,
        logits_processor: Processor | None = None,
        grammar: Grammar | None = None,
        on_piece: OnPiece | None = None,
    ) -> Stream:
        """Go on from a prompt, piece by piece.

        Parameters
        ----------
        model : Model
        prompt : str or sequence of int
        config : GenerationConfig, optional
            By default the model's own, `Model.generation_config`.
        priority : int, optional
            What waits with a higher one begins first.
        timeout : float, optional
            Seconds after which it ends with what there is, and "timeout" for a reason; waiting counts.
        logits_processor : callable, optional
            Called as ``logits_processor(ids, logits)`` before each token is chosen, with the tokens so far (int32) and
            float32 logits of the vocabulary, which it changes, or returns others. It is called in whichever thread is
            running the batch: it must not use the engine. What it raises ends this request alone.
        grammar : Grammar, optional
            What the answer has to be; it ends when it is complete.
        on_piece : callable, optional
            Called with each `Piece` before the iterator gives it. What it raises ends the stream.

        Returns
        -------
        Stream
            An iterator of `Piece`; its ``completion`` is whole when it ends. Closing it, or dropping it, ends the
            request.

        Raises
        ------
        InferenceError
            If the prompt is empty or too long; a `QueueFullError` if too many requests wait.
        """
        scheduler, config = self._scheduler(model), config or model.generation_config
        _check_one("stream", config)
        options = {"priority": priority, "timeout": timeout, "processor": logits_processor, "grammar": grammar}
        request = self._generation(scheduler, model, prompt, config, Inbox(), **options)
        scheduler.submit(request)
        return Stream(scheduler, request, on_piece, functools.partial(self._rewound, model, options))

    @ErrorContext.during("rewind")
    def _rewound(self, model, options, stream, before, tokens, config, on_piece):
        """The stream that goes on from the first tokens of an answer."""
        _check_one("rewind", config)
        scheduler, done = self._scheduler(model), before.completion
        stream.close()  # first: then what it has computed can be taken over
        ids = before.ids[: done.prompt_tokens].copy()
        request = self._generation(scheduler, model, ids, config, Inbox(), before=done, kept=tokens, **options)
        scheduler.submit(request)
        return Stream(scheduler, request, on_piece, functools.partial(self._rewound, model, options))

    @ErrorContext.during("save_state")
    def save_state(self, model: Model, path: str | os.PathLike[str], prompt: Prompt) -> int:
        """Write the keys and values of a text to a file, for `load_state`. What is not in memory is computed.

        Parameters
        ----------
        model : Model
        path : str
            A file there is replaced.
        prompt : str or sequence of int
            Such as a long instruction that many prompts begin with, or a conversation so far.

        Returns
        -------
        int
            How many of its tokens are in the file.

        Raises
        ------
        InferenceError
            If the prompt is empty or too long.
        ModelLoadError
            If the file cannot be written.
        """
        if not self.config.prefix_cache:
            raise ConfigurationError.conflict("save_state", "what was computed is remembered only with prefix_cache")
        ids = self._ids(model, prompt)
        self.infer(model, ids, last_only=True)
        written = []

        def see(length, blocks):
            write_state(os.fspath(path), model, ids[:length], blocks)
            written.append(length)

        self._scheduler(model).look_up(ids, see)
        return written[0]

    @ErrorContext.during("load_state")
    def load_state(self, model: Model, path: str | os.PathLike[str]) -> int:
        """Read what `save_state` wrote: prompts that begin with that text need not compute it.

        It stays in memory as long as nothing else needs its pages.

        Parameters
        ----------
        model : Model
            The one that it was written with, its keys and values stored alike.
        path : str

        Returns
        -------
        int
            Tokens of the text.

        Raises
        ------
        FormatError
            If it is no such file, is damaged, or belongs to another model.
        ModelLoadError
            If it cannot be read.
        """
        if not self.config.prefix_cache:
            raise ConfigurationError.conflict("load_state", "what was computed is remembered only with prefix_cache")
        scheduler = self._scheduler(model)
        return len(scheduler.put_in(lambda new_pages: read_state(os.fspath(path), model, new_pages)))

    def _generation(self, scheduler, model, prompt, config, inbox, **options):
        ids = self._ids(model, prompt, scheduler.context)
        return Generation(model, ids, config, inbox, scheduler.context, **options)

    def _ids(self, model, prompt, context=None):
        """The tokens of a prompt, if it has some and they fit."""
        _check_model(model)
        ids = model.encode(prompt)
        context = context or model.program.context
        if not len(ids):
            raise InferenceError.empty_prompt()
        if len(ids) > context:
            raise InferenceError.beyond_context(len(ids) - 1, context)
        return ids

    def _check_open(self):
        if self._is_closed:
            raise InferenceError.closed()

    def _scheduler(self, model):
        _check_model(model)
        with self._lock:
            self._check_open()
            if model not in self._schedulers:
                with ErrorContext.during("run", model=model.path, num_threads=self.config.num_threads):
                    self._schedulers[model] = Scheduler(model, self.config, self._turn)
            return self._schedulers[model]

    @contextlib.contextmanager
    def _run_of(self, model):
        """The memory in which a model runs here, for one run at a time."""
        scheduler = self._scheduler(model)
        with self._turn, ErrorContext.during("run", model=model.path, num_threads=self.config.num_threads):
            self._check_open()
            if model not in self._caches:
                self._caches[model] = KVCache(model.program.page_bytes)
            yield scheduler.execution, self._caches[model]

    def _read_texts(self, model, makers, most=None, progress=None):
        """Have requests read beside others; as `read_all`."""
        return read_all(self._scheduler(model), self._until_cancel(makers), most, progress)

    def _until_cancel(self, makers):
        """Makers of requests, which make none any more when `cancel` has been called."""
        cancels = self._cancels

        def checked(inbox, make):
            if self._cancels != cancels:
                raise InferenceError.stopped()
            return make(inbox)

        return [functools.partial(checked, make=make) for make in makers]

    def _logits(self, execution, sequences, ids, last_only, cancels):
        """Run the tokens of some sequences, in runs of as many tokens as fit; unless `cancel` has been called since it
        had been called `cancels` times."""
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
            arrays = [np.array(one, np.int32) for one in (
                [ids[number][at] for number, at in part], [sequences[number].length + at for number, at in part],
                [number for number, _ in part])]  # fmt: skip
            logits = self._run(execution, arrays, sequences, np.array(wanted, np.int32), cancels)
            for i, row in zip(wanted, logits, strict=True):
                found[part[i][0]].append(row)
        for sequence, tokens in zip(sequences, ids, strict=True):
            sequence.length += len(tokens)
        return [rows[-1] if last_only else np.stack(rows) for rows in found]

    def _run(self, execution, arrays, sequences, wanted, cancels):
        while True:
            execution.forget_cancel()
            if self._cancels != cancels:  # after this the flag of `execution` tells
                raise InferenceError.stopped()
            try:
                return execution.run(*arrays, [one.table for one in sequences], wanted, self.config.num_threads)
            except InferenceError as error:
                # A cancel may have been meant for a request that has just left: then do it again.
                if not error.message.startswith("the run was cancelled") or self._cancels != cancels:
                    raise


def _check_model(model):
    if not isinstance(model, Model):
        raise TypeError(f"an engine runs a Model, not a {type(model).__name__}; `load_model` makes one, and what "
                        "`bitnet.load` returns has one: its attribute `model`")  # fmt: skip


def _check_one(method, config):
    if config.num_return_sequences > 1:
        raise ConfigurationError.conflict(method, "a stream is one answer; num_return_sequences is "
                                          f"{config.num_return_sequences}")  # fmt: skip


def _is_list_of_prompts(prompt):
    return isinstance(prompt, list | tuple) and bool(prompt) and not isinstance(prompt[0], int | np.integer)
