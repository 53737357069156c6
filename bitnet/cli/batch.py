"""Answer all prompts of a file, many together; what is interrupted goes on where it stopped.

The output has each line of the input, in its order, and beside it completion, finish_reason, prompt_tokens,
completion_tokens and error. Until it is whole, the answers are in OUTPUT.partial, and the same command goes on from
there, after Ctrl-C, a crash or a kill. Input is .txt (a prompt a line), .jsonl (objects with "prompt" or "messages";
"config" has settings of that line, "tools" goes to the template) or .csv (with a column "prompt").
"""

import argparse
import contextlib
import os
import sys
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import bitnet
from bitnet.cli.batch_files import Journal, Prompt, digest, kind_of, read_prompts, write_output
from bitnet.cli.options import add_generation_arguments, generation_grammar, generation_settings
from bitnet.cli.session import add_engine_arguments, engine_config, loading, refused
from bitnet.errors import BitNetError, ConfigurationError, ModelLoadError

__all__ = ["add_arguments", "run"]

MOST = 1024  # prompts that an engine lets wait, unless it is told another number
SHOW_S, LOG_S = 0.2, 30.0  # between two lines of progress: on a terminal, and in a log


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bitnet batch``.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    """
    parser.add_argument("-i", "--input", required=True, metavar="FILE", help="prompts: .txt, .jsonl or .csv")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="answers: .jsonl or .csv")
    parser.add_argument("-m", "--model", metavar="CHECKPOINT",
                        help="a Hugging Face folder or a GGUF file (default: the model that comes with bitnet)")
    parser.add_argument("--chat", action="store_true", help="a prompt is a message: use the chat template")
    parser.add_argument("--template", metavar="NAME", help="a chat template instead of the model's: plain, or Jinja")
    parser.add_argument("--parallel", type=int, default=16, metavar="N", help="prompts that run together (default: 16)")
    parser.add_argument("--overwrite", action="store_true", help="begin anew, and replace an output that exists")
    add_generation_arguments(parser)
    parser.add_argument("--num-threads", type=int, metavar="N", help="(default: what this process may use)")
    add_engine_arguments(parser)
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(run=run, parser=parser)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Answer what has no answer yet, and write the output.

    Parameters
    ----------
    args : argparse.Namespace

    Returns
    -------
    int
        0, or 1 if some lines have errors.
    """
    settings = generation_settings(args)
    with refused(args):
        bitnet.GenerationConfig(**{"do_sample": False, **settings})
        kind_of(args.output, ("jsonl", "csv"))
        grammar = generation_grammar(args)
        if not 1 <= args.parallel <= MOST:
            raise ConfigurationError.value("batch", "--parallel", args.parallel, f"a whole number from 1 to {MOST}")
    partial = f"{args.output}.partial"
    if args.overwrite:
        if os.path.exists(partial):
            os.unlink(partial)
    elif os.path.exists(args.output) and not os.path.exists(partial):
        raise ModelLoadError.exists(args.output)
    engine_settings = engine_config(args, args.num_threads)
    job = {
        "input": digest(args.input), "model": args.model, "chat": args.chat, "template": args.template,
        "settings": settings, "grammar": None if grammar is None else grammar.source,
        "engine": engine_settings.replace(num_threads=None).to_dict(),
    }  # fmt: skip
    total = sum(1 for _ in read_prompts(args.input))
    with Journal(args.output, {"bitnet_batch": 1, **job}) as journal:
        if len(journal.done) < total:
            with bitnet.InferenceEngine(engine_settings) as engine:
                with loading(args.quiet) as show:
                    model = engine.load_model(args.model, progress=show)
                with refused(args):
                    config = model.generation_config.replace(**settings)
                answers = _Answers(engine, model, config, args)
                progress = _Progress(total, len(journal.done), args.quiet)
                todo = (prompt for prompt in read_prompts(args.input) if prompt.line not in journal.done)
                try:
                    with contextlib.closing(answers.of(todo)) as found:
                        for line, answer in found:
                            journal.add(line, answer)
                            progress.tell(answer)
                except KeyboardInterrupt:
                    progress.end()
                    print(f"{len(journal.done)} of {total} prompts are answered, in {journal.path}; the same command "
                          "goes on from there", file=sys.stderr)  # fmt: skip
                    raise
                progress.end()
        failed = sum(1 for answer in journal.answers(iter(journal.done)) if answer["error"] is not None)
        write_output(args.output, args.input, journal)
        journal.remove()
    if failed or not args.quiet:
        print(f"{total} prompts, {failed} of them with errors: {args.output}", file=sys.stderr)
    return 1 if failed else 0


