"""Vector instructions stand in kernels only: the extensions as built, taken apart by ``objdump``.

The extensions are built at the floor of the ABI, and a function is chosen when the program runs. So outside the
functions that are chosen so, no instruction may stand that an older CPU lacks: one of them would end the program there.
"""

import importlib
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CORE = Path(__file__).resolve().parents[1] / "bitnet" / "_core"
NAMES = ["_cyutility", *(".".join(path.relative_to(CORE).with_suffix("").parts) for path in CORE.glob("**/*.pyx"))]
TABLES = ("i2.h", "t5.h", "quant.h", "head.h", "lut.h", "probe.h")

IS_X86, IS_ARM = platform.machine() in ("x86_64", "AMD64"), platform.machine() in ("aarch64", "arm64")

# What only a kernel of an ISA may hold: a pattern of instructions and the ISAs. A mnemonic with a v is AVX's, whatever
# its registers; of SSE, which is the floor, none has it.
ONLY_IN = [
    (r"v(?!er[rw]|m(call|launch|resume))\w+|.*%ymm\d", ("avx2", "avxvnni", "avx512vnni", "avx512vbmi")),
    (r".*%(zmm\d|[xy]mm(1[6-9]|2\d|3[01])|k[0-7]\b)", ("avx512vnni", "avx512vbmi")),
    (r"vpdpbusds?\b", ("avxvnni", "avx512vnni", "avx512vbmi")),
    (r"vperm[it]2b|vpermb\b", ("avx512vbmi",)),
] if IS_X86 else [(r"[su]dot\b", ("neondot",))] if IS_ARM else []  # fmt: skip

# What every kernel of an ISA does hold, so that the rules above cannot hold of nothing.
HOLDS = {"avx2": r"%ymm", "avxvnni": r"%ymm", "avx512vnni": r"%zmm", "avx512vbmi": r"%zmm",
         "neon": r"\bv\d+\.|\bq\d+", "neondot": r"\bv\d"}  # fmt: skip
MULTIPLIES = {"avx512vnni": "vpdpbusd", "avx512vbmi": "vpdpbusd", "avxvnni": "vpdpbusd", "avx2": "vpmaddubsw",
              "neondot": "[su]dot"}  # fmt: skip


def functions(listing):
    """The instructions of each function in the output of objdump, as ``vpaddd %ymm0,%ymm1,%ymm2``."""
    found, name = {}, None
    for line in listing.splitlines():
        if head := re.fullmatch(r"[0-9a-f]+ <(.+)>:", line):
            name = head[1]
        elif name and (code := re.match(r"\s+[0-9a-f]+:\t(.+)", line)):
            # Prefixes are printed in front of the mnemonic, constants and comments behind.
            found.setdefault(name, []).append(re.sub(r"^(rep|lock|bnd|notrack|data16|cs|ds|\{\w+\})\s+", "", code[1]))
    return found


def isa_of(function):
    """The ISA that ends a kernel's name; a clone of the compiler's, as ``i2_panel_avx2.constprop.0``, is the same."""
    plain = re.sub(r"\.(constprop|part|isra|cold|lto_priv|llvm)(\.\d+)*", "", function)
    return plain.rpartition("_")[2]


def misplaced(code):
    """Complaints about the functions of one extension, a line for each function and rule."""
    for function, instructions in code.items():
        for pattern, isas in ONLY_IN:
            found = [one for one in instructions if re.match(pattern, one)]
            if found and isa_of(function) not in isas:
                yield f"{function} has {len(found)} instructions for {', '.join(isas)} alone, such as {found[0]!r}"


def rows():
    """(extension, ISA, function) for each kernel in the tables that this architecture builds."""
    built = "BITNET_X86" if IS_X86 else "BITNET_ARM" if IS_ARM else ""
    for header in TABLES:
        table, condition = header.removesuffix(".h"), ""
        text = re.sub(r"/\*.*?\*/", "", (CORE / "kernels" / header).read_text(encoding="utf-8"), flags=re.S)
        for new_condition, isa, members in re.findall(r'#(?:el)?if (\w+)|\{"(\w+)",((?:[^{}]|\{[^{}]*\})+)\}', text):
            condition = new_condition or condition
            if isa not in ("", "portable") and condition == built:
                for function in re.findall(rf"\b\w+_{isa}\b", members):
                    yield f"packings.{table}" if table in ("i2", "t5") else table, isa, function


