"""``bitnet doctor``: complete where all is well, and of use where it is not."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoints import DATA

import bitnet
from bitnet import machine
from bitnet._core.reports import huge_page_mode
from bitnet.cli import doctor, main

ROWS = [
    "CPU", "architecture", "system", "Python", "versions", "CPU features", "possible ISAs", "ISA in use", "kernels",
    "CPUs", "threads", "last-level cache", "huge pages", "environment", "name conflict",
]  # fmt: skip


def read(capsys, *arguments):
    code = main(["doctor", "--json", *arguments])
    output, complaints = capsys.readouterr()
    assert complaints == ""
    return code, json.loads(output)


@pytest.fixture
def pretend(monkeypatch):
    """Make the machine another one."""
    describe = machine.describe
    monkeypatch.setattr(machine, "stale_modules", list)

    def pretending(**fields):
        monkeypatch.setattr(machine, "describe", lambda: dataclasses.replace(describe(), **fields))

    return pretending


@pytest.fixture
def advice(capsys):
    """The sentences about what could be better."""

    def reading():
        code, found = read(capsys, "--no-measure")
        assert code == 0
        assert all(problem["stops"] is False for problem in found["problems"])
        return [problem["sentence"] for problem in found["problems"]]

    return reading


def test_json_has_everything(unset, capsys):
    code, found = read(capsys)
    assert code == 0
    assert found["works"] is True
    assert found["versions"]["bitnet-runtime"] == bitnet.__version__
    assert found["versions"]["numpy"] == np.__version__
    assert set(found["versions"]) == {"bitnet-runtime", "numpy", "tokenizers", "safetensors", "jinja2", "rich"}
    here = machine.describe()
    (choice,) = found["packings"]
    assert choice["packing"] in choice["weights_per_s"]
    assert choice["num_threads"] == found["machine"]["num_threads"]
    assert found["machine"] == json.loads(json.dumps(dataclasses.asdict(here)))
    assert (found["isa_source"], found["name_conflict"]) == ("CPU", None)
    assert found["cpus_of_system"] == os.cpu_count()
    counts = {"1", str(here.num_threads)}
    measured = found["measured"]
    assert set(measured["read_bytes_per_s"]) == counts
    assert all(value > 0 for value in measured["read_bytes_per_s"].values())
    assert measured["multiply_instruction"] == machine.multiply_instruction()
    peaks = measured["multiply_accumulates_per_s"]
    assert set(peaks) == (counts if measured["multiply_instruction"] else set())
    assert all(value > 0 for value in peaks.values())


def test_text_has_everything(unset, capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.partition("  ")[0] for line in lines]
    assert names[: len(ROWS)] == ROWS
    assert {"read bandwidth", "multiply peak"} <= set(names)
    text = "\n".join(lines)
    here = machine.describe()
    for part in (here.cpu, *here.isas, *here.features, here.huge_pages, *here.kernels.values()):
        assert part in text
    assert "GB/s on 1 thread" in text


def test_nothing_is_measured_on_request(unset, capsys, monkeypatch):
    monkeypatch.setattr(machine, "ReadBandwidth", None)
    assert main(["doctor", "--no-measure"]) == 0
    assert "not measured" in capsys.readouterr().out
    assert read(capsys, "--no-measure")[1]["measured"] is None


@pytest.mark.parametrize("name", ["mmx", "AVX2 "])
def test_an_impossible_isa(command, name):
    code, output, complaints = command("doctor", BITNET_ISA=name)
    assert (code, complaints) == (1, "")
    possible = ", ".join(machine.possible_isas())
    assert (
        f"BITNET_ISA is '{name}', which names no instruction set; this CPU can run {possible}; "
        "change or unset the variable"
    ) in output
    assert "none: BITNET_ISA asks for another one" in output
    assert [line.partition("  ")[0] for line in output.splitlines()][: len(ROWS)] == ROWS


@pytest.mark.parametrize("name", ["BITNET_NUM_THREADS", "OMP_NUM_THREADS"])
def test_an_impossible_number_of_threads(command, name):
    code, output, complaints = command("doctor", "--json", **{name: "many"})
    assert (code, complaints) == (1, "")
    found = json.loads(output)
    assert found["machine"]["num_threads"] is None
    assert found["num_threads_source"] == name
    assert found["environment"][name] == "many"
    assert list(found["measured"]["read_bytes_per_s"]) == ["1"]
    assert found["problems"] == [{
        "sentence": f"{name} is 'many'; it must be a whole number of threads from 1 to 1024; "
                    "change or unset the variable",
        "stops": True,
    }]  # fmt: skip


def test_everything_wrong_at_once(command):
    code, output, complaints = command("doctor", BITNET_ISA="mmx", BITNET_NUM_THREADS="0")
    assert (code, complaints) == (1, "")
    assert output.count("\nERROR ") == 2
    assert "no such number (from: BITNET_NUM_THREADS" in output


def test_a_name_conflict(command, tmp_path):
    folder = tmp_path / "bitnet-0.9.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: bitnet\nVersion: 0.9\n", encoding="ascii")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    code, output, _ = command("doctor", "--json", "--no-measure", PYTHONPATH=path)
    assert code == 1
    found = json.loads(output)
    assert found["works"] is False
    assert "the distribution 'bitnet' 0.9 is installed beside 'bitnet-runtime'" in found["name_conflict"]
    assert found["problems"] == [{"sentence": found["name_conflict"], "stops": True}]


def test_a_forced_isa_is_told(command):
    code, output, _ = command("doctor", "--no-measure", BITNET_ISA="portable")
    assert code == 0
    assert "portable (forced by BITNET_ISA)" in output
    largest = machine.possible_isas()[0]
    if largest != "portable":
        assert f"BITNET_ISA asks for 'portable', and this CPU can run '{largest}'; unset it for speed" in output


def test_portable_code_has_no_multiply_peak(command):
    code, output, _ = command("doctor", BITNET_ISA="portable")
    assert code == 0
    assert "none for portable code" in output


@pytest.mark.parametrize(
    ("environment", "source"),
    [
        ({"BITNET_NUM_THREADS": "1", "OMP_NUM_THREADS": "2"}, "BITNET_NUM_THREADS"),
        ({"BITNET_NUM_THREADS": "", "OMP_NUM_THREADS": "1,2"}, "OMP_NUM_THREADS"),
        ({}, "CPUs of this process"),
    ],
)
def test_the_number_of_threads_has_a_source(environment, source, unset, pretend, monkeypatch, capsys):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    pretend(cgroup_quota=None)
    _, found = read(capsys, "--no-measure")
    assert found["num_threads_source"] == source
    assert {name: found["environment"][name] for name in environment} == environment


def test_a_quota_is_a_source(unset, pretend, capsys, advice):
    pretend(cpus=8, cgroup_quota=1.5, num_threads=2, huge_pages="always")
    assert read(capsys, "--no-measure")[1]["num_threads_source"] == "quota of the control group"
    assert advice() == []
    assert main(["doctor", "--no-measure"]) == 0
    assert "control-group quota: 1.5\n" in capsys.readouterr().out


def test_a_healthy_machine_needs_no_advice(unset, pretend, advice, capsys):
    pretend(huge_pages="madvise", isas=("avx2", "portable"), isa="avx2", cpus=2, num_threads=2, cgroup_quota=None)
    assert advice() == []
    assert main(["doctor", "--no-measure"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["problems", "none"]


def test_advice_on_huge_pages(unset, pretend, advice):
    pretend(huge_pages="never", isas=("avx2", "portable"), isa="avx2")
    [sentence] = advice()
    assert "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled" in sentence


def test_huge_page_modes_are_read(tmp_path):
    mode, status = tmp_path / "enabled", tmp_path / "status"
    for said in ("always", "madvise", "never"):
        mode.write_text(" ".join(f"[{one}]" if one == said else one for one in ("always", "madvise", "never")) + "\n")
        status.write_text("Name: x\nTHP_enabled:\t1\n")
        assert huge_page_mode(str(mode), str(status)) == huge_page_mode(str(mode), "/none") == said
        status.write_text("Name: x\nTHP_enabled:\t0\n")
        assert huge_page_mode(str(mode), str(status)) == "disabled"
    mode.write_text("always madvise never\n")
    assert huge_page_mode(str(mode), "/none") == huge_page_mode("/none", "/none") == "unknown"


def test_advice_on_a_cpu_without_kernels(unset, pretend, advice):
    pretend(huge_pages="always", isas=("portable",), isa="portable", features=())
    [sentence] = advice()
    assert "portable code" in sentence


@pytest.mark.parametrize(("cpus", "quota", "granted"), [(4, None, "4 CPUs"), (4, 1.5, "2 CPUs"), (4, 0.1, "1 CPU")])
def test_advice_on_more_threads_than_cpus(cpus, quota, granted, unset, pretend, advice, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    pretend(huge_pages="always", cpus=cpus, cgroup_quota=quota, num_threads=64, isas=("avx2", "portable"), isa="avx2")
    [sentence] = advice()
    assert sentence.startswith(f"OMP_NUM_THREADS asks for 64 threads, and this process may use {granted};")


def test_advice_on_a_missing_library(unset, pretend, advice, monkeypatch):
    pretend(huge_pages="always", isas=("avx2", "portable"), isa="avx2")
    monkeypatch.setattr(doctor, "LIBRARIES", ("rich", "no-such-library"))
    [sentence] = advice()
    assert sentence.endswith("run: pip install no-such-library")


def test_secrets_are_not_shown(unset, monkeypatch, capsys):
    monkeypatch.setenv("BITNET_API_KEY", "hush")
    _, found = read(capsys, "--no-measure")
    assert found["environment"]["BITNET_API_KEY"] == "(set)"


def test_any_value_can_be_printed(command):
    value = "\u00e9\udcff\n"
    code, output, complaints = command("doctor", "--no-measure", BITNET_ANYTHING=value, PYTHONIOENCODING="ascii")
    assert (code, complaints) == (0, "")
    assert r"BITNET_ANYTHING='\xe9\udcff\n'" in output


def test_lines_fit_a_terminal_only(unset, pretend, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "70")
    pretend(huge_pages="never")
    assert main(["doctor", "--no-measure"]) == 0
    piped = capsys.readouterr().out
    assert max(len(line) for line in piped.splitlines()) > 100
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(["doctor", "--no-measure"]) == 0
    shown = capsys.readouterr().out
    assert max(len(line) for line in shown.splitlines()) <= 70
    assert shown.split() == piped.split()


# ---- the real thing, where a test can have it


LIMITED = """
import ctypes, os, sys
if sys.argv.pop(1) == "pages":
    ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE
