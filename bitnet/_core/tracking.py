"""What looks at a pool for a while: trackers of its blocks, and a failure on purpose."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Self

from bitnet._core.reports import LeakReport

__all__ = ["AllocationTracker", "injected_failure"]


class AllocationTracker:
    """What `HybridMemoryPool.track` gives: which blocks were allocated within the ``with``.

    Parameters
    ----------
    pool : HybridMemoryPool
    tracebacks : bool
    """

    def __init__(self, pool: Any, tracebacks: bool) -> None:
        self._pool, self._level = pool, 2 if tracebacks else 1
        self._first: int = 0
        self._last: int | None = 0

    def __enter__(self) -> Self:
        self._first, self._last = self._pool._begin_tracking(self._level), None
        return self

    def __exit__(self, *_: object) -> None:
        self._last = self._pool._end_tracking(self._level)

    def report(self) -> LeakReport:
        """List the blocks that were allocated here and are live now.

        Returns
        -------
        LeakReport
        """
        found: LeakReport = self._pool.leaks(self._first, self._last)
        return found


@contextlib.contextmanager
def injected_failure(pool: Any, after: int) -> Iterator[Callable[[], bool]]:
    """Make an allocation of a pool fail: see `HybridMemoryPool.injected_failure`.

    Parameters
    ----------
    pool : HybridMemoryPool
    after : int

    Yields
    ------
    callable
    """
    is_over, came = False, False

    def has_come() -> bool:
        return came if is_over else bool(pool._fails_in < 0)

    pool._fails_in = after
    try:
        yield has_come
    finally:
        came, is_over = has_come(), True
        pool._fails_in = -1
