"""``bitnet profile``, ``bitnet diagnose``, ``bitnet inspect --memory`` and ``bitnet doctor --model``."""

import gc
import json
import os
import shutil

import pytest
from checkpoints import DATA

import bitnet
from bitnet import machine
from bitnet.cli import doctor, main
from bitnet.memory import memory_report

BITNET, OTHER = str(DATA / "bitnet-packed-auto"), str(DATA / "bitnet-packed-bitlinear")


@pytest.fixture
def damaged(tmp_path):
    """A checkpoint in which the gain of the last norm is NaN."""
    folder = shutil.copytree(BITNET, tmp_path / "damaged")
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    entry = header["model.norm.weight"]
    start, end = (8 + int.from_bytes(data[:8], "little") + offset for offset in entry["data_offsets"])
    data[start:end] = b"\xff" * (end - start)
    file.write_bytes(data)
    return str(folder)


def test_a_profile(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(machine, "multiply_peak", lambda threads: None)
    trace = tmp_path / "trace.json"
    options = ["--max-new-tokens", "3", "--num-threads", "1", "--limit", "50", "--chrome-trace", str(trace)]
    assert main(["profile", BITNET, "-p", "1,2,3", *options]) == 0
    kinds, operations, _ = capsys.readouterr().out.split("\n\n")
    assert any(line.split()[-2:] == ["linear", "linear"] for line in kinds.splitlines())
    assert "model.layers." in operations
    assert "3 runs of 5 tokens" in operations
    assert len(json.loads(trace.read_text())["traceEvents"]) > 100
    assert main(["profile", BITNET, "--by", "layer", "--max-new-tokens", "1"]) == 0
    assert "1 runs of 16 tokens" in capsys.readouterr().out


def test_a_usage_error_of_profile(capsys):
    assert main(["profile", BITNET, "--max-new-tokens", "0"]) == 2
    assert "max_new_tokens is 0" in capsys.readouterr().err


def test_a_diagnosis(capsys):
    assert main(["diagnose", BITNET, "-p", "5,6,7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[-1] == "operation"
    assert lines[-1].endswith("lm_head")


def test_a_diagnosis_names_what_is_wrong(damaged, capsys):
    assert main(["diagnose", damaged]) == 1
    output = capsys.readouterr().out
    assert "'model.norm' (rms_norm) is the first operation that makes a number that is not finite: 4096 NaN" in output


@pytest.mark.parametrize("options", [["--compare", BITNET], ["--compare-threads", "2"]])
def test_a_comparison_of_what_is_the_same(options, capsys):
    assert main(["diagnose", BITNET, "--num-threads", "1", *options]) == 0
    assert capsys.readouterr().out.endswith("operations make the same numbers\n")


@pytest.mark.parametrize("options", [["--compare-isa", "portable"], ["--compare-packing", "t5"]])
def test_a_comparison_of_ways_to_run(options, capsys):
    before = machine.describe().isa
    assert main(["diagnose", BITNET, "--packing", "i2", "--tolerance", "1e-3", *options]) == 0
    assert "the same numbers" in capsys.readouterr().out
    assert machine.describe().isa == before


def test_a_comparison_names_the_first_difference(damaged, capsys):
    # The same codes, with scales stored as their reciprocals: some last bits differ, and the logits by as little.
    assert main(["diagnose", BITNET, "--compare", OTHER]) == 1
    first, last, _ = capsys.readouterr().out.split("\n")
    assert "_proj' (linear) is the first of " in first
    assert last.startswith("the last, 'lm_head', differs by at most ")
    assert main(["diagnose", BITNET, "--compare", OTHER, "--tolerance", "0.001"]) == 0
    capsys.readouterr()
    assert main(["diagnose", BITNET, "--compare", damaged, "--tolerance", "0.001"]) == 1
    assert capsys.readouterr().out.startswith("'model.norm' (rms_norm) is the first of 1 operations that differ: 4096 ")


def test_where_the_memory_of_a_model_is(capsys):
    assert main(["inspect", BITNET, "--memory", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["weights"] > 500_000
    assert found["head"] > 0
    assert found["kv"] > 0
    assert sum(found["resident"].values()) == found["rss"]
    assert main(["inspect", BITNET, "--memory"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "size", "weights", "head", "kv", "scratch", "other", "unused", "outside", "files", "rss"]  # fmt: skip


def test_where_memory_is_follows_from_how_a_model_is_loaded(capsys, tmp_path):
    bitnet.convert(BITNET, tmp_path / "a", packing="i2")

    def seen(*options):
        gc.collect()
        before = memory_report()  # of other tests
        assert main(["inspect", str(tmp_path / "a"), "--memory", "--json", *options]) == 0
        found = json.loads(capsys.readouterr().out)
        return {name: found[name] - getattr(before, name) for name in ("weights", "head", "mapped")}

    mapped, copied = seen(), seen("--load", "copy")
    assert (mapped["weights"], mapped["head"]) == (copied["weights"], copied["head"])
    assert (mapped["mapped"], copied["mapped"]) == (mapped["weights"] + mapped["head"], 0)
    assert seen("--head-dtype", "float16")["head"] == 2 * copied["head"]
    assert main(["inspect", BITNET, "--memory", "--load", "never"]) == 2
    assert "load is 'never'" in capsys.readouterr().err
    assert main(["inspect", BITNET, "--load", "copy"]) == 2
    assert "how a model is loaded is asked with --memory only" in capsys.readouterr().err


# ---- bitnet doctor


def problems(capsys, *arguments):
    code = main(["doctor", "--json", "--no-measure", *arguments])
    found = json.loads(capsys.readouterr().out)
    return code, [problem["sentence"] for problem in found["problems"]]


@pytest.mark.parametrize(("free", "remedy"), [(1_000_000, "keep texts short"), (1000, "use packing 't5'")])
def test_memory_too_small_for_a_model(free, remedy, capsys, monkeypatch):
    monkeypatch.setattr(machine, "stale_modules", list)
    monkeypatch.setattr(doctor, "system_memory", lambda: (10**9 - free, 10**9))
    code, sentences = problems(capsys, "--model", BITNET)
    assert code == 0
    [sentence] = [one for one in sentences if "needs" in one]
    assert sentence.startswith(f"'{BITNET}' needs 1.1 MiB (weights 0.8 MiB, ")
    assert remedy in sentence


def test_memory_enough_for_a_model(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "system_memory", lambda: (0, 10**12))
    assert not any("needs" in one for one in problems(capsys, "--model", BITNET)[1])


def test_a_core_of_another_version(capsys, monkeypatch):
    monkeypatch.setattr(machine, "core_build", lambda: ("0.0.1", True))
    code, sentences = problems(capsys)
    assert code == 1
    assert any(one.startswith("the compiled core was built for version 0.0.1, and the package is") for one in sentences)
    assert any("built with BITNET_DEBUG=1" in one for one in sentences)


def test_sources_newer_than_the_core(capsys, monkeypatch):
    monkeypatch.setattr(machine, "stale_modules", lambda: ["memory", "ops"])
    assert any("older than their sources: memory, ops; run: pip install -e ." in one for one in problems(capsys)[1])


def test_what_is_stale(tmp_path, monkeypatch):
    core = tmp_path / "bitnet" / "_core"
    core.mkdir(parents=True)
    monkeypatch.setattr("bitnet._core.cpu.__file__", str(core / "cpu.so"))
    for name, built in (("cpu", 10), ("ops", 30)):
        for suffix, seconds in (("pyx", 20), ("cpython-311.so", built)):
            path = core / f"{name}.{suffix}"
            path.touch()
            os.utime(path, (seconds, seconds))
    assert machine.stale_modules() == []  # no checkout
    (tmp_path / "pyproject.toml").touch()
    assert machine.stale_modules() == ["cpu"]
    for name, changed in (("cpu.pyx", 5), ("ops.pxd", 40), ("kernels/i2.h", 5), ("arena.h", 15)):
        (core / name).parent.mkdir(exist_ok=True)
        (core / name).touch()
        os.utime(core / name, (changed, changed))
    assert machine.stale_modules() == ["arena.h", "ops"]


def test_a_variable_that_says_nothing(capsys, monkeypatch):
    monkeypatch.setenv("BITNET_MEMORY_PROFILING", "sometimes")
    code, sentences = problems(capsys)
    assert code == 1
    assert any(one.startswith("BITNET_MEMORY_PROFILING is 'sometimes'; it must be one of") for one in sentences)
