"""Typed uses of the public face. Nobody runs this: ``test_stubs.py`` gives it to ``mypy --strict``.

`assert_type` holds what a checker infers; a line with ``type: ignore[code]`` is one that must be refused, because
mypy complains where such a comment is not needed.
"""

from typing import assert_type

import numpy as np
import numpy.typing as npt

import bitnet
from bitnet import machine
from bitnet._core import arrays, matmul, memory, packing, quant

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int8]

w: Floats = np.ones((4, 8), np.float32)
x: Floats = np.ones((3, 8), np.float32)

# ---- weights

weight = bitnet.TernaryWeight.from_float(w, bitnet.QuantizationConfig(per_channel=True), num_threads=2)
assert_type(weight, bitnet.TernaryWeight)
assert_type(weight.shape, tuple[int, int])
assert_type(weight.packing, str)
assert_type(weight.scale, Floats)
assert_type(weight.group_size, int | None)
assert_type(weight.nbytes, int)
assert_type(weight.matmul(x), Floats)
assert_type(weight.matmul_int(weight.codes()), npt.NDArray[np.int32])
assert_type(weight.dequantize(), Floats)
assert_type(weight.repack("t5"), bitnet.TernaryWeight)
assert_type(weight == w, bool)
bitnet.TernaryWeight.from_codes(weight.codes(), [0.5, 1, 2, 4], "i2", group_size=None)
bitnet.TernaryWeight.from_codes(weight.codes(), 1.0, num_threads=np.int64(2))

weight.matmul(weight.codes())  # type: ignore[arg-type]
weight.matmul(x, w)  # type: ignore[call-arg]
weight.shape = (1, 2)  # type: ignore[misc]
bitnet.TernaryWeight.from_float(w, packing=2)  # type: ignore[arg-type]


class Named(bitnet.TernaryWeight):
    """A subclass, which its constructors make."""


assert_type(Named.from_float(w), Named)
assert_type(Named.from_float(w).repack("i2"), Named)

# ---- numbers and codes

codes, scale = bitnet.quantize_weights(w)
assert_type(codes, Codes)
assert_type(scale, Floats)
q, factors = bitnet.quantize_activations(x, out=np.empty((3, 8), np.int8))
assert_type(q, Codes)
assert_type(bitnet.dequantize(q, factors), Floats)
bitnet.quantize_weights(codes)  # type: ignore[arg-type]

# ---- the machine

found = machine.describe()
assert_type(found.isa, str | None)
assert_type(found.features, tuple[str, ...])
assert_type(found.kernels, dict[str, str])
assert_type(machine.possible_isas(), tuple[str, ...])
assert_type(machine.multiply_peak(2), float | None)
assert_type(machine.ReadBandwidth(1 << 20).read(), float)
found.cpus = 3  # type: ignore[misc]
machine.select_isa(2)  # type: ignore[arg-type]

# ---- the core

packed = packing.pack_codes(codes, 1.0, "i2")
assert_type(packed, packing.PackedWeight)
assert_type(packed.unpack(), Codes)
assert_type(packed.packed_bytes, npt.NDArray[np.uint8])
assert_type(quant.ternarize(w, quant.reciprocal_scales(w)), Codes)
assert_type(memory.statistics(), dict[str, int])
assert_type(len(memory.new_block(8)), int)
matmul.matmul(packed, x)
arrays.checked(x, "x", np.float32)
matmul.matmul(weight, x)  # type: ignore[arg-type]
matmul.matmul_int(packed, x)  # type: ignore[arg-type]

pool = bitnet.HybridMemoryPool.instance()
assert_type(pool.get_stats() - pool.get_stats(), bitnet.MemoryStats)
with pool.allocate(8, tag="a") as handle, pool.track() as tracker:
    assert_type(handle, bitnet.MemoryHandle)
    assert_type(tracker.report(), bitnet.LeakReport)
with bitnet.profile() as profile:
    assert_type(profile, bitnet.Profile)
    assert_type(bitnet.time_operation("sum", sum, [1, 2]), int)
