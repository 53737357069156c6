"""``bitnet train`` and ``bitnet export``: from a text file to a model that generates."""

import re
import signal
import subprocess
import sys

import pytest

from bitnet.cli import main

STORY = "Ann had a red ball. Ben wanted the ball too. So they shared the ball, and were glad.\n"
SIZES = ["--vocab-size", "280", "--hidden-size", "32", "--intermediate-size", "64", "--num-hidden-layers", "1",
         "--num-attention-heads", "2", "--num-key-value-heads", "2", "--context", "32", "--threads", "1",
         "--dtype", "float32"]  # fmt: skip


@pytest.fixture
def text(tmp_path):
    pytest.importorskip("torch", reason="the extra 'train' is not installed", exc_type=ImportError)
    file = tmp_path / "text.txt"
    file.write_text("<|endoftext|>\n".join([STORY] * 40), encoding="utf-8")
    return str(file)


def test_train_export_generate(text, tmp_path, capsys):
    run, model, settings = str(tmp_path / "run"), str(tmp_path / "model"), tmp_path / "run.toml"
    settings.write_text(f'data = ["{text}"]\nvalidation = "{text}"\nsteps = 1000\nevaluate_every = 20\n')
    assert main(["train", str(settings), *SIZES, "--steps", "40", "--output", run, "--learning-rate", "0.01"]) == 0
    output, complaints = capsys.readouterr()
    assert output == ""
    assert "parameters; at step 0" in complaints
    assert len(re.findall(r"validation [\d.]+ nats a token, [\d.]+ bits a character", complaints)) == 2
    assert re.search(rf"40 steps, [\d,]+ tokens in [\d.]+ min; the run is in '{run}'", complaints)
    assert main(["export", run, model]) == 0
    assert capsys.readouterr().out.startswith(f"{model} is written")
    assert main(["generate", "-m", model, "Ann had a", "--max-new-tokens", "8", "--quiet"]) == 0
    story = capsys.readouterr().out
    assert len(story) > 5
    assert main(["export", run, model + ".own", "--to", "bitnet"]) == 0
    assert capsys.readouterr().out.startswith(f"{model}.own is written")
    assert main(["generate", "-m", model + ".own", "Ann had a", "--max-new-tokens", "8", "--quiet"]) == 0
    assert capsys.readouterr().out == story
    assert main(["train", str(settings), *SIZES, "--steps", "42", "--output", run, "--resume", "--quiet"]) == 0
    assert capsys.readouterr().err.startswith("42 steps, ")


def test_ctrl_c_ends_it_in_order(text, tmp_path, start):
    run = tmp_path / "run"
    process = start("train", "--data", text, *SIZES, "--steps", "1000000", "--output", str(run), "--prompts", "Ann",
                    "--validation", text, "--evaluate-every", "5")  # fmt: skip
    lines = iter(process.stderr.readline, "")
    assert any("validation" in line for line in lines)
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the run is in" in complaints
    assert (run / "last.pt").exists()


def test_settings_that_cannot_be_used(text, capsys):
    assert main(["train"]) == 2
    assert "give text files to train on: --data FILE ..." in capsys.readouterr().err
    assert main(["train", "--data", text, "--dropout", "2"]) == 2
    assert "TrainConfig.dropout is 2.0; it must be a number from 0 to below 1" in capsys.readouterr().err


def test_without_pytorch_it_says_what_to_install(tmp_path):
    code = ("import sys; sys.modules['torch'] = None; from bitnet.cli import main; "
            "sys.exit(main(['train', '--data', 'a.txt']))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "bitnet: 'torch' is not installed; run: pip install 'bitnet-runtime[train]'\n"


def test_every_field_is_a_flag_with_help(capsys):
    assert main(["train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--matrix-learning-rate X Muon's peak (default: 0.003)" in text
    assert "--mixed-share X The share of `mixed_data` in the rows of a step, 0 to 1 (default: 0.0)" in text
