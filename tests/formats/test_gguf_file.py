"""GGUF files that no writer would write: each is refused with a sentence, and memory stays within the file's size."""

import math
import random
import tracemalloc
import warnings
from pathlib import Path

import gguf_files
import numpy as np
import pytest
from gguf_files import NUMBERS, entry, f32, gguf_bytes, text, u32, u64, value

from bitnet import BitNetError, FormatError, ModelLoadError
from bitnet.formats import open_checkpoint
from bitnet.formats.gguf_file import GGUFFile
from bitnet.tokenizer import Tokenizer

HUGE = 2**63
ARCH = {"general.architecture": "llama"}


def head(n_tensors=0, n_values=0, version=3):
    return b"GGUF" + u32(version) + u64(n_tensors) + u64(n_values)


def one_tensor(shape=(2, 4), kind=0, offset=0, data=bytes(4096), name="a", dimensions=None):
    content = text(name) + u32(len(shape) if dimensions is None else dimensions)
    content += b"".join(u64(size) for size in reversed(shape)) + u32(kind) + u64(offset)
    content = head(1) + content
    return content + bytes(-len(content) % 32) + data


def two_tensors(first, second, data=4096):
    content = head(2) + entry("a", (8, 4), 0, first) + entry("b", (8, 4), 0, second)
    return content + bytes(-len(content) % 32) + bytes(data)


def with_value(content, key="k", rest=bytes(64)):
    return head(0, 1) + text(key) + content + rest


def metadata_array(kind, count, content=b""):
    return u32(9) + u32(kind) + u64(count) + content


