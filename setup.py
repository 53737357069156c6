"""Build the Cython core. Everything else is in pyproject.toml.

Environment
-----------
BITNET_DEBUG=1
    Bounds checks in Cython, little optimisation, assertions in the kernels (BITNET_ASSERT in kernels/target.h).
BITNET_SANITIZE=address,undefined
    Compile with these sanitizers of the C compiler (tests/variants.sh says how to run the result).
"""

import os
import sys
import tomllib
from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup

if os.name != "posix":
    sys.exit("bitnet needs a POSIX system (Linux or macOS): its threads and memory are built on pthreads and mmap")

DEBUG = os.environ.get("BITNET_DEBUG", "") not in ("", "0")
SANITIZE = os.environ.get("BITNET_SANITIZE", "")

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "initializedcheck": DEBUG,
    "wraparound": False,
    "cdivision": not DEBUG,
    "embedsignature": True,
    "binding": True,
    # Cython would copy a class's C fields word by word: two owners of one address.
    "auto_pickle": False,
    "freethreading_compatible": True,  # checked by tests/freethreaded.sh
}

# The floor of the ABI, never the machine that builds: what is faster is chosen when the program runs (cpu.pyx).
FLAGS = ["-std=c11", "-fvisibility=hidden"]
FLAGS += ["-O1", "-g", "-UNDEBUG", "-DBITNET_DEBUG=1"] if DEBUG else ["-O3", "-DNDEBUG"]
# Reassociating or contracting float operations would give each compiler its own last bit.
FLAGS += ["-ffp-contract=off"]
LINK = ["-pthread"]
if SANITIZE:
    FLAGS += [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g"]
    LINK += [f"-fsanitize={SANITIZE}"]

SHARED = "bitnet._core._cyutility"
HEADERS = glob("bitnet/_core/*.h") + glob("bitnet/_core/kernels/*.h")


with open("pyproject.toml", "rb") as file:
    VERSION = tomllib.load(file)["project"]["version"]


def extension(name, source):
    return Extension(
        name, [source], include_dirs=["bitnet/_core"], define_macros=[("BITNET_VERSION", f'"{VERSION}"')],
        depends=HEADERS, extra_compile_args=FLAGS, extra_link_args=LINK,
    )  # fmt: skip


SOURCES = sorted(glob("bitnet/_core/**/*.pyx", recursive=True))
if not SOURCES:
    sys.exit("bitnet/_core has no .pyx file, so nothing can be built; take a whole source distribution or checkout")

modules = [extension(path.removesuffix(".pyx").replace(os.sep, "."), path) for path in SOURCES]
modules.append(extension(SHARED, "bitnet/_core/_cyutility.c"))

setup(
    ext_modules=cythonize(
        modules,
        compiler_directives=DIRECTIVES,
        shared_utility_qualified_name=SHARED,
        # Generated C stays out of the tree, and of the way of the other kind of build.
        build_dir=f"build/cython{'-debug' if DEBUG else ''}",
    ),
    options={"build_ext": {"parallel": os.cpu_count() or 1}},
)
