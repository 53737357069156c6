"""``bitnet bench``: llama-bench's columns. No test asserts a time."""

import csv
import io
import json

import numpy as np
import pytest
from checkpoints import DATA
from cli_checkpoints import KNOWN, changed_config

import bitnet
from bitnet import machine
from bitnet.cli import bench_measure, bench_model, main

MODEL = str(DATA / "bitnet-packed-auto")
SHORT = ["-p", "8", "-n", "4", "-r", "2"]


@pytest.fixture(autouse=True)
def little(monkeypatch):
    monkeypatch.setattr(bench_measure, "BUFFER_BYTES", 1 << 20)


def test_the_table(unset, capsys):
    assert main(["bench", MODEL, *SHORT, "-t", "1", "-t", "2"]) == 0
    output, complaints = capsys.readouterr()
    assert complaints == ""
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines() if line.startswith("|")]
    assert table[0] == list(bench_model.HEADINGS)
    assert [(row[0], row[2], row[3], row[4], row[5]) for row in table[2:]] == [
        ("bitnet-packed-auto", "3.28 M", "CPU", threads, test) for threads in "12" for test in ("pp8", "tg4")
    ]
    for row in table[2:]:
        mean, sign, deviation = row[6].split()
        assert sign == "±"
        assert float(mean) > 0
        assert float(deviation) >= 0
        assert row[8].endswith("%") == (row[5] == "tg4") == (row[7] != "")
        assert row[10].endswith("%") == (row[5] == "pp8" and machine.describe().isa != "portable") == (row[9] != "")
    assert "peak RSS " in output
    assert "limits, 1 thread: read bandwidth " in output
    assert "limits, 2 threads: read bandwidth " in output


def test_json(unset, capsys):
    assert main(["bench", MODEL, *SHORT, "-t", "1", "-o", "json", "--packing", "t5"]) == 0
    found = json.loads(capsys.readouterr().out)
    inspected = bitnet.inspect_checkpoint(MODEL)["totals"]
    assert found["parameters"] == inspected["parameters"]
    assert found["ternary_parameters"] == inspected["ternary_parameters"]
    assert found["peak_rss_bytes"] > found["weight_bytes"] + found["head_bytes"] > 0
    assert found["packing"] == "t5"
    assert [one["test"] for one in found["results"]] == ["pp8", "tg4"]
    for one in found["results"]:
        assert len(one["samples_s"]) == len(one["read_bytes_per_s"]) == 2
        assert one["avg_ts"] > 0


