"""The sandbox in which a chat template runs: what it may look at, how much it may make, and how long it may take.

Jinja's own sandbox keeps a template from looking behind the objects it is given. It does not keep it from using all
memory or all time, which a file from anywhere must not do either. So here each step that a template takes is counted: a
turn of a loop, a call, a filter, an operator. A step that would make something too large is refused before it is taken,
and after each one the clock and the sum of all that was made are looked at. What lies between two steps is bounded by
the size of what there is.
"""

import datetime
import functools
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = ["MAX_MADE", "MAX_RENDERED", "MAX_S", "MAX_TEMPLATE", "Meter", "environment"]

MAX_TEMPLATE = 1 << 18
"""Characters that a template may have; the largest in use have some 20 000."""

MAX_RENDERED = 1 << 24
"""Characters of a rendered conversation, and of any text or list on the way: some hundred times a model's context."""

MAX_MADE = 1 << 28
"""Characters and elements that a template may make in all on its way."""

MAX_S = 5.0
"""Seconds that a template may take, to be compiled or to be rendered."""

# Filters of Jinja that templates find: all but those that nobody needs here, of which some make much of little.
FILTERS = (
    "abs", "attr", "batch", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float",
    "format", "groupby", "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max",
    "min", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr", "slice",
    "sort", "string", "sum", "title", "trim", "truncate", "unique", "upper", "wordcount",
)  # fmt: skip
# Of these, the ones that take lists as lists; the others write out what they are given.
TAKES_LISTS = frozenset((
    "attr", "batch", "count", "d", "default", "dictsort", "first", "groupby", "items", "last", "length", "list", "map",
    "max", "min", "reject", "rejectattr", "reverse", "select", "selectattr", "slice", "sort", "unique",
))  # fmt: skip
MAX_PARTS = 100_000  # of `batch`, `slice` and `indent`; as Jinja's sandbox has it of `range`
MAX_BITS = 4096  # of a whole number
NUMBER = re.compile(r"\d+")
DYNAMIC_WIDTH = re.compile(r"%[^a-zA-Z%]*\*")
NESTED_FIELD = re.compile(r"\{[^{}]*\{")
WRITTEN = "text of "  # names of a filter and a function that no template can write
TURN = "turn"

_running = threading.local()


class Meter:
    """What a template has used; one for each rendering, as a context manager in the thread that renders."""

    def __init__(self) -> None:
        self._made = 0
        self._end_s = time.monotonic() + MAX_S

    def __enter__(self) -> "Meter":
        _running.meter = self
        return self

    def __exit__(self, *_: object) -> None:
        del _running.meter

    def step(self, made: Any = None) -> None:
        """Count a step.

        Parameters
        ----------
        made : object, optional
            What it made.
        """
        size = len(made) if isinstance(made, str | bytes | list | tuple | dict) else 1
        self._made += size
        if size > MAX_RENDERED:
            refuse(f"it makes something of {size} characters or elements, more than {MAX_RENDERED}")
        if self._made > MAX_MADE:
            refuse(f"it makes more than {MAX_MADE} characters in all")
        if time.monotonic() > self._end_s:
            refuse(f"it takes longer than {MAX_S:g} s")


def refuse(reason: str) -> None:
    """End the template.

    Parameters
    ----------
    reason : str
    """
    from jinja2.exceptions import SecurityError

    raise SecurityError(reason)


def _step(made: Any = None) -> Any:
    meter = getattr(_running, "meter", None)
    if meter is not None:
        meter.step(made)
    return made


def _written(value: Any, limit: int) -> int:
    """About how many characters something has when it is written out; counted no further than `limit`."""
    if isinstance(value, str | bytes):
        return len(value)
    if not isinstance(value, Mapping | list | tuple):
        return 1
    size = len(_step(value))  # what is written may be much more than what there is, so the clock is looked at here too
    for one in [*value.keys(), *value.values()] if isinstance(value, Mapping) else value:
        if size > limit:
            return size
        size += _written(one, limit - size)
    return size


def _check_written(*values: Any) -> None:
    left = MAX_RENDERED
    for value in values:
        left -= _written(value, left)
        if left < 0:
            refuse(f"it writes out something of more than {MAX_RENDERED} characters")


def _check_sum(count: float) -> None:
    if count > MAX_RENDERED:
        refuse(f"it makes something of more than {MAX_RENDERED} characters or elements")


def _check_format(form: Any, dynamic: re.Pattern[str]) -> None:
    text = str(form)
    if dynamic.search(text.replace("{{", "")):
        refuse("it has a width that is not written in the format")
    _check_sum(sum(int(number[:9]) for number in NUMBER.findall(text)))


def _check_replace(text: Any, old: Any, new: Any) -> None:
    _check_sum(len(text) + text.count(old) * len(new))


def _check_join(between: Any, parts: list[Any]) -> None:
    _check_written(parts)
    _check_sum(len(between) * len(parts))