WICKED = {
    "empty": (b"", "the size of the file is 0; it must be at least 24 bytes"),
    "short": (b"GGUF" + bytes(12), "the size of the file is 16; it must be at least 24 bytes"),
    "another magic": (b"GGML" + bytes(60), "the first four bytes is b'GGML'; it must be GGUF"),
    "version 1": (head(version=1) + bytes(32), "the version is 1; it must be 2 or 3, and little-endian"),
    "big-endian": (b"GGUF" + bytes([0, 0, 0, 3]) + bytes(32), "the version is 50331648; it must be 2 or 3"),
    "tensors without end": (head(2**64 - 1) + bytes(64), "the number of tensors is 18446744073709551615; it must "),
    "more tensors than fit": (head(5) + bytes(64), "the number of tensors is 5; it must be at most 2, for which t"),
    "values without end": (head(0, 2**64 - 1) + bytes(64), "the number of metadata values is 18446744073709551615"),
    "a key past the end": (head(0, 1) + u64(10**6) + bytes(64), "the length of a key is 1000000; it must be at mo"),
    "a key too long": (head(0, 1) + u64(70000) + b"a" * 70100, "the length of a key is 70000; it must be at most "),
    "a key of 2**64 - 1": (head(0, 1) + u64(2**64 - 1) + bytes(64), "the length of a key is 18446744073709551615;"),
    "a key that is no text": (head(0, 1) + text(b"\xff\xfe") + bytes(64), "the encoding of a key is b'.xff.xfe'; "),
    "a key twice": (head(0, 2) + 2 * (text("k") + value(1)) + bytes(64), "a key that comes twice is 'k'; it must "),
    "an unknown kind of value": (with_value(u32(13)), "the type of 'k' is 13; it must be a number from 0 to 12"),
    "a text past the end": (with_value(u32(8) + u64(1000)), "the length of the value of 'k' is 1000; it must be a"),
    "a list past the end": (with_value(metadata_array(0, 65)), "the length of 'k' is 65; it must be at most 64, f"),
    "a list without end": (with_value(metadata_array(12, 2**64 - 1)), "the length of 'k' is 18446744073709551615;"),
    "a list that overflows": (with_value(metadata_array(12, 2**61 + 1)), "the length of 'k' is 230584300921369395"),
    "texts past the end": (with_value(metadata_array(8, 2, u64(60)), rest=bytes(9)), "the length of a text of 'k'"),
    "texts without end": (with_value(metadata_array(8, 2**60)), "the length of 'k' is 1152921504606846976; it mus"),
    "a list of lists": (with_value(metadata_array(9, 1)), "the type in the list 'k' is 9; it must be a number fro"),
    "lists to the bottom": (with_value((u32(9) + u32(9) + u64(1)) * 5000), "the type in the list 'k' is 9; it mus"),
    "an unknown kind of list": (with_value(metadata_array(99, 1)), "the type in the list 'k' is 99; it must be a "),
    "no alignment": (gguf_bytes({"general.alignment": 0}), "general.alignment is 0; it must be a power of two up to"),
    "an odd alignment": (gguf_bytes({"general.alignment": 48}), "general.alignment is 48; it must be a power of t"),
    "a huge alignment": (gguf_bytes({"general.alignment": 1 << 31}), "general.alignment is 2147483648; it must be"),
    "an alignment of text": (gguf_bytes({"general.alignment": "32"}), "general.alignment is '32'; it must be a po"),
    "a tensor twice": (head(2) + entry("a", (1,), 0, 0) * 2 + bytes(64), "a tensor that comes twice is 'a'; it mu"),
    "no dimensions": (one_tensor(()), "the number of dimensions of 'a' is 0; it must be 1 to 4"),
    "many dimensions": (one_tensor((1,) * 5), "the number of dimensions of 'a' is 5; it must be 1 to 4"),
    "dimensions without end": (one_tensor(dimensions=2**32 - 1), "the number of dimensions of 'a' is 4294967295; "),
    "a dimension of 0": (one_tensor((0, 4)), r"the shape of 'a' is \(0, 4\); it must be sizes above 0 whose produ"),
    "dimensions that overflow": (one_tensor((2**32, 2**32)), r"the shape of 'a' is \(4294967296, 4294967296\); it"),
    "dimensions that wrap to 0": (one_tensor((2**16,) * 4), "the shape of 'a' is .*; it must be sizes above 0 who"),
    "dimensions that wrap to 8": (one_tensor((2**61 + 1, 8)), "the shape of 'a' is .*; it must be sizes above 0 w"),
    "bytes that overflow": (one_tensor((2**60,)), "the end of 'a' is 4611686018427387968; it must be within the f"),
    "an unknown type": (one_tensor(kind=7), "the type of 'a' is '7'; it must be one of 0 .F32., 1 .F16., .* 42 .Q"),
    "TL1": (one_tensor(kind=38), "the type of 'a' is '38 .TL1 of bitnet.cpp, or MXFP4 of other forks.'; it must b"),
    "TL2 or MXFP4": (one_tensor(kind=39), "the type of 'a' is '39 .TL2 of bitnet.cpp, or MXFP4 of llama.cpp.'; it"),
    "half a block": (one_tensor((2, 16), NUMBERS["Q4_0"]), r"the shape of 'a' is \(2, 16\); it must be rows of a "),
    "half a block of I2_S": (one_tensor((3, 3), NUMBERS["I2_S"]), r"the shape of 'a' is \(3, 3\); it must be rows"),
    "an odd offset": (one_tensor(offset=8), "the offset of 'a' is 8; it must be a multiple of general.alignment, 32"),
    "an offset without end": (one_tensor(offset=2**64 - 32), "the offset of 'a' is 18446744073709551584; it must "),
    "an offset past the end": (one_tensor(offset=8192), "the end of 'a' is 8320; it must be within the file, whic"),
    "data cut short": (one_tensor(data=bytes(31)), "the end of 'a' is 128; it must be within the file, which has "),
    "a scale cut off": (one_tensor((1, 128), NUMBERS["I2_S"], data=bytes(32)), "the end of 'a' is 160; it must be"),
    "the same place twice": (two_tensors(0, 0), "the offset of '.' is 0; it must be at least 128, where the tenso"),
    "one upon another": (two_tensors(0, 96), "the offset of 'b' is 96; it must be at least 128, where the tensor "),
    "one upon another, in turn": (two_tensors(64, 0), "the offset of 'a' is 64; it must be at least 128, where th"),
}  # fmt: skip


