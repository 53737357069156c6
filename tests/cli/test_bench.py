"""``bitnet bench kernels``: right before fast, and complete when pasted. No test asserts a time."""

import json

import pytest

import bitnet
from bitnet import TernaryWeight, machine
from bitnet.cli import bench, main
from bitnet.cli.bench import Result

# Little memory, few matrices: seconds, not a measurement.
TINY = ["bench", "kernels", "--quick", "--working-set-mb", "1"]


@pytest.fixture(autouse=True)
def little(monkeypatch):
    monkeypatch.setattr(bench, "MAX_MATRICES", 8)


def test_the_json_has_every_measurement(unset, tmp_path, capsys):
    file = tmp_path / "result.json"
    options = ["--shape", "3x130", "--shape", "70x64", "--threads", "1", "--threads", "2", "--tokens", "1", "--tokens",
               "5", "--json", str(file)]  # fmt: skip
    assert main([*TINY, *options]) == 0
    assert capsys.readouterr().err == ""
    written = json.loads(file.read_text(encoding="utf-8"))
    here = machine.describe()
    assert written["machine"]["cpu"] == here.cpu
    assert written["versions"]["bitnet-runtime"] == bitnet.__version__
    assert written["multiply_instructions"] == {here.isa: machine.multiply_instruction()}
    assert written["working_set_bytes"] >= 2 * here.last_level_cache_bytes
    results = written["results"]
    kernels = [one for one in results if one["packing"] != "float32"]
    assert {(*one["shape"], one["packing"], one["kernel"], one["isa"], one["threads"], one["tokens"])
            for one in kernels} == {
        (rows, cols, packing, here.kernels[packing], here.isa, threads, tokens)
        for rows, cols in [(3, 130), (70, 64)] for packing in ("i2", "t5") for threads in (1, 2) for tokens in (1, 5)
    }  # fmt: skip
    assert len(kernels) == 16
    floors = [one for one in results if one["packing"] == "float32"]
    assert [(*one["shape"], one["tokens"]) for one in floors] == [(3, 130, 1), (3, 130, 5), (70, 64, 1), (70, 64, 5)]
    for one in results:
        assert one["correct"] is True
        assert len(one["seconds"]) >= 3
        assert min(one["seconds"]) > 0
        assert one["figures"]["multiply_accumulates_per_s"] > 0
        assert one["products_per_round"] >= 1
    for one in kernels:
        assert len(one["read_bytes_per_s"]) == len(one["seconds"])
        assert min(one["read_bytes_per_s"]) > 0
        assert one["figures"]["share_of_read_bandwidth"] > 0
        assert len(one["multiply_accumulates_per_s"]) == (0 if here.isa == "portable" else len(one["seconds"]))


def test_the_table_is_complete_when_pasted(unset, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert main([*TINY, "--shape", "64x2560", "--tokens", "2"]) == 0
    output, complaints = capsys.readouterr()
    assert complaints == ""
    assert "\x1b" not in output
    assert output.isascii()
    here = machine.describe()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines() if line.startswith("|")]
    assert table[0] == list(bench.HEADINGS)
    assert all(len(row) == len(bench.HEADINGS) for row in table)
    threads = sorted({1, here.num_threads})
    assert [row[:5] for row in table[2:]] == [
        *(["64x2560", packing, here.kernels[packing], str(n), "2"] for packing in ("i2", "t5") for n in threads),
        ["64x2560", "float32", "NumPy @", "BLAS", "2"],
    ]
    last = output.splitlines()[-1]
    for part in (here.cpu, here.isa, here.system, bitnet.__version__, "Python", "NumPy"):
        assert part in last
    assert "read bandwidth, 1 thread: " in output
    assert "64x2560: 8 matrices take only " in output


def test_each_isa_is_measured_and_the_one_in_use_stays(isa, capsys):
    options = ["--isa", "portable", "--isa", machine.possible_isas()[0]]
    shape = ["--shape", "5x64", "--tokens", "1", "--threads", "1", "--packing", "i2"]
    assert main([*TINY, *shape, *options]) == 0
    assert machine.describe().isa == isa
    output = capsys.readouterr().out
    assert "portable (portable)" in output
    assert f"({machine.possible_isas()[0]})" in output


