"""quantization_performance: weights and activations to codes, against read bandwidth."""

import numpy as np
import pytest
import reference
from shapes import THREADS, floats

from bitnet import TernaryWeight, machine, quantize_activations, quantize_weights

GROUP = "quantization_performance"


def run(measure, bandwidth, name, num_threads, function, passes, array, calls=1):
    columns = {"what": name, "kernel": machine.kernels()["quant"], "threads": num_threads,
               "MB in": f"{array.nbytes / 1e6:.0f}"}

    def figures(seconds):
        once = calls * array.nbytes / seconds / 1e9
        return {"GB/s in": f"{once:.1f}", "passes": passes, "GB/s read": f"{passes * once:.1f}"}

    def repeated():
        for _ in range(calls):
            function()

    measure(repeated, group=GROUP, columns=columns, figures=figures, rounds=15, per_call=calls,
            limits={"read once": lambda: calls * array.nbytes / bandwidth(num_threads)})


@pytest.mark.parametrize("num_threads", THREADS)
def test_16_million_weights_to_codes(measure, bandwidth, num_threads):
    """Two passes over the numbers: the mean, then the codes."""
    w = floats(4096, 4096)
    codes = np.empty(w.shape, np.int8)
    _, scale = quantize_weights(w, out=codes, num_threads=num_threads)
    s = reference.reciprocal_scales(w)
    np.testing.assert_array_equal(codes, reference.ternarize(w, s))
    assert scale == np.float32(1) / s
    run(measure, bandwidth, "weights to codes", num_threads,
        lambda: quantize_weights(w, out=codes, num_threads=num_threads), 2, w)


@pytest.mark.parametrize("packing", ["i2", "t5"])
@pytest.mark.parametrize("num_threads", THREADS)
def test_16_million_weights_packed(measure, bandwidth, num_threads, packing):
    w = floats(4096, 4096)
    weight = TernaryWeight.from_float(w, packing=packing, num_threads=num_threads)
    np.testing.assert_array_equal(weight.codes(), reference.ternarize(w, reference.reciprocal_scales(w)))
    run(measure, bandwidth, f"weights packed as {packing}", num_threads,
        lambda: TernaryWeight.from_float(w, packing=packing, num_threads=num_threads), 2, w)


@pytest.mark.parametrize(("tokens", "calls"), [(1, 2000), (64, 200), (16384, 1)])
@pytest.mark.parametrize("num_threads", THREADS)
def test_activations(measure, bandwidth, num_threads, tokens, calls):
    """2560 wide. Few tokens are in the cache already; many are read from memory once, and then from the cache."""
    x = floats(tokens, 2560)
    out = np.empty(x.shape, np.int8)
    q, scale = quantize_activations(x, out=out, num_threads=num_threads)
    expected, a = reference.quantize_activations(x)
    np.testing.assert_array_equal(q, expected)
    np.testing.assert_array_equal(scale, np.float32(1) / a)
    run(measure, bandwidth, f"{tokens} x 2560 activations", num_threads,
        lambda: quantize_activations(x, out=out, num_threads=num_threads), 1, x, calls)
