"""GGUF files against the library `gguf` of llama.cpp: what we write it reads, and types stand for the same numbers."""

import numpy as np
import pytest
from checkpoints import DATA

import bitnet
from bitnet.formats import ggml, open_checkpoint
from bitnet.formats.gguf_file import GGUFFile

pytestmark = pytest.mark.peers
gguf = pytest.importorskip("gguf")


@pytest.mark.parametrize("name", [one.name for one in ggml.TYPES if one.name not in ("F32", "F16", "I2_S")])
def test_types_stand_for_the_same_numbers(rng, name):
    kind = next(one for one in ggml.TYPES if one.name == name)
    number = getattr(gguf.GGMLQuantizationType, name, None)
    if number is None:
        pytest.skip(f"this version of gguf has no {name}")
    blocks = rng.integers(0, 256, (50, kind.nbytes)).astype(np.uint8)
    for at in {"Q4_K": (1, 3), "Q6_K": (209,), "TQ1_0": (53,), "TQ2_0": (65,)}.get(name, (1,)):
        blocks[:, at] &= 0xBB  # scales are finite
    try:
        expected = gguf.quants.dequantize(blocks, number)
    except NotImplementedError:
        pytest.skip(f"this version of gguf does not decode {name}")
    assert (kind.decode(blocks) == expected).all()
    assert int(number) == kind.number
    assert gguf.GGML_QUANT_SIZES[number] == (kind.elements, kind.nbytes)


@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0"])
def test_ternary_blocks_are_packed_as_there(rng, name):
    codes, scales = rng.integers(-1, 2, (40, 256)).astype(np.int8), rng.choice([0.25, 0.5, 2], 40)
    codes[:, 0] = 1
    ours = {"TQ1_0": ggml.pack_tq1_0, "TQ2_0": ggml.pack_tq2_0}[name](codes, scales)
    theirs = gguf.quants.quantize(
        (codes * scales[:, None]).astype(np.float32), getattr(gguf.GGMLQuantizationType, name)
    )
    assert (ours == theirs).all()


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
@pytest.mark.parametrize("model", ["bitnet-packed-auto", "llama-packed-bitlinear"])
def test_files_that_we_write_are_read_there(tmp_path, model, kind):
    path = str(tmp_path / "model.gguf")
    bitnet.convert(DATA / model, path, to="gguf", gguf_type=kind, round_scales=True)
    reader, ours = gguf.GGUFReader(path), GGUFFile(path)
    assert [tensor.name for tensor in reader.tensors] == list(ours.tensors)
    for tensor in reader.tensors:
        mine = ours.tensors[tensor.name]
        assert tensor.tensor_type.name == mine.type.name
        assert tuple(reversed([int(size) for size in tensor.shape])) == mine.shape
        assert (tensor.data.reshape(-1).view(np.uint8) == ours.raw(tensor.name)).all()
        if tensor.tensor_type.name == kind:
            numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            assert (
                numbers == mine.type.decode(ours.raw(tensor.name).reshape(-1, mine.type.nbytes)).reshape(mine.shape)
            ).all()
    for key, value in ours.metadata.items():
        assert reader.fields[key].contents() == value


def test_files_written_there_are_read_here(tmp_path, rng):
    path = str(tmp_path / "model.gguf")
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in (("context_length", 16), ("embedding_length", 256), ("block_count", 1), ("head_count", 4)):
        getattr(writer, f"add_{name}")(value)
    writer.add_feed_forward_length(256)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "ß", "中"])
    given = {
        name: rng.normal(0, 1, (32, 256)).astype(np.float32) for name in ("token_embd.weight", "blk.0.ffn_up.weight")
    }
    for kind in ("Q8_0", "Q4_0"):
        given[f"x.{kind}"] = given["token_embd.weight"]
    for name, array in given.items():
        kind = gguf.GGMLQuantizationType[name.removeprefix("x.") if name.startswith("x.") else "F32"]
        data = array if kind.name == "F32" else gguf.quants.quantize(array, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_checkpoint(path) as found:
        assert found.metadata["tokenizer.ggml.tokens"] == ["a", "ß", "中"]
        assert (found.floats("model.embed_tokens.weight") == given["token_embd.weight"]).all()
        for kind in ("Q8_0", "Q4_0"):
            number = gguf.GGMLQuantizationType[kind]
            expected = gguf.quants.dequantize(gguf.quants.quantize(given[f"x.{kind}"], number), number)
            assert (found.floats(f"x.{kind}") == expected).all()
