"""What every subcommand shares: exit codes, one line for an error, and a quiet end."""

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import bitnet
from bitnet import machine
from bitnet.cli import COMMANDS, doctor, main
from bitnet.errors import ShapeError


def raising(error):
    def diagnose(measure, model):
        raise error

    return diagnose


def test_version(capsys, command):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"bitnet {bitnet.__version__}\n"
    assert command("--version") == (0, f"bitnet {bitnet.__version__}\n", "")


def test_help_names_every_subcommand(capsys):
    assert main(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, module in COMMANDS.items():
        summary = importlib.import_module(module).__doc__.partition("\n")[0]
        assert f" {name} {summary}" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_each_subcommand_has_help(name, capsys):
    assert main([*name.split(), "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: bitnet {name}")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["generate", "-m", "folder"], "the following arguments are required: PROMPT"),
        (["dance"], "'dance'"),
        (["doctor", "--jso"], "unrecognized arguments: --jso"),
    ],
)
def test_a_usage_error_is_2(arguments, complaint, capsys):
    assert main(arguments) == 2
    output, complaints = capsys.readouterr()
    assert output == ""
    assert complaints.startswith("usage: bitnet")
    assert complaint in complaints


def test_an_error_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "diagnose", raising(ShapeError.mismatch("x", (1, 2), (3, 4))))
    assert main(["doctor"]) == 1
    assert capsys.readouterr() == ("", "bitnet: x has shape (3, 4); it must be (1, 2)\n")


def test_an_error_nobody_foresaw_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "diagnose", raising(RuntimeError("first\nsecond")))
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err == "bitnet: RuntimeError: first second (--debug shows where)\n"


@pytest.mark.parametrize("arguments", [["--debug", "doctor"], ["doctor", "--debug"]])
def test_debug_shows_the_traceback(arguments, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "diagnose", raising(ShapeError.mismatch("x", (1, 2), (3, 4))))
    assert main(arguments) == 1
    complaints = capsys.readouterr().err
    assert complaints.startswith("Traceback (most recent call last):")
    assert complaints.endswith("x has shape (3, 4); it must be (1, 2)\n")


def test_an_impossible_isa_is_one_line(command):
    code, output, complaints = command("bench", "kernels", "--quick", BITNET_ISA="mmx")
    assert (code, output) == (1, "")
    possible = ", ".join(machine.possible_isas())
    assert complaints == f"bitnet: BITNET_ISA is 'mmx', which names no instruction set; this CPU can run {possible}\n"


def test_ctrl_c_is_130(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "diagnose", raising(KeyboardInterrupt))
    assert main(["doctor"]) == 130
    assert capsys.readouterr() == ("", "bitnet: stopped\n")


def test_ctrl_c_stops_a_measurement(start):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child of a background job would ignore it
    try:
        process = start("bench", "kernels")
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.stdout.readline().startswith("Every product")
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate(timeout=60)
    assert (process.returncode, complaints) == (130, "bitnet: stopped\n")


def test_a_pipe_closed_early_is_no_error(start):
    process = start("doctor", "--no-measure")
    process.stdout.close()
    process.stdout = None  # communicate() would read it
    _, complaints = process.communicate(timeout=60)
    assert (process.returncode, complaints) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_one_line():
    with open("/dev/full", "w", encoding="ascii") as full:
        done = subprocess.run(
            [sys.executable, "-m", "bitnet", "doctor", "--no-measure"], cwd=Path(bitnet.__file__).parents[1],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("bitnet: OSError: ")
    assert done.stderr.count("\n") == 1


def test_tables_are_drawn_by_a_library_that_is_loaded_late():
    code = "import sys, bitnet.cli; bitnet.cli.main(['doctor', '--no-measure']); sys.exit('rich' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(bitnet.__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
