"""Rows of test_raises.py for the command line."""

import argparse
import contextlib
import os
import tempfile
from pathlib import Path

from checkpoints import DATA

from bitnet.cli import batch
from bitnet.cli.batch_files import Journal, Prompt, digest, kind_of, read_prompts, write_output
from bitnet.cli.conversation import Conversation
from bitnet.config import EngineConfig, GenerationConfig
from bitnet.model import load_model


@contextlib.contextmanager
def folder():
    """A folder, whose name is no part of what is said."""
    with tempfile.TemporaryDirectory() as path:
        before = os.getcwd()
        os.chdir(path)
        try:
            yield Path(path)
        finally:
            os.chdir(before)


def of_file(name, data, use):
    with folder():
        Path(name).write_bytes(data)
        use(name)


def on_a_full_disk():
    journal = Journal("out", {})
    with open("/dev/full", "r+b", buffering=0) as journal._file:
        journal.add(1, {})


def of_another_job():
    with folder():
        for job in ({"a": 1}, {"a": 2}):
            with Journal("out", job):
                pass


def twice():
    with folder(), Journal("out", {}), Journal("out", {}):
        pass


def written_nowhere():
    with folder():
        Path("in.txt").write_text("")
        with Journal("out", {}) as journal:
            write_output("none/out.jsonl", "in.txt", journal)


def run(*arguments):
    parser = argparse.ArgumentParser(exit_on_error=False)
    batch.add_arguments(parser)
    with folder():
        Path("in.txt").write_text("")
        Path("out.jsonl").write_text("")
        batch.run(parser.parse_args(["-i", "in.txt", "-o", "out.jsonl", *arguments]))


def settings_of(own):
    args = argparse.Namespace(regex=None, json_schema=None, grammar=None)
    answers = batch._Answers(None, None, GenerationConfig(), args)
    answers._settings(Prompt(1, {"config": own}))


def replaced_by_usage(*arguments):
    """Raise the ConfigurationError of which a usage error is made."""
    parser = argparse.ArgumentParser()
    batch.add_arguments(parser)

    def error(sentence):
        raise LookupError(sentence)

    parser.error = error
    args = parser.parse_args(["-i", "in.txt", "-o", "out.jsonl", *arguments])
    args.parser = parser
    try:
        batch.run(args)
    except LookupError as usage:
        raise usage.__context__ from None


def conversation():
    return Conversation(load_model(str(DATA / "llama-packed-bitlinear"), EngineConfig(num_threads=1)))


ROWS = [
    ("cli/conversation.py", "ModelLoadError.exists", lambda: of_file("a", b"{}", conversation().save),
     "'a' exists already; give another name, or allow that it is replaced"),
    ("cli/conversation.py", "ModelLoadError.unwritable", lambda: conversation().save("none/a"),
     "cannot write 'none/a': No such file or directory"),
    ("cli/conversation.py", "ConfigurationError.value", lambda: of_file("a", b"{}", conversation().load),
     "chat.file is 'a'; it must be a conversation: an object with 'messages', each of which has a 'role' and a "
     "'content'"),
    ("cli/conversation.py", "ModelLoadError.unreadable", lambda: conversation().load("none"),
     "cannot read 'none': No such file or directory"),
    ("cli/batch_files.py", "ConfigurationError.value", lambda: kind_of("a.json", ("jsonl", "csv")),
     "batch.the name of a file is 'a.json'; it must be one that ends in .jsonl, .csv"),
    ("cli/batch_files.py", "ModelLoadError.unreadable", lambda: list(read_prompts("none.txt")),
     "cannot read 'none.txt': No such file or directory"),
    ("cli/batch_files.py", "ConfigurationError.value",
     lambda: of_file("in.csv", b"a,b\n1,2\n", lambda name: list(read_prompts(name))),
     "batch.columns is ['a', 'b']; it must be some of which one is 'prompt'"),
    ("cli/batch_files.py", "ModelLoadError.unwritable", lambda: Journal("none/out", {}).__enter__(),
     "cannot write 'none/out.partial': No such file or directory"),
    ("cli/batch_files.py", "ModelLoadError.unwritable", twice,
     "cannot write 'out.partial': another process is at work on it"),
    ("cli/batch_files.py", "ConfigurationError.conflict", of_another_job,
     "batch: 'out.partial' is of another input, model or settings; give --overwrite to begin anew"),
    ("cli/batch_files.py", "ModelLoadError.unwritable", on_a_full_disk,
     "cannot write 'out.partial': No space left on device"),
    ("cli/batch_files.py", "ModelLoadError.unreadable", lambda: digest("none.txt"),
     "cannot read 'none.txt': No such file or directory"),
    ("cli/batch_files.py", "ModelLoadError.unwritable", written_nowhere,
     "cannot write 'none/out.jsonl': No such file or directory"),
    ("cli/batch.py", "ModelLoadError.exists", run,
     "'out.jsonl' exists already; give another name, or allow that it is replaced"),
    ("cli/batch.py", "ConfigurationError.value", lambda: settings_of(3),
     "batch.config is 3; it must be an object of settings"),
    ("cli/batch.py", "ConfigurationError.value", lambda: settings_of({"num_return_sequences": 2, "do_sample": True}),
     "batch.num_return_sequences is 2; it must be 1: an answer a line"),
    ("cli/batch.py", "ConfigurationError.value", lambda: replaced_by_usage("--parallel", "0"),
     "batch.--parallel is 0; it must be a whole number from 1 to 1024"),
]  # fmt: skip
