"""``BITNET_ASSERT`` of the kernels: it ends a debug build that breaks their contract, and is nothing in any other.

``tests/variants.sh debug`` runs the tests of the core on such a build, so that they show the contract kept.
"""

import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

from bitnet._core import cpu

KERNELS = Path(__file__).resolve().parents[2] / "bitnet" / "_core" / "kernels"
ISAS = {
    table: [isa for isa in cpu.possible_isas() if (KERNELS / f"{table}_{isa}.h").exists()]
    for table in ("i2", "t5", "quant")
}

# Calls one kernel of a table: program TABLE ISA OFFSET TILES TOKENS, or program quant ISA N.
PROGRAM = """
#include <stdlib.h>
#include <string.h>
#include "kernels/i2.h"
#include "kernels/t5.h"
#include "kernels/quant.h"

_Alignas(64) static uint8_t w[128];
static int8_t x[20 * 9];
static float numbers[64];
static int32_t sums[16 * 9];

int main(int count, char **words) {
    (void)count;
    if (strcmp(words[1], "quant") == 0) {
        for (const bitnet_quant_kernel *one = QUANT_KERNELS; one->isa; one++)
            if (strcmp(one->isa, words[2]) == 0) return one->max_abs(numbers, atoi(words[3])) != 0;
        return 2;
    }
    for (const bitnet_kernel *one = words[1][0] == 'i' ? I2_KERNELS : T5_KERNELS; one->isa; one++)
        if (strcmp(one->isa, words[2]) == 0) {
            one->panel(w + atoi(words[3]), x, 20, sums, atoi(words[4]), atoi(words[5]));
            return 0;
        }
    return 2;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Build the program, and run it with arguments: whether it came to its end, and what it said."""
    folder = tmp_path_factory.mktemp("assertions")
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]

    def run(is_debug, *words):
        name = folder / ("debug" if is_debug else "release")
        if not name.exists():
            flags = ["-DBITNET_DEBUG=1"] if is_debug else ["-DNDEBUG"]
            command = [compiler, "-std=c11", "-O1", *flags, f"-I{KERNELS.parent}", "-x", "c", "-", "-o", name]
            subprocess.run(command, input=PROGRAM.encode(), check=True)
        done = subprocess.run([name, *map(str, words)], cwd=folder, capture_output=True, text=True, check=False)
        return done.returncode == 0, done.stderr

    return run


@pytest.mark.parametrize(("table", "isa"), [(table, isa) for table in ("i2", "t5") for isa in ISAS[table]])
def test_a_debug_build_holds_a_panel_to_its_contract(program, table, isa):
    assert program(True, table, isa, 0, 1, 1) == program(True, table, isa, 0, 1, 8) == (True, "")
    for offset, tiles, tokens, condition in [
        (1, 1, 1, "BITNET_TILE_BYTES == 0"), (0, 0, 1, "> 0"), (0, 1, 0, ">= 1"), (0, 1, 9, "<= BITNET_TOKENS"),
    ]:  # fmt: skip
        is_done, complaint = program(True, table, isa, offset, tiles, tokens)
        assert not is_done
        assert re.search(rf"{table}_panel_{isa}\b.*{re.escape(condition)}", complaint), complaint


@pytest.mark.parametrize("isa", ISAS["quant"])
def test_a_debug_build_holds_a_quantisation_to_its_contract(program, isa):
    assert program(True, "quant", isa, 64) == (True, "")
    is_done, complaint = program(True, "quant", isa, 32)
    assert (is_done, "n % QUANT_STEP == 0" in complaint) == (False, True)
    assert program(False, "quant", isa, 32) == (True, "")


def test_every_kernel_begins_with_its_assertion():
    wanted = {"panel": "BITNET_ASSERT_PANEL(w, tiles, tokens);",
              "index": "BITNET_ASSERT_INDEX(w, panel_bytes, indices);",
              "quant": "BITNET_ASSERT(n % QUANT_STEP == 0);"}  # fmt: skip
    firsts = [
        (header.name, first, wanted["quant" if table == "quant" else function])
        for table in ISAS
        for header in KERNELS.glob(f"{table}_*.h")
        for function, first in re.findall(r"BITNET_KERNEL \w+ [a-z0-9]+_(\w+?)_\w*\([^{]*\{\n *([^\n]*)",
                                          header.read_text(encoding="utf-8"))
    ]
    assert len(firsts) >= 20
    assert [(name, first) for name, first, macro in firsts if first != macro] == []
