"""Prove kernels bit for bit that the machine at hand may be unable to run.

    python tests/emulated/run.py [--native] [--arm] [--simde] [--cc COMPILER]

Each mode compiles ``harness.c``, which holds all kernels of an architecture, and runs it over the same cases:

--native
    For this CPU with ``cc``; kernels that the CPU cannot run are named and left out.
--arm
    For AArch64 with ``aarch64-linux-gnu-gcc``, run by ``qemu-aarch64``; every Arm kernel must run. Also disassembles
    the program: dot products may stand in ``*_neondot`` functions only, or the others would stop on an older core.
--simde
    All kernels of x86, then all of Arm, over SIMDe: plain C in place of the intrinsics, on any CPU.

``--cc`` names another compiler, with its flags: ``--arm --cc "clang-16 --target=aarch64-linux-gnu"``.

The cases do not come from the package: the layouts are packed here once more, from the docstrings of
``packings/i2.pyx`` and ``packings/t5.pyx``, and the results are plain NumPy. Prints a line per kernel; returns 1 at
the first difference, 2 if a tool is missing.
"""

import argparse
import itertools
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
CORE = HERE.parents[1] / "bitnet" / "_core"
# The Debian package of each tool.
PACKAGES = {
    "cc": "gcc",
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu and libc6-dev-arm64-cross",
    "aarch64-linux-gnu-objdump": "binutils-aarch64-linux-gnu",
    "qemu-aarch64": "qemu-user",
}
# As in setup.py, with more warnings, and with the assertions of the kernels.
FLAGS = ["-O3", "-std=c11", "-Wall", "-Wextra", "-ffp-contract=off", "-DBITNET_DEBUG=1"]
I2, T5, QUANT, HEAD, WIDE, LUT_I2, LUT_T5 = range(7)
TILE_COLS = {I2: 16, T5: 20}
NAMES = {I2: "i2", T5: "t5"}


# ---- the layouts ----


def pack_i2(codes):
    """codes (16, tiles * 16) -> bytes (tiles, 64)."""
    fields = codes.reshape(16, -1, 4, 4).transpose(1, 0, 3, 2)  # tile, row, column of a group, group
    return (fields << np.arange(0, 8, 2)).sum(axis=-1).astype(np.uint8).reshape(-1, 64)


def pack_t5(codes):
    """codes (16, tiles * 20) -> bytes (tiles, 64)."""
    weights = codes.reshape(16, -1, 5, 4).transpose(1, 0, 3, 2) - 1
    numbers = (weights * np.array([81, 27, 9, 3, 1])).sum(axis=-1)
    return np.rint(numbers * 256 / 243).astype(np.int8).view(np.uint8).reshape(-1, 64)


# ---- cases ----


def write_case(file, kind, name, *parts):
    file.write(np.int64(kind).tobytes() + name.encode().ljust(64, b"\0"))
    for part in parts:
        file.write(np.ascontiguousarray(part).tobytes())


def panel_case(file, rng, kind, tiles, tokens, code, x_value, gap=0):
    """`code` and `x_value` are the only value, or None for random ones."""
    cols = tiles * TILE_COLS[kind]
    stride = cols + gap
    codes = rng.integers(0, 3, (16, cols)) if code is None else np.full((16, cols), code)
    # The gap between tokens is random: a kernel that reads it goes wrong.
    x = rng.integers(-128, 128, (tokens, stride)).astype(np.int8)
    if x_value is not None:
        x[:, :cols] = x_value
    # Sums are below 2^53, so float64 has them exactly, and quickly.
    sums = (x[:, :cols].astype(np.float64) @ codes.T.astype(np.float64)).astype(np.int32)
    packed = (pack_i2 if kind == I2 else pack_t5)(codes)
    values = ["random" if value is None else value for value in (code, x_value)]
    name = f"{tiles} tiles, {tokens} tokens, codes {values[0]}, x {values[1]}, gap {gap}"
    header = np.array([tiles, TILE_COLS[kind], tokens, stride], np.int64)
    write_case(file, kind, name, header, packed, x.reshape(-1)[: (tokens - 1) * stride + cols], sums)


