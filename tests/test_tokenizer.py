"""Text to ids and back, on small vocabularies of each kind, which are made here."""

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from bitnet.errors import BitNetError, ConfigurationError, FormatError, InferenceError, ModelLoadError
from bitnet.tokenizer import CONTEXT, WINDOW, StreamDecoder, Tokenizer

FFFD = "\ufffd"
TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind. " * 3,
    "Grüße aus Köln! Ça va? Ναι, καλά. Да, хорошо. 数量は三つです。天地玄黄 안녕하세요",
    "👩‍👩‍👧‍👦 🇩🇪 e\u0301 o\u0308 ก็ ✓ 😀😃😄",
]
AWKWARD = [
    "", " ", "  ", "   a", "a   ", "\n\n a\t", "▁", " ▁a", "👨‍👩‍👧", "e\u0301\u0301", "\u0301", FFFD, FFFD * 20 + "a",
    "a" + FFFD, "\0", "<s>", "<|eot|>", "x<|eot|>y", "<0x41>", "\U0010ffff", "天" * 40, "😀" * 40, "a😀b" * 20,
    " hello", "Hello world. ",
]  # fmt: skip
SPECIALS = ["<|begin|>", "<|eot|>"]


def byte_level():
    """As GPT-2, Llama 3, Qwen and Falcon."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, special_tokens=SPECIALS, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    backend.add_tokens([AddedToken("<tool>", normalized=False)])  # no special one: it is text
    return backend


def sentence_piece(strip):
    """As Llama 2, with its bytes for what has no token; without `strip`, as Gemma, which puts no space in front."""
    pieces = ["▁", *"helo wrd.a", "天", "é", "he", "ll", "hell", "hello", "▁w", "▁hello", "▁▁", "▁▁▁▁"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("▁", "w"), ("▁", "hello"), ("▁", "▁"), ("▁▁", "▁▁")]
    vocabulary = {token: id for id, token in enumerate(dict.fromkeys(tokens))}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace] if strip else [replace])
    joined = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*joined, decoders.Strip(" ", 1, 0)] if strip else joined)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens[:3]])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return backend


def metaspace():
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", *SPECIALS], show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    return backend


def word_piece():
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]"],
                                                                 show_progress=False))  # fmt: skip
    return backend


def words():
    """Without a decoder: the library puts spaces between the tokens."""
    return tokenizers.Tokenizer(models.WordLevel({"": 0, "a": 1, "b": 2, FFFD: 3}, unk_token="a"))


BACKENDS = {
    "byte_level": byte_level(), "llama2": sentence_piece(True), "gemma": sentence_piece(False),
    "metaspace": metaspace(), "word_piece": word_piece(), "words": words(),
}  # fmt: skip
KINDS = {kind: Tokenizer(backend) for kind, backend in BACKENDS.items()}
LOSSLESS = ("byte_level", "llama2", "gemma")
each_kind = pytest.mark.parametrize("kind", KINDS)


def library_text(kind, ids, skip_special_tokens=True):
    return BACKENDS[kind].decode(ids, skip_special_tokens=skip_special_tokens)


def streamed(kind, ids, skip_special_tokens=True):
    """The pieces, the last of them flushed; each id costs the same."""
    stream = KINDS[kind].stream_decoder(skip_special_tokens)
    pieces = []
    for id in ids:
        pieces.append(stream.put(id))
        assert len(stream._window) < WINDOW
        assert len(stream._byte_ids) <= 3
    return [*pieces, stream.flush()]


def check_stream(kind, ids, skip_special_tokens=True):
    pieces, whole = streamed(kind, ids, skip_special_tokens), KINDS[kind].decode(ids, skip_special_tokens)
    assert "".join(pieces) == whole
    if FFFD not in whole:
        assert FFFD not in "".join(pieces)
        assert whole == library_text(kind, ids, skip_special_tokens)
    return pieces


@pytest.fixture
def saved(tmp_path):
    """Save a vocabulary and read it back."""

    def save(kind="byte_level", **options):
        path = tmp_path / "tokenizer.json"
        BACKENDS[kind].save(str(path))
        return Tokenizer.from_file(path, **options)

    return save


# ---- streams


@each_kind
@pytest.mark.parametrize("text", AWKWARD + TEXTS)
def test_the_pieces_of_a_text_make_the_text(kind, text):
    for add_special in (True, False):
        ids = KINDS[kind].encode(text, add_special)
        pieces = check_stream(kind, ids)
        check_stream(kind, ids, skip_special_tokens=False)
        assert KINDS[kind].decode(ids) == library_text(kind, ids)
        if kind in LOSSLESS and not any(special in text for special in (*SPECIALS, "<s>", "▁")):
            assert "".join(pieces) == text


@each_kind
@given(text=st.text())
@settings(max_examples=100)
def test_the_pieces_of_any_text_make_the_text(kind, text):
    ids = KINDS[kind].encode(text)
    check_stream(kind, ids)
    assert KINDS[kind].decode(ids) == library_text(kind, ids)


@each_kind
@given(data=st.data())
@settings(max_examples=200)
def test_the_pieces_of_any_ids_make_their_text(kind, data):
    size = KINDS[kind].vocab_size
    ids = data.draw(st.lists(st.integers(0, size + 3), max_size=60))
    skip_special_tokens = data.draw(st.booleans())
    check_stream(kind, ids, skip_special_tokens)
    if kind not in ("llama2", "gemma"):
        assert KINDS[kind].decode(ids, skip_special_tokens) == library_text(kind, ids, skip_special_tokens)


# Bytes of each role in UTF-8: ASCII, continuations of all ranges, first bytes of all lengths, and never used.
ROLES = [0x20, 0x41, 0x80, 0x90, 0xA0, 0xBF, 0xBD, 0xC1, 0xC3, 0xE0, 0xE2, 0xED, 0xEF, 0xF0, 0xF1, 0xF4, 0xF5, 0xFF]


@pytest.mark.parametrize("kind", LOSSLESS)
@given(values=st.lists(st.sampled_from(ROLES), max_size=40), words=st.lists(st.integers(0, 9), max_size=40))
@settings(max_examples=300)
def test_bytes_that_are_no_characters(kind, values, words):
    tokenizer = KINDS[kind]
    alphabet = dict(zip(range(256), byte_characters(), strict=True))
    name = (lambda byte: alphabet[byte]) if kind == "byte_level" else (lambda byte: f"<0x{byte:02X}>")
    ids = [tokenizer.id_of(name(byte)) for byte in values]
    assert None not in ids
    text = bytes(values).decode("utf-8", "replace")
    strips = kind == "llama2" and text.startswith(" ")
    assert tokenizer.decode(ids) == text[strips:]
    check_stream(kind, ids)
    letter = tokenizer.id_of("a")
    for at, one in enumerate(words):  # characters end at letters; special tokens are not there
        ids.insert(min(at * 2, len(ids)), letter if one else 1)
    check_stream(kind, ids)


def byte_characters():
    """How byte-level vocabularies write the bytes 0 to 255 (openai/gpt-2, src/encoder.py, bytes_to_unicode)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def test_a_character_is_given_when_it_is_whole():
    for kind in LOSSLESS:
        ids = KINDS[kind].encode("😁", add_special_tokens=False)
        assert len(ids) > 1
        *pieces, last = streamed(kind, ids)
        assert (pieces[-1], last) == ("😁", "")
        assert set(pieces[:-1]) <= {"", " "}


