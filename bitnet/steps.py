"""What a step of the engine spends beside the run of its program: told to who wants to know, as a profile."""

import time
from collections.abc import Callable

__all__ = ["Clock", "add_recorder", "clock", "is_recorded", "remove_recorder"]

Recorder = Callable[[int, dict[str, int]], object]

_recorders: tuple[Recorder, ...] = ()


def add_recorder(function: Recorder) -> None:
    """Have a function called after every step of any engine.

    Parameters
    ----------
    function : callable
        Called with when the step began (of `time.perf_counter_ns`), and a dict of nanoseconds: to ``gather`` the tokens
        of requests, to ``run`` the program, to ``choose`` next tokens, and to ``hand out`` text and logits.
    """
    global _recorders
    _recorders = (*_recorders, function)


def remove_recorder(function: Recorder) -> None:
    """Have it called no more.

    Parameters
    ----------
    function : callable
    """
    global _recorders
    _recorders = tuple(one for one in _recorders if one != function)


def is_recorded() -> bool:
    """Say whether somebody wants to know.

    Returns
    -------
    bool
    """
    return bool(_recorders)


class Clock:
    """Of one step."""

    def __init__(self) -> None:
        self._began = self._last = time.perf_counter_ns()
        self._spent: dict[str, int] = {}

    def lap(self, name: str) -> None:
        """Say what the time since the last lap was spent on."""
        now = time.perf_counter_ns()
        self._spent[name], self._last = now - self._last, now

    def tell(self) -> None:
        """The step is over."""
        self.lap("hand out")
        self._spent.setdefault("choose", 0)
        for recorder in _recorders:
            recorder(self._began, self._spent)


def clock() -> Clock | None:
    """Begin a step.

    Returns
    -------
    Clock or None
        None where nobody wants to know.
    """
    return Clock() if _recorders else None
