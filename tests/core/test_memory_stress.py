"""The pool under threads and forks, at random. CI takes a few seconds; for the long run:

    BITNET_STRESS_S=60 python -m pytest tests/core/test_memory_stress.py
"""

import os
import random
import signal
import subprocess
import sysconfig
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import bitnet
from bitnet._core.memory import HybridMemoryPool
from bitnet.config import MemoryPoolConfig

SECONDS = float(os.environ.get("BITNET_STRESS_S", "2"))
HERE = Path(__file__).resolve().parent
CORE = HERE.parents[1] / "bitnet" / "_core"
THREADS = 8


@pytest.mark.parametrize(("sanitizer", "forks"), [("thread", False), ("address,undefined", True)])
def test_native_threads(tmp_path, sanitizer, forks):
    """The headers by themselves, without the GIL. (The thread sanitizer does not follow forks.)"""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    program = str(tmp_path / "stress")
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    command = [compiler, "-std=gnu11", "-O1", "-g", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", f"-I{CORE}",
               f"-DBITNET_NO_FORK={int(not forks)}", str(HERE / "pool_stress.c"), "-o", program,
               "-pthread"]  # fmt: skip
    built = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "cannot find" in built.stderr:
        pytest.skip(f"no runtime of the {sanitizer} sanitizer")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([program, str(THREADS), str(SECONDS), "1"], env=environment, capture_output=True, text=True,
                          check=False, timeout=60 + 10 * SECONDS)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 bad" in done.stdout


class Worker(threading.Thread):
    """Allocates, frees, resizes and looks at random, and knows what must be where."""

    def __init__(self, pool, seed, until):
        super().__init__()
        self.pool, self.until, self.random = pool, until, random.Random(seed)
        self.live, self.problem, self.steps = [], None, 0

    def run(self):
        try:
            while time.monotonic() < self.until:
                self.step()
        except BaseException as error:
            self.problem = error

    def size(self):
        limit = self.random.choice([64, 600, 600, 5000, 100_000, 3 << 20])
        return self.random.randrange(limit)

    def step(self):
        self.steps += 1
        what = self.random.random()
        if what < 0.45 or not self.live:
            handle = self.pool.allocate(self.size(), alignment=1 << self.random.randrange(13), tag=str(self.steps % 5))
            self.live.append(self.marked(handle))
        else:
            index = self.random.randrange(len(self.live))
            handle, mark = self.live[index]
            ends = handle.numpy()[[0, -1]] if handle.nbytes else np.array([mark])
            assert (ends == mark).all()
            if what < 0.6:
                self.pool.resize(handle, self.size())
                self.live[index] = self.marked(handle)
            elif what < 0.62:
                view = handle.numpy()
                handle.free()
                assert handle.nbytes == 0 or (view[[0, -1]] == mark).all()
                del self.live[index]
            else:
                if what < 0.8:
                    handle.free()
                del self.live[index], handle
        if self.steps % 1000 == 0:
            self.pool.trim()
        del self.live[60:]

    def marked(self, handle):
        mark = self.random.randrange(256)
        if handle.nbytes:
            handle.numpy()[[0, -1]] = mark
        return handle, mark


@pytest.mark.parametrize("guards", [False, True], ids=["plain", "guards"])
def test_python_threads(guards):
    pool = HybridMemoryPool(MemoryPoolConfig(guards=guards, tracking="counts", limit=1 << 30))
    workers = [Worker(pool, seed, time.monotonic() + SECONDS) for seed in range(THREADS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60 + 10 * SECONDS)
    assert [worker.problem for worker in workers if worker.problem] == []
    assert not any(worker.is_alive() for worker in workers)
    assert sum(worker.steps for worker in workers) > 0
    live = [handle for worker in workers for handle, _ in worker.live]
    stats = pool.get_stats()
    assert (stats.active, stats.allocated) == (len(live), sum(handle.nbytes for handle in live))
    assert (pool.leaks().count, pool.leaks().bytes) == (stats.active, stats.allocated)
    assert sum(tag.bytes for tag in stats.by_tag.values()) == stats.allocated
    del live, worker, workers
    assert pool.get_stats().active == 0
    pool.trim()
    assert pool.get_stats().reserved == 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_of_a_fork_goes_on_by_itself():
    pool = HybridMemoryPool.instance()
    until = time.monotonic() + SECONDS
    workers = [Worker(pool, seed, until) for seed in range(2)]
    kept = pool.allocate(1000, zero=True)
    weight = bitnet.TernaryWeight.from_codes(np.ones((64, 64), np.int8), 1.0)
    for worker in workers:
        worker.start()
    children = 0
    while time.monotonic() < until:
        child = os.fork()
        if child == 0:
            signal.alarm(30)  # a lock that nobody holds would hang it
            try:
                handles = [pool.allocate(size) for size in (10, 1000, 3 << 20)]
                kept.numpy()[:] = 1
                product = weight.matmul(np.ones(64, np.float32))
                before = pool.get_stats().active
                handles.clear()
                is_good = before - pool.get_stats().active == 3 and bool((product == 64).all())
                os._exit(0 if is_good else 1)
            finally:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        children += 1
        time.sleep(0.02)
    for worker in workers:
        worker.join(60)
    assert [worker.problem for worker in workers] == [None, None]
    assert children > 0
    assert not kept.numpy().any()
