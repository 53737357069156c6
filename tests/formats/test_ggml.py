"""The types of GGUF tensors, against their descriptions followed one element at a time."""

import numpy as np
import pytest

from bitnet.formats import ggml

BY_NAME = {one.name: one for one in ggml.TYPES}


def half(block, at):
    return np.float32(np.frombuffer(block[at : at + 2].tobytes(), np.float16)[0])


def signed(byte):
    return int(byte) - 256 * (byte > 127)


def q4_0(b, e):
    return (np.float32(b[2 + e % 16] >> 4 if e > 15 else b[2 + e % 16] & 15) - np.float32(8)) * half(b, 0)


def q8_0(b, e):
    return np.float32(signed(b[2 + e])) * half(b, 0)


def q4_k(b, e):
    run, packed = e // 32, [int(byte) for byte in b[4:16]]
    if run < 4:
        scale, minimum = packed[run] & 63, packed[run + 4] & 63
    else:
        scale = packed[run + 4] & 15 | packed[run - 4] >> 6 << 4
        minimum = packed[run + 4] >> 4 | packed[run] >> 6 << 4
    byte = b[16 + e // 64 * 32 + e % 32]
    code = byte >> 4 if run % 2 else byte & 15
    return np.float32(scale) * half(b, 0) * np.float32(code) - np.float32(minimum) * half(b, 2)


def q6_k(b, e):
    h, g, at = e // 128, e % 128 // 32, e % 32
    low = b[64 * h + 32 * (g & 1) + at]
    low = low >> 4 if g >= 2 else low & 15
    code = (int(b[128 + 32 * h + at]) >> 2 * g & 3) << 4 | int(low)
    return half(b, 208) * np.float32(signed(b[192 + 8 * h + 2 * g + at // 16])) * np.float32(code - 32)


def tq2_0(b, e):
    return (int(b[32 * (e // 128) + e % 32]) >> 2 * (e % 128 // 32) & 3) - np.float32(1), 64


def tq1_0(b, e):
    if e < 160:
        byte, digit = b[e % 32], e // 32
    elif e < 240:
        byte, digit = b[32 + (e - 160) % 16], (e - 160) // 16
    else:
        byte, digit = b[48 + (e - 240) % 4], (e - 240) // 4
    return np.float32(((int(byte) * 3**digit & 255) * 3 >> 8) - 1), 52


def q2_0(b, e):
    return np.float32((int(b[2 + e // 4]) >> 2 * (e % 4) & 3) - 1), 0


@pytest.mark.parametrize("reference", [q4_0, q8_0, q4_k, q6_k])
def test_numbers_are_those_of_the_description(rng, reference):
    kind = BY_NAME[reference.__name__.upper()]
    blocks = rng.integers(0, 256, (7, kind.nbytes)).astype(np.uint8)
    for at in {"Q4_K": (1, 3), "Q6_K": (209,)}.get(kind.name, (1,)):
        blocks[:, at] &= 0xBB  # the scale is finite
    found = kind.decode(blocks)
    assert found.dtype == np.float32
    expected = [[reference(block, e) for e in range(kind.elements)] for block in blocks]
    assert (found == np.array(expected, np.float32)).all()
    assert len(np.unique(found)) > 50


@pytest.mark.parametrize("reference", [tq2_0, tq1_0, q2_0])
def test_ternary_codes_and_scales_are_those_of_the_description(rng, reference):
    kind = BY_NAME[reference.__name__.upper()]
    blocks = rng.integers(0, 256, (9, kind.nbytes)).astype(np.uint8)
    at = reference(blocks[0], 0)[1]
    blocks[:, at + 1] &= 0xBB
    codes, scales = ggml.ternary_blocks(kind.name, blocks)
    assert (codes == [[reference(block, e)[0] for e in range(kind.elements)] for block in blocks]).all()
    assert (scales == [half(block, at) for block in blocks]).all()
    assert (kind.decode(blocks) == codes * scales[:, None]).all()


def test_every_string_of_digits_that_a_byte_of_tq1_0_holds_is_read():
    blocks = np.zeros((243, 54), np.uint8)
    digits = np.array([[number // 3**k % 3 for k in (4, 3, 2, 1, 0)] for number in range(243)])
    blocks[:, 0] = [(number * 256 + 242) // 243 for number in range(243)]
    codes, _ = ggml.ternary_blocks("TQ1_0", blocks)
    assert (codes[:, 0:160:32] == digits - 1).all()


@pytest.mark.parametrize(("name", "given"), [("F32", [1.5, -0.1]), ("F16", [1.5, -0.25]), ("BF16", [1.5, -0.25])])
def test_floats_are_read_exactly(name, given):
    numbers = np.array(given, np.float32)
    data = {"F32": numbers, "F16": numbers.astype(np.float16), "BF16": (numbers.view(np.uint32) >> 16).astype("<u2")}
    assert (BY_NAME[name].decode(data[name].view(np.uint8).reshape(2, -1)).ravel() == numbers).all()


def test_numbers_and_names_are_told_once():
    assert len({one.number for one in ggml.TYPES}) == len(BY_NAME) == len(ggml.TYPES)