else:
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
from bitnet.cli import main
sys.exit(main(sys.argv[1:]))
"""


def limited(what, **environment):
    done = subprocess.run([sys.executable, "-c", LIMITED, what, "doctor", "--json", "--no-measure"], check=False,
                          capture_output=True, text=True, env={**os.environ, **environment})  # fmt: skip
    assert done.stderr == ""
    found = json.loads(done.stdout)
    return found, [problem["sentence"] for problem in found["problems"]]


@pytest.mark.skipif(machine.describe().huge_pages not in ("always", "madvise"), reason="no huge pages to take away")
def test_huge_pages_that_are_disabled_for_a_process():
    found, sentences = limited("pages")
    assert found["machine"]["huge_pages"] == "disabled"
    assert any(one.startswith("huge pages are disabled for this process") for one in sentences)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="CPUs cannot be taken from a process here")
def test_more_threads_than_a_process_has_cpus():
    found, sentences = limited("cpus", BITNET_NUM_THREADS="3")
    assert (found["machine"]["cpus"], found["machine"]["num_threads"]) == (1, 3)
    said = "BITNET_NUM_THREADS asks for 3 threads, and this process may use 1 CPU;"
    assert any(one.startswith(said) for one in sentences)


def test_a_package_that_its_core_was_not_built_for(tmp_path):
    package = Path(bitnet.__file__).parent
    (tmp_path / "bitnet").mkdir()
    for path in package.iterdir():
        if path.name != "__init__.py":
            (tmp_path / "bitnet" / path.name).symlink_to(path)
    text = (package / "__init__.py").read_text(encoding="utf-8").replace(f'"{bitnet.__version__}"', '"9.9.9"')
    (tmp_path / "bitnet" / "__init__.py").write_text(text, encoding="utf-8")
    done = subprocess.run([sys.executable, "-m", "bitnet", "doctor", "--no-measure"], cwd=tmp_path, check=False,
                          capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)})  # fmt: skip
    assert done.returncode == 1
    assert (f"the compiled core was built for version {bitnet.__version__}, and the package is 9.9.9; run: pip install "
            "--force-reinstall bitnet-runtime") in done.stdout  # fmt: skip


@pytest.mark.parametrize(("field", "value", "said"), [
    ("max_position_embeddings", 2**31 - 1, "end other programs, or keep texts short"),
    ("vocab_size", 2**31 - 1, "use packing 't5'"),
    ("hidden_size", -5, "is not known, because it cannot be loaded: ModelConfig.hidden_size is -5; it must be"),
])  # fmt: skip
def test_a_model_that_is_too_large_for_this_machine(tmp_path, capsys, field, value, said):
    folder = shutil.copytree(DATA / "bitnet-packed-auto", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {field: value}))
    _, found = read(capsys, "--no-measure", "--model", str(folder))
    [sentence] = [one["sentence"] for one in found["problems"] if " needs " in one["sentence"]]
    assert said in sentence
