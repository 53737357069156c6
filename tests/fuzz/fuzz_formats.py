"""Coverage-guided fuzzing of the readers: tests/fuzz/fuzz_formats.py {gguf,safetensors} [libFuzzer options].

Needs atheris. It begins with whole files and changes them; whatever the bytes, only a `BitNetError` may come out. For
half a minute of each: ``python tests/fuzz/fuzz_formats.py gguf -max_total_time=30``.
"""

import os
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["bitnet.formats", "bitnet.vocabulary", "bitnet.chat"]):
    from bitnet.errors import BitNetError
    from bitnet.formats import open_checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "formats"))
import test_gguf_file
import test_mutation

MEMORY_LIMIT = 64 << 20  # bytes that a file of a few thousand may ask for in one piece


def read_gguf(folder, data):
    path = folder / "a.gguf"
    path.write_bytes(data)
    test_gguf_file.use(str(path))


def read_safetensors(folder, data):
    (folder / "model.safetensors").write_bytes(data)
    with open_checkpoint(str(folder)) as checkpoint:
        for name in checkpoint.names():
            checkpoint.raw(name)
            for read in (checkpoint.floats, lambda one: checkpoint.ternary(one.removesuffix(".weight"))):
                test_gguf_file.attempt(lambda name=name, read=read: read(name))


def main():
    kind = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if kind not in ("gguf", "safetensors"):
        sys.exit(__doc__)
    import numpy as np

    zeros = np.empty

    def bounded(shape, *args, **how):
        made = zeros(shape, *args, **how)
        assert made.nbytes < MEMORY_LIMIT, f"{made.nbytes} bytes asked for"
        return made

    np.empty = bounded
    warnings.simplefilter("ignore")
    shared = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=shared) as scratch:
        folder, corpus = Path(scratch) / "model", Path(scratch) / "corpus"
        corpus.mkdir()
        whole = test_mutation.folders(Path(scratch), None)
        seeds = [test_gguf_file.whole_file()] if kind == "gguf" else [(whole / "model.safetensors").read_bytes()]
        if kind == "gguf":
            seeds += [content for content, _ in test_gguf_file.WICKED.values() if len(content) < 10_000]
        for number, seed in enumerate(seeds):
            (corpus / str(number)).write_bytes(seed)
        read = {"gguf": read_gguf, "safetensors": read_safetensors}[kind]

        def one(data):
            sentence = ""
            try:
                read(folder, data)
            except BitNetError as error:
                sentence = str(error)
            assert len(sentence) < 2000

        atheris.Setup([*sys.argv, "-max_len=8192", str(corpus)], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
