"""The layouts from inside: the tables of t5, and every value a stored byte can have."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

import bitnet._core
from bitnet._core.matmul import matmul_int
from bitnet._core.packing import pack_codes, tile_cols

T5_CODES_H = Path(bitnet._core.__file__).parent / "kernels" / "t5_codes.h"

# Columns of a tile that share a byte, and so the weights in one.
WEIGHTS_PER_BYTE = {"i2": 4, "t5": 5}


def table(name):
    """One table of the header, as integers."""
    body = re.search(rf"{name}\[128\] = \{{(.*?)\}};", T5_CODES_H.read_text(encoding="utf-8"), re.DOTALL)[1]
    return [int(number, 16) for number in re.findall(r"0x[0-9a-f]{2}", body)]


def digits_of(byte):
    """The five digits of a fraction of 256 in balanced ternary: times three, the next stands before the point."""
    digits, fraction = [], byte
    for _ in range(5):
        digit = (3 * fraction + 128) // 256
        fraction = 3 * fraction - 256 * digit
        digits.append(digit)
    return digits


def stored_byte(weights):
    """The fraction of 256 nearest to five digits of balanced ternary, -127 to 127."""
    return round(sum(weight * 3 ** (4 - k) for k, weight in enumerate(weights)) * 256 / 243)


def every_byte(packing):
    """Codes with every combination of the weights of a byte in each of a row's bytes, in 243 or 81 rows."""
    combinations = np.array(list(itertools.product((-1, 0, 1), repeat=WEIGHTS_PER_BYTE[packing])), np.int8)
    codes = np.empty((len(combinations), tile_cols(packing)), np.int8)
    for c in range(4):
        codes[:, c::4] = np.roll(combinations, 17 * c, axis=0)
    return codes


def test_the_table_of_first_codes_is_what_its_bytes_stand_for():
    assert table("T5_FIRST_CODE") == [digits_of(byte)[0] + 1 for byte in range(128)]


def test_the_table_of_other_codes_is_what_its_bytes_stand_for():
    expected = [sum((digit + 1) << (2 * k) for k, digit in enumerate(digits_of(byte)[1:])) for byte in range(128)]
    assert table("T5_OTHER_CODES") == expected


def test_the_tables_have_the_weights_that_are_stored_under_each_byte():
    first, others = table("T5_FIRST_CODE"), table("T5_OTHER_CODES")
    seen = set()
    for weights in itertools.product((-1, 0, 1), repeat=5):
        byte = stored_byte(weights)
        if byte >= 0:
            codes = [first[byte], *(others[byte] >> (2 * k) & 3 for k in range(4))]
            assert [code - 1 for code in codes] == list(weights)
            seen.add(byte)
    assert len(seen) == 122  # zero and the 121 positive numbers


def test_every_byte_survives_packing(packing):
    codes = every_byte(packing)
    weight = pack_codes(codes, 1.0, packing)
    np.testing.assert_array_equal(weight.unpack(), codes)
    assert len(np.unique(weight.packed_bytes[: 64 * (len(codes) // 16)])) == 3 ** WEIGHTS_PER_BYTE[packing]


@pytest.mark.parametrize("tokens", range(1, 9))
def test_every_byte_is_decoded_by_the_kernels(packing, isa, tokens):
    # An input with a single 1 picks out a column of the codes. One kernel takes up to 8 tokens at once.
    codes = every_byte(packing)
    weight = pack_codes(codes, 1.0, packing)
    one_hot = np.eye(codes.shape[1], dtype=np.int8)
    for start in range(0, codes.shape[1], tokens):
        columns = slice(start, start + tokens)
        np.testing.assert_array_equal(matmul_int(weight, one_hot[columns]), codes[:, columns].T)
        np.testing.assert_array_equal(
            matmul_int(weight, one_hot[columns] * np.int8(-128)), -128 * codes[:, columns].T.astype(np.int32)
        )


def test_negating_weights_of_t5_negates_their_bytes():
    codes = every_byte("t5")
    data = pack_codes(codes, 1.0, "t5").packed_bytes.view(np.int8)
    np.testing.assert_array_equal(pack_codes(-codes, 1.0, "t5").packed_bytes.view(np.int8), -data)


def test_negating_weights_negates_products(packing, isa, rng):
    codes = every_byte(packing)
    x = rng.integers(-128, 128, (5, codes.shape[1]), np.int8)
    y = matmul_int(pack_codes(codes, 1.0, packing), x)
    np.testing.assert_array_equal(matmul_int(pack_codes(-codes, 1.0, packing), x), -y)
    assert y.any()
