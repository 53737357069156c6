"""Every public name says what it is, what it takes and what it gives, in numpydoc's sections; and its examples run.

Signatures of the core are read from its stubs, which ``test_stubs.py`` holds to the compiled modules.
"""

import ast
import dataclasses
import doctest
import importlib
import inspect
import re
import textwrap
from pathlib import Path

import pytest

import bitnet
from bitnet import machine

PACKAGE = Path(__file__).resolve().parents[1] / "bitnet"
SECTIONS = ("Parameters", "Returns", "Yields", "Raises", "Attributes", "Notes", "References", "Examples")

# Documented in one sentence that names another function, whose parameters they share.
LIKE_ANOTHER = {"bitnet._core.arrays.checked_matrix": "checked"}
# Their parameters are those of an Exception or said by the class above: named constructors are how they are made.
PLAIN_ERRORS = {name for name in bitnet.errors.__all__ if name not in ("BitNetError", "ErrorContext")} | {"MemoryError"}


def sections(doc):
    """The text of each numpydoc section; ``""`` holds what comes before the first."""
    doc = inspect.cleandoc(doc)
    pieces = re.split(rf"(?m)^({'|'.join(SECTIONS)})\n-+$", doc)
    assert len(pieces) // 2 == len(set(pieces[1::2])), "a section comes twice"
    return {"": pieces[0].strip(), **dict(zip(pieces[1::2], pieces[2::2], strict=True))}


def named(section):
    """The names that a section explains: ``rows, cols : int`` gives two."""
    heads = re.findall(r"(?m)^(\*{0,2}\w[\w, *]*?)(?: :.*)?$", section)
    return [name.strip("* ") for head in heads for name in head.split(",")]


def complaints(name, doc, parameters, gives):
    """What is missing in the documentation of a function, or a class with such a constructor."""
    if not doc or not doc.strip():
        yield f"{name} has no docstring"
        return
    if name in LIKE_ANOTHER:
        if f"`{LIKE_ANOTHER[name]}`" not in doc:
            yield f"{name} does not name {LIKE_ANOTHER[name]}"
        return
    found = sections(doc)
    summary = found[""].split("\n\n")[0]
    if not re.search(r"[.:)]$", summary.strip()):
        yield f"{name}: the first sentence has no end: {summary!r}"
    explained = named(found.get("Parameters", ""))
    if explained != parameters:
        yield f"{name} takes {parameters}, its Parameters are {explained}"
    if gives and "Returns" not in found:
        yield f"{name} gives something, but has no Returns"
    if not gives and "Returns" in found:
        yield f"{name} gives nothing, but has Returns"


def parameters_of(function):
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, arguments.vararg, *arguments.kwonlyargs, arguments.kwarg]
    return [one.arg for one in every if one and one.arg not in ("self", "cls", "flags")]


def returns_something(function):
    """Of Python code: whether it returns a value."""
    return any(isinstance(node, ast.Return) and node.value is not None for node in ast.walk(function))


def source_of(item):
    return ast.parse(textwrap.dedent(inspect.getsource(item))).body[0]


def decorators(function):
    return {ast.unparse(one) for one in function.decorator_list}


# ---- the faces in Python


def python_functions():
    """(name, function, its syntax) of the public functions, and of the public methods of TernaryWeight."""
    for module in (bitnet, machine):
        for name in module.__all__:
            item = getattr(module, name)
            if inspect.isfunction(item) and item.__module__.startswith("bitnet.") and hasattr(item, "__globals__"):
                yield f"{module.__name__}.{name}", item, source_of(item)
    for name, item in vars(bitnet.TernaryWeight).items():
        function = getattr(item, "__func__", item)
        if inspect.isfunction(function) and not name.startswith("_"):
            yield f"bitnet.TernaryWeight.{name}", function, source_of(function)


def test_each_public_name_has_a_docstring():
    for module in (bitnet, machine):
        assert module.__doc__
        assert len(set(module.__all__)) == len(module.__all__)
        for name in module.__all__:
            assert (getattr(module, name).__doc__ or "").strip(), f"{module.__name__}.{name}"


def test_each_function_in_python_is_documented():
    found = list(python_functions())
    assert {"bitnet.dequantize", "bitnet.machine.describe", "bitnet.TernaryWeight.matmul"} <= {row[0] for row in found}
    assert [
        one
        for name, function, syntax in found
        for one in complaints(name, function.__doc__, parameters_of(syntax), returns_something(syntax))
    ] == []


@pytest.mark.parametrize(
    "cls", [bitnet.TernaryWeight, machine.Machine, bitnet.BitNetError], ids=lambda cls: cls.__name__
)
def test_each_attribute_of_a_class_is_documented(cls):
    explained = named(sections(cls.__doc__)["Attributes"])
    properties = [name for name, item in vars(cls).items() if isinstance(item, property)]
    if dataclasses.is_dataclass(cls):
        fields = [field.name for field in dataclasses.fields(cls)]
    else:
        fields = list(vars(cls())) if cls is bitnet.BitNetError else []
    assert sorted(explained) == sorted(properties + fields)


