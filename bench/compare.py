"""Hold a run of the benchmarks against a saved one of the same machine.

    python -m pytest bench --benchmark-json=before.json
    python -m pytest bench --benchmark-json=after.json
    python bench/compare.py before.json after.json [--tolerance 0.05]

Where a benchmark has a limit that was taken in turn with it, shares of the limit are compared, which a slower minute
of the machine does not change much; else medians of times. A ratio above 1 is faster. A benchmark is slower where its
ratio is below 1 by more than the tolerance and by more than both runs vary (half the distance between their
quartiles). The exit code is 1 where one is slower, 2 where the runs cannot be compared.
"""

import argparse
import json
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Compared:
    """One benchmark in both runs."""

    name: str
    ratio: float
    noise: float
    by: str

    def verdict(self, tolerance):
        allowed = max(tolerance, self.noise)
        return "SLOWER" if self.ratio < 1 - allowed else "faster" if self.ratio > 1 + allowed else "same"


def compare(before, after):
    """Compare two files of pytest-benchmark.

    Returns
    -------
    list of Compared
    missing : list of str
        Benchmarks that only one run has.
    """
    runs = [{one["fullname"]: one for one in run["benchmarks"]} for run in (before, after)]
    both = [name for name in runs[0] if name in runs[1]]
    found = []
    for name in both:
        old, new = runs[0][name], runs[1][name]
        shares = [one.get("extra_info", {}).get("share of limit") for one in (old, new)]
        is_share = all(shares)
        ratio = shares[1] / shares[0] if is_share else old["stats"]["median"] / new["stats"]["median"]
        noise = sum(one["stats"]["iqr"] / 2 / one["stats"]["median"] for one in (old, new))
        found.append(Compared(name, ratio, noise, "share of limit" if is_share else "time"))
    return found, sorted(set(runs[0]) ^ set(runs[1]))


def machine_of(run):
    """What must be the same for a comparison to mean anything."""
    info = run.get("machine_info", {})
    cpu = info.get("cpu", {})
    return {"cpu": cpu.get("brand_raw"), "cpus": cpu.get("count"), "system": info.get("system")}


def read(path):
    try:
        with open(path, encoding="utf-8") as file:
            run = json.load(file)
    except (OSError, ValueError) as error:
        raise SystemExit(f"compare.py: '{path}' is not a run that can be read: {error}") from None
    if not isinstance(run, dict) or not isinstance(run.get("benchmarks"), list):
        raise SystemExit(f"compare.py: '{path}' is no file of --benchmark-json: it has no list of benchmarks")
    return run


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--tolerance", type=float, default=0.05, help="share that counts as the same (default: 0.05)")
    args = parser.parse_args(arguments)
    before, after = read(args.before), read(args.after)
    if machine_of(before) != machine_of(after):
        print(f"not of the same machine: {machine_of(before)} and {machine_of(after)}", file=sys.stderr)
        return 2
    found, missing = compare(before, after)
    if not found:
        print("the runs have no benchmark in common", file=sys.stderr)
        return 2
    for one in sorted(found, key=lambda one: one.ratio):
        print(f"{one.verdict(args.tolerance):6}  {one.ratio:6.3f} x  noise {one.noise:.3f}  by {one.by}: {one.name}")
    for name in missing:
        print(f"only in one run: {name}")
    return int(any(one.verdict(args.tolerance) == "SLOWER" for one in found))


if __name__ == "__main__":
    sys.exit(main())