@pytest.fixture(scope="module")
def extensions():
    objdump = shutil.which("objdump")
    assert objdump, "objdump is not installed; it comes with the compiler, or with: apt install binutils"
    found = {}
    for name in NAMES:
        file = importlib.import_module(f"bitnet._core.{name}").__file__
        done = subprocess.run([objdump, "-d", "--no-show-raw-insn", file], capture_output=True, text=True, check=True)
        found[name] = functions(done.stdout)
    return found


def test_each_extension_is_read(extensions):
    assert len(extensions) >= 11
    for name, code in extensions.items():
        assert len(code) > 20, name
        assert any("pymod_exec" in function for function in code) or name == "_cyutility", name


def test_vector_instructions_stand_in_kernels_only(extensions):
    assert [f"{name}: {one}" for name, code in extensions.items() for one in misplaced(code)] == []


def test_each_kernel_of_the_tables_uses_its_registers(extensions):
    for extension, isa, function in rows():
        kernel = [code for name, code in extensions[extension].items() if re.fullmatch(rf"{function}(\.\w+)*", name)]
        assert kernel, f"{extension} has no symbol {function}"
        assert any(re.search(HOLDS[isa], one) for code in kernel for one in code), f"{function} uses no {HOLDS[isa]}"


def test_each_product_uses_its_instruction(extensions):
    for extension, isa, function in rows():
        looks_up = "_look_up_" in function and isa.startswith("avx512")
        if isa in MULTIPLIES and ("_panel_" in function or looks_up):
            code = [one for name, code in extensions[extension].items() if name.startswith(function) for one in code]
            assert any(re.match(MULTIPLIES[isa], one) for one in code), f"{function} has no {MULTIPLIES[isa]}"


def test_the_tables_have_rows():
    found = list(rows())
    if IS_X86:
        assert {isa for _, isa, _ in found} >= {"avx2", "avx512vnni", "avx512vbmi"}
        assert len(found) >= 16
    elif IS_ARM:
        assert {isa for _, isa, _ in found} <= {"neon", "neondot"}


LISTING = """
0000000000001000 <portable_sum>:
    1000:\tmovdqu (%rdi),%xmm0
    1004:\tverw   0x10(%rax)
    1008:\tret

0000000000002000 <i2_panel_avx2.constprop.0>:
    2000:\tvpmaddubsw %ymm1,%ymm2,%ymm3

0000000000003000 <_pack>:
    3000:\tvpaddd %xmm1,%xmm2,%xmm3
    3004:\tlock cmpxchg %rdx,(%rdi)

0000000000004000 <t5_panel_avx2>:
    4000:\tvpdpbusd %zmm1,%zmm2,%zmm3
"""


def test_the_listing_is_read():
    code = functions(LISTING)
    assert list(code) == ["portable_sum", "i2_panel_avx2.constprop.0", "_pack", "t5_panel_avx2"]
    assert code["_pack"] == ["vpaddd %xmm1,%xmm2,%xmm3", "cmpxchg %rdx,(%rdi)"]
    assert [isa_of(name) for name in code] == ["sum", "avx2", "pack", "avx2"]


def test_a_breach_is_reported(monkeypatch):
    monkeypatch.setitem(globals(), "ONLY_IN", [
        (r"v(?!er[rw])\w+|.*%ymm\d", ("avx2", "avx512vnni")), (r".*%zmm\d", ("avx512vnni",)), ("vpdp", ("avx512vnni",)),
    ])  # fmt: skip
    assert [one.partition(" has ")[0] for one in misplaced(functions(LISTING))] == [
        "_pack", "t5_panel_avx2", "t5_panel_avx2",
    ]  # fmt: skip
