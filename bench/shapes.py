"""The inputs every benchmark shares. Only ever append to them: figures are compared over time."""

import os

import numpy as np

from bitnet import machine

# Of BitNet-b1.58-2B-4T: the query and output projections, gate and up, down.
SHAPES = [(2560, 2560), (6912, 2560), (2560, 6912)]

THREADS = sorted({1, machine.default_num_threads()})

# Weights in rotation, to be read from DRAM: far more than any last-level cache.
ROTATION_BYTES = int(os.environ.get("BITNET_BENCH_MB", "512")) << 20

# The shape of whole models: where a run is only to show that all is right, one of a quarter of the size.
MODEL = "2b4t" if ROTATION_BYTES >= 64 << 20 else "0.7b"


def codes(rows, cols, seed=0):
    return np.random.default_rng(seed).integers(-1, 2, (rows, cols), dtype=np.int8)


def inputs(tokens, cols, seed=1):
    return np.random.default_rng(seed).integers(-127, 128, (tokens, cols)).astype(np.int8)


def floats(rows, cols, seed=2):
    return np.random.default_rng(seed).standard_normal((rows, cols), dtype=np.float32)


def rotation(pack, nbytes=ROTATION_BYTES):
    """Copies of one weight, each in memory of its own, until they take `nbytes`."""
    first = pack()
    return [first, *(pack() for _ in range(max(1, nbytes // first.nbytes) - 1))]
