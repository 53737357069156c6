"""The team of threads, and how many of them to use.

There is one team a process. It starts with the first work that can use it, its members wait for the next job by
spinning for 0.1 ms and then sleep, and it starts anew in the child of a ``fork``. Members run on the CPUs that the thread
which started them was allowed to run on; with ``BITNET_PIN_THREADS=1`` on one of them each. Units of work are claimed one
by one, so that fast and slow cores end together, and all arithmetic is fixed per unit: results do not depend on the number
of threads.
"""

import operator
import os

from libc.stdlib cimport getenv

from bitnet.errors import ConfigurationError

cdef extern from "team.h":
    int TEAM_MAX_THREADS
    void team_run(team_task task, void *data, Py_ssize_t units, int threads) noexcept nogil
    void team_raise_flag(int *flag) noexcept nogil
    void team_barrier(int threads) noexcept nogil
    int bitnet_allowed_cpus() noexcept nogil
    int team_prepare() noexcept nogil
    int team_size() noexcept nogil
    void team_pin() noexcept nogil

if team_prepare() != 0:
    raise ImportError("pthread_atfork failed: no memory is left")
if os.environ.get("BITNET_PIN_THREADS", "") not in ("", "0"):
    team_pin()

MAX_THREADS = TEAM_MAX_THREADS
"""The most threads that can be asked for."""


cdef void run(team_task task, void *data, Py_ssize_t units, int threads) noexcept nogil:
    team_run(task, data, units, threads)


cdef void raise_flag(int *flag) noexcept nogil:
    team_raise_flag(flag)


cdef int thread_count(object requested) except -1:
    if requested is None:
        return default_num_threads()
    return _checked_count("num_threads", requested)


def _checked_count(source, value):
    try:
        # A bool is an int to Python, but no number of threads.
        count = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = 0
    if not 1 <= count <= TEAM_MAX_THREADS:
        raise ConfigurationError.thread_count(source, value, TEAM_MAX_THREADS)
    return count


def _quota_of(group, root):
    """CPUs that one control group may use; None where it has no limit.

    Version 2 has ``cpu.max`` ("max 100000" or "150000 100000"), version 1 two files; both in microseconds.
    """
    try:
        with open(f"{root}{group}/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
    except (OSError, ValueError):
        try:
            with open(f"{root}{group}/cpu.cfs_quota_us", encoding="ascii") as file:
                quota = file.read().strip()
            with open(f"{root}{group}/cpu.cfs_period_us", encoding="ascii") as file:
                period = file.read().strip()
        except (OSError, ValueError):
            return None
    try:
        quota, period = int(quota), int(period)
    except ValueError:
        return None
    return quota / period if quota > 0 and period > 0 else None


def cgroup_quota(proc="/proc/self/cgroup", mount="/sys/fs/cgroup"):
    """Read how many CPUs the control groups of this process grant it.

    Parameters
    ----------
    proc, mount : str, optional
        Where Linux shows the groups of a process, and where they are mounted.

    Returns
    -------
    float or None
        The least quota of the group and of the groups above it; None where there is no limit.
    """
    found = []
    try:
        with open(proc, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = f"{mount}/{controllers}" if controllers else mount
        parts = [part for part in group.split("/") if part]
        # In a container the path may name a group that is not mounted here: its root is then the mount itself.
        for depth in range(len(parts), -1, -1):
            quota = _quota_of("".join(f"/{part}" for part in parts[:depth]), root)
            if quota is not None:
                found.append(quota)
    return min(found, default=None)


def default_num_threads():
    """Choose the number of threads for a caller that does not.

    Returns
    -------
    int
        ``BITNET_NUM_THREADS``; else ``OMP_NUM_THREADS`` (of a list, the first); else the CPUs this process may run
        on, but no more than its control group grants, rounded up.

    Raises
    ------
    ConfigurationError
        If the environment variable that counts is no number of threads.
    """
    cdef const char *value
    for name in (b"BITNET_NUM_THREADS", b"OMP_NUM_THREADS"):
        # Asked for at every product: os.environ would take as long as a small product.
        value = getenv(name)
        if value != NULL and value[0] != 0:
            text = value.decode(errors="replace").strip()
            if name == b"OMP_NUM_THREADS":
                text = text.partition(",")[0].strip()  # a list there is one number for each level of nesting
            if text:
                # No more digits than MAX_THREADS could have: Python refuses to convert thousands of them.
                return _checked_count(name.decode(), int(text) if text.isdecimal() and len(text) < 9 else text)
    return _available()


cdef int _granted = 0  # not read yet


def _available():
    # Quotas hardly ever change in a process, and reading files on every product would show; affinity may change, and is
    # one system call.
    global _granted
    if _granted == 0:
        quota = cgroup_quota()
        _granted = TEAM_MAX_THREADS if quota is None else min(TEAM_MAX_THREADS, max(1, -int(-quota // 1)))
    return max(1, min(_granted, bitnet_allowed_cpus()))


def num_threads_started():
    """Count the threads of the team, the caller's own included; 1 before the first parallel work.

    Returns
    -------
    int
    """
    with nogil:
        size = team_size()
    return size


def barrier(num_threads=None, Py_ssize_t times=1):
    """Hand out a job that ends when all threads have come to it, to measure what that costs.

    Parameters
    ----------
    num_threads : int, optional
    times : int, optional
        How many such jobs, one after the other.
    """
    cdef int threads = thread_count(num_threads)
    cdef Py_ssize_t i
    with nogil:
        for i in range(times):
            team_barrier(threads)
