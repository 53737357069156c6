"""What to do when memory becomes scarce: the callbacks of a pool."""

import logging
import threading
from collections.abc import Callable, Iterator

from bitnet._core.reports import MemoryPressure, system_memory
from bitnet.errors import ConfigurationError

__all__ = ["PressureCallbacks"]

_log = logging.getLogger("bitnet.memory")

Function = Callable[[MemoryPressure], object]


class _Entry:
    def __init__(self, level: float, function: Function) -> None:
        self.level, self.function, self.is_armed = level, function, True


class PressureCallbacks:
    """Functions that are called at shares of a pool's limit and of the system's memory, and when an allocation fails.

    What one allocates itself calls nobody. Two threads that are short of memory may call one at the same time: to wait
    for the other could be to wait for each other.
    """

    def __init__(self) -> None:
        self._entries: tuple[_Entry, ...] = ()
        self._callers: set[int] = set()  # threads in which one is called
        self._reserved = 0

    def __bool__(self) -> bool:
        return bool(self._entries)

    def register(self, level: float, function: Function) -> Callable[[], None]:
        """Add one, and return what takes it away."""
        if isinstance(level, bool) or not isinstance(level, int | float) or not 0 < level <= 1:
            raise ConfigurationError.value("register_pressure_callback", "level", level,
                                           "a share above 0 and at most 1")  # fmt: skip
        if not callable(function):
            raise ConfigurationError.value("register_pressure_callback", "function", function, "callable")
        entry = _Entry(float(level), function)
        self._entries = tuple(sorted([*self._entries, entry], key=lambda one: one.level))

        def unregister() -> None:
            self._entries = tuple(one for one in self._entries if one is not entry)

        return unregister

    def look(self, used: int, limit: int, reserved: int) -> None:
        """After an allocation: at the limit if there is one, and at the system if the pool has grown."""
        if threading.get_ident() in self._callers:
            return
        for entry in self._entries if limit else ():
            is_reached = used >= entry.level * limit
            was_armed, entry.is_armed = entry.is_armed, not is_reached
            if is_reached and was_armed:
                self._call(entry, MemoryPressure("limit", entry.level, used, limit))
        if reserved > self._reserved and self._entries:
            self._reserved = reserved
            in_use, total = system_memory()
            for entry in self._entries:
                if total and in_use >= entry.level * total:
                    self._call(entry, MemoryPressure("system", entry.level, in_use, total))
        self._reserved = reserved

    def make_room(self, needed: int, used: int, limit: int) -> Iterator[None]:
        """Call one after the other, by rising level; `limit` is 0 where the system refused. After each, try again."""
        if threading.get_ident() in self._callers:
            return
        for entry in self._entries:
            in_use, total = (used, limit) if limit else system_memory()
            self._call(entry, MemoryPressure("failure", entry.level, in_use, total, needed))
            yield

    def _call(self, entry: _Entry, pressure: MemoryPressure) -> None:
        self._callers.add(threading.get_ident())
        try:
            entry.function(pressure)
        except Exception:
            _log.exception("a memory pressure callback failed")
        finally:
            self._callers.discard(threading.get_ident())
