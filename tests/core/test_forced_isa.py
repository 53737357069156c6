"""The instruction set that is asked for is the one that runs.

Not only by its name: a breakpoint is written over the first instruction of a kernel, in a process of its own. Whoever
calls that kernel dies of SIGTRAP. So with one under the kernel that is named the process must die, and with one under
each other kernel it must come to the right results.
"""

import functools
import json
import os
import platform
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import bitnet
from bitnet import machine
from bitnet._core import cpu, quant
from bitnet._core.packings import i2, t5

# Which kernel each instruction set stands for: of i2, t5 and quant.
KERNELS = {
    "avx512vbmi": ("avx512vnni", "avx512vbmi", "avx512vnni"),
    "avx512vnni": ("avx512vnni", "avx2", "avx512vnni"),
    "avxvnni": ("avxvnni", "avxvnni", "avx2"),
    "avx2": ("avx2", "avx2", "avx2"),
    "portable": ("portable", "portable", "portable"),
}

MODULES = {"i2": i2, "t5": t5, "quant": quant}

# The portable functions of the packings, as Cython names them; those of quant are inlined.
PORTABLE = {f"__pyx_f_6bitnet_5_core_8packings_2{name}__panel": (name, "portable") for name in ("i2", "t5")}

BREAKPOINT = {"x86_64": "cc", "aarch64": "000020d4"}

WORK = """
import json, resource, sys
import numpy as np
from bitnet import machine
from bitnet._core import matmul, packing, quant

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
for path, offset in json.loads(sys.argv[1]):
    with open("/proc/self/maps") as file:
        base = min(int(line.partition("-")[0], 16) for line in file if line.rstrip().endswith(path))
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        memory.seek(base + offset)
        memory.write(bytes.fromhex(sys.argv[3]))

rng = np.random.default_rng(1)
# Enough rows and tokens for whole blocks of many tokens, and a panel and tokens that are left.
codes, q = rng.integers(-1, 2, (80, 200), np.int8), rng.integers(-128, 128, (37, 200), np.int8)
used = sys.argv[2].split(",")
for name in {"i2", "t5"} & set(used):
    weight = packing.pack_codes(codes, 1.0, name)
    assert (matmul.matmul_int(weight, q) == q.astype(int) @ codes.T.astype(int)).all()
if "quant" in used:
    x = q.astype(np.float32)
    x[:, 0] = 127
    x.clip(-127, 127, out=x)
    assert (quant.quantize_activations(x)[0] == x).all()
    assert (quant.ternarize(x, quant.reciprocal_scales(x)) == np.sign(np.rint(x / np.abs(x).mean()))).all()
print(json.dumps(machine.kernels()))
"""


def run(isa, places=(), used="i2,t5,quant"):
    """Run WORK under BITNET_ISA with a breakpoint at some places."""
    root = str(Path(bitnet.__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, "-c", WORK, json.dumps(places), used, BREAKPOINT.get(platform.machine(), "")],
        env=os.environ | {"BITNET_ISA": isa, "PYTHONPATH": path},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def symbols(path):
    """The functions in the symbol table of an ELF file of 64 bits, by name; none if it is stripped or no such file."""
    data = Path(path).read_bytes()
    if data[:5] != b"\x7fELF\x02":
        return {}
    table, size, count = *struct.unpack_from("<Q", data, 0x28), *struct.unpack_from("<HH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * size) for i in range(count)]
    found = {}
    for _, kind, _, _, start, length, link, _, _, _ in sections:
        for at in range(start, start + length, 24) if kind == 2 else ():  # SHT_SYMTAB
            name, info, _, _, value, _ = struct.unpack_from("<IBBHQQ", data, at)
            if info & 15 == 2:  # STT_FUNC
                begin = sections[link][4] + name
                found[data[begin : data.index(b"\0", begin)].decode()] = value
    return found


def kernels():
    """Every kernel's places, as {(packing or "quant", instruction set): [(file, offset), ...]}."""
    found = {}
    for name, module in MODULES.items():
        for symbol, offset in symbols(module.__file__).items():
            isa = symbol.rpartition("_")[2]
            key = PORTABLE.get(symbol, (name, isa) if symbol.startswith(f"{name}_") and isa in cpu.ISAS else None)
            if key is not None:
                found.setdefault(key, []).append((os.path.realpath(module.__file__), offset))
    return found


PLACES = kernels() if platform.machine() in BREAKPOINT and sys.platform == "linux" else {}


@functools.cache
def named(isa):
    """The kernels that machine.kernels() names under BITNET_ISA."""
    done = run(isa)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("isa", cpu.possible_isas())
def test_the_environment_chooses_the_kernels(isa):
    assert list(named(isa)) == ["i2", "t5", "quant"]
    if isa in KERNELS:
        assert tuple(named(isa).values()) == KERNELS[isa]
    for name in named(isa).values():
        assert cpu.ISAS[name] & ~cpu.ISAS[isa] == 0, "a kernel needs features beyond those asked for"


def test_selecting_an_instruction_set_names_the_kernels_that_the_environment_does(isa):
    assert named(isa) == machine.kernels()


def test_an_impossible_instruction_set_is_refused_at_its_first_use():
    done = run("sse9")
    possible = ", ".join(cpu.possible_isas())
    sentence = f"BITNET_ISA is 'sse9', which names no instruction set; this CPU can run {possible}"
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith(f"ConfigurationError: {sentence}")


# Where there are no symbols (a stripped file, no Linux) PLACES is empty, and the next two only read the names.


def test_all_kernels_have_a_symbol_where_there_are_symbols():
    of_x86 = {pair for kernels in KERNELS.values() for pair in zip(MODULES, kernels, strict=True)}
    if PLACES and platform.machine() == "x86_64":
        assert set(PLACES) == of_x86 - {("quant", "portable")}


@pytest.mark.parametrize("isa", cpu.possible_isas())
def test_other_kernels_do_not_run(isa):
    others = [place for key, places in PLACES.items() if named(isa)[key[0]] != key[1] for place in places]
    done = run(isa, others)
    assert done.returncode == 0, f"another kernel than {named(isa)} has run: {done.stderr}"


@pytest.mark.parametrize("isa", cpu.possible_isas())
@pytest.mark.parametrize("name", MODULES)
def test_the_kernel_that_is_named_runs(isa, name):
    for place in PLACES.get((name, named(isa)[name]), ()):
        assert run(isa, [place], used=name).returncode == -signal.SIGTRAP
    assert run(isa, used=name).returncode == 0