def test_depth_and_sequences(unset, capsys):
    options = ["-p", "8", "-n", "4", "-d", "0", "-d", "64", "-np", "1", "-np", "3", "-r", "1", "-t", "1", "-b", "16"]
    assert main(["bench", MODEL, *options, "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)["results"]
    assert [one["test"] for one in found] == [
        "pp8", "pp8 @ d64", "tg4", "tg4 x 3", "tg4 @ d64", "tg4 @ d64 x 3",
    ]  # fmt: skip
    assert [(one["n_depth"], one["n_parallel"]) for one in found] == [(0, 1), (64, 1), (0, 1), (0, 3), (64, 1), (64, 3)]
    assert all(one["avg_ts"] > 0 for one in found)


def test_energy_where_the_system_tells_it(unset, capsys, monkeypatch, tmp_path):
    # A package and a part of it, whose energy is that of the package already.
    for zone in ("intel-rapl:0", "intel-rapl:0:0", "intel-rapl:1"):
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "energy_uj").write_text("1000000\n")
        (tmp_path / zone / "max_energy_range_uj").write_text("5000000\n")
    meter = machine.EnergyMeter(tmp_path)
    assert meter.joules() == 0
    for zone, now in (("intel-rapl:0", 3_500_000), ("intel-rapl:0:0", 3_000_000), ("intel-rapl:1", 500_000)):
        (tmp_path / zone / "energy_uj").write_text(f"{now}\n")
    assert meter.joules() == 2.5 + 4.5  # the other counter began anew
    assert machine.EnergyMeter(tmp_path / "none").joules() is None
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("no number")
    assert meter.joules() is None
    monkeypatch.setattr(machine.EnergyMeter, "joules", lambda self: 8.0)
    assert main(["bench", MODEL, *SHORT, "-t", "1"]) == 0
    assert "energy, tg4, 1 thread: 2.000 J a token, of the whole processor" in capsys.readouterr().out


def test_csv(unset, capsys):
    assert main(["bench", MODEL, "-p", "0", "-n", "3", "-r", "1", "-t", "1", "-o", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 1
    assert [rows[0][name] for name in ("n_prompt", "n_gen", "n_threads", "backends")] == ["0", "3", "1", "CPU"]
    assert (rows[0]["stddev_ts"], rows[0]["peak_share"]) == ("0.0", "")


def test_a_random_model_in_the_shape_of_a_real_one():
    from bitnet.formats.random import SHAPES, RandomCheckpoint

    # The parameters of a checkpoint of 2B-4T; the others as their cards round them.
    counts = {}
    for name in SHAPES:
        with RandomCheckpoint(name) as checkpoint:
            infos = [checkpoint.info(one) for one in checkpoint.names()]
            counts[name] = sum(one.nbytes // {"BF16": 2, "F32": 4}.get(one.dtype, 1) * (4 if one.dtype == "U8" else 1)
                               for one in infos)  # fmt: skip
    assert counts["2b4t"] == 2412820480
    assert {name: round(count / 1e9, 1) for name, count in counts.items()} == {
        "2b4t": 2.4, "0.7b": 0.7, "3b": 3.3, "8b": 8.0
    }  # fmt: skip


def test_random_weights_are_the_same_however_they_are_asked_for():
    from bitnet.formats.random import RandomCheckpoint, _codes, _draw

    whole = _draw("a", 0, 300_001)
    assert (_draw("a", 8 * 1000, 5000) == whole[8000:13_000]).all()
    assert (_draw("b", 0, 1000) != whole[:1000]).mean() > 0.9
    # What SplitMix64 gives first from a seed of 0, also elsewhere.
    assert _draw("", 0, 8).view("u8")[0] == 0xE220A8397B1DCDAF
    codes = _codes(_draw("a", 0, 1 << 20))
    shares = np.bincount(np.concatenate([codes >> shift & 3 for shift in (0, 2, 4, 6)])) / (4 << 20)
    assert shares.tolist() == pytest.approx([0.25, 0.5, 0.25], abs=0.001)
    with RandomCheckpoint("0.7b") as checkpoint:
        rows = checkpoint.floats("model.embed_tokens.weight", slice(0, 4))
        assert np.abs(rows).min() >= 0.5
        assert np.abs(rows).max() < 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([MODEL, "--shape", "2b4t"], "give either a FOLDER or --shape"),
        (["--shape", "70b"], "shape is '70b'; it must be one of '2b4t', '0.7b', '3b', '8b'"),
        ([MODEL, "-p", "-1"], "--n-prompt is -1; it must be at least 0"),
        ([MODEL, "-p", "0", "-n", "0"], "--n-prompt and --n-gen are both 0; there is nothing to measure"),
        ([MODEL, "-r", "0"], "--repeats is 0; it must be at least 1"),
        ([MODEL, "-t", "0"], "--threads is 0; it must be at least 1"),
        ([MODEL, "-p", "8", "-d", "7"], "--n-depth is 7; before a prompt it must be a multiple of 64, the tokens of a "
         "page of the cache"),
        ([MODEL, "-np", "0"], "--parallel is 0; it must be at least 1"),
        ([MODEL, "-d", "-1"], "--n-depth is -1; it must be at least 0"),
        ([MODEL, *SHORT, "-d", "128"], "pp8 @ d128 is longer than the context of 128 tokens"),
        ([MODEL], "pp512 is longer than the context of 128 tokens"),
        ([MODEL, "-p", "8", "-n", "127"], "tg127 is longer than the context of 128 tokens"),
    ],
)
def test_an_option_that_cannot_be_used(arguments, complaint, unset, capsys):
    assert main(["bench", *arguments]) == 2
    output, complaints = capsys.readouterr()
    assert output == ""
    assert complaints.endswith(f"bitnet bench: error: {complaint}\n")


def test_what_cannot_be_loaded(unset, tmp_path, capsys):
    missing = str(tmp_path / "nothing")
    assert main(["bench", missing]) == 1
    assert capsys.readouterr() == ("", f"bitnet: cannot read '{missing}': there is no such file or folder\n")
    other = changed_config(tmp_path / "other", model_type="mamba")
    assert main(["bench", other]) == 1
    assert capsys.readouterr().err == f"bitnet: '{other}' is of model_type 'mamba'; known are {KNOWN}\n"
