"""Is this installation whole? Another distribution on the package index installs a package `bitnet` too."""

import warnings
from importlib import metadata

OURS, FOREIGN = "bitnet-runtime", "bitnet"


def name_conflict() -> str | None:
    """Look for the other distribution.

    Returns
    -------
    str or None
        One sentence that says what to do; None where there is no conflict.
    """
    try:
        version = metadata.version(FOREIGN)
    except metadata.PackageNotFoundError:
        return None
    return (
        f"the distribution '{FOREIGN}' {version} is installed beside '{OURS}', and both install the package 'bitnet', "
        f"so their files are mixed; run: pip uninstall -y {FOREIGN} {OURS} && pip install {OURS}"
    )


def warn_if_shadowed() -> None:
    """Warn of the other distribution, once, when `bitnet` is imported."""
    sentence = name_conflict()
    if sentence:
        warnings.warn(sentence, UserWarning, stacklevel=3)
