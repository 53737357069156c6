"""Features, instruction sets, and asking for one."""

import os
import subprocess
import sys

import pytest

from bitnet._core import cpu
from bitnet.errors import ConfigurationError


def test_the_features_are_those_the_kernel_of_the_system_lists():
    """Linux looks at CPUID and XCR0 itself: an independent answer."""
    names = {
        "avx2": {"avx2", "fma", "f16c"},
        "avx512vnni": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"},
        "avx512vbmi": {"avx512vbmi"},
        "avxvnni": {"avx_vnni"},
        "neon": {"asimd"},
        "neondot": {"asimddp"},
    }
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        line = next(line for line in file if line.startswith(("flags", "Features")))
    flags = set(line.partition(":")[2].split())
    assert set(cpu.features()) == {name for name, needed in names.items() if needed <= flags}


def test_portable_is_always_possible_and_the_least():
    possible = cpu.possible_isas()
    assert possible[-1] == "portable"
    sizes = [cpu.ISAS[name].bit_count() for name in possible]
    assert sizes == sorted(sizes, reverse=True)


def test_selecting_an_isa_selects_it(isa):
    assert cpu.isa() == isa


def test_an_impossible_isa_is_an_error_that_lists_the_possible_ones_and_changes_nothing(isa):
    impossible = next(name for name in cpu.ISAS if name not in cpu.possible_isas())
    with pytest.raises(ConfigurationError) as caught:
        cpu.select_isa(impossible)
    assert str(caught.value) == (
        f"isa is '{impossible}', but this CPU can run only {', '.join(cpu.possible_isas())}"
    )
    assert cpu.isa() == isa


def test_an_unknown_isa_is_an_error():
    with pytest.raises(ConfigurationError, match=r"isa is 'sse9', which names no instruction set; this CPU can"):
        cpu.select_isa("sse9")


def in_a_new_process(code, isa):
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"BITNET_ISA": isa}, capture_output=True, text=True, check=False
    )


def test_the_environment_forces_an_isa(isa):
    done = in_a_new_process("from bitnet._core import cpu; print(cpu.isa())", isa)
    assert done.stdout.strip() == isa, done.stderr


def test_an_impossible_environment_is_raised_at_the_first_use_not_at_import():
    done = in_a_new_process("import bitnet, numpy; print('imported'); bitnet.quantize_activations(numpy.ones(3, 'f4'))",
                            "sse9")
    assert done.stdout.strip() == "imported"
    assert "ConfigurationError: BITNET_ISA is 'sse9'" in done.stderr


def test_an_empty_environment_is_none():
    assert in_a_new_process("from bitnet._core import cpu; cpu.isa()", "").returncode == 0


def test_facts_about_the_machine():
    assert cpu.brand()
    assert cpu.last_level_cache_bytes() >= 1 << 15
