"""What this machine can do: instruction sets, threads, and its limits, measured. The face of ``_core/cpu.pyx``,
``_core/threads.pyx`` and ``_core/probe.pyx``."""

import math
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from _bitnet_runtime import name_conflict
from bitnet._core import cpu, packing, quant, threads
from bitnet._core.blocks import IS_DEBUG
from bitnet._core.probe import ReadBandwidth, multiply_instruction, multiply_peak
from bitnet._core.reports import huge_page_mode
from bitnet._core.threads import cgroup_quota, default_num_threads
from bitnet.errors import ConfigurationError

__all__ = [
    "EnergyMeter",
    "Machine",
    "ReadBandwidth",
    "cgroup_quota",
    "core_build",
    "default_num_threads",
    "describe",
    "kernels",
    "multiply_instruction",
    "multiply_peak",
    "name_conflict",
    "possible_isas",
    "select_isa",
    "stale_modules",
]

_T = TypeVar("_T")

possible_isas = cpu.possible_isas
select_isa = cpu.select_isa


@dataclass(frozen=True)
class Machine:
    """What `describe` found.

    Attributes
    ----------
    cpu : str
        The CPU by its maker's name.
    architecture, system : str
        As ``x86_64`` and ``Linux-6.1``.
    features : tuple of str
        CPU features that kernels can use.
    isas : tuple of str
        Instruction sets that can be selected, the largest first.
    isa : str or None
        The one in use; None if ``BITNET_ISA`` asks for an impossible one.
    kernels : dict of str to str
        The kernel in use for each packing and for quantisation; empty where `isa` is None.
    cpus : int
        CPUs that this process may run on.
    cgroup_quota : float or None
        CPUs that its control group grants; None where there is no limit.
    available_cpus : int
        CPUs that this process can keep busy: `cpus`, but no more than its control group grants, rounded up.
    num_threads : int or None
        Threads used by default; None if the environment asks for an impossible number.
    num_threads_variable : str or None
        The environment variable that asks for that number; None where `available_cpus` gives it.
    last_level_cache_bytes : int
    huge_pages : str
        ``always``, ``madvise``, ``never``, ``disabled`` (for this process) or ``unknown``: what the system does with
        large blocks.
    problems : tuple of str
        Sentences about settings that cannot be used.
    """

    cpu: str
    architecture: str
    system: str
    features: tuple[str, ...]
    isas: tuple[str, ...]
    isa: str | None
    kernels: dict[str, str]
    cpus: int
    cgroup_quota: float | None
    num_threads: int | None
    num_threads_variable: str | None
    last_level_cache_bytes: int
    huge_pages: str
    problems: tuple[str, ...]

    @property
    def available_cpus(self) -> int:
        return self.cpus if self.cgroup_quota is None else min(self.cpus, max(1, math.ceil(self.cgroup_quota)))


class EnergyMeter:
    """Measures what the processor takes from its creation on, where the system tells (RAPL, by Linux's powercap).

    Parameters
    ----------
    folder : str, optional
        Where the system keeps its counters.
    """

    def __init__(self, folder: str | os.PathLike[str] = "/sys/class/powercap") -> None:
        # The packages: what is below them is a part of theirs.
        self._zones = [zone for zone in Path(folder).glob("intel-rapl:*") if zone.name.count(":") == 1]
        self._before = self._read()

    def _read(self) -> list[int] | None:
        try:
            return [int((zone / "energy_uj").read_text()) for zone in self._zones] or None
        except (OSError, ValueError):  # only the administrator may read them on most systems
            return None

    def joules(self) -> float | None:
        """Say how much it was, of all that runs on the processor.

        Returns
        -------
        float or None
            None where the system does not tell, or not this user.
        """
        after = self._read()
        if self._before is None or after is None:
            return None
        total = 0
        for zone, begin, end in zip(self._zones, self._before, after, strict=True):
            # A counter begins anew at its range.
            total += end - begin if end >= begin else end - begin + int((zone / "max_energy_range_uj").read_text())
        return total / 1e6


def kernels() -> dict[str, str]:
    """Name the kernels in use.

    Returns
    -------
    dict of str to str
        For each packing, and for ``"quant"``: the instruction set of its kernel.

    Raises
    ------
    ConfigurationError
        If ``BITNET_ISA`` names an instruction set that cannot run here.
    """
    found = {name: packing.kernel_name(name).partition("-")[2] for name in packing.PACKINGS}
    return found | {"quant": quant.kernel_name()}


def core_build() -> tuple[str, bool]:
    """Say how the compiled core was built.

    Returns
    -------
    version : str
        Of the package that it was built for.
    is_debug : bool
        Whether with ``BITNET_DEBUG=1``: with checks, and slow.
    """
    return cpu.BUILD_VERSION, IS_DEBUG


def stale_modules() -> list[str]:
    """List the sources that are newer than what was compiled of them, in a checkout.

    Returns
    -------
    list of str
        Names of modules, and of headers, which all modules are compiled with. Empty where the package was installed:
        only in a checkout do sources change.
    """
    core = Path(cpu.__file__).parent
    if not (core.parents[1] / "pyproject.toml").exists():
        return []
    built = {path.name.partition(".")[0]: path.stat().st_mtime for path in core.rglob("*.so")}
    sources = [(path.stem, path.stat().st_mtime) for suffix in ("pyx", "pxd") for path in core.rglob(f"*.{suffix}")]
    headers = [(path.name, path.stat().st_mtime) for path in core.rglob("*.h")]
    oldest = min(built.values(), default=math.inf)
    stale = {name for name, changed in sources if changed > built.get(name, changed)}
    return sorted(stale | {name for name, changed in headers if changed > oldest})


def describe() -> Machine:
    """Look at this machine; nothing is measured.

    Returns
    -------
    Machine
        A setting that cannot be used is told in `problems`, not raised.
    """
    problems: list[str] = []

    def tried(function: Callable[[], _T]) -> _T | None:
        try:
            return function()
        except ConfigurationError as error:
            problems.append(error.message)
            return None

    isa, num_threads = tried(cpu.isa), tried(default_num_threads)
    return Machine(
        cpu=cpu.brand(),
        architecture=platform.machine(),
        system=platform.platform(terse=True),
        features=cpu.features(),
        isas=cpu.possible_isas(),
        isa=isa,
        kernels=kernels() if isa else {},
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        cgroup_quota=threads.cgroup_quota(),
        num_threads=num_threads,
        num_threads_variable=_num_threads_variable(),
        last_level_cache_bytes=cpu.last_level_cache_bytes(),
        huge_pages=huge_page_mode(),
        problems=tuple(problems),
    )


def _num_threads_variable() -> str | None:
    """The first that says something, as for `default_num_threads`."""
    said = {
        "BITNET_NUM_THREADS": os.environ.get("BITNET_NUM_THREADS", ""),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "").partition(",")[0],
    }
    return next((name for name, value in said.items() if value.strip()), None)
