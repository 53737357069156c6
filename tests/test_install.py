"""The installation: its version, and another distribution that installs a package of the same name."""

import subprocess
import sys
import tomllib
import warnings
from importlib import metadata
from pathlib import Path

import pytest

import bitnet
from bitnet import _install

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
    assert project()["name"] == _install.OURS
    assert project()["name"] != _install.FOREIGN
    assert bitnet.__name__ == _install.FOREIGN


def test_alone_there_is_no_conflict(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [install(tmp_path, "bitnet-runtime", "0.1.0")])
    assert _install.name_conflict() is None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _install.warn_if_shadowed()
    assert caught == []


def test_the_other_distribution_is_a_conflict(monkeypatch, foreign):
    monkeypatch.syspath_prepend(foreign)
    assert _install.name_conflict() == SENTENCE
    with pytest.warns(UserWarning, match="installed beside") as caught:
        _install.warn_if_shadowed()
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
