"""What it costs to hand work to the team and to wait for it."""

import pytest

from bitnet import machine
from bitnet._core import threads

TIMES = 10_000


@pytest.mark.parametrize("num_threads", sorted({2, machine.default_num_threads()}))
def test_barrier(measure, num_threads):
    """A job that ends when every thread has come to it, members spinning. Target: at most 1 us on free cores."""
    columns = {"threads": num_threads, "CPUs": machine.describe().cpus}
    measure(lambda: threads.barrier(num_threads, TIMES), group="barrier", columns=columns, rounds=21, per_call=TIMES)