def test_an_unfinished_character_comes_with_the_flush():
    for kind in LOSSLESS:
        ids = KINDS[kind].encode("a😁", add_special_tokens=False)[:-1]
        pieces = streamed(kind, ids)
        assert FFFD not in "".join(pieces[:-1])
        assert pieces[-1] == FFFD


def test_what_is_certain_is_not_kept_back():
    stream = KINDS["byte_level"].stream_decoder()
    for count, id in enumerate(KINDS["byte_level"].encode("The dog."), 1):
        assert stream.put(id) == KINDS["byte_level"].decode([id]), count
    # Of a long row of broken bytes, only the last one can still change.
    bad = KINDS["byte_level"].id_of(byte_characters()[0xFF])
    assert [stream.put(bad) for _ in range(50)] == ["", *[FFFD] * 49]
    assert stream.flush() == FFFD


def test_a_row_of_bytes_keeps_its_whole_characters():
    for kind in ("llama2", "gemma"):
        ids = [KINDS[kind].id_of(f"<0x{byte:02X}>") for byte in (*"é".encode(), 0xFF, *"日".encode())]
        assert KINDS[kind].decode(ids) == f"é{FFFD}日"
        assert library_text(kind, ids) == FFFD * 6


def test_spaces_in_front():
    ids = [KINDS["llama2"].id_of(token) for token in ("▁hello", "▁", "▁hello")]
    assert streamed("llama2", ids) == ["hello", " ", " hello", ""]
    assert streamed("llama2", [1, *ids]) == ["", "hello", " ", " hello", ""]
    assert streamed("gemma", ids) == [" hello", " ", " hello", ""]