@pytest.mark.parametrize("name", WICKED)
def test_wicked_files_are_refused(tmp_path, name):
    content, sentence = WICKED[name]
    (tmp_path / "a.gguf").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=sentence):
            GGUFFile(str(tmp_path / "a.gguf"))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 20 * len(content) + 200_000


def test_texts_take_memory_in_proportion_to_the_file(tmp_path):
    # The most memory a byte of a file can ask for: an empty text has eight of them.
    content = gguf_bytes({"k": metadata_array(8, 100_000, bytes(800_000))})
    (tmp_path / "a.gguf").write_bytes(content)
    tracemalloc.start()
    assert GGUFFile(str(tmp_path / "a.gguf")).metadata["k"] == [""] * 100_000
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4 * len(content)


def test_tensors_may_lie_in_any_order_with_gaps_and_both_versions_are_read(tmp_path):
    for version in (2, 3):
        path = gguf_files.write_gguf(
            tmp_path / "a.gguf", {"general.alignment": 64}, {"a": f32([1, 2])}, version=version, alignment=64
        )
        assert GGUFFile(path).raw("a").view(np.float32).tolist() == [1, 2]
    (tmp_path / "b.gguf").write_bytes(two_tensors(256, 0))
    assert {name: one.begin % 4096 for name, one in GGUFFile(str(tmp_path / "b.gguf")).tensors.items()}.keys() == {
        "a",
        "b",
    }


def test_values_of_every_kind_are_read(tmp_path):
    import struct

    kinds = {0: ("<B", 200), 1: ("<b", -3), 2: ("<H", 60000), 3: ("<h", -300), 4: ("<I", 4 * 10**9), 5: ("<i", -5),
             6: ("<f", 0.5), 7: ("<?", True), 10: ("<Q", 2**63), 11: ("<q", -(2**40)), 12: ("<d", 0.1)}  # fmt: skip
    metadata = {f"one.{kind}": u32(kind) + struct.pack(code, one) for kind, (code, one) in kinds.items()}
    metadata |= {
        f"list.{kind}": metadata_array(kind, 2, 2 * struct.pack(code, one)) for kind, (code, one) in kinds.items()
    }
    found = GGUFFile(
        gguf_files.write_gguf(tmp_path / "a.gguf", {**metadata, "text": "ä", "texts": ["a", "ß"]})
    ).metadata
    for kind, (_, one) in kinds.items():
        assert found[f"one.{kind}"] == one
        assert type(found[f"one.{kind}"]) is type(one)
        assert found[f"list.{kind}"].tolist() == [one, one]
    assert (found["text"], found["texts"]) == ("ä", ["a", "ß"])


def test_a_view_outlives_its_file_and_a_closed_one_gives_none(tmp_path):
    file = GGUFFile(gguf_files.write_gguf(tmp_path / "a.gguf", {}, {"a": f32([1, 2])}))
    view = file.raw("a")
    file.close()
    assert view.view(np.float32).tolist() == [1, 2]
    assert not view.flags.writeable
    with pytest.raises(ModelLoadError, match="it was closed; open it again"):
        file.raw("a")


# ---- damaged ones


