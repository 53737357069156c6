"""``bitnet generate``: text on standard output, the rest on standard error."""

import io
import re
import signal
import threading
import time

import pytest
from checkpoints import DATA
from cli_checkpoints import KNOWN, TEMPLATE, changed_config, with_tokenizer

import bitnet
from bitnet.cli import main
from bitnet.cli.session import interruptible


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return with_tokenizer(tmp_path_factory.mktemp("generate") / "model")


def expected(folder, prompt, **settings):
    with bitnet.load(folder) as model:
        return model.generate(prompt, **settings)


def test_it_prints_what_python_generates(folder, capsys):
    assert main(["generate", "-m", folder, "w3 w40 w5", "--max-new-tokens", "6"]) == 0
    output, complaints = capsys.readouterr()
    done = expected(folder, "w3 w40 w5", max_new_tokens=6)
    assert output == done.text + "\n"
    assert len(output.split()) == 6
    assert re.fullmatch(
        r"prompt: 3 tokens, [\d.]+ tokens/s; first token after [\d.]+ s; generated: 6 tokens, [\d.]+ tokens/s; "
        r"ended by: length\n",
        complaints,
    )


def test_the_prompt_may_come_from_standard_input(folder, capsys, monkeypatch):
    assert main(["generate", "-m", folder, "w3 w40 w5", "--max-new-tokens", "3", "--quiet"]) == 0
    first = capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.StringIO("w3 w40 w5\n"))
    assert main(["generate", "-m", folder, "-", "--max-new-tokens", "3", "--quiet"]) == 0
    assert capsys.readouterr() == first
    assert first.err == ""


def test_options_reach_the_sampler(folder, capsys):
    options = ["--temperature", "3", "--top-k", "100", "--top-p", "0.99", "--min-p", "0.001", "--seed", "7",
               "--repetition-penalty", "1.1", "--max-new-tokens", "8", "--quiet"]  # fmt: skip
    assert main(["generate", "-m", folder, "w3", *options]) == 0
    done = expected(folder, "w3", do_sample=True, temperature=3.0, top_k=100, top_p=0.99, min_p=0.001, seed=7,
                    repetition_penalty=1.1, max_new_tokens=8)  # fmt: skip
    assert capsys.readouterr().out == done.text + "\n"


def test_penalties_and_grammars_reach_it_too(folder, capsys, tmp_path):
    options = ["--typical-p", "0.9", "--frequency-penalty", "1.5", "--presence-penalty", "0.5", "--seed", "7",
               "--no-repeat-ngram-size", "2", "--max-new-tokens", "8", "--quiet"]  # fmt: skip
    assert main(["generate", "-m", folder, "w3", *options]) == 0
    done = expected(folder, "w3", do_sample=True, typical_p=0.9, frequency_penalty=1.5, presence_penalty=0.5, seed=7,
                    no_repeat_ngram_size=2, max_new_tokens=8)  # fmt: skip
    assert capsys.readouterr().out == done.text + "\n"
    (tmp_path / "schema.json").write_text('{"const": "b"}')
    (tmp_path / "a.lark").write_text('start: "b" "c"')
    for option, text in (("--regex", "b{3}"), ("--json-schema", tmp_path / "schema.json"),
                         ("--grammar", tmp_path / "a.lark")):  # fmt: skip
        assert main(["generate", "It is", option, str(text), "--quiet"]) == 0
    assert capsys.readouterr().out == 'bbb\n"b"\nbc\n'
    assert main(["generate", "It is", "--regex", "("]) == 2
    assert main(["generate", "It is", "--grammar", "none"]) == 1
    assert "cannot read 'none'" in capsys.readouterr().err


def test_temperature_0_takes_the_most_likely(folder, capsys):
    assert main(["generate", "-m", folder, "w3", "--temperature", "0", "--max-new-tokens", "4", "--quiet"]) == 0
    assert capsys.readouterr().out == expected(folder, "w3", max_new_tokens=4).text + "\n"


def test_a_stop_string_ends_the_text(folder, capsys):
    words = expected(folder, "w3", max_new_tokens=5).text.split()
    assert main(["generate", "-m", folder, "w3", "--max-new-tokens", "5", "--stop", words[2]]) == 0
    output, complaints = capsys.readouterr()
    assert words[2] not in output.split()
    assert complaints.endswith("ended by: stop\n")


