"""Opening a checkpoint of the exact shape of BitNet-b1.58-2B-4T, in two formats; 3 GB of temporary files.

python -m pytest bench/bench_open.py -s
"""

import os
import statistics

import pytest
from opening import opened
from shapes import MODEL

from bitnet import EngineConfig, conversion
from bitnet.formats.random import RandomCheckpoint

ROUNDS = 5
MB = 1e6
LIMITS = {"bitnet": "1 s", "hugging_face": "none said"}  # of opening a file that is in the system's cache


@pytest.fixture(scope="module", params=["bitnet", "hugging_face"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("open") / request.param
    with RandomCheckpoint(MODEL) as checkpoint:
        conversion.write(checkpoint, str(path), request.param, EngineConfig())
    return path


@pytest.mark.parametrize("folder", ["bitnet"], indirect=True)  # only what was converted can stay where it is
def test_mapped_or_copied(folder):
    """What the copy into huge pages costs when the file is opened, and what it spares in each step, in turn."""
    rounds = {"mmap": [], "copy": []}
    for _ in range(ROUNDS):
        for load, seen in rounds.items():
            with opened(folder, load) as (found, _ask):
                seen.append(found)
    print()
    for load, seen in rounds.items():
        first = statistics.median(one["open_s"] + one["first_token_s"] for one in seen)
        step = statistics.median(one["step_s"] for one in seen)
        print(f"load='{load}': first token after {first:.3f} s (limit: 0.5), then {1e3 * step:.1f} ms a token; "
              f"peak {max(one['peak'] for one in seen) / MB:.0f} MB")  # fmt: skip
    ratios = [b["step_s"] / a["step_s"] for a, b in zip(rounds["mmap"], rounds["copy"], strict=True)]
    print(f"a step from copied weights takes {statistics.median(ratios):.2f} of one from the mapping")


def test_open(folder):
    """Targets: far below a second where it is mapped, nothing copied; else a further copy of the weights at most."""
    rounds = []
    for _ in range(ROUNDS):
        with opened(folder) as (found, _ask):
            rounds.append(found)
    seconds = {name: statistics.median(one[name] for one in rounds) for name in ("open_s", "first_token_s", "step_s")}
    with opened(folder) as (one, ask), opened(folder) as (other, _ask):
        together = ask()["Pss"] + other["Pss"]
        alone = one["Rss"]
    size = os.path.getsize(folder / "model.safetensors")
    print(
        f"\n{folder.name}: file {size / MB:.0f} MB, warm; medians of {ROUNDS}: open {seconds['open_s']:.3f} s (limit: "
        f"{LIMITS[folder.name]}), first token {1e3 * seconds['first_token_s']:.0f} ms more, then "
        f"{1e3 * seconds['step_s']:.0f} ms a token\n  peak {one['peak'] / MB:.0f} MB, {one['before']['Rss'] / MB:.0f} "
        f"before; resident {alone / MB:.0f}, of which {one['Private_Dirty'] / MB:.0f} its own; two processes "
        f"{together / MB:.0f} together"
    )
    assert one["peak"] < size + one["before"]["Rss"]
