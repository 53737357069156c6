"""The house rules, held by reading the sources: who imports and includes whom, and where compiler macros may stand.

Each rule is a function from a file's name and text to complaints. One test gives the function the whole tree; another
gives it a snippet that breaks the rule, and wants to see the complaint.
"""

import ast
import fnmatch
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bitnet
import bitnet.machine

ROOT = Path(__file__).resolve().parents[1]

# Who may import (or cimport) whom, in names below `bitnet`; a star stands for any name. A module has the first row
# that fits. Rows without a star are exact: an arrow that no code uses is a mistake in this table.
ARROWS = {
    # the core, from the bottom up
    "_core": "",
    "_core.cpu": "errors",
    "_core.reports": "_errors",
    "_core.pressure": "errors _core.reports",
    "_core.blocks": "errors _core.reports",
    "_core.tracking": "_core.reports",
    "_core.memory": "errors _core.blocks _core.pressure _core.reports _core.tracking",
    "_core.threads": "errors",
    "_core.arrays": "errors",
    "_core.quant": "errors _core.cpu _core.threads _core.arrays",
    "_core.probe": "errors _core.cpu _core.blocks _core.memory _core.threads",
    "_core.packings": "",
    "_core.packings.contract": "",
    "_core.packings.i2": "_core.packings.contract",
    "_core.packings.t5": "_core.packings.contract",
    "_core.source": "_core.quant",
    "_core.packing": "errors _core.cpu _core.threads _core.memory _core.arrays _core.quant _core.source "
                     "_core.packings.contract _core.packings.i2 _core.packings.t5",
    "_core.lut": "_core.cpu _core.threads _core.packings.contract",
    "_core.matmul": "errors _core.lut _core.threads _core.memory _core.arrays _core.ops _core.quant "
                    "_core.packing _core.packings.contract",
    "_core.ops": "errors _core.cpu _core.arrays",
    "_core.fusion": "_core.packing _core.packings.contract",
    "_core.builder": "errors _core.fusion",
    "_core.head_job": "",
    "_core.screening": "_core.head_job _core.threads",
    "_core.head": "errors _core.cpu _core.head_job _core.memory _core.screening _core.threads _core.arrays",
    "_core.operations": "_core.head _core.head_job _core.ops _core.matmul _core.threads",
    "_core.clock": "",
    "_core.counting": "",
    "_core.batch": "errors _core.arrays _core.blocks _core.memory _core.operations _core.ops _core.screening",
    "_core.program": "errors _core.batch _core.builder _core.clock _core.counting _core.head _core.head_job "
                     "_core.operations _core.ops "
                     "_core.matmul _core.packing _core.threads _core.memory _core.arrays",
    # above it
    "_errors": "errors",
    "_load_errors": "_errors",
    "errors": "_errors _load_errors",
    "_checks": "errors",
    "_generation_config": "_checks",
    "config": "errors _checks _generation_config",
    "quant": "errors config _core.arrays _core.quant",
    "tokenizer": "errors formats.base formats.gguf_file vocabulary",
    "vocabulary": "errors",
    "chat": "errors sandbox",
    "sandbox": "",
    "_core.drawing": "errors _core.arrays _core.blocks _core.memory _core.threads",
    "_core.sampling": "errors _core.arrays _core.blocks _core.memory",
    "sampling": "config errors _core.drawing _core.sampling",
    "weight": "config quant tuning _core.quant _core.packing _core.matmul",
    "tuning": "errors _core.cpu _core.threads _core.memory _core.packing _core.matmul",
    "machine": "errors _bitnet_runtime _core.blocks _core.cpu _core.threads _core.probe _core.quant _core.packing "
               "_core.reports",
    "memory": "_errors config _core.blocks _core.memory _core.reports _core.tracking",
    "debugging": "errors memory _core.program",
    "steps": "",
    "profiling": "errors machine steps _core.program",
    "diagnosis": "errors kv_cache model _core.program _core.quant",
    "assets": "",
    "bitnet": "errors calibration config conversion evaluation quant quantization weight debugging diagnosis profiling "
              "memory engine grammar loaded model inspection scoring _bitnet_runtime",
    "engine": "assets errors completion config driving generation grammar memory model request scheduler stream texts "
              "kv_cache kv_state",
    "completion": "",
    "lookup": "",
    "request": "completion errors lookup sampling",
    "driving": "request",
    "grammar": "errors",
    "gathering": "request",
    "scheduler": "driving errors gathering kv_cache lookup request steps _core.batch _core.drawing _core.program",
    "stream": "completion config errors",
    "generation": "completion errors request",
    "loaded": "config embedding engine grammar model scoring",
    "texts": "embedding scoring",
    "embedding": "errors request",
    "scoring": "errors kv_cache request",
    "evaluation": "errors scoring",
    "harness": "config engine errors scoring",
    "calibration": "errors kv_cache model _core.program _core.quant",
    "quantization": "errors calibration config conversion formats formats.writing hub model quant _core.quant",
    "hub": "errors",
    "inspection": "assets checksums errors formats formats.panels formats.sums hub models _core.builder",
    "conversion": "errors config formats formats.gguf_write formats.hugging_face_write formats.panels formats.sums "
                  "formats.writing hub model models tokenizer vocabulary _core.head _core.packing _core.quant",
    "kv_state": "errors formats.sums _core.program",
    "kv_cache": "errors _core.batch _core.memory _core.program",
    # the meeting place of formats and models
    "checksums": "errors formats formats.sums",
    "model": "errors config memory tuning chat checksums tokenizer hub formats formats.panels formats.random models "
             "_core.head _core.memory _core.packing _core.quant _core.builder _core.program",
    "__main__": "cli",
    # beside the package: the command, before it is known whose package that is
    "_bitnet_runtime": "cli",
    # families of files
    "models*": "errors config models*",
    "formats*": "errors config chat formats* _core.*",
    "cli*": "bitnet machine tuning memory errors server train cli*",
    "train*": "errors config _checks formats models train* _core.packing",
    "compat*": "chat config engine errors grammar tokenizer compat*",
    "server*": "bitnet _checks chat compat* errors server*",
    "examples*": "bitnet compat machine memory errors server train",
}  # fmt: skip