@pytest.mark.parametrize(
    "cls",
    [bitnet.ModelConfig, bitnet.QuantizationConfig, bitnet.EngineConfig, bitnet.GenerationConfig, bitnet.ErrorContext],
    ids=lambda cls: cls.__name__,
)
def test_each_field_of_a_dataclass_is_documented(cls):
    assert sorted(named(sections(cls.__doc__)["Parameters"])) == sorted(field.name for field in dataclasses.fields(cls))
    for name, item in vars(cls).items():
        if not name.startswith("_") and callable(getattr(cls, name)):
            assert getattr(item, "__doc__", None) or getattr(item, "__func__", item).__doc__, f"{cls.__name__}.{name}"


def test_each_error_and_each_constructor_is_documented():
    for name in PLAIN_ERRORS:
        cls = getattr(bitnet, name)
        assert inspect.getdoc(cls).endswith("."), name
        assert cls.__doc__ != bitnet.BitNetError.__doc__, name
        for constructor, item in vars(cls).items():
            if isinstance(item, classmethod):
                assert (item.__doc__ or "").strip(), f"{name}.{constructor}"


# ---- the core


def core_functions():
    """(name, docstring, parameters, whether it gives something) of what the stubs list."""
    for path in sorted((PACKAGE / "_core").glob("**/*.pyi")):
        module_name = ".".join(["bitnet", *path.relative_to(PACKAGE).with_suffix("").parts])
        module = importlib.import_module(module_name)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef):
                yield from _described(f"{module_name}.{node.name}", getattr(module, node.name), node)
            elif isinstance(node, ast.ClassDef):
                cls, made = getattr(module, node.name), [one for one in node.body if _is_constructor(one)]
                yield f"{module_name}.{node.name}", cls.__doc__, parameters_of(made[0]) if made else [], False
                for one in node.body:
                    if isinstance(one, ast.FunctionDef) and not one.name.startswith("_") and not decorators(one):
                        yield from _described(f"{module_name}.{node.name}.{one.name}", getattr(cls, one.name), one)


def _described(name, item, node):
    yield name, item.__doc__, parameters_of(node), ast.unparse(node.returns) != "None"


def _is_constructor(node):
    is_one = isinstance(node, ast.FunctionDef) and node.name in ("__init__", "__new__")
    return is_one and ast.unparse(node.returns) != "NoReturn"


def without_signature(doc):
    """Cython puts the signature in front of a docstring."""
    return re.sub(r"\A[\w.]+\([^\n]*\)( -> [^\n]*)?\n", "", doc or "")


def test_each_function_of_the_core_is_documented():
    found = list(core_functions())
    assert len(found) > 30
    assert [
        one
        for name, doc, parameters, gives in found
        for one in complaints(name, without_signature(doc), parameters, gives)
    ] == []


def test_each_module_of_the_core_is_documented():
    for path in (PACKAGE / "_core").glob("**/*.pyx"):
        name = ".".join(["bitnet", *path.relative_to(PACKAGE).with_suffix("").parts])
        assert importlib.import_module(name).__doc__, name


def test_each_constant_of_the_core_is_documented():
    for path in (PACKAGE / "_core").glob("**/*.pyx"):
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"(?m)^([A-Z][A-Z_]+) = ", text):
            assert re.search(rf'(?ms)^{name} = .*?^"""[A-Z].*?\."""$', text), f"{path.name}: {name}"


# ---- examples


def test_the_examples_in_docstrings_run():
    runner, finder, count = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS), doctest.DocTestFinder(), 0
    for path in sorted(PACKAGE.glob("**/*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if parts[-1] == "__main__" or (parts[1] == "train" and importlib.util.find_spec("torch") is None):
            continue
        module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
        for test in finder.find(module):
            count += len(test.examples)
            runner.run(test, out=lambda text: None, clear_globs=False)
    for name, doc, _, _ in core_functions():
        test = doctest.DocTestParser().get_doctest(without_signature(doc), {}, name, None, 0)
        count += len(test.examples)
        runner.run(test)
    assert count >= 3
    assert runner.summarize(verbose=False).failed == 0


# ---- the rules bite

GOOD = """Do it.

Parameters
----------
x, y : int
    Numbers.
*rest
    More.

Returns
-------
int
"""


@pytest.mark.parametrize(
    ("doc", "parameters", "gives", "complaint"),
    [
        (GOOD, ["x", "y", "rest"], True, None),
        (None, [], False, "f has no docstring"),
        ("Do it", [], False, "f: the first sentence has no end: 'Do it'"),
        (GOOD, ["x", "y", "z", "rest"], True, "f takes ['x', 'y', 'z', 'rest'], its Parameters are ['x', 'y', 'rest']"),
        ("Do it.", ["x"], False, "f takes ['x'], its Parameters are []"),
        ("Do it.", [], True, "f gives something, but has no Returns"),
        (GOOD, ["x", "y", "rest"], False, "f gives nothing, but has Returns"),
    ],
)
def test_a_breach_is_reported(doc, parameters, gives, complaint):
    assert list(complaints("f", doc, parameters, gives)) == ([complaint] if complaint else [])
