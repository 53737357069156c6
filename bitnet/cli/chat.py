"""Talk with a model in the terminal.

Lines can be edited, and those of earlier days are found with the arrow keys. A message of several lines stands between
two lines of three quotes. Ctrl-C stops an answer and keeps the conversation, Ctrl-D ends it; /help lists the commands.
"""

import argparse
import contextlib
import os
import shutil
import sys
import threading
import time
from typing import Any

import bitnet
from bitnet.cli.conversation import Conversation
from bitnet.cli.options import add_generation_arguments, generation_grammar, generation_settings, speeds
from bitnet.cli.session import add_engine_arguments, engine_config, loading, refused
from bitnet.errors import BitNetError

__all__ = ["add_arguments", "run"]

HELP = """/system TEXT   what the system says, before all messages; without TEXT it is shown
/clear         forget all messages but the system's
/retry         answer the last message once more
/undo          take the last message and its answer back
/edit          the same, and put the message on the line again, to be changed
/save FILE     write the conversation to a file
/load FILE     go on with one that was saved
/stats         tokens, speeds, and how full the context is
/help          this list
/exit          leave; so does Ctrl-D
\"\"\"            begins and ends a message of several lines
Ctrl-C         stops an answer, and keeps the conversation"""
QUOTES = '"""'
SHOW_S = 0.1  # between two speeds that are shown
LONG = 2048  # tokens of an answer, where nobody says another number and the context has room
HISTORY = 1000  # lines that are kept


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bitnet chat``.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    """
    parser.add_argument("-m", "--model", metavar="CHECKPOINT",
                        help="a Hugging Face folder or a GGUF file (default: the model that comes with bitnet)")
    parser.add_argument("--system", metavar="TEXT", help="what the system says, before all messages")
    parser.add_argument("--template", metavar="NAME", help="a chat template instead of the model's: plain, or Jinja")
    parser.add_argument("--resume", metavar="FILE", help="go on with a conversation that was saved")
    parser.add_argument("--history", metavar="FILE", help="of the lines that were entered; an empty name keeps none "
                        "(default: bitnet/chat_history where the system keeps such files)")
    add_generation_arguments(parser)
    parser.add_argument("--num-threads", type=int, metavar="N", help="(default: what this process may use)")
    add_engine_arguments(parser)
    parser.add_argument("--quiet", action="store_true", help="print the answers and nothing else")
    parser.set_defaults(run=run, parser=parser)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Load the model, and talk until the input ends.

    Parameters
    ----------
    args : argparse.Namespace

    Returns
    -------
    int
        0.
    """
    settings = generation_settings(args)
    with refused(args):
        bitnet.GenerationConfig(**{"do_sample": False, **settings})
        grammar = generation_grammar(args)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    with bitnet.InferenceEngine(engine_config(args, args.num_threads)) as engine:
        with loading(args.quiet) as show:
            model = engine.load_model(args.model, progress=show)
        with refused(args):
            config = model.generation_config.replace(**settings)
            if args.max_new_tokens is None:  # an answer is to end by itself
                room = max(config.max_new_tokens, min(LONG, model.program.context // 2))
                config = config.replace(max_new_tokens=room)
        template = args.template
        if template is None and model.chat_template is None:
            template = "plain"
            _note(args.quiet, "this model has no chat template, so most likely it was not trained to chat: it goes on "
                  "from what was said, line by line")  # fmt: skip
        talk = Conversation(model, template, args.system)
        if args.resume is not None:
            talk.load(args.resume)
        chat = _Chat(engine, model, config, grammar, talk, args.quiet)
        _note(args.quiet, f"{model.path}, {model.program.context} tokens of context; /help lists commands")
        with _history(args.history) as is_terminal:
            while chat.is_going_on:
                chat.hear(is_terminal)
    return 0


class _Chat:
    """A conversation in the terminal."""

    def __init__(
        self, engine: Any, model: Any, config: Any, grammar: Any, talk: Conversation, is_quiet: bool
    ) -> None:
        self._engine, self._model, self._config, self._grammar, self._talk = engine, model, config, grammar, talk
        self._is_quiet, self.is_going_on = is_quiet, True
        self._done: list[bitnet.Completion] = []
        self._draft = ""  # what stands on the next line already

    def hear(self, is_terminal: bool) -> None:
        """Read a message or a command, and do what it asks."""
        try:
            draft, self._draft = self._draft, ""
            text = _message(is_terminal, draft)
        except EOFError:
            self.is_going_on = False
            if is_terminal:
                print()
            return
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            print("\n(Ctrl-D or /exit leaves)")
            return
        try:
            if text.startswith("/") and "\n" not in text:
                self._command(*text[1:].split(maxsplit=1))
            elif text.strip():
                self._say(text)
        except BitNetError as error:
            print(f"bitnet: {' '.join(str(error).split())}", file=sys.stderr)
        except KeyboardInterrupt:  # as the answer ended by itself
            if not is_terminal:
                raise
            print()

    def _command(self, name: str = "", rest: str = "") -> None:
        talk, rest = self._talk, rest.strip()
        if name in ("exit", "quit", "bye"):
            self.is_going_on = False
        elif name == "help":
            print(HELP)
        elif name == "clear":
            talk.messages = []
        elif name == "system":
            if not rest:
                print("nothing" if talk.system is None else talk.system)
            talk.system = rest or talk.system
        elif name in ("save", "load") and rest:
            path = os.path.expanduser(rest)
            (talk.save if name == "save" else talk.load)(path)
            _note(self._is_quiet, f"{len(talk.messages)} messages: {path}")
        elif name == "retry" and talk.messages and talk.messages[-1]["role"] == "assistant":
            answer = talk.messages.pop()
            self._answer(answer)
        elif name in ("undo", "edit") and talk.messages:
            taken = self._undo()
            if name == "edit":
                self._draft = taken
            else:
                _note(self._is_quiet, f"taken back: {' '.join(taken.split())[:60]!r}")
        elif name == "stats":
            self._tell()
        else:
            print(f"'/{name}{' ' * bool(rest)}{rest}' is no command here; /help lists them", file=sys.stderr)

    def _undo(self) -> str:
        """Take back what came since the last message of the user's, and give that."""
        taken = ""
        while self._talk.messages:
            message = self._talk.messages.pop()
            if message["role"] == "user":
                taken = message["content"]
                break
        return taken

    def _say(self, text: str) -> None:
        self._talk.messages.append({"role": "user", "content": text})
        self._answer(None)

    def _answer(self, before: dict[str, Any] | None) -> None:
        """Answer the last message; where that fails, all is as it was, with the answer that was there before."""
        talk = self._talk
        try:
            ids, left_out = talk.prompt(self._config.max_new_tokens)
            if left_out:
                _note(self._is_quiet, f"the oldest {left_out} messages do not fit into the context, and are left out")
            done = self._print(self._engine.stream(self._model, ids, self._config, grammar=self._grammar))
        except (BitNetError, KeyboardInterrupt):
            if before is None:
                talk.messages.pop()
            else:
                talk.messages.append(before)
            raise
        self._done.append(done)
        talk.messages.append({"role": "assistant", "content": done.text})
        if not self._is_quiet:
            print(("stopped; " if done.finish_reason == "cancelled" else "") + speeds(done), file=sys.stderr)

    def _print(self, stream: bitnet.Stream) -> bitnet.Completion:
        """Print an answer as it comes. It has a thread of its own, so that this one hears of Ctrl-C at once, and the
        engine stops within a step."""
        problem: list[BaseException] = []
        finished = threading.Event()

        def work() -> None:
            try:
                with _Screen() as screen:
                    for piece in stream:
                        screen.put(piece.text, piece.token is not None)
            except BaseException as error:
                problem.append(error)
            finally:
                finished.set()

        threading.Thread(target=work, daemon=True).start()
        while not finished.is_set():
            try:
                finished.wait()
            except KeyboardInterrupt:
                stream.cancel()
        if problem:
            raise problem[0]
        done: bitnet.Completion = stream.completion
        return done

    def _tell(self) -> None:
        used = len(self._talk.ids(self._talk.every())) if self._talk.every() else 0
        context = self._model.program.context
        tokens, spent = sum(len(one.tokens) for one in self._done), sum(one.generate_s for one in self._done)
        print(f"messages: {len(self._talk.messages)}; context: {used} of {context} tokens ({used / context:.0%})")
        print(f"answers: {len(self._done)}, of {tokens} tokens" + (f", {tokens / spent:.1f} tokens/s" if spent else ""))
        if self._done:
            last = self._done[-1]
            print(f"last: {speeds(last)}; {last.cached_tokens} tokens of its prompt were there already")


class _Screen:
    """Prints text as it comes; on a terminal the speed stands behind it, until the next piece."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._column, self._shown, self._last = 0, "", "\n"
        self._tokens, self._start_s, self._next_s = 0, 0.0, 0.0

    def __enter__(self) -> "_Screen":
        return self

    def __exit__(self, *_: object) -> None:
        self._put("")
        if self._last != "\n":
            print(flush=True)

    def put(self, text: str, is_token: bool) -> None:
        now = time.monotonic()
        self._start_s = self._start_s or now
        self._tokens += is_token
        if now >= self._next_s and self._tokens > 1:
            self._next_s = now + SHOW_S
            self._shown = f"  {(self._tokens - 1) / (now - self._start_s):.1f} tokens/s"
        if text:
            self._put(text)

    def _put(self, text: str) -> None:
        if not self._is_terminal:
            print(text, end="", flush=True)
        else:
            from rich.cells import cell_len

            width = shutil.get_terminal_size().columns
            self._column = (0 if "\n" in text else self._column) + cell_len(text.rpartition("\n")[2])
            self._column %= max(width, 1)
            # Only where it fits into the line, so that the cursor comes back by going left.
            shown = self._shown if text and self._column and self._column + len(self._shown) < width else ""
            back = f"\x1b[2m{shown}\x1b[0m\x1b[{len(shown)}D" if shown else ""
            print(f"\x1b[K{text}{back}", end="", flush=True)
        self._last = text[-1:] or self._last


def _message(is_terminal: bool, draft: str = "") -> str:
    """A line, or the lines between two that have three quotes; `draft` stands there already, to be edited."""
    with _drafted(draft if is_terminal else ""):
        line = input("> " if is_terminal else "")
    if not line.startswith(QUOTES):
        return line
    lines = [line.removeprefix(QUOTES)]
    while not lines[-1].rstrip().endswith(QUOTES):
        try:
            lines.append(input("... " if is_terminal else ""))
        except EOFError:
            return "\n".join(lines)
    lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
    return "\n".join(lines).strip("\n")


@contextlib.contextmanager
def _drafted(text: str) -> Any:
    """Have a text on the line that is read next."""
    if not text:
        yield
        return
    try:
        import readline
    except ImportError:  # a Python without it
        yield
        return
    # Lines below each other would be read as several.
    readline.set_startup_hook(lambda: readline.insert_text(" ".join(text.split("\n"))))
    try:
        yield
    finally:
        readline.set_startup_hook()


def _note(is_quiet: bool, text: str) -> None:
    if not is_quiet:
        print(f"({text})", file=sys.stderr)


@contextlib.contextmanager
def _history(path: str | None) -> Any:
    """Editing and history, while this is a terminal; whether it is one."""
    if sys.stdin is None or not sys.stdin.isatty() or not sys.stdout.isatty():
        yield False
        return
    try:
        import readline
    except ImportError:  # a Python without it
        yield True
        return
    if path is None:
        state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        path = os.path.join(state, "bitnet", "chat_history")
    readline.set_auto_history(True)
    if path:
        with contextlib.suppress(OSError):
            readline.read_history_file(path)
    try:
        yield True
    finally:
        if path:
            with contextlib.suppress(OSError):  # no reason to complain: the conversation is what counts
                os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
                readline.set_history_length(HISTORY)
                readline.write_history_file(path)
                os.chmod(path, 0o600)
