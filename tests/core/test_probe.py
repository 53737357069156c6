"""The limits are measured, not asserted: only that they are numbers of the right kind."""

import pytest

from bitnet._core import probe


def test_read_bandwidth_reads_a_buffer_of_whole_mebibytes(isa):
    buffer = probe.ReadBandwidth((3 << 20) + 1)
    assert buffer.nbytes == 4 << 20
    for num_threads in (1, 2):
        assert 1e8 < buffer.read(num_threads) < 1e13


def test_multiply_peak(isa):
    peak = probe.multiply_peak(1)
    if isa == "portable":
        assert peak is None
        assert probe.multiply_instruction() == ""
    else:
        assert 1e9 < peak < 1e13
        assert probe.multiply_instruction()


@pytest.mark.parametrize("nbytes", [-1, 0, 1])
def test_a_buffer_has_at_least_one_mebibyte(nbytes):
    assert probe.ReadBandwidth(nbytes).nbytes == 1 << 20
