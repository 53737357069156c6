"""A writer of GGUF files for tests: also of ones that no writer would write. It shares no code with the package."""

import struct
from pathlib import Path

import numpy as np

NUMBERS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 8, "Q4_K": 12, "Q6_K": 14, "BF16": 30, "TQ1_0": 34, "TQ2_0": 35,
           "I2_S": 36, "Q2_0": 42}  # fmt: skip


def u32(number):
    return struct.pack("<I", number)


def u64(number):
    return struct.pack("<Q", number)


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return u64(len(data)) + data


def value(one):
    """A value with its type: bool, int (u32), float (f32), str, or a list of str, of int (i32) or of float."""
    if isinstance(one, bool):
        return u32(7) + bytes([one])
    if isinstance(one, int):
        return u32(4) + u32(one)
    if isinstance(one, float):
        return u32(6) + struct.pack("<f", one)
    if isinstance(one, str):
        return u32(8) + text(one)
    if not one or isinstance(one[0], str):
        return u32(9) + u32(8) + u64(len(one)) + b"".join(map(text, one))
    code, kind = ("<f", 6) if one and isinstance(one[0], float) else ("<i", 5)
    return u32(9) + u32(kind) + u64(len(one)) + b"".join(struct.pack(code, number) for number in one)


def entry(name, shape, number, offset):
    return text(name) + u32(len(shape)) + b"".join(u64(size) for size in reversed(shape)) + u32(number) + u64(offset)


def gguf_bytes(metadata, tensors=(), version=3, alignment=32):
    """A file of metadata (values, or bytes as they are) and ``{name: (type, shape, bytes)}``."""
    tensors = dict(tensors)
    head = b"GGUF" + u32(version) + u64(len(tensors)) + u64(len(metadata))
    for key, one in metadata.items():
        head += text(key) + (one if isinstance(one, bytes) else value(one))
    data = b""
    for name, (kind, shape, content) in tensors.items():
        head += entry(name, shape, NUMBERS.get(kind, kind), len(data))
        data += content + bytes(-len(content) % alignment)
    return head + bytes(-len(head) % alignment) + data


def write_gguf(path, metadata, tensors=(), **how):
    Path(path).write_bytes(gguf_bytes(metadata, tensors, **how))
    return str(path)


def f32(array):
    array = np.ascontiguousarray(array, np.float32)
    return "F32", array.shape, array.tobytes()


def i2_s(codes, scale, layout="x86"):
    """A weight as bitnet.cpp stores it, byte by byte from the description in its source."""
    rows, cols = codes.shape
    packed = np.zeros(rows * cols // 4, np.uint8)
    flat = (codes + 1).astype(np.uint8).reshape(-1)
    for at, code in enumerate(flat):
        if layout == "rows4":
            row, col = divmod(at, cols)
            byte, field = row // 4 * cols + col, row % 4
        else:
            block = {"x86": 128, "arm": 64}[layout]
            inside = at % block
            byte, field = at // block * (block // 4) + inside % (block // 4), inside // (block // 4)
        packed[byte] |= code << (6 - 2 * field)
    tail = np.float32(scale).tobytes() + bytes(28)
    return "I2_S", codes.shape, packed.tobytes() + tail


def tq2_0(codes, scales):
    """Blocks of 256 with a scale each: element e in bits 2 * (e % 128 // 32) of byte 32 * (e // 128) + e % 32."""
    content = b""
    for block, scale in zip(codes.reshape(-1, 256), np.broadcast_to(scales, codes.size // 256).ravel(), strict=True):
        packed = bytearray(64)
        for e, code in enumerate(block):
            packed[32 * (e // 128) + e % 32] |= (int(code) + 1) << 2 * (e % 128 // 32)
        content += bytes(packed) + np.float16(scale).tobytes()
    return "TQ2_0", codes.shape, content


def q2_0(codes, scales):
    """Blocks of 64 with a scale each, four successive codes a byte."""
    content = b""
    for block, scale in zip(codes.reshape(-1, 64), np.ravel(scales), strict=True):
        packed = sum((block[k::4].astype(np.uint8) + 1) << 2 * k for k in range(4)).astype(np.uint8)
        content += np.float16(scale).tobytes() + packed.tobytes()
    return "Q2_0", codes.shape, content


TINY = {"vocab_size": 96, "embedding_length": 128, "feed_forward_length": 256, "block_count": 2, "context_length": 64,
        "attention.head_count": 4, "attention.head_count_kv": 2}  # fmt: skip


def tiny(arch="bitnet-b1.58", without=(), tensors=None, **more):
    """A whole small file: metadata and tensors; `more` are values of the architecture, None to leave one out."""
    rng = np.random.default_rng(3)
    values = {**TINY, **more}
    metadata = {
        "general.architecture": arch,
        **{f"{arch}.{key}": one for key, one in values.items() if one is not None},
    }
    found = {"token_embd.weight": f32(rng.normal(0, 1, (96, 128))), "output_norm.weight": f32(np.ones(128))}
    shapes = {"attn_q": (128, 128), "attn_k": (64, 128), "attn_v": (64, 128), "attn_output": (128, 128),
              "ffn_gate": (256, 128), "ffn_up": (256, 128), "ffn_down": (128, 256)}  # fmt: skip
    for i in range(2):
        for name, shape in shapes.items():
            found[f"blk.{i}.{name}.weight"] = i2_s(rng.integers(-1, 2, shape).astype(np.int8), 0.1)
        for name in ("attn_norm", "ffn_norm", "attn_sub_norm"):
            found[f"blk.{i}.{name}.weight"] = f32(np.ones(128))
        found[f"blk.{i}.ffn_sub_norm.weight"] = f32(np.ones(256))
    found |= tensors or {}
    return metadata, {name: one for name, one in found.items() if name not in without}
