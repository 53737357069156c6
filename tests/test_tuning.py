"""The choice of a packing: measured, remembered, and never a reason to fail."""

import json
import os

import numpy as np
import pytest

from bitnet import QuantizationConfig, TernaryWeight, tuning
from bitnet._core import cpu, threads
from bitnet._core import packing as packings
from bitnet.tuning import choose_packing, fastest_packing, measure_packings, remembered_choices


@pytest.fixture
def forgetful(monkeypatch, tmp_path):
    """A user who has measured nothing yet; returns the file of the answers."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning, "_KNOWN", {})
    return tmp_path / "bitnet" / "packing.json"


@pytest.fixture
def measured(monkeypatch, forgetful):
    """Machines where t5 is faster on several threads; returns the numbers of threads that were measured."""
    counts = []

    def measure(num_threads):
        counts.append(num_threads)
        best = "i2" if num_threads == 1 else "t5"
        kernels = [packings.kernel_name(name) for name in packings.PACKINGS]
        return tuning.PackingChoice(best, {"i2": 1e11, "t5": 9e10}, num_threads, kernels, cpu.brand(), "2026-11-24")

    monkeypatch.setattr(tuning, "measure_packings", measure)
    monkeypatch.setattr(cpu, "last_level_cache_bytes", lambda: 1000)
    return counts


def forget(monkeypatch):
    """As in another process."""
    monkeypatch.setattr(tuning, "_KNOWN", {})


def test_a_weight_larger_than_the_cache_takes_the_faster_packing(measured, monkeypatch):
    assert choose_packing((40, 101), None, 2) == "t5"
    assert choose_packing((40, 101), None, 1) == "i2"
    monkeypatch.setattr(threads, "default_num_threads", lambda: 7)
    assert choose_packing((40, 101)) == "t5"
    assert measured == [2, 1, 7]


def test_a_weight_in_the_cache_takes_the_one_of_fewer_instructions(measured):
    assert choose_packing((40, 100), None, 2) == "i2"
    assert choose_packing((1, 1), None, 2) == "i2"
    assert measured == []


def test_groups_take_the_packing_that_can_have_them(measured, rng):
    assert choose_packing((4000, 1000), 64, 2) == "i2"
    w = rng.standard_normal((40, 128)).astype(np.float32)
    assert TernaryWeight.from_float(w, QuantizationConfig(group_size=64)).packing == "i2"
    assert measured == []


def test_what_is_no_weight_is_left_to_its_own_error(measured):
    assert choose_packing(()) == choose_packing((10**9,)) == choose_packing((1000, 1000, 1000)) == "i2"


def test_it_is_measured_once(measured, forgetful, monkeypatch):
    first = fastest_packing(2)
    assert fastest_packing(2) == first
    forget(monkeypatch)
    assert fastest_packing(2) == first
    assert remembered_choices() == [first]
    assert measured == [2]
    fastest_packing(1)
    assert {one.num_threads for one in remembered_choices()} == {1, 2}
    assert fastest_packing(2, measure=True) == first
    assert measured == [2, 1, 2]
    assert [path.name for path in forgetful.parent.iterdir()] == ["packing.json"]


def test_other_kernels_are_measured_anew(measured, monkeypatch):
    fastest_packing(2)
    monkeypatch.setattr(packings, "kernel_name", lambda name: f"{name}-other")
    fastest_packing(2)
    assert measured == [2, 2]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', '{"a": {"packing": "t9"}}', "\x00"])
def test_a_damaged_file_is_made_anew(measured, forgetful, monkeypatch, content):
    forgetful.parent.mkdir()
    forgetful.write_text(content)
    assert fastest_packing(2).packing == "t5"
    forget(monkeypatch)
    assert fastest_packing(2).packing == "t5"
    assert measured == [2]


def test_an_unknown_packing_in_the_file_is_not_believed(measured, forgetful, monkeypatch):
    fastest_packing(2)
    found = json.loads(forgetful.read_text())
    for fields in found.values():
        fields["packing"] = "t9"
    forgetful.write_text(json.dumps(found))
    forget(monkeypatch)
    assert fastest_packing(2).packing == "t5"


def test_where_nothing_can_be_written_it_is_measured_in_each_process(measured, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert fastest_packing(2).packing == "t5"
    forget(monkeypatch)
    assert fastest_packing(2).packing == "t5"
    assert measured == [2, 2]
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("num_threads", [1, 2])
def test_measuring(forgetful, monkeypatch, num_threads):
    monkeypatch.setattr(tuning, "LEAST_BYTES", 1 << 20)
    monkeypatch.setattr(cpu, "last_level_cache_bytes", lambda: 1000)
    found = measure_packings(num_threads)
    assert set(found.weights_per_s) == set(packings.PACKINGS)
    assert all(1e6 < speed < 1e13 for speed in found.weights_per_s.values())
    best = max(found.weights_per_s.values())
    assert found.weights_per_s[found.packing] >= 0.97 * best
    assert found.num_threads == num_threads
