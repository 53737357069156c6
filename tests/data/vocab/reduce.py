"""Reduce a byte-level BPE vocabulary to what some texts need: python tests/data/vocab/reduce.py FILE.gguf

Beside FILE.gguf lie FILE.gguf.inp and FILE.gguf.out, as in llama.cpp's models/. Kept are the 256 bytes, every merge
that is possible at any step of any word of the texts, not only those that are made, and words that are tokens. So the
same merges are made in the same order, and the ids are the full vocabulary's, counted anew. Written to this folder.
"""

import itertools
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1])]
SEPARATOR = "\n__ggml_vocab_test__\n"


def steps(word, ranks):
    """The pairs that could be merged at each step, until none can."""
    parts = list(word)
    while True:
        pairs = [(ranks[pair], i, pair) for i, pair in enumerate(itertools.pairwise(parts)) if pair in ranks]
        yield from (pair for _, _, pair in pairs)
        if not pairs:
            return
        _, i, pair = min(pairs)
        parts[i : i + 2] = ["".join(pair)]


def reduced(metadata, texts, words_of, ignores_merges):
    """The tokens that stay, as their ids, and the merges."""
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    ranks, ids = {merge: rank for rank, merge in enumerate(merges)}, {token: i for i, token in enumerate(tokens)}
    kept, needed = {token for token in tokens if len(token) == 1}, set()
    for word in {word for one in texts for word in words_of(one)}:
        if ignores_merges and word in ids:
            kept.add(word)
        else:
            needed.update(steps(word, ranks))
    for left, right in needed:
        kept |= {left, right, left + right}
    special = {metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")} - {None}
    return sorted({ids[token] for token in kept} | special), [merge for merge in merges if merge in needed]


def main(path):
    from gguf_files import write_gguf

    from bitnet.formats.gguf_file import GGUFFile
    from bitnet.vocabulary import PRE, vocabulary_of

    metadata = GGUFFile(path).metadata
    backend = vocabulary_of(metadata, path).backend
    texts = Path(f"{path}.inp").read_bytes().decode().split(SEPARATOR)
    ids, merges = reduced(
        metadata, texts, lambda one: [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(one)],
        PRE[metadata["tokenizer.ggml.pre"]].ignores_merges,
    )  # fmt: skip
    new = {old: i for i, old in enumerate(ids)}
    kept = {
        "general.architecture": metadata["general.architecture"],
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": metadata["tokenizer.ggml.pre"],
        "tokenizer.ggml.tokens": [metadata["tokenizer.ggml.tokens"][i] for i in ids],
        "tokenizer.ggml.token_type": [int(metadata["tokenizer.ggml.token_type"][i]) for i in ids],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
    }  # fmt: skip
    for name in ("bos", "eos"):
        key = f"tokenizer.ggml.{name}_token_id"
        if key in metadata:
            kept[key] = new[metadata[key]]
    to = HERE / Path(path).name.replace(".gguf", "-reduced.gguf")
    write_gguf(to, kept)
    lines = Path(f"{path}.out").read_text().splitlines()
    renumbered = [" " + " ".join(str(new[int(id)]) for id in line.split()) for line in lines]
    Path(f"{to}.out").write_text("\n".join(renumbered) + "\n")
    Path(f"{to}.ids").write_text(" ".join(map(str, ids)) + "\n")
    (HERE / "texts.inp").write_bytes(SEPARATOR.join(texts).encode())  # the same for every vocabulary


if __name__ == "__main__":
    main(sys.argv[1])
