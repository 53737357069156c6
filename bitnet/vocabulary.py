"""Vocabularies as GGUF metadata have them, made into tokenizers of the `tokenizers` library, and back.

Two kinds are read: ``gpt2``, which is byte-level BPE with merges, cut into words by the expression that
``tokenizer.ggml.pre`` names; and ``llama``, which is SentencePiece's BPE with a score for each token and single bytes
for what has no token.

References
----------
.. [1] ggml-org/llama.cpp, src/llama-vocab.cpp: the names of ``pre``, their expressions and their settings.
.. [2] huggingface/transformers, convert_slow_tokenizer.py: how merges follow from scores.
.. [3] ikawrakow/ik_llama.cpp, pull request 555: ``falcon_e`` is cut as ``llama3``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitnet.errors import FormatError

__all__ = ["PRE", "Vocabulary", "metadata_of", "vocabulary_of"]

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST


@dataclass(frozen=True)
class Pre:
    """How a ``tokenizer.ggml.pre`` cuts a text into words."""

    expressions: tuple[str, ...]
    ignores_merges: bool = False  # a word that is a token is that token, whatever the merges say
    adds_bos: bool = False


PRE: dict[str, Pre] = {
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "falcon_e", "pixtral", "midm-2.0",
                     "lfm2", "jina-v5-nano"), Pre((LLAMA3,), ignores_merges=True, adds_bos=True)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "kormo", "stablelm2"), Pre((QWEN2,))),
    **dict.fromkeys(("gpt-2", "phi-2", "jina-es", "jina-de", "mpt", "olmo", "jais", "gpt-neox"), Pre((GPT2,))),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), Pre((r"\p{N}", GPT2))),
}  # fmt: skip
"""The known values of ``tokenizer.ggml.pre``."""

# Where a file names none: a token that only vocabularies of one kind have.
TELLING = (("<|begin_of_text|>", "llama-bpe"), (">>TITLE<<", "falcon3"), ("<|im_start|>", "qwen2"))

CONTROL, USER_DEFINED, UNKNOWN = 3, 4, 2  # in ``tokenizer.ggml.token_type``
NORMAL, UNUSED, BYTE = 1, 5, 6


@dataclass(frozen=True)
class Vocabulary:
    """What comes of metadata.

    Attributes
    ----------
    backend : tokenizers.Tokenizer
    bos_token_id : int or None
    eos_token_ids : tuple of int
    """

    backend: Any
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]


def vocabulary_of(metadata: Mapping[str, Any], file: str, pre: str | None = None) -> Vocabulary:
    """Make a tokenizer of GGUF metadata.

    Parameters
    ----------
    metadata : mapping
        Of a GGUF file.
    file : str
        Its path, for errors.
    pre : str, optional
        A key of `PRE`, instead of the file's own ``tokenizer.ggml.pre``.

    Returns
    -------
    Vocabulary

    Raises
    ------
    FormatError
        If the vocabulary is of another kind, or damaged.
    """
    found = _Metadata(metadata, file)
    kind = found.value("model", str)
    if kind == "gpt2":
        how = found.pre(pre)
        backend, adds_bos = _byte_level(found, how), how.adds_bos
    elif kind == "llama":
        backend, adds_bos = _sentence_piece(found), True
    else:
        raise FormatError.value(file, "tokenizer.ggml.model", kind, "'gpt2' or 'llama'")
    _add_special(backend, found)
    bos, eos = found.id("bos"), found.id("eos")
    _surround(
        backend, found.tokens,
        bos if found.flag("add_bos_token", adds_bos) else None, eos if found.flag("add_eos_token", False) else None,
    )  # fmt: skip
    ends = [id for id in (eos, found.id("eot")) if id is not None]
    return Vocabulary(backend, bos, tuple(dict.fromkeys(ends)))


class _Metadata:
    """The keys below ``tokenizer.ggml``, checked."""

    def __init__(self, metadata: Mapping[str, Any], file: str) -> None:
        self._all, self.file = metadata, file
        self.tokens: list[str] = self.value("tokens", list)
        kinds = metadata.get("tokenizer.ggml.token_type")
        self.kinds = [NORMAL] * len(self.tokens) if kinds is None else self._numbers("token_type", kinds)

    def value(self, name: str, kind: type[str] | type[list[Any]]) -> Any:
        found = self._all.get(f"tokenizer.ggml.{name}")
        fits = isinstance(found, kind) and not (isinstance(found, list) and any(type(one) is not str for one in found))
        self.need(fits, name, found, "a text" if kind is str else "a list of texts")
        return found

    def need(self, fits: bool, name: str, got: Any, needed: str) -> None:
        if not fits:
            raise FormatError.value(self.file, f"tokenizer.ggml.{name}", got, needed)

    def _numbers(self, name: str, found: Any) -> list[Any]:
        fits = hasattr(found, "tolist") and len(found) == len(self.tokens)
        self.need(fits, name, found, f"a list of {len(self.tokens)} numbers, as there are tokens")
        return list(found.tolist())

    def scores(self) -> list[float]:
        return self._numbers("scores", self._all.get("tokenizer.ggml.scores"))

    def id(self, name: str) -> int | None:
        found = self._all.get(f"tokenizer.ggml.{name}_token_id")
        fits = found is None or (type(found) is int and 0 <= found < len(self.tokens))
        self.need(fits, f"{name}_token_id", found, f"below {len(self.tokens)}, the number of tokens")
        return found

    def flag(self, name: str, default: bool) -> bool:
        found = self._all.get(f"tokenizer.ggml.{name}", default)
        self.need(isinstance(found, bool), name, found, "true or false")
        return bool(found)

    def pre(self, forced: str | None) -> Pre:
        named = forced or self._all.get("tokenizer.ggml.pre")
        if named in (None, "default"):
            there = set(self.tokens)
            named = next((name for token, name in TELLING if token in there), None)
        known = isinstance(named, str) and named in PRE
        self.need(known, "pre", self._all.get("tokenizer.ggml.pre") if forced is None else forced,
                  f"one of {', '.join(PRE)}, because it says how words are cut")  # fmt: skip
        return PRE[str(named)]


def _byte_level(found: _Metadata, how: Pre) -> Any:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    merges = [tuple(merge.split(" ")) for merge in found.value("merges", list)]
    wrong = next((merge for merge in merges if len(merge) != 2), None)
    found.need(wrong is None, "merges", " ".join(wrong or ()), "two tokens with a space between")
    vocabulary = _numbered(found.tokens)
    # The library panics over some merges of what is no token.
    wrong = next((one for one in merges if any(part not in vocabulary for part in (*one, "".join(one)))), None)
    found.need(wrong is None, "merges", " ".join(wrong or ()), "two tokens that make a third")
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=how.ignores_merges))
    cuts = [pre_tokenizers.Split(tokenizers.Regex(one), "isolated") for one in how.expressions]
    backend.pre_tokenizer = pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentence_piece(found: _Metadata) -> Any:
    import tokenizers
    from tokenizers import decoders, models, normalizers

    unknown = found.id("unknown")
    unknown = 0 if unknown is None else unknown
    found.need(len(found.tokens) > 0, "tokens", [], "a list of one text at least")
    vocabulary = _numbered(found.tokens)
    backend = tokenizers.Tokenizer(models.BPE(
        vocab=vocabulary, merges=_merges(found, vocabulary), unk_token=found.tokens[unknown], fuse_unk=True,
        byte_fallback=True,
    ))  # fmt: skip
    has_prefix = found.flag("add_space_prefix", True)
    prefix = [normalizers.Prepend("▁")] if has_prefix else []
    backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if has_prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )  # fmt: skip
    return backend


def _merges(found: _Metadata, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """The pairs that SentencePiece joins, the best score of what comes of them first."""
    scored = []
    for token, kind, score in zip(found.tokens, found.kinds, found.scores(), strict=True):
        if kind != NORMAL or len(token) > MAX_PIECE:
            continue
        for cut in range(1, len(token)):
            left, right = vocabulary.get(token[:cut]), vocabulary.get(token[cut:])
            if left is not None and right is not None:
                scored.append((-score, left, right))
    scored.sort()
    return [(found.tokens[left], found.tokens[right]) for _, left, right in scored]


MAX_PIECE = 1000  # characters of a token that is put together from others; the longest of real ones have 50


def _numbered(tokens: Sequence[str]) -> dict[str, int]:
    """Ids by tokens; of a token that comes twice, the first."""
    return {token: len(tokens) - 1 - i for i, token in enumerate(reversed(tokens))}


def _add_special(backend: Any, found: _Metadata) -> None:
    import tokenizers

    special, others = [], []
    for token, kind in zip(found.tokens, found.kinds, strict=True):
        if kind in (CONTROL, UNKNOWN) and token:
            special.append(tokenizers.AddedToken(token, special=True, normalized=False))
        elif kind == USER_DEFINED and token:
            # One that stands for spaces is written so only once the text is.
            others.append(tokenizers.AddedToken(token, special=False, normalized="▁" in token))
    backend.add_special_tokens(special)
    backend.add_tokens(others)


def _surround(backend: Any, tokens: Sequence[str], bos: int | None, eos: int | None) -> None:
    """Put tokens around a text whose special tokens are asked for."""
    from tokenizers import processors

    if bos is None and eos is None:
        return
    before = [] if bos is None else [{"SpecialToken": {"id": tokens[bos], "type_id": 0}}]
    after = [] if eos is None else [{"SpecialToken": {"id": tokens[eos], "type_id": 0}}]
    text = {"Sequence": {"id": "A", "type_id": 0}}
    used = {tokens[id]: id for id in (bos, eos) if id is not None}
    state = {
        "type": "TemplateProcessing", "single": [*before, text, *after],
        "pair": [*before, text, {"Sequence": {"id": "B", "type_id": 1}}, *after],
        "special_tokens": {name: {"id": name, "ids": [id], "tokens": [name]} for name, id in used.items()},
    }  # fmt: skip
    processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    # By its state, because its own little language could not hold every token.
    import json

    processor.__setstate__(json.dumps(state).encode())
    backend.post_processor = processor


def metadata_of(content: Mapping[str, Any], file: str, vocab_size: int, add_bos: bool | None = None) -> dict[str, Any]:
    """Write a ``tokenizer.json`` as GGUF metadata.

    Parameters
    ----------
    content : mapping
        The file's.
    file : str
        Its path, for errors.
    vocab_size : int
        Rows of the model's embedding; ids without a token get a name and are marked as not used.
    add_bos : bool, optional
        What a ``tokenizer_config.json`` says of the token that a text begins with; None for what `content` does.

    Returns
    -------
    dict
        Keys below ``tokenizer.ggml``.

    Raises
    ------
    FormatError
        If it is of another kind than byte-level BPE, cut in a known way, or SentencePiece's BPE.
    """
    model = content.get("model") or {}
    if not isinstance(model, dict) or model.get("type") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else model
        raise FormatError.value(file, "the model of the tokenizer", kind, "'BPE', which GGUF files have names for")
    merges = [tuple(one.split(" ")) if isinstance(one, str) else tuple(one) for one in model["merges"]]
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    kinds = [UNUSED] * vocab_size
    for token, id in model["vocab"].items():
        if id < vocab_size:
            tokens[id], kinds[id] = token, NORMAL
    for added in content.get("added_tokens") or []:
        if added["id"] < vocab_size:
            tokens[added["id"]] = added["content"]
            kinds[added["id"]] = CONTROL if added.get("special") else USER_DEFINED
    found: dict[str, Any] = {"tokenizer.ggml.tokens": tokens}
    if model.get("byte_fallback"):
        found |= _scored(content, model, tokens, kinds, merges)
    else:
        found |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": _pre_of(content, file, model),
                  "tokenizer.ggml.merges": [" ".join(merge) for merge in merges]}  # fmt: skip
    found["tokenizer.ggml.token_type"] = np.array(kinds, np.int32)
    found["tokenizer.ggml.add_bos_token"] = _begins(content) if add_bos is None else add_bos
    return found


def _scored(
    content: Mapping[str, Any], model: Mapping[str, Any], tokens: list[str], kinds: list[int], merges: list[Any]
) -> dict[str, Any]:
    """SentencePiece's way: a token's score is the rank of the merge that makes it."""
    ranks = {"".join(merge): rank for rank, merge in reversed(list(enumerate(merges)))}
    for id, token in enumerate(tokens):
        if kinds[id] == NORMAL and len(token) == 6 and token.startswith("<0x"):
            kinds[id] = BYTE
        elif kinds[id] == NORMAL and len(token) > 1 and token not in ranks:
            kinds[id] = UNUSED  # no merge makes it
    unknown = model.get("unk_token")
    found: dict[str, Any] = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default"}
    if unknown in model["vocab"]:
        found["tokenizer.ggml.unknown_token_id"] = int(model["vocab"][unknown])
    found["tokenizer.ggml.scores"] = np.array([-float(ranks.get(token, len(merges))) for token in tokens], np.float32)
    found["tokenizer.ggml.add_space_prefix"] = "Prepend" in str(content.get("normalizer"))
    return found


def _pre_of(content: Mapping[str, Any], file: str, model: Mapping[str, Any]) -> str:
    """The name of the way in which words are cut."""
    cutter = content.get("pre_tokenizer") or {}
    parts = cutter.get("pretokenizers", [cutter]) if isinstance(cutter, dict) else []
    cuts = tuple((part.get("pattern") or {}).get("Regex") for part in parts if part.get("type") == "Split")
    levels = [part for part in parts if part.get("type") == "ByteLevel"]
    if levels and not cuts and levels[0].get("use_regex", True):
        cuts = (GPT2,)
    ignores = bool(model.get("ignore_merges"))
    name = next((name for name, how in PRE.items() if how.expressions == cuts and how.ignores_merges == ignores), None)
    if name is None or not levels:
        raise FormatError.value(
            file, "how the tokenizer cuts words", cuts, f"a way that GGUF has a name for: {', '.join(PRE)}"
        )
    return name


def _begins(content: Mapping[str, Any]) -> bool:
    """Whether a token is put in front of a text."""
    after = content.get("post_processor") or {}
    every = [after, *(after.get("processors") or [])]
    singles = [one.get("single") or [] for one in every if one.get("type") == "TemplateProcessing"]
    return any(single and "SpecialToken" in single[0] for single in singles)
