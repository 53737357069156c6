"""Quantise a float weight to ternary, multiply, and see what it costs in accuracy and memory.

python examples/matmul.py
"""

import numpy as np

import bitnet

rng = np.random.default_rng(0)
w = rng.standard_normal((1024, 2560), dtype=np.float32)
x = rng.standard_normal((8, 2560), dtype=np.float32)

for packing in ("i2", "t5"):
    weight = bitnet.TernaryWeight.from_float(w, packing=packing)
    y = weight.matmul(x)
    reference = x @ weight.dequantize().T
    error = np.abs(y - reference).max() / np.abs(reference).max()
    print(f"{weight}: {w.nbytes / weight.nbytes:.1f} times smaller, error of int8 activations {error:.2%}")

per_row = bitnet.TernaryWeight.from_float(w, bitnet.QuantizationConfig(per_channel=True))
print(f"{per_row}: scales from {per_row.scale.min():.3f} to {per_row.scale.max():.3f}")