# At module level only these and the standard library: what else is installed is optional.
REQUIRED = {"bitnet", "numpy"}
WITHOUT_TORCH = {"bitnet/train/__init__.py", "bitnet/train/config.py"}  # the command line reads them for its help
WITHOUT_SERVER = {"bitnet/server/__init__.py", "bitnet/server/config.py"}
SERVER = {"starlette", "uvicorn", "jsonschema", "prometheus_client"}
OPTIONAL = ("huggingface_hub", "jinja2", "llguidance", "matplotlib", "rich", "safetensors", "tokenizers", "torch",
            *SERVER)  # fmt: skip

# Headers that any kernel header may include; all others belong to the table whose name they begin with.
CONTRACTS = {"feature.h", "head_kernel.h", "kernel.h", "lut_index_avx512vnni.h", "lut_kernel.h",
             "ops_kernel.h", "probe_kernel.h", "quant_kernel.h", "target.h"}  # fmt: skip
LIBC = {"stddef.h", "stdint.h", "string.h"}
MACRO = re.compile(
    r"\b(__\w+__|_MSC_VER|_WIN32|_WIN64|__builtin_\w+|__declspec|_Pragma|__asm\w*|__AVX\w*|__ARM\w*|__restrict\w*)\b"
    r"|#[ \t]*pragma\b(?!:)"
)
PYTHON_DUNDER = re.compile(r"__[a-z0-9]+(_[a-z0-9]+)*__")
COMPILER_WORDS = {"__clang__", "__linux__", "__attribute__", "__x86_64__", "__aarch64__", "__asm__", "__volatile__"}
MAX_LINES = 500


def read_tree(*patterns):
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for pattern in patterns
        for path in sorted(ROOT.glob(pattern))
    }


COMMAND = "_bitnet_runtime"
PYTHON = read_tree(f"{COMMAND}.py", "bitnet/**/*.py", "bitnet/**/*.pyi", "examples/**/*.py")
CYTHON = read_tree("bitnet/**/*.pyx", "bitnet/**/*.pxd")
HEADERS = read_tree("bitnet/**/*.h")
SOURCES = {**PYTHON, **CYTHON}


# ---- reading


