"""Damaged checkpoints: whatever the bytes are, either they are read within their bounds or a `BitNetError` comes out.

Seeded, so that each run tries the same thousands of files.
"""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from checkpoints import bf16, layer, quantized, write_folder

from bitnet import BitNetError
from bitnet.formats import open_checkpoint
from bitnet.formats.safetensors import DTYPES

CONFIG = {"model_type": "bitnet", **quantized(), "hidden_size": 4}
TENSORS = {
    **layer(name="l.q_proj"),
    "l.o_proj.weight": ("BF16", bf16(np.linspace(-1, 1, 16).reshape(4, 4))),
    "norm.weight": ("F16", np.ones(4, np.float16)),
    "wide": ("F64", np.ones((2, 2))),
}
# What makes trouble where a number or a word is expected.
WORDS = [b"-1", b"0", b"1", b"9223372036854775807", b"18446744073709551616", b"1e999", b"NaN", b"null", b"true", b"[]",
         b"{}", b'""', b'"a"', b'"F64"', b'"U8"', b"[[", b"}}", b'"\\ud800"', b'"../config.json"', b'"\\u0000"',
         b'"online"', b'"bitlinear"', b'"bf16"', b'"model-1.safetensors"', b"\xff", b"9" * 5000]  # fmt: skip


def damaged(content, chance):
    """The bytes with a few changes of one kind."""
    content = bytearray(content)
    kind = chance.randrange(7)
    at = chance.randrange(len(content) + 1)
    for _ in range(chance.choice((1, 1, 2, 5))):
        near = chance.randrange(min(len(content), 300) or 1)
        if kind == 0 and content:
            content[near] ^= 1 << chance.randrange(8)
        elif kind == 1 and content:
            content[chance.randrange(len(content))] = chance.randrange(256)
        elif kind == 2:
            del content[at:]
        elif kind == 3:
            end = at + chance.randrange(20)
            content[near:near] = content[at:end]
        elif kind == 4:
            del content[near : near + chance.randrange(20)]
        elif kind == 5:  # a value of the JSON for another
            marks = [i for i, byte in enumerate(content) if byte in b":,["]
            if marks:
                begin = chance.choice(marks) + 1
                end = next((i for i in range(begin, len(content)) if content[i] in b",]}"), len(content))
                content[begin:end] = chance.choice(WORDS)
        elif kind == 6:
            content += bytes(chance.randrange(20))
    return bytes(content)


def with_length(content, chance):
    """Correct the length of the header mostly, so that what comes behind it is reached."""
    end = content.rfind(b"}}") + 2
    if end < 10 or not chance.randrange(4):
        return content
    return (end - 8).to_bytes(8, "little") + content[8:end] + content[end:]


def use(folder):
    """Read everything there is."""
    with open_checkpoint(folder) as checkpoint:
        for name in checkpoint.names():
            info, data = checkpoint.info(name), checkpoint.raw(name)
            size = Path(info.file).stat().st_size
            assert name in checkpoint
            assert (data.shape, data.nbytes) == (info.shape, info.nbytes)
            assert info.nbytes == math.prod(info.shape) * np.dtype(DTYPES[info.dtype]).itemsize
            assert info.nbytes <= size
            assert not data.flags.writeable
            assert data.tobytes() in Path(info.file).read_bytes()
            with_errors(lambda name=name: checkpoint.floats(name))
            with_errors(lambda name=name: checkpoint.floats(name, slice(1, 3)))
            with_errors(lambda name=name: stored(checkpoint, name.removesuffix(".weight")))
            with_errors(lambda name=name: checkpoint.is_quantized(name.removesuffix(".weight")))


def stored(checkpoint, name):
    found = checkpoint.ternary(name)
    assert found.rows > 0
    assert found.cols > 0
    if found.kind == "packed":
        assert found.data.shape == (found.rows // 4, found.cols)
        assert math.isfinite(found.scale)
    else:
        assert found.floats().shape == (found.rows, found.cols)


def with_errors(read):
    """Call, and count an error of ours."""
    sentence = ""
    try:
        read()
    except BitNetError as error:
        sentence = str(error)
    assert len(sentence) < 2000
    assert "\n" not in sentence
    return int(sentence != "")


def folders(tmp_path, parts):
    folder = Path(write_folder(tmp_path / "model", TENSORS, CONFIG, parts))
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": [{"name": "default", "template": "x"}]}))
    (folder / "chat_template.jinja").write_text("{{ 'ä' }}")
    return folder


def test_the_whole_checkpoint_is_fine(tmp_path):
    assert with_errors(lambda: use(folders(tmp_path / "one", None))) == 0
    assert with_errors(lambda: use(folders(tmp_path / "two", {name: len(name) % 2 for name in TENSORS}))) == 0


@pytest.mark.parametrize(
    ("name", "times"),
    [("model.safetensors", 4000), ("model-1.safetensors", 500), ("model.safetensors.index.json", 1500),
     ("config.json", 1500), ("tokenizer_config.json", 300), ("chat_template.jinja", 100),
     ("generation_config.json", 100)],
)  # fmt: skip
def test_damaged_bytes_are_read_or_refused(tmp_path, name, times):
    is_parted = name not in ("model.safetensors", "config.json")
    folder = folders(tmp_path, {one: len(one) % 2 for one in TENSORS} if is_parted else None)
    chance = random.Random(name)
    whole = (folder / name).read_bytes()
    refused = 0
    for _ in range(times):
        content = damaged(whole, chance)
        if name.endswith(".safetensors"):
            content = with_length(content, chance)
        (folder / name).write_bytes(content)
        refused += with_errors(lambda: use(folder))
    assert refused > times // 10  # the changes do reach something


def test_every_cut_is_refused(tmp_path):
    folder = folders(tmp_path, None)
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        assert with_errors(lambda: use(folder)) == 1


def test_files_of_two_checkpoints_do_not_mix_unseen(tmp_path):
    one = folders(tmp_path / "one", {name: len(name) % 2 for name in TENSORS})
    (one / "model-1.safetensors").write_bytes((one / "model-0.safetensors").read_bytes())
    assert with_errors(lambda: use(one)) == 1
