"""What `bitnet.machine` says of threads is what the core does."""

import dataclasses

import pytest

from bitnet import machine
from bitnet._core import threads


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    for name in ("BITNET_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_variable_all_available_cpus_are_used():
    found = machine.describe()
    assert found.num_threads_variable is None
    assert found.num_threads == threads.default_num_threads() == min(found.available_cpus, threads.MAX_THREADS)


@pytest.mark.parametrize(
    ("cpus", "quota", "available"), [(4, None, 4), (4, 8.0, 4), (4, 1.5, 2), (4, 2.0, 2), (4, 0.1, 1), (1, 1.5, 1)]
)
def test_a_quota_is_rounded_up(cpus, quota, available):
    assert dataclasses.replace(machine.describe(), cpus=cpus, cgroup_quota=quota).available_cpus == available


@pytest.mark.parametrize(
    ("ours", "theirs", "variable"),
    [("1", "3", "BITNET_NUM_THREADS"), ("", "3", "OMP_NUM_THREADS"), (" ", "3,2", "OMP_NUM_THREADS"), ("", ",2", None),
     ("x", "3", "BITNET_NUM_THREADS"), (",1", "3", "BITNET_NUM_THREADS"), ("", "", None)],
)  # fmt: skip
def test_the_variable_is_the_one_that_counts(ours, theirs, variable, monkeypatch):
    monkeypatch.setenv("BITNET_NUM_THREADS", ours)
    monkeypatch.setenv("OMP_NUM_THREADS", theirs)
    found = machine.describe()
    assert found.num_threads_variable == variable
    said = {"BITNET_NUM_THREADS": ours, "OMP_NUM_THREADS": theirs.partition(",")[0]}.get(variable)
    expected = found.available_cpus if variable is None else int(said) if said.isdecimal() else None
    assert found.num_threads == expected
