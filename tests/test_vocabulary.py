"""Vocabularies of GGUF files: token ids against those of llama.cpp (tests/data/README.md).

With BITNET_VOCAB set to a folder of llama.cpp's ``ggml-vocab-*.gguf`` with their ``.inp`` and ``.out``, the full
vocabularies are checked as well, and that the reduced ones here are parts of them.
"""

import json
import os
from pathlib import Path

import gguf_files
import pytest
from checkpoints import DATA

from bitnet import FormatError, ModelLoadError
from bitnet.formats.gguf_file import GGUFFile
from bitnet.tokenizer import Tokenizer

VOCAB = DATA.parent / "vocab"
NAMES = ("gpt-2-reduced", "llama-bpe-reduced", "qwen2-reduced", "llama-spm")
TEXTS = (VOCAB / "texts.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
PLAIN = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = [chr(c) if c in PLAIN else chr(256 + c - sum(one < c for one in PLAIN)) for c in range(256)]
FOLDER = os.environ.get("BITNET_VOCAB")
each_full_one = pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "qwen2", "llama-spm"])
needs_full_ones = pytest.mark.skipif(FOLDER is None, reason="BITNET_VOCAB names no folder of full vocabularies")


def expected(path):
    """A list of ids for each text; the last one is empty and has no line."""
    return [[int(id) for id in line.split()] for line in Path(f"{path}.out").read_text().splitlines()] + [[]]


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_llama_cpp(name):
    path = VOCAB / f"ggml-vocab-{name}.gguf"
    tokenizer = Tokenizer.from_gguf(path)
    found = [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    assert found == expected(path)
    assert sum(map(len, found)) > 300


@pytest.mark.parametrize("name", NAMES)
def test_texts_come_back(name):
    tokenizer = Tokenizer.from_gguf(VOCAB / f"ggml-vocab-{name}.gguf")
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@needs_full_ones
@each_full_one
def test_ids_of_full_vocabularies_are_those_of_llama_cpp(name):
    path = Path(FOLDER) / f"ggml-vocab-{name}.gguf"
    tokenizer = Tokenizer.from_pretrained(path)
    texts = Path(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    assert [tokenizer.encode(text, add_special_tokens=False) for text in texts] == expected(path)
    assert texts == TEXTS


@needs_full_ones
@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "qwen2"])
def test_reduced_vocabularies_are_parts_of_the_full_ones(name):
    full, part = Path(FOLDER) / f"ggml-vocab-{name}.gguf", VOCAB / f"ggml-vocab-{name}-reduced.gguf"
    ids = [int(id) for id in Path(f"{part}.ids").read_text().split()]
    tokens, kept = (GGUFFile(str(path)).metadata["tokenizer.ggml.tokens"] for path in (full, part))
    assert [tokens[id] for id in ids] == kept
    assert [[ids[id] for id in line] for line in expected(part)] == expected(full)
    merges, kept = (GGUFFile(str(path)).metadata["tokenizer.ggml.merges"] for path in (full, part))
    there = set(kept)
    assert [merge for merge in merges if merge in there] == kept


# ---- what surrounds a text


def small(tokens=(), merges=(), kinds=None, **more):
    """Metadata of a byte-level vocabulary: the bytes, and some more."""
    every = [*BYTES, *tokens]
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.tokens": every,
        "tokenizer.ggml.token_type": [1] * 256 + list(kinds or [1] * len(tokens)),
        "tokenizer.ggml.merges": list(merges), **{f"tokenizer.ggml.{key}": one for key, one in more.items()},
    }  # fmt: skip


def tokenizer_of(tmp_path, metadata, **how):
    return Tokenizer.from_gguf(gguf_files.write_gguf(tmp_path / "v.gguf", metadata), **how)


ENDS = {"tokens": ["ab", "<b>", "<e>"], "merges": ["a b"], "kinds": [1, 3, 3], "bos_token_id": 257, "eos_token_id": 258}


@pytest.mark.parametrize(
    ("pre", "more", "before", "after"),
    [("llama-bpe", {}, [257], []), ("qwen2", {}, [], []), ("qwen2", {"add_bos_token": True}, [257], []),
     ("llama-bpe", {"add_bos_token": False}, [], []), ("qwen2", {"add_eos_token": True}, [], [258]),
     ("llama-bpe", {"add_eos_token": True}, [257], [258])],
)  # fmt: skip
def test_the_file_says_what_surrounds_a_text(tmp_path, pre, more, before, after):
    tokenizer = tokenizer_of(tmp_path, small(**ENDS, pre=pre, **more))
    assert tokenizer.encode("ab") == [*before, 256, *after]
    assert tokenizer.encode("ab", add_special_tokens=False) == [256]
    assert tokenizer.encode("<b>ab") == [257, 256, *after]  # no second one
    assert tokenizer.decode(tokenizer.encode("ab")) == "ab"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (257, (258,))