def test_an_environment_that_cannot_be_used_can_be_overruled(command):
    code, output, complaints = command(
        *TINY, "--shape", "5x64", "--tokens", "1", "--threads", "1", "--isa", "portable",
        BITNET_ISA="mmx", BITNET_NUM_THREADS="0",
    )  # fmt: skip
    assert (code, complaints) == (0, "")
    assert "no usable number of threads by default" in output


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--shape", "2560"], "--shape is '2560'; it must be ROWSxCOLS, as 6912x2560"),
        (["--shape", "0x64"], "--shape is '0x64'; it must be ROWSxCOLS, as 6912x2560"),
        (["--shape", "64x64x"], "--shape is '64x64x'; it must be ROWSxCOLS, as 6912x2560"),
        (["--packing", "q4"], "--packing is 'q4'; it must be one of i2, t5"),
        (["--isa", "mmx"], f"--isa is 'mmx'; this CPU can run {', '.join(machine.possible_isas())}"),
        (["--threads", "0"], "--threads is 0; it must be at least 1"),
        (["--tokens", "8", "--tokens", "-1"], "--tokens is -1; it must be at least 1"),
        (["--working-set-mb", "0"], "--working-set-mb is 0; it must be at least 1"),
        (["--threads", "two"], "argument --threads: invalid int value: 'two'"),
    ],
)
def test_an_option_that_cannot_be_used(options, complaint, unset, capsys):
    before = machine.describe().isa
    assert main([*TINY, *options]) == 2
    output, complaints = capsys.readouterr()
    assert output == ""
    assert complaints.endswith(f"bitnet bench kernels: error: {complaint}\n")
    assert machine.describe().isa == before


def test_too_many_threads(unset, capsys):
    assert main([*TINY, "--shape", "5x64", "--threads", "100000"]) == 1
    assert capsys.readouterr().err == (
        "bitnet: num_threads is 100000; it must be a whole number of threads from 1 to 1024\n"
    )


def test_a_file_that_cannot_be_written_is_told_first(unset, tmp_path, capsys):
    assert main([*TINY, "--json", str(tmp_path / "missing" / "result.json")]) == 1
    output, complaints = capsys.readouterr()
    assert output == ""
    assert complaints.startswith("bitnet: FileNotFoundError: ")
    assert complaints.count("\n") == 1


def test_wrong_numbers_are_not_timed(unset, tmp_path, capsys, monkeypatch):
    right = TernaryWeight.matmul_int

    def wrong(self, x, *, out, num_threads):
        right(self, x, out=out, num_threads=num_threads)
        if len(x) > 1:
            out[-1, -1] += 1
        return out

    monkeypatch.setattr(TernaryWeight, "matmul_int", wrong)
    file = tmp_path / "result.json"
    options = ["--shape", "6x64", "--packing", "i2", "--threads", "1", "--tokens", "1", "--tokens", "4"]
    assert main([*TINY, *options, "--json", str(file)]) == 1
    output, complaints = capsys.readouterr()
    kernel = machine.kernels()["i2"]
    assert complaints == (
        f"bitnet: i2 on {kernel} computes wrong numbers (6x64, 4 tokens, 1 thread); do not use it, and please report "
        "it\n"
    )
    assert "WRONG" in output
    one_token, four_tokens, *_ = json.loads(file.read_text(encoding="utf-8"))["results"]
    assert one_token["correct"] is True
    assert (four_tokens["correct"], four_tokens["seconds"]) == (False, [])
    assert set(four_tokens["figures"].values()) == {None}


def test_progress_is_shown_on_a_terminal(unset, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    options = ["--shape", "6x64", "--packing", "i2", "--threads", "1", "--tokens", "1"]
    assert main([*TINY, *options]) == 0
    complaints = capsys.readouterr().err
    assert f"[1/2] 6x64 i2 {machine.describe().isa}, 1 thread, 1 token" in complaints
    assert "[2/2] 6x64 NumPy float32, 1 token" in complaints
    assert complaints.endswith("\r\x1b[K")


def test_figures():
    result = Result((10, 20), "i2", "avx2", "avx2", 1, 3, True, 100, 7, 5, [0.5, 0.25, 1.0], [400.0, 400.0, 400.0],
                    [2400.0, 4800.0, 1200.0])  # fmt: skip
    assert result.figures() == {
        "median_s": 0.5,
        "weight_bytes_per_s": 200.0,
        "share_of_read_bandwidth": 0.5,
        "multiply_accumulates_per_s": 1200.0,
        "share_of_multiply_peak": 0.5,
    }


@pytest.mark.parametrize(
    ("value", "written"), [(0.0012345, "0.00123"), (0.5, "0.500"), (5.125, "5.12"), (78.84, "78.8"), (1234.5, "1234")]
)
def test_three_digits(value, written):
    assert bench._digits(value) == written
