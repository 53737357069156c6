"""Loading: two thousand million weights from the bytes of a Hugging Face checkpoint."""

import numpy as np
import pytest

from bitnet import machine
from bitnet._core import packing as packings


@pytest.mark.parametrize("packing", ["i2", "t5"])
def test_pack_two_billion_weights(measure, bandwidth, packing):
    threads = machine.default_num_threads()
    few = np.random.default_rng(0).integers(0, 256, (1024, 4096), dtype=np.uint8) & 0x55
    expected = np.concatenate([(few >> 2 * k & 3).astype(np.int8) - 1 for k in range(4)])
    np.testing.assert_array_equal(packings.pack_hugging_face_bytes(few, 1.0, packing).unpack(), expected)
    data = np.tile(few, (128, 1))
    weights = 4 * data.size
    read_and_written = data.nbytes + weights * 16 // packings.tile_cols(packing) // 4
    measure(
        lambda: packings.pack_hugging_face_bytes(data, 1.0, packing),
        group="packing 2.1 G weights from Hugging Face bytes",
        columns={"packing": packing, "threads": threads},
        limits={"read": lambda: read_and_written / bandwidth(threads)}, rounds=3,
        figures=lambda seconds: {"G weights/s": f"{weights / seconds / 1e9:.1f}"},
    )
