"""The types of tensors in GGUF files: how many bytes a block has, and which numbers they are.

`TYPES` is the table. A type's function takes whole blocks, uint8 of shape (blocks, bytes), and gives float32 of shape
(blocks, elements), with the arithmetic of llama.cpp's own: one rounding for each product and each difference.

Type numbers are not unique: forks of llama.cpp gave some to types of their own before llama.cpp gave them to others.
Here 36 is bitnet.cpp's I2_S (``i2s.py``), which has one scale for all of a tensor and so no blocks. 38 and 39 are
bitnet.cpp's TL1 and TL2, whose layout depends on tile sizes that a file does not tell, so they cannot be read.

References
----------
.. [1] ggml-org/llama.cpp, ggml/src/ggml-common.h (block layouts) and ggml/src/ggml-quants.c (``dequantize_row_*``).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["BY_NAME", "BY_NUMBER", "I2_S", "TYPES", "Type", "pack_tq1_0", "pack_tq2_0", "ternary_blocks"]


@dataclass(frozen=True)
class Type:
    """A type of tensors.

    Parameters
    ----------
    name : str
    number : int
        Its number in files.
    elements, nbytes : int
        Of a block.
    decode : callable, optional
        Blocks to float32; None where the tensor is no row of blocks.
    """

    name: str
    number: int
    elements: int
    nbytes: int
    decode: Callable | None


def _half(blocks, at):
    """The float16 at a byte of each block, as float32 of shape (blocks, 1)."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _f32(blocks):
    return np.ascontiguousarray(blocks).view("<f4")


def _f16(blocks):
    return _half(blocks, 0)


def _bf16(blocks):
    return (np.ascontiguousarray(blocks).view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)


def _q4_0(blocks):
    codes = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], 1)
    return (codes.astype(np.float32) - np.float32(8)) * _half(blocks, 0)


def _q8_0(blocks):
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _half(blocks, 0)


def _q4_k(blocks):
    """Eight runs of 32, each with a 6-bit scale and a 6-bit minimum."""
    count, packed = len(blocks), blocks[:, 4:16]
    low, middle, high = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([low & 63, (high & 15) | (low >> 6 << 4)], 1).astype(np.float32) * _half(blocks, 0)
    minima = np.concatenate([middle & 63, (high >> 4) | (middle >> 6 << 4)], 1).astype(np.float32) * _half(blocks, 2)
    codes = blocks[:, 16:].reshape(count, 4, 1, 32) >> np.array([0, 4], np.uint8)[:, None] & 15
    codes = codes.reshape(count, 8, 32).astype(np.float32)
    return (codes * scales[:, :, None] - minima[:, :, None]).reshape(count, 256)


def _q6_k(blocks):
    """Element 128 h + 32 g + l: four bits of one byte, two of another; a signed scale for 16."""
    count = len(blocks)
    low = blocks[:, :128].reshape(count, 2, 1, 2, 32) >> np.array([0, 4], np.uint8)[:, None, None] & 15
    high = blocks[:, 128:192].reshape(count, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    codes = (low.reshape(count, 2, 4, 32) | high << 4).astype(np.int8).reshape(count, 16, 16) - np.int8(32)
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32) * _half(blocks, 208)
    return (codes.astype(np.float32) * scales[:, :, None]).reshape(count, 256)


def _tq2_0(blocks):
    return _tq2_0_codes(blocks) * _half(blocks, 64)


def _tq2_0_codes(blocks):
    fields = blocks[:, :64].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    return fields.reshape(-1, 256).astype(np.int8) - np.int8(1)


def _tq1_0(blocks):
    return _tq1_0_codes(blocks) * _half(blocks, 52)


