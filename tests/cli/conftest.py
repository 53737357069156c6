"""The command line in a process of its own, where an environment variable or a signal can reach it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import bitnet

SETTINGS = ("BITNET_ISA", "BITNET_NUM_THREADS", "OMP_NUM_THREADS")


@pytest.fixture
def unset(monkeypatch):
    """Nothing set that chooses an instruction set or a number of threads."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def start():
    """Start ``python -m bitnet`` with arguments and environment variables; what still runs at the end is ended."""
    started = []

    def starting(*arguments, **environment):
        environ = {name: value for name, value in os.environ.items() if name not in SETTINGS}
        process = subprocess.Popen(
            [sys.executable, "-m", "bitnet", *arguments], cwd=Path(bitnet.__file__).parents[1],
            env={**environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield starting
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def command(start):
    """Run ``python -m bitnet`` to its end: (exit code, standard output, standard error)."""

    def run(*arguments, **environment):
        process = start(*arguments, **environment)
        output, complaints = process.communicate(timeout=60)
        return process.returncode, output, complaints

    return run