def _check_operator(operator: str, left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        bits = abs(left).bit_length()
        if (operator == "**" and abs(left) > 1 and right * bits > MAX_BITS) or (
            operator == "*" and bits + abs(right).bit_length() > MAX_BITS
        ):
            refuse(f"the result of '{operator}' would be too large")
    elif operator == "*":
        size, times = (left, right) if hasattr(left, "__len__") else (right, left)
        if hasattr(size, "__len__") and isinstance(times, int) and len(size) * times > MAX_RENDERED:
            refuse(f"the result of '{operator}' would be too large")
    elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
        _check_sum(len(left) + len(right))
    elif operator == "%" and isinstance(left, str | bytes):
        _check_format(left, DYNAMIC_WIDTH)
        _check_written(right)


def _check_method(owner: Any, name: str, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """Methods of texts and numbers that can make much of little."""
    for number in [*given, *named.values()]:
        if isinstance(number, int):
            _check_sum(abs(number))
    if isinstance(owner, int):
        return
    if name == "replace" and len(given) >= 2:
        _check_replace(owner, *given[:2])
    elif name == "join" and len(given) == 1:
        _check_join(owner, list(given[0]) if isinstance(given[0], list | tuple | dict) else [given[0]])
    elif name in ("format", "format_map"):
        _check_format(owner, NESTED_FIELD)
        _check_written(given, named)
    elif name == "expandtabs":
        _check_sum(len(owner) * (given[0] if given else named.get("tabsize", 8)))
    elif name == "translate":
        refuse("it may not use 'translate' of a str")


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is counted, and refused where it would make too much."""

    @functools.wraps(function)  # also Jinja's marks of what it passes
    def guard(*given: Any, **named: Any) -> Any:
        at = 1 if getattr(function, "jinja_pass_arg", None) is not None else 0
        values = list(given)
        if name not in TAKES_LISTS:
            if name in ("join", "sum") and not isinstance(values[at], str | Mapping):
                values[at] = list(values[at])
            _check_written(*values[at:], *named.values())
        text, rest = values[at], [*values[at + 1 :], *named.values()]
        if name == "join":
            _check_sum(len(str(rest[0] if rest else "")) * (len(text) if hasattr(text, "__len__") else 0))
        elif name == "replace" and len(rest) >= 2:
            _check_replace(str(text), str(rest[0]), str(rest[1]))
        elif name == "format":
            _check_format(text, DYNAMIC_WIDTH)
        elif name in ("batch", "slice", "indent"):
            widths = [len(one) if isinstance(one, str) else one for one in rest[:1]]
            if any(isinstance(width, int) and width > MAX_PARTS for width in widths):
                refuse(f"'{name}' is asked for more than {MAX_PARTS}")
            if name == "indent":
                _check_sum((str(text).count("\n") + 1) * (widths[0] if widths else 4))
        _step()
        return _step(function(*values, **named))

    return guard


def environment() -> Any:
    """Make a sandbox with what Transformers gives to chat templates.

    Returns
    -------
    jinja2.Environment
        What it compiles and runs is bounded while a `Meter` is entered.
    """
    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.visitor import NodeTransformer

    class Generation(Extension):
        """``{% generation %}``, which marks what an assistant said; here it is written as it is."""

        tags = {"generation"}  # noqa: RUF012 - jinja2 has it so

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    class Counting(NodeTransformer):
        """Puts a step into each turn of a loop, and has ``~`` done by a filter."""

        def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - jinja2 has it so
            self.generic_visit(node)
            turn = nodes.Call(nodes.EnvironmentAttribute(TURN), [], [], None, None, lineno=node.lineno)
            node.body.insert(0, nodes.ExprStmt(turn, lineno=node.lineno))
            return node

        def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
            self.generic_visit(node)
            parts = nodes.List(node.nodes, lineno=node.lineno)
            return nodes.Filter(parts, WRITTEN, [], [], None, None, lineno=node.lineno)

    class Sandbox(ImmutableSandboxedEnvironment):
        """Refuses at once, where Jinja's gives something undefined, which may print as nothing."""

        intercepted_binops = frozenset(["*", "**", "+", "%"])

        def _parse(self, *given: Any) -> nodes.Template:
            tree: nodes.Template = Counting().visit(super()._parse(*given))
            return tree

        def turn(self) -> str:
            _step()
            return ""

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _check_operator(operator, left, right)
            return _step(super().call_binop(context, operator, left, right))

        def call(self, context: Any, function: Any, /, *given: Any, **named: Any) -> Any:
            _step()
            method = getattr(function, "__wrapped__", function)  # Jinja wraps `format`
            owner = getattr(method, "__self__", None)
            if isinstance(owner, str | bytes | int):
                _check_method(owner, getattr(method, "__name__", ""), given, named)
            return _step(super().call(context, function, *given, **named))

        def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
            refuse(f"it may not use '{attribute}' of a {type(obj).__name__}")

    def finalize(value: Any) -> Any:
        _check_written(value)
        return value

    sandbox = Sandbox(trim_blocks=True, lstrip_blocks=True, finalize=finalize,
                      extensions=["jinja2.ext.loopcontrols", Generation])  # fmt: skip
    sandbox.filters = {name: _guarded(name, sandbox.filters[name]) for name in FILTERS if name in sandbox.filters}
    sandbox.filters["tojson"] = _guarded("tojson", _tojson)
    sandbox.filters[WRITTEN] = _guarded(WRITTEN, _joined)
    del sandbox.globals["lipsum"]

    def raise_exception(message: object) -> None:
        raise TemplateError(f"it refuses the messages: {message}")

    sandbox.globals["raise_exception"] = raise_exception
    sandbox.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return sandbox


def _joined(parts: Iterable[Any]) -> str:
    return "".join(map(str, parts))


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    if (len(indent) if isinstance(indent, str) else indent or 0) > 16:
        refuse("'tojson' is asked for an indent of more than 16")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