def _tq1_0_codes(blocks):
    """Five digits to base 3 a byte: a byte is about the fraction 0.ddddd times 256, and each digit is carried out."""

    def digits(part, count):
        powers = np.array([3**n for n in range(count)], np.uint8)[:, None]
        shifted = part[:, None, :] * powers  # in 8 bits
        return (shifted.astype(np.uint16) * 3 >> 8).astype(np.int8).reshape(len(part), -1)

    parts = [digits(blocks[:, :32], 5), digits(blocks[:, 32:48], 5), digits(blocks[:, 48:52], 4)]
    return np.concatenate(parts, 1) - np.int8(1)


def _q2_0(blocks):
    return _q2_0_codes(blocks) * _half(blocks, 0)


def _q2_0_codes(blocks):
    fields = blocks[:, 2:, None] >> np.array([0, 2, 4, 6], np.uint8) & 3
    return fields.reshape(-1, 64).astype(np.int8) - np.int8(1)


TYPES = (
    Type("F32", 0, 1, 4, _f32),
    Type("F16", 1, 1, 2, _f16),
    Type("Q4_0", 2, 32, 18, _q4_0),
    Type("Q8_0", 8, 32, 34, _q8_0),
    Type("Q4_K", 12, 256, 144, _q4_k),
    Type("Q6_K", 14, 256, 210, _q6_k),
    Type("BF16", 30, 1, 2, _bf16),
    Type("TQ1_0", 34, 256, 54, _tq1_0),
    Type("TQ2_0", 35, 256, 66, _tq2_0),
    Type("I2_S", 36, 4, 1, None),
    Type("Q2_0", 42, 64, 18, _q2_0),
)
"""The types that can be read."""

BY_NUMBER = {one.number: one for one in TYPES}
BY_NAME = {one.name: one for one in TYPES}
I2_S = BY_NUMBER[36]

TERNARY = {"TQ1_0": (_tq1_0_codes, 52), "TQ2_0": (_tq2_0_codes, 64), "Q2_0": (_q2_0_codes, 0)}
"""Types of ternary blocks: the codes, and the byte at which their scale stands."""


def ternary_blocks(name, blocks):
    """Decode blocks of a ternary type as codes and scales.

    Parameters
    ----------
    name : str
        One of `TERNARY`.
    blocks : ndarray of uint8, shape (blocks, bytes)

    Returns
    -------
    codes : ndarray of int8, shape (blocks, elements)
        -1, 0 or 1; 2 where bytes are damaged.
    scales : ndarray of float32, shape (blocks,)
    """
    codes, at = TERNARY[name]
    return codes(blocks), _half(blocks, at)[:, 0]


def pack_tq2_0(codes, scales):
    """Write blocks of TQ2_0.

    Parameters
    ----------
    codes : ndarray of int8, shape (blocks, 256)
    scales : ndarray of float, shape (blocks,)
        Rounded to float16.

    Returns
    -------
    ndarray of uint8, shape (blocks, 66)
    """
    fields = (codes + np.int8(1)).view(np.uint8).reshape(-1, 2, 4, 32) << np.array([0, 2, 4, 6], np.uint8)[:, None]
    packed = np.bitwise_or.reduce(fields, 2).reshape(-1, 64)
    return np.concatenate([packed, _halves(scales)], 1)


def pack_tq1_0(codes, scales):
    """Write blocks of TQ1_0; parameters as of `pack_tq2_0`."""
    digits = (codes + np.int8(1)).astype(np.uint16)

    def packed(part, count):
        weights = np.array([3 ** (4 - n) for n in range(count)], np.uint16)[:, None]
        value = (part.reshape(len(part), count, -1) * weights).sum(1)
        return ((value * 256 + 242) // 243).astype(np.uint8)  # rounded up, so that each digit is carried out whole

    parts = [packed(digits[:, :160], 5), packed(digits[:, 160:240], 5), packed(digits[:, 240:], 4)]
    return np.concatenate([*parts, _halves(scales)], 1)


def _halves(scales):
    return np.asarray(scales).astype("<f2").reshape(-1, 1).view(np.uint8)