def panel_cases(file, rng):
    # Chunks of the int16 sums end at 12, 16, 25 and 32 tiles, those of t5_neondot at 3276.
    sizes = [1, 2, 11, 12, 13, 15, 16, 17, 24, 25, 26, 31, 32, 33, 64, 65, 130]
    values = [(None, None), (None, -128), (2, None), (2, -128), (2, 127), (1, -128), (0, -128)]
    for kind in (I2, T5):
        for tiles, tokens, (code, x_value) in itertools.product(sizes, range(1, 9), values):
            panel_case(file, rng, kind, tiles, tokens, code, x_value)
        for tiles, tokens, gap in itertools.product([1, 13, 33], range(1, 9), [1, 4, 48]):
            panel_case(file, rng, kind, tiles, tokens, None, None, gap)
        for tiles, tokens, (code, x_value) in itertools.product([3275, 3276, 3277, 6553], [1, 2, 8], values):
            panel_case(file, rng, kind, tiles, tokens, code, x_value)


def quant_case(file, rng, name, x, s=None, a=None):
    """`s` and `a` are those of the formulas in quant.pyx unless given."""
    x = np.asarray(x, np.float32)
    is_finite = bool(np.isfinite(x).all())
    magnitudes = np.abs(x)
    finite = np.where(np.isfinite(x), magnitudes, np.float32(0))
    floor, one = np.float32(1e-5), np.float32(1)
    s = one / max(np.float32(finite.mean(dtype=np.float64)), floor) if s is None else np.float32(s)
    a = np.float32(127) / max(finite.max(), floor) if a is None else np.float32(a)
    before = rng.random(16)
    after = before.copy()
    t = q = np.zeros(x.shape, np.int8)
    if is_finite:
        for row in magnitudes.reshape(-1, 16):
            after += row.astype(np.float64)
        with np.errstate(over="ignore"):
            t = np.rint(np.clip(x * s, -one, one)).astype(np.int8)
        rounded = np.rint(x * a)
        assert np.abs(rounded).max() <= 127, name
        q = rounded.astype(np.int8)
    header = [
        np.array([x.size, is_finite], np.int64),
        np.array([s, a], np.float32),
        magnitudes.view(np.uint32).max(),
        q.sum(dtype=np.int32),
        before,
        after,
    ]
    write_case(file, QUANT, name, *header, x, t, q)


def quant_cases(file, rng):
    smallest, least_normal, greatest = np.float32(1e-45), np.float32(2**-126), np.finfo(np.float32).max
    for n in (64, 128, 192, 640, 2560):
        normal = rng.standard_normal(n).astype(np.float32)
        signs = rng.choice(np.float32([-1, 1]), n)
        halves = np.resize(np.arange(-126.5, 127.5, 0.5, dtype=np.float32), n)
        around = np.nextafter(halves, np.float32(np.inf) * signs, dtype=np.float32)
        denormals = signs * rng.integers(1, 2**23, n).astype(np.uint32).view(np.float32)
        quant_case(file, rng, f"normal, n {n}", normal)
        quant_case(file, rng, f"wide, n {n}", normal * np.float32(10) ** rng.integers(-30, 30, n).astype(np.float32))
        quant_case(file, rng, f"ties, n {n}", halves, s=1, a=1)
        quant_case(file, rng, f"beside ties, n {n}", around, s=1, a=1)
        quant_case(file, rng, f"ties by a power of two, n {n}", halves / 64, s=64, a=64)
        quant_case(file, rng, f"denormals, n {n}", denormals)
        quant_case(file, rng, f"denormals, scaled up, n {n}", denormals, s=2.0**126, a=2.0**127)
        quant_case(file, rng, f"around the least normal, n {n}", signs * least_normal, s=2.0**126, a=2.0**127)
        quant_case(file, rng, f"smallest, n {n}", signs * smallest)
        quant_case(file, rng, f"huge, n {n}", signs * greatest)
        quant_case(file, rng, f"products overflow, n {n}", normal * np.float32(1e37), s=1e5)
        quant_case(file, rng, f"zeros of both signs, n {n}", signs * np.float32(0))
        quant_case(file, rng, f"negative zero, n {n}", np.full(n, -0.0))
        for at in {0, 1, 15, 16, 63, n - 1}:
            one_large = normal.copy()
            one_large[at] = -1e30
            quant_case(file, rng, f"largest at {at}, n {n}", one_large)
            for value in (np.inf, -np.inf, np.nan, -np.nan):
                one_large[at] = value
                quant_case(file, rng, f"{value} at {at}, n {n}", one_large)


