"""Our GGUF files in llama.cpp, by its wheel `xllamacpp`."""

import numpy as np
import pytest
from checkpoints import DATA

import bitnet
from bitnet import EngineConfig

pytestmark = pytest.mark.peers
xllamacpp = pytest.importorskip("xllamacpp")
FLOAT32 = EngineConfig(kv_dtype="float32", head_dtype="float32", num_threads=1)


def with_bytes(folder, name):
    """A model and a tokenizer of bytes: 256 of its 512 tokens."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    bitnet.convert(DATA / name, folder, to="hugging_face")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {token: i for i, token in enumerate([*alphabet, *(f"<{i}>" for i in range(256, 512))])}
    tokenizer = tokenizers.Tokenizer(models.BPE(words, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([f"<{i}>" for i in range(256, 512)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("kind", ["TQ2_0", "TQ1_0"])
def test_a_file_that_we_write_runs_there(tmp_path, kind):
    source = with_bytes(tmp_path / "source", "llama-packed-bitlinear")
    path = str(tmp_path / "model.gguf")
    found = bitnet.convert(source, path, to="gguf", gguf_type=kind, round_scales=True)
    assert found["notes"] == []
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.warmup, params.cpuparams.n_threads, params.n_parallel = 128, False, 1, 1
    server = xllamacpp.Server(params)
    prompt = "some text in bytes"
    answer = server.handle_completions({"prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 20})
    assert "error" not in answer, answer
    choice = answer["choices"][0]
    top = choice["logprobs"]["content"][0]["top_logprobs"]
    with bitnet.load(path, FLOAT32.replace(activations="float32")) as loaded:
        ids = loaded.model.encode(prompt)
        assert answer["usage"]["prompt_tokens"] == len(ids)
        logits = loaded.infer(ids, last_only=True).astype(np.float64)
    ours = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    theirs = np.array([one["logprob"] for one in top])
    mine = np.array([ours[one["id"]] for one in top])
    # llama.cpp rounds activations to 8 bits by blocks of 256, and keeps its cache in float16; here they stay floats.
    assert np.corrcoef(theirs, mine)[0, 1] > 0.9
    assert np.abs(theirs - mine).max() < 1.5
