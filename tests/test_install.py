"""The installation: its version, and another distribution that installs a package of the same name."""

import json
import shutil
import subprocess
import sys
import tomllib
import warnings
from importlib import metadata
from pathlib import Path

import pytest

import _bitnet_runtime
import bitnet

ROOT = Path(__file__).resolve().parents[1]
TOP = Path(bitnet.__file__).resolve().parents[1]
SENTENCE = (
    "the distribution 'bitnet' 0.2.1 is installed beside 'bitnet-runtime', and both install the package 'bitnet', "
    "so their files are mixed; run: pip uninstall -y bitnet bitnet-runtime && pip install bitnet-runtime"
)


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def install(folder, name, version):
    """What pip leaves of a distribution, without its files."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    return str(folder)


@pytest.fixture
def foreign(tmp_path):
    """A folder with the other distribution."""
    return install(tmp_path / "site", "bitnet", "0.2.1")


def run(*arguments):
    return subprocess.run([sys.executable, *arguments], cwd=TOP, capture_output=True, text=True, check=False)


def test_the_version_is_that_of_the_project():
    assert bitnet.__version__ == project()["version"]
    # Not installed is fine: then the package runs from its sources.
    assert {found.version for found in metadata.distributions(name=project()["name"])} <= {bitnet.__version__}


def test_the_names_are_those_of_the_project():
    assert project()["name"] == _bitnet_runtime.OURS
    assert project()["name"] != _bitnet_runtime.FOREIGN
    assert bitnet.__name__ == _bitnet_runtime.FOREIGN


def test_alone_there_is_no_conflict(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [install(tmp_path, "bitnet-runtime", "0.1.0")])
    assert _bitnet_runtime.name_conflict() is None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _bitnet_runtime.warn_if_shadowed()
    assert caught == []


def test_the_other_distribution_is_a_conflict(monkeypatch, foreign):
    monkeypatch.syspath_prepend(foreign)
    assert _bitnet_runtime.name_conflict() == SENTENCE
    with pytest.warns(UserWarning, match="installed beside") as caught:
        _bitnet_runtime.warn_if_shadowed()
    assert [str(one.message) for one in caught] == [SENTENCE]


def test_importing_beside_it_warns_where_it_is_imported(tmp_path, foreign):
    script = tmp_path / "script.py"
    paths = f"import sys\nsys.path[:0] = [{foreign!r}, {str(TOP)!r}]\n"
    script.write_text(paths + "\nimport bitnet\nimport bitnet.machine\n", encoding="utf-8")
    done = run(str(script))
    assert done.returncode == 0
    assert done.stderr.splitlines()[0] == f"{script}:4: UserWarning: {SENTENCE}"
    assert done.stderr.count("UserWarning") == 1


def test_the_warning_can_be_turned_off(tmp_path, foreign):
    code = f"import sys; sys.path[:0] = [{foreign!r}, {str(TOP)!r}]; import bitnet"
    assert run("-W", "ignore::UserWarning", "-c", code).stderr == ""


def test_importing_alone_is_silent():
    done = run("-W", "error", "-c", f"import sys; sys.path.insert(0, {str(TOP)!r}); import bitnet, bitnet.machine")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ---- the command, where the package is not ours (dist.sh does the same with wheels)

COMMAND = "import sys; sys.path[:0] = [{!r}]; from _bitnet_runtime import main; sys.exit(main())"
TAKEN = (
    "the distribution 'bitnet' 0.2.1 has taken the place of the package 'bitnet' of 'bitnet-runtime'; "
    "run: pip uninstall -y bitnet bitnet-runtime && pip install bitnet-runtime"
)
LOST = (
    "files of 'bitnet-runtime' are missing, as they are after: pip uninstall bitnet; "
    "run: pip install --force-reinstall --no-deps bitnet-runtime"
)


@pytest.fixture
def site(tmp_path):
    """A folder of installed packages: ours, as an older or newer `bitnet` has left it."""
    shutil.copy(_bitnet_runtime.__file__, tmp_path)
    install(tmp_path, "bitnet-runtime", "0.1.0")
    (tmp_path / "bitnet" / "cli").mkdir(parents=True)
    (tmp_path / "bitnet" / "cli" / "__init__.py").write_text("def main(): print('run'); return 7\n")
    return tmp_path


def command(site, *arguments):
    # Without the installed packages, and what PYTHONPATH has: the package there must not stand in.
    line = [sys.executable, "-I", "-S", "-c", COMMAND.format(str(site)), *arguments]
    done = subprocess.run(line, cwd=site, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def take_over(site):
    install(site, "bitnet", "0.2.1")
    (site / "bitnet" / "__init__.py").write_text("import no_such_library\n")


def test_the_command_runs_what_is_ours(site):
    (site / "bitnet" / "__init__.py").write_text("from _bitnet_runtime import warn_if_shadowed\n")
    assert command(site, "doctor") == (7, "run\n", "")
    install(site, "bitnet", "0.2.1")  # theirs is there, and ours has been installed after it
    assert command(site, "doctor") == (7, "run\n", "")


@pytest.mark.parametrize("arguments", [["--version"], ["bench", "kernels"], [], ["bench", "doctor"]])
def test_the_command_says_that_theirs_is_on_top(site, arguments):
    take_over(site)
    assert command(site, *arguments) == (1, "", f"bitnet: {TAKEN}\n")


def test_the_doctor_says_what_it_can(site):
    take_over(site)
    code, output, complaints = command(site, "doctor", "--no-measure")
    assert (code, complaints) == (1, "")
    rows = dict(line.split("  ", 1) for line in output.splitlines())
    assert rows["ERROR"].strip() == TAKEN
    assert rows["versions"].strip() == "bitnet-runtime 0.1.0, bitnet 0.2.1"
    assert rows["package bitnet"].strip() == str(site / "bitnet" / "__init__.py")
    code, output, complaints = command(site, "--debug", "doctor", "--json")
    assert (code, complaints) == (1, "")
    found = json.loads(output)
    assert (found["works"], found["name_conflict"]) == (False, TAKEN)
    assert found["problems"] == [{"sentence": TAKEN, "stops": True}]
    assert found["versions"] == {"bitnet-runtime": "0.1.0", "bitnet": "0.2.1"}


def test_the_command_says_that_files_are_missing(site):
    # Theirs took its __init__.py along.
    assert command(site, "--version") == (1, "", f"bitnet: {LOST}\n")
    code, output, complaints = command(site, "doctor")
    assert (code, complaints) == (1, "")
    assert "package bitnet   without __init__.py\nERROR " in output
    shutil.rmtree(site / "bitnet")
    assert command(site, "doctor") == (code, output, complaints)


def test_the_command_knows_another_package(site):
    (site / "bitnet" / "__init__.py").write_text("")
    sentence = (
        f"the package 'bitnet' that Python finds, {site / 'bitnet' / '__init__.py'}, is not that of 'bitnet-runtime'; "
        "remove it, or take its folder off PYTHONPATH"
    )
    assert command(site) == (1, "", f"bitnet: {sentence}\n")


def test_the_script_is_outside_the_package():
    assert project()["scripts"] == {"bitnet": "_bitnet_runtime:main"}
    assert "_bitnet_runtime" in Path(bitnet.__file__).read_text(encoding="utf-8")
