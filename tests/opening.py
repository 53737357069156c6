"""Opens a checkpoint and makes a first token, in a process of its own, which says what that took.

    python tests/opening.py CHECKPOINT [LOAD [THREADS]]

It prints a line of JSON, and ends when its standard input does: until then others can see what it shares.
"""

import contextlib
import itertools
import json
import subprocess
import sys
import time


def memory():
    """Bytes of this process's memory by what the kernel calls them, as ``"Rss"`` and ``"Pss"`` (Linux)."""
    found = {}
    with open("/proc/self/smaps_rollup") as file:
        for line in file:
            name, number, *_ = line.split()
            if name in ("Rss:", "Pss:", "Private_Dirty:", "Private_Clean:"):
                found[name[:-1]] = int(number) << 10
    with open("/proc/self/status") as file:
        found["peak"] = next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM:"))
    return found


def main(path, load="mmap", threads=None):
    import bitnet

    before, start, told = memory(), time.perf_counter(), []
    engine = bitnet.InferenceEngine(bitnet.EngineConfig(load=load, num_threads=threads and int(threads)))
    model = engine.load_model(path, progress=lambda done, total, name: told.append((time.perf_counter(), done, total)))
    opened = time.perf_counter()
    engine.infer(model, [1], last_only=True)
    first = time.perf_counter()
    steps = []
    for _ in range(9):
        begun = time.perf_counter()
        engine.infer(model, [1], last_only=True)
        steps.append(time.perf_counter() - begun)
    times = [start, *(at for at, _, _ in told), opened]
    waits = [b - a for a, b in itertools.pairwise(times)]
    found = {
        "open_s": opened - start, "first_token_s": first - opened, "step_s": sorted(steps)[4], "before": before,
        "weight_bytes": model.weight_bytes, "progress": [told[-1][1:], len(told), max(waits)], **memory(),
    }  # fmt: skip
    print(json.dumps(found), flush=True)
    for line in sys.stdin:
        if line.strip():
            print(json.dumps(memory()), flush=True)


@contextlib.contextmanager
def opened(path, load="mmap"):
    """A process that has opened a checkpoint, what it said, and a function that asks it for its memory now."""
    command = [sys.executable, __file__, str(path), load]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def ask():
            process.stdin.write("?\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        try:
            yield json.loads(process.stdout.readline()), ask
        finally:
            process.stdin.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
