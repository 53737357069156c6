"""What the four configurations have in common: their names, their conversion, and the checks of single fields."""

import dataclasses
import functools
import math
import numbers
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self, TypeVar

from bitnet.errors import ConfigurationError

__all__ = ["SIZES", "Config", "FrozenDict", "checks_names", "foreign", "frozen", "is_json"]

SIZES = range(1, 2**31)  # beyond any model, and within what a signed 32-bit integer holds, as token ids are

_C = TypeVar("_C", bound="type[Config]")


class FrozenDict(Mapping[str, Any]):
    """A dictionary that cannot change and so can be hashed; it pickles, which `types.MappingProxyType` cannot."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()) -> None:
        self._items: dict[str, Any] = dict(items)

    def __getitem__(self, name: str) -> Any:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)


def foreign(**table: str) -> FrozenDict:
    """Turn ``right_name="foreign names"`` around."""
    return FrozenDict({name: right for right, names in table.items() for name in names.split()})


def checks_names(cls: _C) -> _C:
    """Let the dataclass `cls` refuse a name by a `ConfigurationError` instead of the generated `TypeError`."""
    generated = cls.__init__  # is wrapped, not replaced, so that inspect.signature and editors still see the fields
    required = [field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING]

    @functools.wraps(generated)
    def checked(self: Config, /, **values: Any) -> None:
        cls.check_names(values)
        if missing := [name for name in required if name not in values]:
            raise ConfigurationError.missing_fields(cls.__name__, missing)
        generated(self, **values)

    cls.__init__ = checked  # type: ignore[assignment]
    return cls


class Config:
    """What the four have in common: names, conversion, and the checks of single fields."""

    FOREIGN_NAMES: ClassVar[Mapping[str, str]]
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]  # each is a dataclass

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Self:
        """Make one from a dictionary of its fields, as `to_dict` writes it; fields left out have their defaults."""
        if not isinstance(d, Mapping):
            raise ConfigurationError.not_a_mapping(cls.__name__, d)
        cls.check_names(d)  # before the call, which a key that is no string would make fail
        return cls(**d)

    def to_dict(self) -> dict[str, Any]:
        """Write the fields as dictionaries, lists and scalars for ``json.dump``; `from_dict` makes an equal object."""
        return {field.name: _thawed(getattr(self, field.name)) for field in dataclasses.fields(self)}

    def replace(self, **changes: Any) -> Self:
        """Make a copy in which the named fields are changed, and check it."""
        return dataclasses.replace(self, **changes)

    @classmethod
    def check_names(cls, names: Iterable[Any]) -> None:
        known = [field.name for field in dataclasses.fields(cls)]
        for name in names:
            if name not in known:
                raise ConfigurationError.unknown_field(cls.__name__, str(name), known, cls.FOREIGN_NAMES.get(name))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # frozen for everyone but the checks

    def _refused(self, name: str, needed: str) -> ConfigurationError:
        return ConfigurationError.value(type(self).__name__, name, getattr(self, name), needed)

    def _conflict(self, sentence: str) -> ConfigurationError:
        return ConfigurationError.conflict(type(self).__name__, sentence)

    def _whole(self, name: str, known: Sequence[int], needed: str = "", or_none: bool = False) -> None:
        value = getattr(self, name)
        number = _whole(value)
        # A range would go through all its numbers to look for None.
        if (number is None or number not in known) and not (or_none and value is None):
            needed = needed or f"a whole number from {known[0]} to {known[-1]}"
            raise self._refused(name, needed + or_none * ", or None")
        self._set(name, number)

    def _real(self, name: str, needed: str, fits: Callable[[float], bool]) -> None:
        value = getattr(self, name)
        try:
            number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
        except OverflowError:
            number = math.nan
        if not math.isfinite(number) or not fits(number):
            raise self._refused(name, needed)
        self._set(name, number)

    def _flag(self, name: str) -> None:
        value = getattr(self, name)
        if type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_"):
            value = bool(value)
        if not isinstance(value, bool):
            raise self._refused(name, "True or False")
        self._set(name, value)

    def _choice(self, name: str, known: Sequence[str]) -> None:
        value = getattr(self, name)
        if not isinstance(value, str) or value not in known:
            raise ConfigurationError.choice(f"{type(self).__name__}.{name}", value, known)

    def _token_ids(self, name: str, known: Sequence[int], none: tuple[()] | None) -> None:
        """Store one id or several as a tuple, and None as `none`."""
        value = getattr(self, name)
        several = isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping) and _whole(value) is None
        ids = [_whole(one) for one in (value if several else [value])]
        if value is not None and not all(one is not None and one in known for one in ids):
            raise self._refused(name, f"a token id from 0 to {known[-1]}, or a list of them")
        self._set(name, none if value is None else tuple(ids))

    def _pairs(self, name: str, known: Sequence[int]) -> None:
        """Store a mapping of token ids to numbers as pairs in the order of the ids, and None as an empty one."""
        value = getattr(self, name)
        try:
            given = list(value.items() if isinstance(value, Mapping) else value or ())
            pairs = sorted((_whole(int(id) if isinstance(id, str) else id), float(number)) for id, number in given)
            fits = all(id in known and math.isfinite(number) for id, number in pairs)
        except (TypeError, ValueError):
            fits = False
        if not fits or len({id for id, _ in pairs}) < len(pairs):
            raise self._refused(name, f"a dictionary of token ids from 0 to {known[-1]} to finite numbers")
        self._set(name, tuple(pairs))

    def _strings(self, name: str, needed: str) -> None:
        """Store one string or several as a tuple, and None as an empty one."""
        value = getattr(self, name)
        strings = () if value is None else (value,) if isinstance(value, str) else value
        if not isinstance(strings, list | tuple) or not all(isinstance(one, str) and one for one in strings):
            raise self._refused(name, needed)
        self._set(name, tuple(strings))


def _whole(value: Any) -> int | None:
    """`value` as a Python int; None when it is no whole number."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def is_json(value: Any) -> bool:
    """Whether JSON can hold `value`, tuples as lists."""
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and is_json(item) for name, item in value.items())
    items, scalar = isinstance(value, list | tuple), isinstance(value, bool | int | float | str | None)
    return all(map(is_json, value)) if items else scalar


def frozen(value: Any) -> Any:
    """`value` with dictionaries and lists that cannot change."""
    if isinstance(value, Mapping):
        return FrozenDict({name: frozen(item) for name, item in value.items()})
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value


def _thawed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _thawed(item) for name, item in value.items()}
    return [_thawed(item) for item in value] if isinstance(value, tuple) else value