def whole_file():
    tokens = ["<|begin_of_text|>", "a", "b", "ab"]
    rng = np.random.default_rng(5)
    metadata = {
        "general.architecture": "llama", "general.alignment": 32, "llama.context_length": 16,
        "llama.embedding_length": 128, "llama.block_count": 1,
        "llama.feed_forward_length": 128, "llama.attention.head_count": 2,
        "llama.rope.freq_base": 1e4, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 1, 1, 1], "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.chat_template": "{{ messages }}",
    }  # fmt: skip
    codes = rng.integers(-1, 2, (128, 128)).astype(np.int8)
    wide = rng.integers(-1, 2, (1, 256)).astype(np.int8)
    tensors = {
        "token_embd.weight": f32(rng.normal(0, 1, (4, 128))), "blk.0.attn_q.weight": gguf_files.i2_s(codes, 0.5),
        "blk.0.ffn_norm.weight": f32(np.ones(128)), "blk.0.ffn_gate.weight": gguf_files.i2_s(codes, 0.5),
        "blk.0.ffn_up.weight": gguf_files.tq2_0(wide, 0.5),
        "blk.0.ffn_down.weight": gguf_files.q2_0(wide, [1, 2, 3, 4]),
        "blk.0.attn_v.weight": f32(codes * 0.5), "blk.0.attn_k.weight": ("TQ1_0", (1, 256), bytes(54)),
        "rows": ("Q4_K", (1, 256), bytes(144)),
    }  # fmt: skip
    return gguf_bytes(metadata, tensors)


def use(path):
    """Read everything there is."""
    size = Path(path).stat().st_size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numbers out of nowhere overflow
        with open_checkpoint(path) as checkpoint:
            for name in checkpoint.names():
                info = checkpoint.info(name)
                assert info.nbytes <= size
                assert math.prod(info.shape) > 0
                attempt(lambda name=name: checkpoint.raw(name))
                attempt(lambda name=name: checkpoint.floats(name))
                layer = name.removesuffix(".weight")
                if attempt(lambda layer=layer: checkpoint.is_quantized(layer)):
                    attempt(lambda layer=layer: numbers_of(checkpoint.ternary(layer)))
            assert checkpoint.activations in ("int8", "float32")
        Tokenizer.from_gguf(path).encode("ab ab")


def numbers_of(found):
    if found.kind == "codes":
        codes = found.codes()
        assert codes.shape == (found.rows, found.cols)
        assert np.abs(codes).max() <= 1
        assert np.isfinite(found.scale).all()


def attempt(read):
    try:
        return read()
    except BitNetError:
        return None


def refusals(path):
    """Read, and count an error of ours."""
    sentence = ""
    try:
        use(path)
    except BitNetError as error:
        sentence = str(error)
    assert len(sentence) < 2000
    return int(sentence != "")


def damaged(content, chance):
    """The bytes with a few changes of one kind, mostly in the header."""
    content, kind = bytearray(content), chance.randrange(6)
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = chance.randrange(min(len(content), 2000 if chance.randrange(4) else 10**9))
        if kind == 0:
            content[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            content[at] = chance.choice((0, 1, 2, 8, 9, 35, 36, 127, 255))
        elif kind == 2:
            del content[at:]
            content += b"\0"
        elif kind == 3:
            content[at:at] = content[at : at + chance.randrange(20)]
        elif kind == 4:
            del content[at : at + chance.randrange(1, 20)]
        else:
            content[at : at + 8] = chance.choice((u64(2**64 - 1), u64(HUGE), u64(2**32), u64(len(content)), bytes(8)))
    return bytes(content)


def test_the_whole_file_is_fine(tmp_path):
    (tmp_path / "a.gguf").write_bytes(whole_file())
    assert refusals(str(tmp_path / "a.gguf")) == 0


def test_damaged_bytes_are_read_or_refused(tmp_path):
    chance, whole, path = random.Random(7), whole_file(), tmp_path / "a.gguf"
    refused = 0
    for _ in range(2500):
        path.write_bytes(damaged(whole, chance))
        refused += refusals(str(path))
    assert refused > 500


def test_every_cut_of_the_header_is_refused(tmp_path):
    whole, path = whole_file(), tmp_path / "a.gguf"
    for size in [*range(0, 1600, 7), len(whole) - 100]:
        path.write_bytes(whole[:size])
        assert refusals(str(path)) == 1