def test_a_stream_can_begin_anew():
    stream = KINDS["llama2"].stream_decoder()
    hello, byte = KINDS["llama2"].id_of("▁hello"), KINDS["llama2"].id_of("<0xE2>")
    for _ in range(2):
        assert [stream.put(hello), stream.put(byte), stream.flush()] == ["hello", "", FFFD]
    assert stream.flush() == ""


def test_a_long_text_stays_exact():
    assert CONTEXT < WINDOW
    for kind in LOSSLESS:
        text = "".join(AWKWARD[3:6] + TEXTS) * 20
        ids = KINDS[kind].encode(text)
        assert "".join(streamed(kind, ids)) == library_text(kind, ids)


# ---- encoding


def test_encode_gives_what_the_library_gives(saved):
    tokenizer = saved()
    for text in AWKWARD + TEXTS:
        for add_special in (True, False):
            assert tokenizer.encode(text, add_special) == BACKENDS["byte_level"].encode(
                text, add_special_tokens=add_special
            ).ids


def test_a_special_token_can_be_left_in_the_text():
    ids = KINDS["byte_level"].encode("a<|eot|>b<tool>")
    assert KINDS["byte_level"].decode(ids) == "ab<tool>"
    assert KINDS["byte_level"].decode(ids, skip_special_tokens=False) == "<|begin|>a<|eot|>b<tool>"


@pytest.mark.parametrize(
    ("kind", "add_bos", "text", "begins"),
    [
        ("byte_level", None, "a", 1), ("byte_level", True, "a", 1), ("byte_level", False, "a", 0),
        ("byte_level", None, "<|begin|>a", 1), ("byte_level", True, "<|begin|>a", 1), ("byte_level", None, "", 1),
        ("metaspace", None, "a", 0), ("metaspace", True, "a", 1), ("metaspace", True, "<|begin|>a", 1),
        ("metaspace", False, "a", 0), ("metaspace", False, "<|begin|>a", 1), ("metaspace", True, "", 1),
    ],
)  # fmt: skip
def test_a_text_begins_with_one_bos_or_none(saved, kind, add_bos, text, begins):
    bos = KINDS[kind].id_of("<|begin|>")
    tokenizer = saved(kind, bos_token_id=bos, add_bos=add_bos)
    ids = tokenizer.encode(text)
    assert ids.count(bos) == begins
    assert ids[:begins] == [bos] * begins
    assert ids[begins:] == tokenizer.encode(text.removeprefix("<|begin|>"), add_special_tokens=False)


def test_settings_of_training_do_not_cut_or_fill(tmp_path):
    backend = byte_level()
    backend.enable_truncation(3)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert tokenizer.encode(TEXTS[0]) == BACKENDS["byte_level"].encode(TEXTS[0]).ids