class _Answers:
    """Answers prompts with one engine, many at a time."""

    def __init__(self, engine: Any, model: Any, config: Any, args: argparse.Namespace) -> None:
        self._engine, self._model, self._config, self._args = engine, model, config, args
        self._grammar = generation_grammar(args)
        self._is_stopped = threading.Event()

    def of(self, prompts: Iterator[Prompt]) -> Generator[tuple[int, dict[str, Any]], None, None]:
        """The lines and their answers, as they come. Ctrl-C stops what runs, which then has no answer."""
        pending: set[Future[Any]] = set()
        with ThreadPoolExecutor(self._args.parallel) as pool:
            try:
                for prompt in prompts:
                    pending.add(pool.submit(self._answer, prompt))
                    if len(pending) >= 2 * self._args.parallel:
                        done, pending = wait(pending, return_when=FIRST_COMPLETED)
                        yield from (future.result() for future in done)
                while pending:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            except BaseException:
                self._is_stopped.set()
                for future in pending:
                    future.cancel()
                while wait(pending, timeout=0.1).not_done:  # one may have begun after the cancel before
                    self._engine.cancel()
                raise

    def _answer(self, prompt: Prompt) -> tuple[int, dict[str, Any]]:
        answer: dict[str, Any] = dict.fromkeys(("completion", "finish_reason", "prompt_tokens", "completion_tokens"))
        if self._is_stopped.is_set():
            return prompt.line, answer
        error = prompt.error
        if error is None:
            try:
                done = self._engine.generate(self._model, self._prompt(prompt.row), self._settings(prompt),
                                             grammar=self._grammar)  # fmt: skip
                answer = {"completion": done.text, "finish_reason": done.finish_reason,
                          "prompt_tokens": done.prompt_tokens, "completion_tokens": len(done.tokens)}  # fmt: skip
            except BitNetError as problem:
                error = str(problem)
        return prompt.line, {**answer, "error": error}

    def _prompt(self, row: dict[str, Any]) -> Any:
        prompt = row.get("prompt")
        if "messages" not in row and not self._args.chat:
            return prompt
        messages = row.get("messages", [{"role": "user", "content": prompt}])
        return self._model.chat_prompt(messages, tools=row.get("tools"), template=self._args.template)

    def _settings(self, prompt: Prompt) -> Any:
        config, own = self._config, prompt.row.get("config")
        if config.seed is not None:  # each line its own, whatever ran before it
            config = config.replace(seed=(config.seed + prompt.line - 1) % 2**64)
        if own is None:
            return config
        if not isinstance(own, dict):
            raise ConfigurationError.value("batch", "config", own, "an object of settings")
        config = config.replace(**own)
        if config.num_return_sequences > 1:
            raise ConfigurationError.value("batch", "num_return_sequences", config.num_return_sequences,
                                           "1: an answer a line")  # fmt: skip
        return config


class _Progress:
    """Says on standard error how far it is, and when it will have ended."""

    def __init__(self, total: int, done: int, is_quiet: bool) -> None:
        self._total, self._done, self._before, self._tokens = total, done, done, 0
        self._start_s = time.monotonic()
        self._is_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._is_quiet = is_quiet or sys.stderr is None
        self._next_s = self._start_s + (SHOW_S if self._is_terminal else LOG_S)

    def tell(self, answer: dict[str, Any]) -> None:
        self._done += 1
        self._tokens += answer["completion_tokens"] or 0
        now = time.monotonic()
        if self._is_quiet or now < self._next_s:
            return
        self._next_s = now + (SHOW_S if self._is_terminal else LOG_S)
        spent = now - self._start_s
        left = round(spent / (self._done - self._before) * (self._total - self._done))
        text = (f"{self._done:,} of {self._total:,} prompts ({self._done / self._total:.0%}), "
                f"{self._tokens / spent:.1f} tokens/s, "
                f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left")  # fmt: skip
        print(f"\r\x1b[K{text}" if self._is_terminal else text, end="" if self._is_terminal else "\n", file=sys.stderr,
              flush=True)  # fmt: skip

    def end(self) -> None:
        if self._is_terminal and not self._is_quiet:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
