"""Types: the stubs are what the extensions are, and the annotations are what a user's checker should infer."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bitnet

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent / "bitnet"
# Where the imported package lies, so that the checkers see the one that the tests run.
TOP = Path(bitnet.__file__).resolve().parents[1]

def visible(pyx):
    """The names that Python can import from the source of an extension."""
    found = re.findall(r"(?m)^(?:def|class|cdef class|cpdef [\w.* ]*?) ?(\w+)\b *[(:]|^([A-Z][A-Z_]+) = ", pyx)
    return {name for pair in found for name in pair if name and not name.startswith("_")}


def stubbed(pyi):
    found = re.findall(r"(?m)^(?:def|class) (\w+)|^([A-Z][A-Z_]+): ", pyi)
    return {name for pair in found for name in pair if name}


# Without annotations so far; all other modules are held to them.
UNTYPED = ("bitnet/_core/builder.py", "bitnet/conversion.py", "bitnet/driving.py", "bitnet/gathering.py",
           "bitnet/engine.py", "bitnet/formats/*.py",
           "bitnet/generation.py", "bitnet/inspection.py", "bitnet/kv_cache.py", "bitnet/model.py", "bitnet/request.py",
           "bitnet/scheduler.py", "bitnet/stream.py", "bitnet/models/*.py",
           "bitnet/train/[!_c]*.py", "bitnet/train/checkpoint.py")  # fmt: skip

SOURCES = {path: path.read_text(encoding="utf-8") for path in sorted((PACKAGE / "_core").glob("**/*.pyx"))}
STUBS = sorted((PACKAGE / "_core").glob("**/*.pyi"))


def check(tmp_path, *arguments):
    """Run a checker; all it prints."""
    # What lies among the installed packages is found there, and must not be named a second time.
    path = "" if TOP.name == "site-packages" else str(TOP)
    environment = {**os.environ, "MYPY_CACHE_DIR": str(tmp_path), "MYPYPATH": path}
    # The project's own settings are for all who check it; nobody's stand in for them.
    options = ["--strict", "--config-file=", *arguments[1:]] if arguments[0] == "mypy" else arguments[1:]
    command = [sys.executable, "-m", arguments[0], *map(str, options)]
    done = subprocess.run(command, cwd=TOP, env=environment, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_an_extension_that_python_can_use_has_a_stub(path):
    names, stub = visible(SOURCES[path]), path.with_suffix(".pyi")
    assert (stubbed(stub.read_text(encoding="utf-8")) if stub.exists() else set()) == names


def test_each_stub_belongs_to_an_extension():
    assert [path.name for path in STUBS if path.with_suffix(".pyx") not in SOURCES] == []
    assert (PACKAGE / "py.typed").read_bytes() == b""


def test_the_stubs_match_the_extensions(tmp_path):
    modules = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in STUBS]
    printed = check(
        tmp_path, "mypy.stubtest", "--concise", "--ignore-unused-allowlist",
        "--allowlist", HERE / "typing" / "allowlist.txt", *modules,
    )  # fmt: skip
    assert printed == ""


def test_a_stub_that_lies_is_reported(tmp_path):
    # A module beside its stub, so that stubtest is seen to complain.
    (tmp_path / "sample.py").write_text("def f(a): return a\n")
    (tmp_path / "sample.pyi").write_text("def f(a: int, b: int) -> int: ...\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "--concise", "sample"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert 'sample.f is inconsistent, runtime does not have parameter "b"' in done.stdout


def test_each_line_of_the_allowlist_has_a_reason():
    lines = (HERE / "typing" / "allowlist.txt").read_text(encoding="utf-8").splitlines()
    is_reasoned = False
    for line in lines:
        is_reasoned = line.startswith("# ") or (is_reasoned and line != "")
        assert is_reasoned or line == "", line


def test_the_annotations_hold(tmp_path):
    every = [TOP / "_bitnet_runtime.py", *sorted((TOP / "bitnet").glob("**/*.py"))]
    files = [path for path in every if not any(path.match(one) for one in UNTYPED)]
    assert len(files) >= 12
    # What these import is checked too, but told only where it is among them.
    printed = check(tmp_path, "mypy", "--follow-imports=silent", *files)
    assert printed == f"Success: no issues found in {len(files)} source files\n"


def test_their_uses_hold(tmp_path):
    # Of the package itself `test_the_annotations_hold` tells.
    printed = check(tmp_path, "mypy", "--follow-imports=silent", HERE / "typing" / "use.py")
    assert printed == "Success: no issues found in 1 source file\n"
