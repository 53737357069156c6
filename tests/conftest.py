"""Fixtures over every instruction set and every packing, and the profile of the property tests."""

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from bitnet._core import cpu
from bitnet._core.packing import PACKINGS

# The same examples everywhere and always (derandomize), and no deadline: shared machines stall. The fixtures below
# hold for all examples of a test, which is what the tests that use them mean.
settings.register_profile(
    "bitnet",
    deadline=None,
    derandomize=True,
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("bitnet")


@pytest.fixture(scope="session", autouse=True)
def _own_cache_folder(tmp_path_factory):
    """What is remembered between processes is the user's, not a test's."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(params=cpu.possible_isas())
def isa(request):
    """Run the test on each instruction set of this CPU; then go back to the one in use."""
    before = cpu.isa()
    cpu.select_isa(request.param)
    yield request.param
    cpu.select_isa(before)


@pytest.fixture(params=PACKINGS)
def packing(request):
    """Run the test with each packing."""
    return request.param


@pytest.fixture
def rng():
    """Random numbers, the same in each test and each run."""
    return np.random.default_rng(20260923)
