"""The team: how many threads, and that it survives forks, crowds and idleness."""

import os
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from bitnet._core import matmul, packing, threads
from bitnet.errors import ConfigurationError


def run(code, **environment):
    """Run code in a fresh interpreter; returns what it printed."""
    clean = {name: value for name, value in os.environ.items() if name not in ("BITNET_NUM_THREADS", "OMP_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        env=clean | environment, capture_output=True, text=True, timeout=120, check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


SHOW = "from bitnet._core import threads; print(threads.default_num_threads())"


def test_the_environment_sets_the_default_in_order_of_precedence():
    assert run(SHOW, OMP_NUM_THREADS="3") == "3"
    assert run(SHOW, OMP_NUM_THREADS="4,2") == "4"
    assert run(SHOW, BITNET_NUM_THREADS="5", OMP_NUM_THREADS="3") == "5"
    assert run(SHOW, BITNET_NUM_THREADS="", OMP_NUM_THREADS="3") == "3"


def test_without_environment_the_default_is_the_affinity():
    code = "import os; os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]});" + SHOW
    assert run(code) == "1"


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", "1025", "2,x", "9" * 5000])
def test_a_bad_environment_is_an_error_that_names_the_variable(monkeypatch, value):
    monkeypatch.setenv("BITNET_NUM_THREADS", value)
    with pytest.raises(ConfigurationError, match=r"BITNET_NUM_THREADS is .* whole number of threads from 1 to 1024"):
        threads.default_num_threads()


def test_the_default_follows_the_affinity():
    code = "import os; from bitnet._core.threads import default_num_threads as n; before = n();"
    code += "os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]}); print(before, n())"
    assert run(code) == f"{len(os.sched_getaffinity(0))} 1"


def test_members_take_only_the_signals_of_their_own_faults():
    """SIGSEGV kills with a report (faulthandler), SIGTERM is for the application."""
    masks = run("""
    from bitnet._core import threads
    import glob, os, signal
    threads.barrier(3)
    for path in glob.glob("/proc/self/task/*/status"):
        if f"/{os.getpid()}/" not in path:
            blocked = next(int(line.split()[1], 16) for line in open(path) if line.startswith("SigBlk"))
            print(bool(blocked >> (signal.SIGTERM - 1) & 1), bool(blocked >> (signal.SIGSEGV - 1) & 1))
    """).splitlines()
    assert masks.count("True False") == 2


def test_the_argument_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("BITNET_NUM_THREADS", "nonsense")
    threads.barrier(1)
    with pytest.raises(ConfigurationError):
        threads.barrier()


@pytest.mark.parametrize("value", [0, -3, True, 1.5, "2", 1025])
def test_a_bad_argument_is_an_error(value):
    with pytest.raises(ConfigurationError, match=r"num_threads is .*; it must be a whole number of threads"):
        threads.barrier(value)


def quota(tmp_path, listing, files):
    """What `cgroup_quota` reads from a made-up /proc/self/cgroup and /sys/fs/cgroup."""
    (tmp_path / "cgroup").write_text(listing)
    for name, text in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return threads.cgroup_quota(str(tmp_path / "cgroup"), str(tmp_path / "fs"))


def test_the_quota_is_the_least_of_the_groups_above(tmp_path):
    files = {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "150000 100000\n", "cpu.max": "400000 100000\n"}
    assert quota(tmp_path, "0::/a/b\n", files) == 1.5


def test_the_quota_of_version_one(tmp_path):
    group = "cpu,cpuacct/docker"
    files = {f"{group}/cpu.cfs_quota_us": "250000\n", f"{group}/cpu.cfs_period_us": "100000\n"}
    assert quota(tmp_path, "5:memory:/docker\n4:cpu,cpuacct:/docker\n", files) == 2.5


def test_a_group_that_is_not_mounted_has_the_quota_of_the_mount(tmp_path):
    assert quota(tmp_path, "0::/outside/the/container\n", {"cpu.max": "50000 100000\n"}) == 0.5


@pytest.mark.parametrize("text", ["max 100000", "-1 100000", "nonsense", "", "0 0", "a b"])
def test_no_quota_is_none(tmp_path, text):
    assert quota(tmp_path, "0::/\n", {"cpu.max": text}) is None


def test_no_control_groups_are_no_quota(tmp_path):
    assert threads.cgroup_quota(str(tmp_path / "absent"), str(tmp_path)) is None


MULTIPLY = """
    import numpy as np
    from bitnet._core import matmul, packing, threads
    codes = np.random.default_rng(0).integers(-1, 2, (400, 300)).astype(np.int8)
    x = np.random.default_rng(1).integers(-128, 128, (9, 300)).astype(np.int8)
    weight = packing.pack_codes(codes, 1.0, "i2", num_threads=1)
    def right(num_threads):
        return (matmul.matmul_int(weight, x, None, num_threads) == x.astype(int) @ codes.T.astype(int)).all()
"""


def test_the_team_starts_with_the_first_work_that_can_use_it():
    assert run(MULTIPLY + """
    before = threads.num_threads_started()
    assert right(1)
    alone = threads.num_threads_started()
    assert right(3)
    print(before, alone, threads.num_threads_started())
    """) == "1 1 3"


def test_more_threads_than_cpus_are_right():
    assert run(MULTIPLY + "\n    print(all(right(n) for n in (2, 16, 7, 40, 1, 40)))") == "True"


def test_a_child_of_fork_has_a_team_of_its_own():
    assert run(MULTIPLY + """
    import os
    assert right(3)
    for _ in range(20):
        child = os.fork()
        if child == 0:
            before = threads.num_threads_started()
            os._exit(0 if before == 1 and right(3) and threads.num_threads_started() == 3 else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert right(3)
    print("alive")
    """) == "alive"


def test_a_fork_while_another_thread_multiplies_leaves_the_child_working():
    assert run(MULTIPLY + """
    import os, threading
    stop = False
    def work():
        while not stop:
            assert right(2)
    other = threading.Thread(target=work)
    other.start()
    for _ in range(30):
        child = os.fork()
        if child == 0:
            os._exit(0 if right(2) else 1)
        assert os.waitpid(child, 0)[1] == 0
    stop = True
    other.join()
    print("alive")
    """) == "alive"


def test_an_idle_team_uses_no_cpu():
    threads.barrier(2)
    time.sleep(0.05)  # the members spin for 0.1 ms, then park
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1


def test_members_wake_from_parking():
    for pause in (0, 0.001, 0.02):
        for _ in range(20):
            threads.barrier(3)
            time.sleep(pause / 20)
    assert threads.num_threads_started() >= 3


def test_python_threads_may_call_at_the_same_time(rng):
    codes = rng.integers(-1, 2, (333, 257)).astype(np.int8)
    weights = [packing.pack_codes(codes, 1.0, name) for name in packing.PACKINGS]
    failures = []

    def work(seed):
        x = np.random.default_rng(seed).integers(-128, 128, (5, 257)).astype(np.int8)
        expected = x.astype(np.int64) @ codes.T.astype(np.int64)
        for round_ in range(50):
            y = matmul.matmul_int(weights[round_ % 2], x, None, 1 + (seed + round_) % 4)
            if not np.array_equal(y, expected):
                failures.append((seed, round_))

    team = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in team:
        thread.start()
    for thread in team:
        thread.join()
    assert failures == []


def test_barrier_runs_any_number_of_times():
    threads.barrier(2, times=1000)
    threads.barrier(4, times=0)


@pytest.mark.parametrize("value", ["1", "0", ""])
def test_workers_stay_on_a_cpu_each_if_that_is_asked_for(value):
    code = """
        import os
        from bitnet._core import threads
        allowed = sorted(os.sched_getaffinity(0))
        threads.barrier(3)
        tasks = [int(one) for one in os.listdir("/proc/self/task") if int(one) != os.getpid()]
        where = sorted(tuple(sorted(os.sched_getaffinity(one))) for one in tasks)
        pinned = sorted((allowed[number % len(allowed)],) for number in (1, 2))
        print(where == pinned, where == 2 * [tuple(allowed)], sorted(os.sched_getaffinity(0)) == allowed)
    """
    found = run(code, BITNET_PIN_THREADS=value, OPENBLAS_NUM_THREADS="1").split()
    assert found == (["True", "False", "True"] if value == "1" else ["False", "True", "True"])