def test_what_a_tokenizer_knows(saved):
    tokenizer = saved(bos_token_id=np.int64(0), eos_token_ids=[1])
    assert tokenizer.vocab_size == BACKENDS["byte_level"].get_vocab_size()
    assert (tokenizer.id_of("<|eot|>"), tokenizer.id_of("no such token")) == (1, None)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids, tokenizer.add_bos) == (0, (1,), None)
    assert saved(eos_token_ids=7).eos_token_ids == (7,)
    assert saved(eos_token_ids=None).eos_token_ids == ()
    assert isinstance(tokenizer.stream_decoder(), StreamDecoder)


def test_ids_may_be_numpys():
    ids = np.array(KINDS["byte_level"].encode("The dog"), np.int32)
    assert KINDS["byte_level"].decode(ids) == "The dog"
    assert "".join(streamed("byte_level", ids)) == "The dog"


# ---- bad input


def test_a_missing_file(tmp_path):
    with pytest.raises(ModelLoadError, match=r"cannot read '.*none.json': No such file or directory"):
        Tokenizer.from_file(tmp_path / "none.json")


@pytest.mark.parametrize("data", [b"", b"{", b"{}", b"[]", b"\xff\xfe", b'{"model": {"type": "BPE"}}', b"null"])
def test_a_damaged_file(tmp_path, data):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"tokenizer.json' is not what the library 'tokenizers' reads: .*[^.\n]$"):
        Tokenizer.from_file(path)


def test_a_file_that_puts_unknown_tokens_around_a_text(tmp_path, capfd):
    path = tmp_path / "tokenizer.json"
    content = json.loads(BACKENDS["byte_level"].to_str())
    content["post_processor"]["special_tokens"] = {}
    path.write_text(json.dumps(content))
    with pytest.raises(FormatError, match=r"is not what the library 'tokenizers' reads: no entry found for key$"):
        Tokenizer.from_file(path)
    capfd.readouterr()  # the library's panic writes to stderr


def test_an_interrupt_is_no_damage(saved, monkeypatch):
    def interrupted(data):
        raise KeyboardInterrupt

    monkeypatch.setattr(tokenizers, "Tokenizer", type("Tokenizer", (), {"from_buffer": interrupted}))
    with pytest.raises(KeyboardInterrupt):
        saved()


@given(data=st.data())
@settings(max_examples=100)
def test_changed_bytes_give_a_tokenizer_or_our_error(tmp_path, data):
    content = bytearray(BACKENDS["llama2"].to_str().encode())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(32, 126))
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    try:
        tokenizer = Tokenizer.from_file(path)
        tokenizer.decode(tokenizer.encode("hello 天 x"))
    except BitNetError:
        pass


@pytest.mark.parametrize("ids", [[-1], [2**32], ["a"], [1.5], [None], 3, None])
def test_what_is_no_token_id(ids):
    with pytest.raises(ConfigurationError, match=r"^Tokenizer.ids is .*; it must be a token id from 0 to 4294967295$"):
        KINDS["byte_level"].decode(ids)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"bos_token_id": -1}, "Tokenizer.bos_token_id is -1; it must be a token id from 0 to 4294967295"),
        ({"eos_token_ids": "2"}, "Tokenizer.eos_token_ids is '2'; it must be a token id from 0 to 4294967295"),
        ({"add_bos": "yes"}, "Tokenizer.add_bos is 'yes'; it must be True, False or None"),
        ({"add_bos": True}, "Tokenizer: add_bos is True, but bos_token_id is not known"),
    ],
)
def test_options_that_cannot_be(saved, options, sentence):
    with pytest.raises(ConfigurationError) as caught:
        saved(**options)
    assert str(caught.value) == sentence


def test_what_cannot_be_encoded():
    with pytest.raises(ConfigurationError, match=r"Tokenizer.encode.text is b'a'; it must be a string"):
        KINDS["byte_level"].encode(b"a")
    with pytest.raises(InferenceError) as caught:
        KINDS["byte_level"].encode("ab\ud83d")
    assert str(caught.value) == "cannot encode the text: U+D83D at index 2 is half of a surrogate pair"
    with pytest.raises(InferenceError, match=r"cannot encode the text: WordLevel error: Missing \[UNK\] token"):
        Tokenizer(tokenizers.Tokenizer(models.WordLevel({"a": 0}))).encode("b")


