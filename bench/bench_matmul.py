"""Ternary products against read bandwidth, the multiply peak, and NumPy."""

import itertools

import numpy as np
import pytest
import reference
from shapes import SHAPES, THREADS, codes, inputs, rotation

from bitnet import TernaryWeight, machine


def each_kernel():
    """(packing, its kernel's instruction set) for all that this CPU can run."""
    found = []
    for isa in machine.possible_isas():
        machine.select_isa(isa)
        found += [(packing, kernel) for packing, kernel in machine.kernels().items() if packing != "quant"]
    machine.select_isa(None)
    return sorted(set(found), key=lambda one: (one[0], found.index(one)))


EACH_KERNEL = each_kernel()
VECTOR_KERNELS = [(packing, name) for packing, name in EACH_KERNEL if name != "portable"]
ONE_TOKEN, MANY_TOKENS = "one token, weights from DRAM", "128 tokens"
BATCHES = [1, 2, 3, 4, 5, 6, 8, 9, 12, 16, 17, 20, 24, 32, 48, 64]


def prepared(shape, packing, tokens):
    """Weights in rotation, inputs, an output, and a proof that the product is right."""
    matrix, x = codes(*shape), inputs(tokens, shape[1])
    weights = rotation(lambda: TernaryWeight.from_codes(matrix, 1.0, packing))
    out = np.empty((tokens, shape[0]), np.int32)
    np.testing.assert_array_equal(weights[0].matmul_int(x, out=out), reference.matmul_int(matrix, x))
    return weights, x, out


def figures(weights, tokens, seconds):
    rows, cols = weights[0].shape
    work = rows * cols * len(weights)
    return {
        "GB/s": f"{sum(weight.nbytes for weight in weights) / seconds / 1e9:.1f}",
        "G weights/s": f"{work / seconds / 1e9:.0f}",
        "GMAC/s": f"{work * tokens / seconds / 1e9:.0f}",
    }


def run(measure, shape, packing, tokens, num_threads, limits, group, most=None, rounds=9):
    weights, x, out = prepared(shape, packing, tokens)
    weights = weights[:most]

    def products():
        for weight in weights:
            weight.matmul_int(x, out=out, num_threads=num_threads)

    columns = {
        "shape": f"{shape[0]}x{shape[1]}", "kernel": f"{packing}-{machine.kernels()[packing]}",
        "threads": num_threads, "tokens": tokens,
    }
    bounds = {name: limit(weights) for name, limit in limits.items()}
    measure(products, group=group, columns=columns, figures=lambda seconds: figures(weights, tokens, seconds),
            limits=bounds, rounds=rounds, per_call=len(weights))


def memory_bound(bandwidth, num_threads):
    return lambda weights: lambda: sum(weight.nbytes for weight in weights) / bandwidth(num_threads)


def multiply_bound(tokens, num_threads):
    def bound(weights):
        work = sum(weight.shape[0] * weight.shape[1] for weight in weights) * tokens
        return lambda: work / machine.multiply_peak(num_threads)

    return bound


@pytest.mark.parametrize(("shape", "num_threads", "packing"), list(itertools.product(SHAPES, THREADS, ["i2", "t5"])))
def test_one_token(measure, bandwidth, shape, num_threads, packing):
    """Decoding: weights streamed from DRAM. Target: i2 at 0.85 of the read bandwidth of as many threads."""
    limits = {"read": memory_bound(bandwidth, num_threads)}
    run(measure, shape, packing, 1, num_threads, limits, ONE_TOKEN, rounds=15)


@pytest.mark.parametrize(("packing", "isa"), EACH_KERNEL, indirect=["isa"])
def test_one_token_by_isa(measure, bandwidth, isa, packing):
    limits = {"read": memory_bound(bandwidth, 1)}
    run(measure, SHAPES[0], packing, 1, 1, limits, "one token, by instruction set", most=40)


@pytest.mark.parametrize(("packing", "isa"), VECTOR_KERNELS, indirect=["isa"])
@pytest.mark.parametrize(("shape", "num_threads"), list(itertools.product(SHAPES, THREADS)))
def test_128_tokens(measure, isa, shape, num_threads, packing):
    """Prefill. Targets: 1.15 of the peak of AVX512-VNNI and 1.0 of that of AVX2, 1.9 times on two threads."""
    limits = {"multiply": multiply_bound(128, num_threads)}
    run(measure, shape, packing, 128, num_threads, limits, MANY_TOKENS, most=8)


@pytest.mark.parametrize(("packing", "num_threads", "tokens"), list(itertools.product(["i2", "t5"], THREADS, BATCHES)))
def test_few_tokens(measure, bandwidth, packing, num_threads, tokens):
    """From decoding to prefill. Target: no cliff; time at most 1.3 times the larger limit (a share of 0.77)."""
    limits = {"read": memory_bound(bandwidth, num_threads), "multiply": multiply_bound(tokens, num_threads)}
    run(measure, SHAPES[0], packing, tokens, num_threads, limits, "1 to 64 tokens, weights from DRAM",
        most=160 if tokens < 16 else 60)


@pytest.mark.parametrize(("group", "tokens"), [(ONE_TOKEN, 1), (MANY_TOKENS, 128)], ids=["1", "128"])
@pytest.mark.parametrize("shape", SHAPES)
def test_numpy_float32(measure, shape, group, tokens):
    """The floor, in the tables of the others: the product with float32 weights, on the threads of NumPy's BLAS."""
    matrix, x = codes(*shape), inputs(tokens, shape[1])
    out, x_float = np.empty((tokens, shape[0]), np.float32), x.astype(np.float32)
    weights = rotation(lambda: matrix.astype(np.float32))[: None if tokens == 1 else 8]
    np.matmul(x_float, weights[0].T, out=out)
    # Below 2**24 float32 holds every partial sum.
    np.testing.assert_array_equal(out, reference.matmul_int(matrix, x))

    def products():
        for weight in weights:
            np.matmul(x_float, weight.T, out=out)

    columns = {"shape": f"{shape[0]}x{shape[1]}", "kernel": "NumPy float32 @", "threads": "BLAS", "tokens": tokens}
    measure(products, group=group, columns=columns, figures=lambda seconds: figures(weights, tokens, seconds),
            rounds=9, per_call=len(weights))
