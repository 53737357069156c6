"""The exact shape of BitNet-b1.58-2B-4T, random weights, a tokenizer of its size: convert, inspect, bench, generate.

Nothing is stored beforehand; some 3 GB are written to the temporary folder.
"""

import json
import sys
import time

import pytest
from opening import opened

import bitnet
from bitnet import EngineConfig, conversion
from bitnet.cli import main
from bitnet.formats.random import RandomCheckpoint

pytestmark = pytest.mark.large
VOCABULARY = 128256
MB = 1e6


def tokenizer_json():
    """Byte-level BPE, cut as Llama 3 does, with as many tokens as the model has rows."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    from bitnet.vocabulary import LLAMA3

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(a, b) for a in alphabet for b in alphabet]
    triples = [("".join(pair), c) for pair in pairs[: VOCABULARY - 512 - len(pairs)] for c in alphabet[:1]]
    merges = [*pairs, *triples][: VOCABULARY - 256 - 256]
    words = {token: i for i, token in enumerate([*alphabet, *("".join(merge) for merge in merges)])}
    tokenizer = tokenizers.Tokenizer(models.BPE(words, merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(tokenizers.Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([f"<|reserved_{i}|>" for i in range(VOCABULARY - len(words))])
    assert tokenizer.get_vocab_size() == VOCABULARY
    return tokenizer.to_str()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large") / "model"
    with RandomCheckpoint("2b4t") as checkpoint:
        conversion.write(checkpoint, str(folder), "bitnet", EngineConfig())
    (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    return folder


def test_it_is_inspected_benched_and_generates(folder, capsys):
    assert main(["inspect", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loads"]
    assert found["totals"]["ternary_parameters"] == 30 * (2 * 2560 * 2560 + 2 * 640 * 2560 + 3 * 6912 * 2560)
    assert main(["bench", str(folder), "-p", "16", "-n", "4", "-r", "1"]) == 0
    assert "pp16" in capsys.readouterr().out
    assert main(["generate", "-m", str(folder), "some text", "--max-new-tokens", "8", "--quiet"]) == 0


def test_it_opens_at_once_and_runs_as_the_source_does(folder):
    bitnet.load(folder).close()  # into the system's cache
    start = time.perf_counter()
    with bitnet.load(folder) as loaded:
        opened = time.perf_counter() - start
        ours = loaded.infer([1, 2, 3], last_only=True)
    # No timing is judged here but the order of magnitude: packing the weights of this shape takes tens of seconds.
    assert opened < 5
    with bitnet.InferenceEngine() as engine:
        assert (engine.infer(bitnet.random_model("2b4t"), [1, 2, 3], last_only=True) == ours).all()


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the memory")
def test_it_is_mapped_and_shared(folder):
    # Bytes of the weights as t5, and of the head.
    weights = 30 * (2 * 2560 * 2560 + 2 * 640 * 2560 + 3 * 6912 * 2560) / 5 + VOCABULARY * 2560
    with opened(folder) as (found, ask), opened(folder) as (second, _):
        both = ask()["Pss"] + second["Pss"]
    print(f"opened in {found['open_s']:.2f} s, a token in {found['first_token_s']:.2f} s, peak "
          f"{found['peak'] / MB:.0f} MB, its own {found['Private_Dirty'] / MB:.0f} MB, two processes "
          f"{both / MB:.0f} MB")  # fmt: skip
    own = 200 * MB  # the library, the vocabulary, scratch memory; none of the weights
    assert found["Private_Dirty"] < own
    assert found["peak"] < weights * 1.3 + own  # i2 instead of t5 is a quarter more
    assert both < weights * 1.3 + 2 * own


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the memory")
def test_a_packed_folder_is_opened_without_a_further_copy(tmp_path):
    path = tmp_path / "model"
    with RandomCheckpoint("2b4t") as checkpoint:
        conversion.write(checkpoint, str(path), "hugging_face", EngineConfig())
    with opened(path) as (found, _):
        weights = found["weight_bytes"] + VOCABULARY * 2560
        print(f"{(path / 'model.safetensors').stat().st_size / MB:.0f} MB opened in {found['open_s']:.2f} s, "
              f"weights and head {weights / MB:.0f} MB, peak {found['peak'] / MB:.0f} MB")  # fmt: skip
        # A further copy would be allowed; there is none.
        assert found["peak"] - found["before"]["Rss"] < weights + 150 * MB
        (done, total), told, longest = found["progress"]
        assert done == total > 1.1e9
        assert told > 30 * 7
        assert longest < 0.5 * found["open_s"] + 0.5  # no silence for long


def test_it_becomes_a_gguf_file_and_the_file_a_model(folder, tmp_path):
    path = str(tmp_path / "model.gguf")
    assert main(["convert", str(folder), path, "--quiet"]) == 0
    with bitnet.load(path, i2s_layout="x86") as one, bitnet.load(folder) as other:
        assert (one.infer([1, 2, 3], last_only=True) == other.infer([1, 2, 3], last_only=True)).all()
        assert one.model.encode("some text").tolist() == other.model.encode("some text").tolist()