def module_of(path):
    """bitnet/_core/cpu.pyx -> _core.cpu, bitnet/__init__.py -> bitnet, examples/a.py -> examples.a"""
    parts = list(Path(path).with_suffix("").parts)
    parts = parts[1:] if parts[0] == "bitnet" else parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts) or "bitnet"


MODULES = {module_of(path) for path in SOURCES}


def cython_code(text):
    """Without docstrings and comments."""
    return re.sub(r'"""(.*?)"""|#[^\n]*', lambda found: "\n" * found[0].count("\n"), text, flags=re.S)


def c_code(text):
    return re.sub(r"/\*.*?\*/|//[^\n]*", lambda found: "\n" * found[0].count("\n"), text, flags=re.S)


def imports(path, text):
    """(module, name or None, whether at module level), as written but for relative ones, which are made absolute."""
    return _python_imports(path, text) if path.endswith((".py", ".pyi")) else _cython_imports(path, text)


def _absolute(path, level, module):
    if not level:
        return module
    package = path.removesuffix(Path(path).suffix).split("/")[:-level]
    return ".".join([*package, *([module] if module else [])])


def _python_imports(path, text):
    found = []

    def visit(node, is_top):
        if isinstance(node, ast.Import):
            found.extend((alias.name, None, is_top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(path, node.level, node.module or "")
            found.extend((module, alias.name, is_top) for alias in node.names)
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, is_top and not is_function)

    visit(ast.parse(text), True)
    return found


def _cython_imports(path, text):
    found, code = [], cython_code(text)
    for line in re.finditer(r"(?m)^([ \t]*)from\s+(\.*)([\w.]*)\s+c?import\s+(\([^)]*\)|[^\n]*)", code):
        module = _absolute(path, len(line[2]), line[3])
        names = re.findall(r"([\w*]+)(?:\s+as\s+\w+)?\s*(?:,|$)", line[4].strip("() \n").replace("\n", " "))
        found += [(module, name, not line[1]) for name in names]
    for line in re.finditer(r"(?m)^([ \t]*)c?import\s+([\w., ]+)", code):
        found += [(part.split()[0], None, not line[1]) for part in line[2].split(",")]
    return found


def ours(path, text):
    """The modules of ours that a file imports, in the names of ARROWS."""
    for module, name, _ in imports(path, text):
        if module.split(".")[0] not in ("bitnet", COMMAND):
            continue
        target = module.removeprefix("bitnet").removeprefix(".") or "bitnet"
        below = name if target == "bitnet" else f"{target}.{name}"
        yield below if below in MODULES else target


# ---- rules: each takes a path and its text, and yields complaints


def row_of(module):
    return next((row for row in ARROWS if fnmatch.fnmatchcase(module, row)), None)


def check_arrows(path, text):
    module = module_of(path)
    row = row_of(module)
    if row is None:
        yield f"{path}: ARROWS has no row for {module}"
        return
    for target in ours(path, text):
        if target != module and not any(fnmatch.fnmatchcase(target, one) for one in ARROWS[row].split()):
            yield f"{path}: {module} may not import {target}"


def check_public_names(path, text):
    """The command line, the server and the examples see what a user sees."""
    if not module_of(path).startswith(("cli", "server", "examples")):
        return
    faces = {"bitnet": [*bitnet.__all__, "__version__", "MemoryError"], "bitnet.machine": bitnet.machine.__all__,
             "bitnet.memory": bitnet.memory.__all__}  # fmt: skip
    for module, name, _ in imports(path, text):
        is_module = f"{module}.{name}".removeprefix("bitnet.") in MODULES and not str(name).startswith("_")
        if module in faces and name is not None and name not in faces[module] and not is_module:
            yield f"{path}: {module}.{name} is not public"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("bitnet."):
            private = [part for part in ast.unparse(node).split(".") if re.fullmatch(r"_[a-z]\w*", part)]
            if private:
                yield f"{path}: {ast.unparse(node)} is not public"


def check_privacy_of_families(path, text):
    """A model or a format does not use what another one keeps for itself."""
    for module, name, _ in imports(path, text):
        is_other = module.removeprefix("bitnet.") != module_of(path)
        if re.match(r"bitnet\.(models|formats)\b", module) and is_other and name and name.startswith("_"):
            yield f"{path}: {module}.{name} is private"


def check_optional_libraries(path, text):
    for module, _, is_top in imports(path, text):
        library = module.split(".")[0]
        is_known = library in sys.stdlib_module_names | REQUIRED | {COMMAND, "libc", "cpython", "cython"}
        is_known |= library == "torch" and path.startswith("bitnet/train/") and path not in WITHOUT_TORCH
        is_known |= library in SERVER and path.startswith("bitnet/server/") and path not in WITHOUT_SERVER
        is_known |= library == "ray" and path.startswith("examples/ray_")
        if not is_known and (is_top or path.startswith("bitnet/_core")):
            yield f"{path}: {library} is optional, so it is imported in the function that needs it"


def check_the_command(path, text):
    """Nothing of the package before it is known to be ours."""
    for module, _, is_top in imports(path, text):
        if module_of(path) == COMMAND and is_top and module.split(".")[0] not in sys.stdlib_module_names:
            yield f"{path}: {module} is imported in the function that needs it"


def check_kernel_includes(path, text):
    name = Path(path).name
    table = name.removesuffix(".h").partition("_")[0]
    for bracket, included in re.findall(r'(?m)^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)', c_code(text)):
        if included.endswith("Python.h"):
            yield f"{path}: a kernel knows nothing of Python"
        elif bracket == "<" and name != "target.h" and included not in LIBC:
            yield f"{path}: <{included}> is included by target.h only"
        elif bracket == '"' and included not in CONTRACTS and not included.startswith(f"{table}_"):
            yield f'{path}: "{included}" belongs to another table'
    for word in re.findall(r"\b(malloc|calloc|realloc|aligned_alloc|posix_memalign|free|printf|puts|Py\w+)\b",
                           c_code(text)):  # fmt: skip
        yield f"{path}: {word} has no place in a kernel"


def check_macros(path, text):
    if path.endswith("kernels/target.h"):
        return
    is_c = path.endswith(".h")
    code = c_code(text) if is_c else text  # of Cython all of it: a string may hold C
    for found in MACRO.finditer(code):
        word = found[0]
        if is_c or not PYTHON_DUNDER.fullmatch(word) or word in COMPILER_WORDS:
            yield f"{path}: {word} belongs in kernels/target.h"
    if is_c:
        known = {"defined", "MADV_HUGEPAGE"} if path.endswith("_core/arena.h") else {"defined"}
        for condition in re.findall(r"(?m)^[ \t]*#[ \t]*(?:if|ifdef|ifndef|elif)\b(.*)$", code):
            for word in set(re.findall(r"[A-Za-z_]\w*", condition)) - known:
                if not word.startswith("BITNET_"):
                    yield f"{path}: the condition on {word} belongs in kernels/target.h"


def check_prints(path, text):
    if module_of(path).startswith(("cli", "examples", COMMAND)):
        return
    if path.endswith((".py", ".pyi")):
        calls = [node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        prints = any(isinstance(call, ast.Name) and call.id == "print" for call in calls)
    else:
        prints = re.search(r"(?<![\w.])(print|printf)\s*\(", cython_code(text))
    if prints:
        yield f"{path}: only the command line prints"


def check_length(path, text):
    lines = text.count("\n")
    if lines > MAX_LINES:
        yield f"{path}: {lines} lines, more than {MAX_LINES}"


def includers(headers, cython):
    """For each header, the modules that use it in `cdef extern from`, and the headers that include it."""
    found = {Path(path).name: (set(), set()) for path in headers}
    for path, text in cython.items():
        for name in re.findall(r'cdef extern from "(?!<)([^"]+)"', text):
            found.setdefault(Path(name).name, (set(), set()))[0].add(module_of(path))
    for path, text in headers.items():
        for name in re.findall(r'#\s*include\s*"([^"]+)"', c_code(text)):
            found.setdefault(Path(name).name, (set(), set()))[1].add(Path(path).name)
    return found


def check_one_includer(headers, cython):
    for name, (modules, within) in sorted(includers(headers, cython).items()):
        if name in CONTRACTS:
            if len(modules) > 1:
                yield f"{name} is declared by {sorted(modules)}; one of them is enough"
        elif f"bitnet/_core/kernels/{name}" in headers and "_" in name:
            table = name.partition("_")[0]
            if modules or not within or any(not one.startswith(table) for one in within):
                yield f"{name} is included by {sorted(modules | within)} instead of {table}.h"
        elif len(modules) != 1 or within:
            yield f"{name} is included by {sorted(modules | within)} instead of one module"


# ---- the tree keeps the rules

RULES = [
    (check_arrows, SOURCES),
    (check_public_names, PYTHON),
    (check_privacy_of_families, PYTHON),
    (check_optional_libraries, SOURCES),
    (check_the_command, PYTHON),
    (check_kernel_includes, {path: text for path, text in HEADERS.items() if "/kernels/" in path}),
    (check_macros, {**HEADERS, **CYTHON}),
    (check_prints, SOURCES),
    (check_length, {**SOURCES, **HEADERS, **read_tree("*.py", "tests/**/*.py", "tests/**/*.h", "bench/**/*.py")}),
]


@pytest.mark.parametrize(("rule", "files"), RULES, ids=[rule.__name__ for rule, _ in RULES])
def test_every_file_keeps(rule, files):
    assert len(files) > 5
    assert [complaint for path, text in files.items() for complaint in rule(path, text)] == []


def test_every_header_has_one_includer():
    assert list(check_one_includer(HEADERS, CYTHON)) == []


def test_every_arrow_of_the_table_is_used():
    found = {}
    for path, text in SOURCES.items():
        found.setdefault(module_of(path), set()).update(set(ours(path, text)) - {module_of(path)})
    exact = {module: set(row.split()) for module, row in ARROWS.items() if "*" not in module}
    assert {module: found.get(module) for module in exact if module in MODULES} == {
        module: row for module, row in exact.items() if module in MODULES
    }


def test_importing_loads_no_optional_library():
    code = f"import sys, bitnet, bitnet.machine; sys.exit(' '.join(m for m in {OPTIONAL} if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(bitnet.__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert (done.stderr.strip(), done.stdout) == ("", "")


NOT_NEEDED = ("hashlib", "hmac", "secrets", "numpy.ma", "numpy.random", "asyncio", "ssl", "email", "jinja2", "rich")


def test_a_run_loads_no_library_that_it_does_not_need():
    """Each takes some megabytes, which count as what a model takes."""
    code = ("import sys, bitnet\nwith bitnet.load(num_threads=1) as model:\n    model.generate('a', do_sample=False, "
            f"max_new_tokens=2)\nsys.exit(' '.join(m for m in {NOT_NEEDED} if m in sys.modules))")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(bitnet.__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert (done.stderr.strip(), done.stdout) == ("", "")


# ---- the rules bite

BREACHES = [
    (check_arrows, "bitnet/_core/cpu.pyx", "import bitnet.config", "_core.cpu may not import config"),
    (check_arrows, "bitnet/_core/cpu.pyx", "def f():\n    from bitnet import quant", "_core.cpu may not import quant"),
    (check_arrows, "bitnet/_core/quant.pxd", "from bitnet._core.packing cimport (\n    PackedWeight,  # it\n)",
     "_core.quant may not import _core.packing"),
    (check_arrows, "bitnet/_core/packings/i2.pyx", "from bitnet._core.packings.t5 cimport T5",
     "_core.packings.i2 may not import _core.packings.t5"),
    (check_arrows, "bitnet/_core/packings/i2.pyx", "from .t5 cimport T5", "may not import _core.packings.t5"),
    (check_arrows, "bitnet/_core/memory.pyx", "from bitnet._core cimport arrays, cpu",
     "_core.memory may not import _core.cpu"),
    (check_arrows, "bitnet/_core/threads.pyi", "from bitnet._core.cpu import isa", "may not import _core.cpu"),
    (check_arrows, "bitnet/errors.py", "from .config import ModelConfig", "errors may not import config"),
    (check_arrows, "bitnet/config.py", "def f():\n    import bitnet.weight", "config may not import weight"),
    (check_arrows, "bitnet/models/llama.py", "from bitnet.formats import gguf", "models.llama may not import formats"),
    (check_arrows, "bitnet/formats/gguf.py", "from ..models.base import Model", "formats.gguf may not import models"),
    (check_arrows, "bitnet/cli/doctor.py", "from bitnet._core import cpu", "cli.doctor may not import _core.cpu"),
    (check_arrows, "examples/first.py", "from bitnet._core.cpu import isa", "examples.first may not import _core.cpu"),
    (check_arrows, "bitnet/surprise.py", "", "ARROWS has no row for surprise"),
    (check_public_names, "bitnet/cli/doctor.py", "from bitnet.machine import _huge_pages", "is not public"),
    (check_public_names, "bitnet/server/app.py", "from bitnet import _errors", "bitnet._errors is not public"),
    (check_public_names, "examples/first.py", "import bitnet\nbitnet._core.cpu.isa()", "bitnet._core is not public"),
    (check_privacy_of_families, "bitnet/models/qwen3.py", "from bitnet.models.llama import _rope", "is private"),
    (check_optional_libraries, "bitnet/cli/bench.py", "try:\n    import rich.table\nexcept ImportError: pass",
     "rich is optional"),
    (check_optional_libraries, "bitnet/weight.py", "class A:\n    from torch import nn", "torch is optional"),
    (check_optional_libraries, "bitnet/train/config.py", "import torch", "torch is optional"),
    (check_optional_libraries, "bitnet/_core/cpu.pyx", "def f():\n    import psutil", "psutil is optional"),
    (check_arrows, "_bitnet_runtime.py", "def f():\n    from bitnet import machine", "may not import machine"),
    (check_arrows, "bitnet/weight.py", "from _bitnet_runtime import main", "weight may not import _bitnet_runtime"),
    (check_the_command, "_bitnet_runtime.py", "from bitnet import cli", "bitnet is imported in the function"),
    (check_kernel_includes, "bitnet/_core/kernels/i2_avx2.h", '#include "t5_codes.h"', "belongs to another table"),
    (check_kernel_includes, "bitnet/_core/kernels/i2_avx2.h", "#include <Python.h>", "knows nothing of Python"),
    (check_kernel_includes, "bitnet/_core/kernels/i2_avx2.h", "# include <immintrin.h>", "is included by target.h"),
    (check_kernel_includes, "bitnet/_core/kernels/i2_avx2.h", "int *p = malloc(4);", "malloc has no place"),
    (check_macros, "bitnet/_core/kernels/i2_avx2.h", "#ifdef __clang__", "__clang__ belongs in"),
    (check_macros, "bitnet/_core/kernels/i2_avx2.h", "#if defined(NDEBUG)", "condition on NDEBUG belongs in"),
    (check_macros, "bitnet/_core/kernels/i2_avx2.h", "#pragma GCC unroll 4", "#pragma belongs in"),
    (check_macros, "bitnet/_core/team.h", "#if MADV_HUGEPAGE", "condition on MADV_HUGEPAGE belongs in"),
    (check_macros, "bitnet/_core/cpu.pyx", "cdef extern from *:\n    int __GNUC__", "__GNUC__ belongs in"),
    (check_macros, "bitnet/_core/cpu.pyx", 'cdef extern from *:\n    """\n    #ifdef __linux__\n    """', "__linux__"),
    (check_prints, "bitnet/weight.py", "def f():\n    print(1)", "only the command line prints"),
    (check_prints, "bitnet/_core/cpu.pyx", "def f():\n    print('x')", "only the command line prints"),
    (check_length, "bitnet/weight.py", "\n" * 501, "501 lines"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "path", "text", "complaint"), BREACHES, ids=[f"{breach[0].__name__}-{breach[1]}" for breach in BREACHES]
)
def test_a_breach_is_reported(rule, path, text, complaint):
    assert complaint in "\n".join(rule(path, text))


def test_a_second_includer_is_reported():
    twice = {**CYTHON, "bitnet/_core/matmul.pyx": 'cdef extern from "kernels/i2.h":\n    pass\n'}
    assert list(check_one_includer(HEADERS, twice)) == [
        "i2.h is included by ['_core.matmul', '_core.packings.i2'] instead of one module"
    ]
    direct = {**CYTHON, "bitnet/_core/probe.pyx": 'cdef extern from "kernels/t5_avx2.h":\n    pass\n'}
    assert any(one.startswith("t5_avx2.h is included by ['_core.probe'") for one in check_one_includer(HEADERS, direct))
    unused = {path: text for path, text in CYTHON.items() if not path.endswith("threads.pyx")}
    assert list(check_one_includer(HEADERS, unused)) == ["team.h is included by [] instead of one module"]
