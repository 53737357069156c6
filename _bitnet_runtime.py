"""The command ``bitnet``: it looks whether the package `bitnet` is ours, and only then imports it.

The package index has another distribution, `bitnet`, with a package of the same name. Installed after `bitnet-runtime`,
it puts its own file in the place of ``bitnet/__init__.py``; uninstalled, it takes that file away. What tells so lies
outside the package, and imports nothing of it before it knows.
"""

import importlib.util
import json
import os
import platform
import sys
import warnings
from pathlib import Path

__all__ = ["FOREIGN", "OURS", "main", "name_conflict", "obstacle", "warn_if_shadowed"]

OURS, FOREIGN = "bitnet-runtime", "bitnet"
APART = f"pip uninstall -y {FOREIGN} {OURS} && pip install {OURS}"


def main() -> int:
    """Run the command line, or say why that cannot be.

    Returns
    -------
    int
        The exit code: 1 where the package is not ours, else that of `bitnet.cli.main`.
    """
    sentence = obstacle()
    if sentence is None:
        from bitnet import cli

        return cli.main()
    arguments = sys.argv[1:]
    if next((one for one in arguments if not one.startswith("-")), None) == "doctor":
        print(_report(sentence, "--json" in arguments))
    else:
        print(f"bitnet: {sentence}", file=sys.stderr)
    return 1


def name_conflict() -> str | None:
    """Look for the other distribution, where the package is ours.

    Returns
    -------
    str or None
        One sentence that says what to do; None where there is no conflict.
    """
    version = _version(FOREIGN)
    if version is None:
        return None
    return (
        f"the distribution '{FOREIGN}' {version} is installed beside '{OURS}', and both install the package 'bitnet', "
        f"so their files are mixed; run: {APART}"
    )


def obstacle() -> str | None:
    """Look at the package that ``import bitnet`` would import, without importing it.

    Returns
    -------
    str or None
        One sentence that says why it is not ours, and what to do; None where it is ours.
    """
    file = _package()
    # Ours is the one that imports this module.
    if file is not None and file.is_file() and "_bitnet_runtime" in file.read_text(encoding="utf-8", errors="replace"):
        return None
    version = _version(FOREIGN)
    if version is not None:
        return (
            f"the distribution '{FOREIGN}' {version} has taken the place of the package 'bitnet' of '{OURS}'; "
            f"run: {APART}"
        )
    if file is None:
        return (
            f"files of '{OURS}' are missing, as they are after: pip uninstall {FOREIGN}; "
            f"run: pip install --force-reinstall --no-deps {OURS}"
        )
    return (
        f"the package 'bitnet' that Python finds, {file}, is not that of '{OURS}'; "
        "remove it, or take its folder off PYTHONPATH"
    )


def warn_if_shadowed() -> None:
    """Warn of the other distribution, once, when `bitnet` is imported."""
    sentence = name_conflict()
    if sentence:
        warnings.warn(sentence, UserWarning, stacklevel=3)


def _version(distribution: str) -> str | None:
    if not _may_be_there(distribution):
        return None
    from importlib import metadata  # takes a tenth of the time of a first token

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _may_be_there(distribution: str) -> bool:
    """Whether some folder has what installers leave of a distribution, or is none that can be listed."""
    if "-" in distribution:  # is written in several ways
        return True
    for path in sys.path:
        try:
            names = os.listdir(path or ".")
        except NotADirectoryError:  # an archive: importlib.metadata can look into it
            return True
        except OSError:
            continue
        # As bitnet-0.2.5.dist-info, bitnet.egg-info or bitnet-0.2.5-py3.11.egg-info.
        found = (name.lower() for name in names if name.endswith(("-info", ".egg")))
        if any(name.partition("-")[0].removesuffix(".egg") == distribution for name in found):
            return True
    return False


def _package() -> Path | None:
    """The file that would be run; a folder without ``__init__.py`` has none."""
    spec = importlib.util.find_spec("bitnet")
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def _report(sentence: str, as_json: bool) -> str:
    """What ``bitnet doctor`` can say without the package, under the names of `bitnet.cli.doctor`."""
    versions, python, file = {OURS: _version(OURS), FOREIGN: _version(FOREIGN)}, platform.python_version(), _package()
    if as_json:
        found = {
            "versions": versions, "python": f"{python} ({platform.python_implementation()})", "machine": None,
            "package": None if file is None else str(file), "name_conflict": sentence, "measured": None,
            "problems": [{"sentence": sentence, "stops": True}], "works": False,
        }  # fmt: skip
        return json.dumps(found, indent=2)
    listed = ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
    return "\n".join([
        f"Python           {python} ({platform.python_implementation()})",
        f"versions         {listed}",
        f"package bitnet   {file or 'without __init__.py'}",
        f"ERROR            {sentence}",
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