def test_chat_uses_the_template(folder, capsys):
    assert main(["generate", "-m", folder, "w9", "--chat", "--max-new-tokens", "4"]) == 0
    output, complaints = capsys.readouterr()
    assert output == expected(folder, "user: w9 ", max_new_tokens=4).text + "\n"
    assert complaints.startswith("prompt: 2 tokens")
    assert "role" in TEMPLATE


def test_engine_options(folder, capsys):
    options = ["--num-threads", "1", "--packing", "t5", "--kv-dtype", "float32", "--head-dtype", "float32"]
    assert main(["generate", "-m", folder, "w3", *options, "--max-new-tokens", "4", "--quiet"]) == 0
    assert len(capsys.readouterr().out.split()) == 4


def test_what_is_missing(tmp_path, capsys):
    missing = str(tmp_path / "nothing")
    assert main(["generate", "-m", missing, "hi"]) == 1
    assert capsys.readouterr() == ("", f"bitnet: cannot read '{missing}': there is no such file or folder\n")
    bare = str(DATA / "bitnet-packed-auto")
    assert main(["generate", "-m", bare, "hi"]) == 1
    assert capsys.readouterr() == (
        "", f"bitnet: '{bare}' has no tokenizer that can be used; give token ids instead of text\n"
    )  # fmt: skip
    plain = with_tokenizer(tmp_path / "plain", template=None)
    assert main(["generate", "-m", plain, "hi", "--chat"]) == 1
    assert capsys.readouterr() == ("", f"bitnet: '{plain}' has no chat template; write the prompt as text, or give a "
                                   "template: 'plain' writes what was said, line by line\n")


def test_an_unknown_model_type(tmp_path, capsys):
    other = changed_config(tmp_path / "other", model_type="mamba")
    assert main(["generate", "-m", other, "hi"]) == 1
    output, complaints = capsys.readouterr()
    assert output == ""
    assert complaints == f"bitnet: '{other}' is of model_type 'mamba'; known are {KNOWN}\n"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--max-new-tokens", "0"], "max_new_tokens is 0; it must be a whole number from 1 to 2147483647"),
        (["--top-p", "2"], "top_p is 2.0; it must be above 0 and at most 1"),
        (["--temperature", "-1"], "temperature is -1.0; it must be a finite number above 0"),
        (["--temperature", "0", "--top-k", "5"],
         "--temperature 0 takes the most likely token, and --top-k asks for drawing; give one of them"),
        (["--packing", "q4"], "packing is 'q4'; it must be one of 'auto', 'i2', 't5'"),
        (["--num-threads", "0"], "num_threads is 0; it must be a whole number from 1 to 1024"),
        (["--seed", "x"], "argument --seed: invalid int value: 'x'"),
        (["--stop", ""], "stop_strings is ['']; it must be a string or a list of strings, none of them empty"),
    ],
)  # fmt: skip
def test_an_option_that_cannot_be_used(options, complaint, capsys):
    assert main(["generate", "-m", "nowhere", "hi", *options]) == 2
    output, complaints = capsys.readouterr()
    assert output == ""
    assert complaint in complaints.splitlines()[-1]
    assert complaints.splitlines()[-1].startswith("bitnet generate: error: ")


def test_ctrl_c_keeps_the_text_so_far(tmp_path, start):
    # A context without end, and a text without one.
    model = changed_config(tmp_path / "model", max_position_embeddings=1 << 16, eos_token_id=None)
    tokenizer = with_tokenizer(tmp_path / "other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "other" / name).rename(tmp_path / "model" / name)
    assert tokenizer
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = start("generate", "-m", model, "w3", "--max-new-tokens", "60000")
    finally:
        signal.signal(signal.SIGINT, before)
    first = process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    rest, complaints = process.communicate(timeout=60)
    assert (process.returncode, complaints) == (130, "bitnet: stopped\n")
    assert (first + rest).endswith("\n")
    assert all(re.fullmatch(r"w\d+", word) for word in (first + rest).split())


@pytest.mark.parametrize("is_there", [True, False])
def test_ctrl_c_while_the_thread_of_a_generation_is_started_waits_for_it(monkeypatch, is_there):
    class Interrupted(threading.Thread):
        def start(self):
            if is_there:
                super().start()
            raise KeyboardInterrupt

    class Engine:
        def cancel(self):
            done.append("cancelled")

    def work():
        time.sleep(0.05)
        done.append("ended")

    done = []
    monkeypatch.setattr(threading, "Thread", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        interruptible(Engine(), work)
    assert sorted(done) == (["cancelled", "ended"] if is_there else [])