def test_a_word_that_is_a_token_is_not_merged_where_the_kind_says_so(tmp_path):
    merges = ["a b", "b c"]
    whole = small(["ab", "bc", "abc"], merges)
    assert tokenizer_of(tmp_path, whole).encode("abc", False) == [258]
    assert tokenizer_of(tmp_path, whole | {"tokenizer.ggml.pre": "qwen2"}).encode("abc", False) == [
        256,
        BYTES.index("c"),
    ]


def test_the_end_of_a_turn_ends_a_text_too(tmp_path):
    assert tokenizer_of(tmp_path, small(**ENDS, eot_token_id=256)).eos_token_ids == (258, 256)


@pytest.mark.parametrize(("token", "text", "ids"), [("<|begin_of_text|>", "123", 3), ("<|im_start|>", "123", 3)])
def test_a_missing_pre_is_found_by_tokens_that_only_one_kind_has(tmp_path, token, text, ids):
    metadata = small(["12", "123", token], ["1 2", "12 3"], [1, 1, 3])
    del metadata["tokenizer.ggml.pre"]
    cut = tokenizer_of(tmp_path, metadata).encode(text, False)
    assert cut == ([257] if token == "<|begin_of_text|>" else [BYTES.index(digit) for digit in "123"])
    assert len(cut) in (1, ids)


def test_pre_can_be_given(tmp_path):
    metadata = small(["12"], ["1 2"])
    assert tokenizer_of(tmp_path, metadata).encode("12", False) == [256]
    assert len(tokenizer_of(tmp_path, metadata, pre="qwen2").encode("12", False)) == 2


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"pre": "viking"}, r"tokenizer.ggml.pre is 'viking'; it must be one of llama-bpe, .*, codeshell, because"),
     ({"pre": "default"}, "tokenizer.ggml.pre is 'default'; it must be one of"),
     ({"model": "bert"}, "tokenizer.ggml.model is 'bert'; it must be 'gpt2' or 'llama'"),
     ({"model": "llama"}, "tokenizer.ggml.scores is None; it must be a list of 256 numbers, as there are tokens"),
     ({"token_type": [1]}, "tokenizer.ggml.token_type is .*; it must be a list of 256 numbers"),
     ({"tokens": [1, 2]}, "tokenizer.ggml.tokens is .*; it must be a list of texts"),
     ({"merges": ["a b c"]}, "tokenizer.ggml.merges is 'a b c'; it must be two tokens with a space between"),
     ({"merges": ["a b"]}, "tokenizer.ggml.merges is 'a b'; it must be two tokens that make a third"),
     ({"merges": ["中 a"]}, "tokenizer.ggml.merges is '中 a'; it must be two tokens that make a third"),
     ({"bos_token_id": 256}, "tokenizer.ggml.bos_token_id is 256; it must be below 256, the number of tokens"),
     ({"add_bos_token": 1}, "tokenizer.ggml.add_bos_token is 1; it must be true or false")],
)  # fmt: skip
def test_what_cannot_be_used_is_refused(tmp_path, change, sentence):
    metadata = small() | {f"tokenizer.ggml.{key}": one for key, one in change.items()}
    with pytest.raises(FormatError, match=sentence):
        tokenizer_of(tmp_path, metadata)


def test_tokens_of_spaces_are_found_in_texts_with_spaces(tmp_path):
    tokens = ["<unk>", "▁", "a", "▁▁▁", "<b>"]
    metadata = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.scores": [0.0] * 5,
        "tokenizer.ggml.token_type": [2, 1, 1, 4, 3], "tokenizer.ggml.add_space_prefix": False,
    }  # fmt: skip
    assert tokenizer_of(tmp_path, metadata).encode("a   a", False) == [2, 3, 2]


# ---- a tokenizer of any checkpoint


def test_a_folder_says_which_tokens_begin_and_end(tmp_path):
    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0, "</s>": 1, "a": 2}, unk_token="a"))
    backend.add_special_tokens(["<s>", "</s>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.from_pretrained(tmp_path).encode("a") == [2]
    said = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    tokenizer = Tokenizer.from_pretrained(str(tmp_path))
    assert (tokenizer.encode("a"), tokenizer.eos_token_ids) == ([0, 2], (1,))
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "config.json").write_text('{"bos_token_id": 0, "eos_token_id": [1, 2]}')
    assert Tokenizer.from_pretrained(tmp_path).eos_token_ids == (1, 2)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json': No such file"):
        Tokenizer.from_pretrained(tmp_path)