def head_case(file, rng, tiles, inputs, w_value, x_value, gap=0):
    """`w_value` and `x_value` are the only value, or None for random ones."""
    cols = 4 * tiles
    stride = cols + gap
    w = rng.integers(-127, 128, (16, cols)) if w_value is None else np.full((16, cols), w_value)
    x = rng.integers(-128, 128, (inputs, stride)).astype(np.int8)
    if x_value is not None:
        x[:, :cols] = x_value
    used = x[:, :cols].astype(np.int64)
    packed = w.astype(np.int8).reshape(16, tiles, 4).transpose(1, 0, 2)
    values = ["random" if value is None else value for value in (w_value, x_value)]
    name = f"{tiles} tiles, {inputs} inputs, w {values[0]}, x {values[1]}, gap {gap}"
    write_case(file, HEAD, name, np.array([tiles, inputs, stride], np.int64), packed,
               x.reshape(-1)[: (inputs - 1) * stride + cols], (used @ w.T).astype(np.int32),
               used.sum(axis=1).astype(np.int32))


def head_cases(file, rng):
    values = [(None, None), (127, -128), (-127, -128), (127, 127), (-127, 127)]
    sizes = itertools.product([1, 2, 3, 8, 65, 640, 16384], [2, 4, 6, 8, 14, 16])
    for (tiles, inputs), (w_value, x_value) in itertools.product(sizes, values):
        head_case(file, rng, tiles, inputs, w_value, x_value)
    for tiles, inputs in itertools.product([1, 13], [2, 4, 6, 8, 10, 16]):
        head_case(file, rng, tiles, inputs, None, None, gap=5)


def wide_cases(file, rng):
    """Both halves of a head's inputs in one, 256 tiles of the largest of which an int32 lane holds."""
    largest = 127 * 256 + 127
    for tiles, tokens in itertools.product([1, 2, 255, 256, 257, 640, 16384], [1, 2, 3, 4, 5, 8]):
        for w_value, x_value in [(None, None), (127, largest), (-127, largest), (127, -largest)]:
            cols, stride = 4 * tiles, 4 * tiles + 3
            w = rng.integers(-127, 128, (16, cols)) if w_value is None else np.full((16, cols), w_value)
            x = rng.integers(-largest, largest + 1, (tokens, stride))
            if x_value is not None:
                x[:, :cols] = x_value
            name = f"{tiles} tiles, {tokens} tokens, w {w_value}, x {x_value}"
            write_case(file, WIDE, name, np.array([tiles, tokens, stride], np.int64),
                       w.astype(np.int8).reshape(16, tiles, 4).transpose(1, 0, 2),
                       x.astype(np.int16).reshape(-1)[: (tokens - 1) * stride + cols],
                       (x[:, :cols] @ w.T).astype(np.float64))


def lut_cases(file, rng):
    """Whole products by look-up, of as many tiles as one part and of more."""
    values = [(None, None), (0, -128), (2, -128), (0, 127), (1, -128)]
    tile_counts, token_counts = [1, 2, 3, 10, 11, 12, 13, 14, 15, 31], [1, 7, 16, 17, 32]
    for kind, tiles, panels, tokens in itertools.product([I2, T5], tile_counts, [1, 3], token_counts):
        for code, x_value in values if panels == 1 else values[:1]:
            cols = tiles * TILE_COLS[kind]
            codes = rng.integers(0, 3, (16 * panels, cols)) if code is None else np.full((16 * panels, cols), code)
            x = rng.integers(-128, 128, (tokens, cols)).astype(np.int8)
            if x_value is not None:
                x[:] = x_value
            packed = [(pack_i2 if kind == I2 else pack_t5)(panel) for panel in codes.reshape(panels, 16, cols)]
            sums = (x.astype(np.float64) @ (codes.T - 1).astype(np.float64)).astype(np.int32)
            name = f"{tiles} tiles, {panels} panels, {tokens} tokens, codes {code}, x {x_value}"
            write_case(file, LUT_I2 if kind == I2 else LUT_T5, name,
                       np.array([tiles, TILE_COLS[kind], panels, tokens], np.int64), np.stack(packed), x, sums)


