"""For ``dist.sh``: look at the two distributions in a folder, and write there a wheel of another distribution `bitnet`.

The tree is the measure: what lies in ``bitnet/`` and is no product of a build belongs in both.
"""

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = {".py", ".pyi", ".pyx", ".pxd", ".h", ".typed", ".json", ".safetensors", ".md", ".svg", ".toml"}


def complaints(tree, source, wheel):
    """What is missing in the names of the files of a source distribution or of a wheel, or should not be there."""
    package = {name for name in tree if name.startswith("bitnet/") and Path(name).suffix in SUFFIXES}
    for kind in (".pyx", ".pxd", ".pyi", "kernels/i2.h", "py.typed", "assets/model.safetensors"):
        assert any(name.endswith(kind) for name in package), f"the tree has no {kind}"
    extensions = {name.removesuffix(".pyx") for name in package if name.endswith(".pyx")}
    yield from (f"the source distribution lacks {name}" for name in sorted(tree - source))
    yield from (f"the wheel lacks {name}" for name in sorted(package | {"_bitnet_runtime.py"}) if name not in wheel)
    for name in sorted(extensions):
        if not any(re.fullmatch(rf"{name}\.[\w.-]+\.so", one) for one in wheel):
            yield f"the wheel lacks the extension {name}"
    yield from (f"the source distribution has {name}" for name in sorted(source)
                if re.search(r"\.(so|py[cod])$|^build/|^bitnet/.*\.c$", name))  # fmt: skip
    yield from (f"the wheel has {name}" for name in sorted(wheel)
                if not re.match(r"bitnet/|_bitnet_runtime\.py$|bitnet_runtime-[\w.]+\.dist-info/", name)
                or re.search(r"\.(c|py[cod])$", name))  # fmt: skip


def of_the_tree():
    """Files that git would keep; where this is no checkout, those of the package."""
    done = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                          capture_output=True, text=True, check=False)  # fmt: skip
    names = done.stdout.splitlines() if done.returncode == 0 else [
        path.relative_to(ROOT).as_posix() for path in ROOT.glob("bitnet/**/*") if path.suffix in SUFFIXES
    ]  # fmt: skip
    return {name for name in names if (ROOT / name).is_file() and name != ".gitignore"}


def write_foreign(folder):
    """As pip takes it for the other one: a module of the same name, which needs what is not there."""
    folder.mkdir()
    info = "bitnet-0.2.5.dist-info"
    with zipfile.ZipFile(folder / "bitnet-0.2.5-py3-none-any.whl", "w") as file:
        file.writestr("bitnet/__init__.py", "from bitnet.bitlinear import BitLinear\n")
        file.writestr("bitnet/bitlinear.py", "import no_such_library\n")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: bitnet\nVersion: 0.2.5\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        names = ("bitnet/__init__.py", "bitnet/bitlinear.py", f"{info}/METADATA", f"{info}/WHEEL", f"{info}/RECORD")
        file.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in names))


def main(folder):
    [source], [wheel] = folder.glob("bitnet_runtime-*.tar.gz"), folder.glob("bitnet_runtime-*.whl")
    with tarfile.open(source) as file:
        names = {name.partition("/")[2] for name in file.getnames() if file.getmember(name).isfile()}
    found = list(complaints(of_the_tree(), names, set(zipfile.ZipFile(wheel).namelist())))
    write_foreign(folder / "foreign")
    print(*(f"dist.py: {one}" for one in found), sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
