"""Folders of Hugging Face: what is found in them, what ternary weights mean, and what is said when nothing fits."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from checkpoints import DATA, PACKED, layer, quantized, safetensors_bytes, write_folder, write_safetensors
from safetensors.numpy import load_file

from bitnet import BitNetError, FormatError, ModelLoadError
from bitnet.formats import FORMATS, Checkpoint, TensorInfo, open_checkpoint

LAYER = "model.layers.0.self_attn.q_proj"
DAMAGED = "; the file is damaged or cut short: get it again"


def file(folder, name="model.safetensors"):
    return os.path.join(folder, name)


def refused(cls, action, *arguments):
    """What is said when an action is refused by exactly this class."""
    with pytest.raises(BitNetError) as caught:
        action(*arguments)
    assert type(caught.value) is cls
    return str(caught.value)


# ---- what is there


@pytest.mark.parametrize("name", PACKED)
def test_the_reference_checkpoints_are_read(name):
    path = str(DATA / name)
    with open_checkpoint(path) as checkpoint:
        assert isinstance(checkpoint, Checkpoint)
        assert (checkpoint.path, checkpoint.format) == (path, "hugging_face")
        assert checkpoint.config == json.loads((DATA / name / "config.json").read_text())
        assert (checkpoint.generation_config, checkpoint.tokenizer_config) == ({}, {})
        assert (checkpoint.tokenizer_path, checkpoint.chat_template) == (None, None)
        assert len(checkpoint.names()) == len(set(checkpoint.names())) == {"b": 74, "l": 67}[name[0]] + 28 * (
            "rmsnorm" in name
        )
        assert checkpoint.info("model.embed_tokens.weight") == TensorInfo(
            "model.embed_tokens.weight", "BF16", (512, 256), 512 * 256 * 2, file(path)
        )
        for tensor in checkpoint.names():
            assert tensor in checkpoint
            info, data = checkpoint.info(tensor), checkpoint.raw(tensor)
            assert (data.shape, data.nbytes) == (info.shape, info.nbytes)
        assert f"{LAYER}.bias" not in checkpoint
        assert (f"{LAYER}.rms_norm.weight" in checkpoint) == ("rmsnorm" in name)
        assert repr(checkpoint) == f"<HuggingFaceCheckpoint '{path}': {len(checkpoint.names())} tensors>"


# ---- floats


def test_floats_are_exact(tmp_path):
    halves = np.arange(2**16, dtype=np.uint16)  # each bfloat16 and each float16 there is
    tensors = {
        "bf16": ("BF16", halves),
        "f16": ("F16", halves.view(np.float16)),
        "f32": ("F32", np.array([1e-45, -0.0, 3.4e38, np.inf, np.nan], np.float32)),
        "f64": ("F64", np.array([0.1, 1e-60, -np.inf, np.nan, 3.4e38])),
        "one": ("F32", np.array(2.5, np.float32)),
        "none": ("BF16", np.zeros((0, 3), np.uint16)),
    }
    with open_checkpoint(write_folder(tmp_path, tensors)) as checkpoint:
        found = checkpoint.floats("bf16")
        np.testing.assert_array_equal(found.view(np.uint32), halves.astype(np.uint32) << 16)
        np.testing.assert_array_equal(checkpoint.floats("f16"), tensors["f16"][1])
        np.testing.assert_array_equal(checkpoint.floats("f32").view(np.uint32), tensors["f32"][1].view(np.uint32))
        np.testing.assert_array_equal(checkpoint.floats("f64"), np.array([0.1, 0, -np.inf, np.nan, 3.4e38], np.float32))
        assert checkpoint.floats("one").shape == ()
        assert checkpoint.floats("none").shape == (0, 3)
        for name in tensors:
            found = checkpoint.floats(name)
            assert found.dtype == np.float32
            assert found.flags.c_contiguous
            assert found.flags.writeable
        np.testing.assert_array_equal(checkpoint.floats("f32", rows=slice(1, 3)), [0, np.float32(3.4e38)])
        np.testing.assert_array_equal(checkpoint.floats("f16", rows=slice(0, 9, 4)), tensors["f16"][1][:9:4])


def test_floats_of_something_else_are_refused(tmp_path):
    path = write_folder(tmp_path, {"a": ("U8", np.zeros(2, np.uint8)), "b": ("F32", np.float32(1)),
                                   "c": ("F64", np.array([1.0, -1e300, np.inf]))})  # fmt: skip
    with open_checkpoint(path) as checkpoint:
        assert refused(FormatError, checkpoint.floats, "a") == (
            f"'{file(path)}': the dtype of 'a' is 'U8'; it must be BF16, F16, F32 or F64, because it is read as real "
            "numbers"
        )
        assert refused(FormatError, checkpoint.floats, "b", slice(2)) == (
            f"'{file(path)}': the shape of 'b' is (); it must be (rows, ...)"
        )
        assert refused(FormatError, checkpoint.floats, "c") == (
            f"'{file(path)}': a number of 'c' is -1e+300; it must be within float32, which ends at 3.4e38"
        )
        for read in (checkpoint.floats, checkpoint.raw, checkpoint.info):
            assert refused(ModelLoadError, read, "d") == f"'{path}' has no tensor 'd'"


def test_a_missing_tensor_is_named_with_what_is_like_it(tmp_path):
    path = write_folder(tmp_path, layer(name=LAYER), quantized())
    with open_checkpoint(path) as checkpoint:
        assert refused(ModelLoadError, checkpoint.ternary, LAYER.replace("q_proj", "k_proj")) == (
            f"'{path}' has no tensor 'model.layers.0.self_attn.k_proj.weight'; did you mean '{LAYER}.weight'"
        )


# ---- several files


def test_several_files_are_one_checkpoint(tmp_path):
    tensors = {**layer(), **layer(name="k_proj"), "norm.weight": ("F32", np.arange(3, dtype=np.float32))}
    parts = {name: "ab"[name.startswith("k")] for name in tensors}
    one, several = write_folder(tmp_path / "one", tensors), write_folder(tmp_path / "several", tensors, None, parts)
    with open_checkpoint(one) as first, open_checkpoint(several) as second:
        assert first.names() == second.names()
        for name in first.names():
            np.testing.assert_array_equal(first.raw(name), second.raw(name))
            assert second.info(name).file == file(several, f"model-{parts[name]}.safetensors")


def test_a_tensor_that_the_index_does_not_list_is_not_there(tmp_path):
    path = write_folder(tmp_path, layer(), None, dict.fromkeys(layer(), 1))
    with open(file(path, "model.safetensors.index.json"), "w") as index:
        json.dump({"metadata": {"total_size": 1}, "weight_map": {"q_proj.weight": "model-1.safetensors"}}, index)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.names() == ["q_proj.weight"]


ELSEWHERE = "the name of a .safetensors file in the same folder; is the download complete?"
MAPS = [
    (["a"], "'weight_map' is ['a']; it must be an object of tensors' names to files' names"),
    ({"a": "model-2.safetensors"}, f"'weight_map' of 'a' is 'model-2.safetensors'; it must be {ELSEWHERE}"),
    ({"a": "../model-1.safetensors"}, f"'weight_map' of 'a' is '../model-1.safetensors'; it must be {ELSEWHERE}"),
    ({"a": "./model-1.safetensors"}, f"'weight_map' of 'a' is './model-1.safetensors'; it must be {ELSEWHERE}"),
    ({"a": "/etc/passwd"}, f"'weight_map' of 'a' is '/etc/passwd'; it must be {ELSEWHERE}"),
    ({"a": "folder.safetensors"}, f"'weight_map' of 'a' is 'folder.safetensors'; it must be {ELSEWHERE}"),
    ({"a": "config.json"}, f"'weight_map' of 'a' is 'config.json'; it must be {ELSEWHERE}"),
    ({"a": ["b"]}, f"'weight_map' of 'a' is ['b']; it must be {ELSEWHERE}"),
    ({"a": "\0"}, f"'weight_map' of 'a' is '\\x00'; it must be {ELSEWHERE}"),
    ({"a": "\ud800.safetensors"}, f"'weight_map' of 'a' is '\\ud800.safetensors'; it must be {ELSEWHERE}"),
    ({"a": "model-1.safetensors"},
     "'weight_map' of 'a' is 'model-1.safetensors'; it must be the file that has the tensor, which this one does not"),
]  # fmt: skip


@pytest.mark.parametrize(("where", "said"), MAPS)
def test_an_index_leads_only_to_files_of_the_folder(tmp_path, where, said):
    path = write_folder(tmp_path / "model", layer(), None, dict.fromkeys(layer(), 1))
    write_safetensors(tmp_path / "model-1.safetensors", {"a": ("U8", np.zeros(1, np.uint8))})
    os.mkdir(file(path, "folder.safetensors"))
    index = file(path, "model.safetensors.index.json")
    Path(index).write_text(json.dumps({"weight_map": where}))
    assert refused(FormatError, open_checkpoint, path) == f"'{index}': {said}"


def test_links_as_in_the_cache_of_the_hub_are_followed(tmp_path):
    blobs = write_folder(tmp_path / "blobs", layer(), quantized())
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).symlink_to(file(blobs, name))
    with open_checkpoint(snapshot) as checkpoint:
        assert checkpoint.ternary("q_proj").scale == 0.5


# ---- the other files


def test_what_the_tokenizer_needs_is_found(tmp_path):
    path = write_folder(tmp_path, layer())
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "chat_template": "old", "bos_token": "<b>"}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tokenizer_path == file(path, "tokenizer.json")
        assert checkpoint.tokenizer_config["bos_token"] == "<b>"  # as other readers have it, the last one holds
        assert checkpoint.generation_config == {"eos_token_id": [1, 2]}
        assert checkpoint.chat_template == "old"
    (tmp_path / "chat_template.jinja").write_text("new ä", encoding="utf-8")
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.chat_template == "new ä"
    (tmp_path / "chat_template.jinja").write_bytes(b"new \xe4")
    assert refused(FormatError, open_checkpoint, path) == (
        f"'{file(path, 'chat_template.jinja')}': the encoding of the text is 'unknown'; it must be UTF-8"
    )


@pytest.mark.parametrize(
    ("found", "template"),
    [
        (None, None),
        ("text", "text"),
        ([], None),
        ([{"name": "tools", "template": "a"}, {"name": "default", "template": "b"}], "b"),
        ([{"name": ["default"], "template": "a"}, 5], None),
    ],
)
def test_the_template_may_be_one_of_several(tmp_path, found, template):
    path = write_folder(tmp_path, layer())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": found}))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.chat_template == template


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", "[]", "the file is []; it must be a JSON object"),
        ("config.json", "{", "the file is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 "
                             "(char 1)); the file is damaged: get it again"),
        ("config.json", '{"a":' * 70 + "1" + "}" * 70, "the depth of the file is 70; it must be at most 64"),
        ("generation_config.json", "1", "the file is 1; it must be a JSON object"),
        ("tokenizer_config.json", '{"chat_template": 5}',
         "chat_template is 5; it must be a string, or a list of named ones"),
    ],
)  # fmt: skip
def test_files_beside_the_weights_are_checked(tmp_path, name, content, said):
    path = write_folder(tmp_path, layer())
    (tmp_path / name).write_text(content)
    assert refused(FormatError, open_checkpoint, path) == f"'{file(path, name)}': {said}"


def test_files_beside_the_weights_have_a_limit(tmp_path):
    path = write_folder(tmp_path, layer())
    os.truncate(file(path, "config.json"), 100_000_001)
    assert refused(FormatError, open_checkpoint, path) == (
        f"'{file(path, 'config.json')}': the size of the file is 100000001; it must be at most 100000000 bytes"
    )


# ---- what is no checkpoint

LOOKED = (
    "is no checkpoint of a known format; looked for a folder with 'config.json' and 'model.safetensors' or "
    "'model.safetensors.index.json' (hugging_face) or a .gguf file or a folder with one (gguf)"
)


def test_a_path_that_is_no_checkpoint_is_said(tmp_path):
    path = str(tmp_path / "none")
    assert refused(ModelLoadError, open_checkpoint, path) == (
        f"cannot read '{path}': there is no such file or folder"
    )
    assert refused(ModelLoadError, open_checkpoint, "a\0b").startswith("cannot read ")
    assert refused(FormatError, open_checkpoint, tmp_path) == f"'{tmp_path}' {LOOKED}"
    for name in ("config.json", "pytorch_model.bin"):
        (tmp_path / name).write_text("{}")
    assert refused(FormatError, open_checkpoint, tmp_path) == (
        f"'{tmp_path}' {LOOKED}; there is 'config.json', 'pytorch_model.bin'"
    )
    lonely = tmp_path / "config.json"
    assert refused(FormatError, open_checkpoint, lonely) == f"'{lonely}' {LOOKED}"


def test_damaged_weights_are_named(tmp_path):
    path = write_folder(tmp_path, layer())
    Path(file(path)).write_bytes(safetensors_bytes({}, b"x"))
    assert refused(FormatError, open_checkpoint, path) == (
        f"'{file(path)}': the size of the data is 1; it must be 0 bytes, which is where the last tensor ends{DAMAGED}"
    )


def test_each_format_has_its_parts():
    for cls in FORMATS:
        assert issubclass(cls, Checkpoint)
        assert cls.format
        assert cls.LOOKED_FOR
    assert len({cls.format for cls in FORMATS}) == len(FORMATS)


# ---- closing, and time


def test_a_closed_checkpoint_says_so(tmp_path):
    path = write_folder(tmp_path, layer(), quantized())
    with open_checkpoint(path) as checkpoint:
        found = checkpoint.ternary("q_proj")
    checkpoint.close()
    assert found.data.shape == (2, 4)  # views stay
    assert checkpoint.names() == ["q_proj.weight", "q_proj.weight_scale"]
    for read in (checkpoint.raw, checkpoint.floats):
        assert refused(ModelLoadError, read, "q_proj.weight_scale") == (
            f"cannot read '{file(path)}': it was closed; open it again"
        )


def test_the_library_reads_the_same(tmp_path, rng):
    arrays = {"a": rng.standard_normal((3, 4)).astype(np.float32), "b": rng.integers(0, 9, 5).astype(np.uint8)}
    write_folder(tmp_path, {"a": ("F32", arrays["a"]), "b": ("U8", arrays["b"])})
    loaded = load_file(tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        for name, array in arrays.items():
            np.testing.assert_array_equal(loaded[name], array)
            np.testing.assert_array_equal(checkpoint.raw(name), array)


def test_opening_a_large_checkpoint_takes_no_time(tmp_path):
    # The tensors of BitNet-b1.58-2B-4T, in a file that has its size and no content.
    header, end = {}, 0
    shapes = [(640, 2560), (160, 2560), (160, 2560), (640, 2560), (1728, 2560), (1728, 2560), (640, 6912)]
    for i, shape in enumerate([(128256, 5120), *(shape for _ in range(30) for shape in shapes)]):
        begin, end = end, end + shape[0] * shape[1]
        header[f"{i}.weight"] = {"dtype": "U8", "shape": shape, "data_offsets": [begin, end]}
    content = safetensors_bytes(header)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(content)
    os.truncate(tmp_path / "model.safetensors", len(content) + end)
    assert end > 1.1e9
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        with open_checkpoint(tmp_path) as checkpoint:
            assert checkpoint.raw("210.weight").shape == (640, 6912)
        best = min(best, time.perf_counter() - begin)
    assert best < 0.1  # is 0.004 here; reading the file takes ten times the limit