def write_cases(path):
    rng = np.random.default_rng(158)
    with path.open("wb") as file:
        panel_cases(file, rng)
        quant_cases(file, rng)
        head_cases(file, rng)
        wide_cases(file, rng)
        lut_cases(file, rng)


# ---- the modes ----


class Missing(Exception):
    pass


def tool(name):
    if shutil.which(name) is None:
        package = f"; on Debian, install {PACKAGES[name]}" if name in PACKAGES else ""
        raise Missing(f"'{name}' is not on this machine{package}")
    return name


def build(compiler, program, *flags):
    tool(compiler[0])
    command = [*compiler, *FLAGS, *flags, f"-I{CORE}", "-o", str(program), str(HERE / "harness.c"), "-lm"]
    subprocess.run(command, check=True)


def harness(title, command, every_kernel):
    """Run it; say whether all is well."""
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE)
    print(f"{title}:", *done.stdout.splitlines(), sep="\n  ")
    if done.returncode < 0:
        print(f"  stopped by signal {-done.returncode}")
    return done.returncode == 0 and not (every_kernel and "not run" in done.stdout)


def run_native(folder, cases, compiler):
    program = folder / "native"
    build(compiler or ["cc"], program)
    return harness("native", [str(program), str(cases)], every_kernel=False)


def dot_products(program):
    """Name the functions of an Arm program that hold dot products."""
    listing = subprocess.run(
        [tool("aarch64-linux-gnu-objdump"), "-d", "--no-show-raw-insn", str(program)],
        text=True,
        check=True,
        stdout=subprocess.PIPE,
    ).stdout
    found, function = {}, None
    for line in listing.splitlines():
        if start := re.fullmatch(r"[0-9a-f]+ <(.+)>:", line):
            function = start[1]
        elif re.search(r"\t[su]dot\t", line):
            found[function] = found.get(function, 0) + 1
    return found


def run_arm(folder, cases, compiler):
    program = folder / "arm"
    build(compiler or ["aarch64-linux-gnu-gcc"], program, "-static")
    well = harness("arm", [tool("qemu-aarch64"), "-cpu", "max", str(program), str(cases)], every_kernel=True)
    found = dot_products(program)
    for function, count in found.items():
        print(f"  {function}: {count} dot products")
    astray = [function for function in found if not function.split(".")[0].endswith("_neondot")]
    if astray or not found:
        print("  dot products outside of *_neondot functions:" if astray else "  no dot products at all", *astray)
    return well and bool(found) and not astray


def run_simde(folder, cases, compiler):
    compiler = compiler or ["cc"]
    probe = [tool(compiler[0]), *compiler[1:], "-E", "-x", "c", "-"]
    if subprocess.run(probe, input=b"#include <simde/x86/avx2.h>\n", capture_output=True).returncode:
        raise Missing("the headers of SIMDe are not on this machine; on Debian, install libsimde-dev")
    well = True
    for number, name in ((86, "x86"), (64, "arm")):
        program = folder / f"simde_{name}"
        build(compiler, program, f"-DBITNET_EMULATED={number}", "-fwrapv", "-fno-strict-aliasing", "-w", "-Wno-psabi")
        well &= harness(f"simde, {name}", [str(program), str(cases)], every_kernel=True)
    return well


MODES = {"native": run_native, "arm": run_arm, "simde": run_simde}


def main():
    parser = argparse.ArgumentParser(description="Prove kernels bit for bit: natively, under QEMU and over SIMDe.")
    parser.add_argument("--native", action="store_true", help="the kernels that this CPU can run")
    parser.add_argument("--arm", action="store_true", help="the Arm kernels, under QEMU")
    parser.add_argument("--simde", action="store_true", help="all kernels, over SIMDe")
    parser.add_argument("--cc", type=shlex.split, help="another C compiler, with its flags")
    options = parser.parse_args()
    chosen = [mode for mode in MODES if getattr(options, mode)]
    if not chosen:
        parser.error("one of --native, --arm and --simde is needed")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = folder / "cases"
        write_cases(cases)
        try:
            results = [MODES[mode](folder, cases, options.cc) for mode in chosen]
        except Missing as missing:
            print(f"run.py: {missing}", file=sys.stderr)
            return 2
        except subprocess.CalledProcessError as failed:
            print(f"run.py: {shlex.join(map(str, failed.cmd))} returned {failed.returncode}", file=sys.stderr)
            return 2
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
