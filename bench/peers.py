"""The shape of BitNet-b1.58-2B-4T here and in what else the package index has, in one run, in turn.

    pip install -e '.[bench]' xllamacpp gguf && python bench/peers.py [-t 2] [-r 5] [--plot peers.svg]
    pip install --no-deps litespark-inference  # if it, too, is to take part: what it does here needs no PyTorch

Peers, where installed: llama.cpp (its wheel `xllamacpp`) on a file of random TQ2_0 weights with a Q6_K head; Litespark,
with its int4 head and prompts in parts of 64 tokens; PyTorch, the matrix products alone, in bfloat16, without
attention, norms and head. Weights are random, shapes are the same. What is printed is Markdown: the median, the least
and the most.
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import bitnet
from bitnet import machine

SHAPE = {"layers": 30, "hidden": 2560, "intermediate": 6912, "heads": 20, "kv_heads": 5, "vocabulary": 128256}


class Ours:
    name = "bitnet"

    def __init__(self, threads):
        self.model = bitnet.random_model("2b4t", bitnet.EngineConfig(num_threads=threads, prefix_cache=False))
        self.engine = bitnet.InferenceEngine(self.model.engine_config)
        self.name += f" {bitnet.__version__}, {self.model.engine_config.packing}, int8 head"

    def prompt_s(self, ids):
        start = time.perf_counter()
        logits = self.engine.infer(self.model, ids, last_only=True)
        seconds = time.perf_counter() - start
        assert logits.shape == (SHAPE["vocabulary"],)
        return seconds

    def token_s(self, n):
        config = bitnet.GenerationConfig(max_new_tokens=n + 1, eos_token_id=[])
        done = self.engine.generate(self.model, [1, 2, 3], config)
        assert len(done.tokens) == n + 1
        return done.generate_s / n


class LlamaCpp:
    def __init__(self, threads):
        import xllamacpp

        self.folder = tempfile.TemporaryDirectory()
        path = str(Path(self.folder.name) / "random.gguf")
        write_gguf(path)
        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel, params.warmup = path, 1024, 1, True
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.n_batch = params.n_ubatch = 512
        params.cache_ram_mib, params.verbosity = 0, -1
        self.server = xllamacpp.Server(params)
        self.name = f"llama.cpp (xllamacpp {version('xllamacpp')}), TQ2_0, Q6_K head"

    def _ask(self, ids, n):
        answer = self.server.handle_completions({
            "prompt": ids, "max_tokens": n, "temperature": 0, "ignore_eos": True, "cache_prompt": False,
        })  # fmt: skip
        if "timings" not in answer:
            raise RuntimeError(f"llama.cpp says: {answer}")
        return answer["timings"]

    def prompt_s(self, ids):
        timings = self._ask(ids, 1)
        assert timings["prompt_n"] == len(ids), timings
        return timings["prompt_ms"] / 1e3

    def token_s(self, n):
        timings = self._ask([1, 2, 3], n + 1)
        assert timings["predicted_n"] == n + 1, timings
        return timings["predicted_ms"] / 1e3 / timings["predicted_n"]


class Litespark:
    """Its part without PyTorch, on a model of the same shape: it has no reader of its own for random weights."""

    CHUNK = 64  # longer prompts at once give numbers that are not the model's

    def __init__(self, threads):
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # before its library is loaded
        from litespark_inference.torchless import loader, runtime
        from litespark_inference.torchless import model as its
        from litespark_inference.torchless.pack import pack_ternary_4_per_byte

        rng, (hidden, inner) = np.random.default_rng(0), (SHAPE["hidden"], SHAPE["intermediate"])
        keys = hidden * SHAPE["kv_heads"] // SHAPE["heads"]

        def projection(rows, cols):
            codes = rng.integers(-1, 2, (rows, cols), np.int8)
            packed = pack_ternary_4_per_byte(codes)
            return its.PackedProjection(packed, codes.sum(1, dtype=np.int32), 0.01, cols, rows)

        layers = [
            its.PackedLayer(
                q_proj=projection(hidden, hidden), k_proj=projection(keys, hidden), v_proj=projection(keys, hidden),
                o_proj=projection(hidden, hidden), gate_proj=projection(inner, hidden),
                up_proj=projection(inner, hidden), down_proj=projection(hidden, inner),
                input_norm=np.ones(hidden, np.float32), post_attn_norm=np.ones(hidden, np.float32),
                attn_sub_norm=np.ones(hidden, np.float32), ffn_sub_norm=np.ones(inner, np.float32),
            )
            for _ in range(SHAPE["layers"])
        ]
        config = its.BitNetConfig(hidden, SHAPE["layers"], SHAPE["heads"], SHAPE["kv_heads"], inner,
                                  SHAPE["vocabulary"], 4096, 1e-5, 5e5)  # fmt: skip
        table = rng.normal(0, 0.02, (SHAPE["vocabulary"], hidden)).astype(np.float32).view(np.uint32)
        small, scales = loader._quantize_embedding_int4((table >> 16).astype(np.uint16))  # of bfloat16
        self.model = its.PackedBitNetModel(config, None, np.ones(hidden, np.float32), layers=layers, embed_int4=small,
                                           embed_scale=scales)  # fmt: skip
        self.runtime, self.name = runtime, f"Litespark {version('litespark-inference')}, int4 head"

    def prompt_s(self, ids):
        state, start = self.runtime.init_state(self.model, t_max=len(ids) + 8), time.perf_counter()
        for at in range(0, len(ids), self.CHUNK):
            logits = self.runtime.forward_prefill(self.model, state, ids[at : at + self.CHUNK])
        seconds = time.perf_counter() - start
        assert logits.shape == (SHAPE["vocabulary"],)
        assert np.isfinite(logits).all()
        return seconds

    def token_s(self, n):
        state = self.runtime.init_state(self.model, t_max=n + 16)
        logits = self.runtime.forward_prefill(self.model, state, [1, 2, 3])
        start = time.perf_counter()
        for _ in range(n):
            logits = self.runtime.forward_one(self.model, state, int(np.argmax(logits)))
        return (time.perf_counter() - start) / n


class PyTorch:
    def __init__(self, threads):
        import torch

        torch.set_num_threads(threads)
        self.torch, (hidden, inner) = torch, (SHAPE["hidden"], SHAPE["intermediate"])
        keys = hidden * SHAPE["kv_heads"] // SHAPE["heads"]
        shapes = [(hidden, hidden), (keys, hidden), (keys, hidden), (hidden, hidden), (inner, hidden), (inner, hidden),
                  (hidden, inner)]  # fmt: skip
        one = [torch.randn(rows, cols, dtype=torch.bfloat16) for rows, cols in shapes]
        self.weights = [[w.clone() for w in one] for _ in range(SHAPE["layers"])]  # each in memory of its own
        self.name = f"PyTorch {torch.__version__}, bfloat16, products only"

    def _run(self, tokens, times):
        inputs = {cols: self.torch.randn(tokens, cols, dtype=self.torch.bfloat16) for cols in (2560, 6912)}
        start = time.perf_counter()
        with self.torch.inference_mode():
            for _ in range(times):
                for layer in self.weights:
                    for w in layer:
                        y = self.torch.nn.functional.linear(inputs[w.shape[1]], w)
        seconds = time.perf_counter() - start
        assert y.shape == (tokens, SHAPE["hidden"])
        return seconds / times

    def prompt_s(self, ids):
        return self._run(len(ids), 1)

    def token_s(self, n):
        return self._run(1, min(n, 8))


PEERS = {"xllamacpp": LlamaCpp, "litespark": Litespark, "torch": PyTorch}


def version(name):
    from importlib import metadata

    return metadata.version(name)


def write_gguf(path):
    """A model of llama.cpp's architecture `llama` with the matrices of the shape: random codes, and real scales."""
    import gguf

    rng, writer = np.random.default_rng(0), gguf.GGUFWriter(path, "llama")
    hidden, inner, words = SHAPE["hidden"], SHAPE["intermediate"], SHAPE["vocabulary"]
    keys = hidden * SHAPE["kv_heads"] // SHAPE["heads"]
    writer.add_context_length(4096)
    writer.add_embedding_length(hidden)
    writer.add_block_count(SHAPE["layers"])
    writer.add_feed_forward_length(inner)
    writer.add_head_count(SHAPE["heads"])
    writer.add_head_count_kv(SHAPE["kv_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(hidden // SHAPE["heads"])
    writer.add_vocab_size(words)
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # byte-level BPE's own letters for bytes
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(letters + [f"{i}" * 2 for i in range(10**6, 10**6 + words - len(letters))])
    writer.add_token_types([1] * words)
    writer.add_token_merges([f"{letters[0]} {letters[1]}"])
    writer.add_eos_token_id(words - 1)
    writer.add_bos_token_id(words - 1)

    def blocks(rows, cols, nbytes, scale_at, kind, name):
        data = rng.integers(0, 256, (rows, cols // 256, nbytes), dtype=np.uint8)
        if kind == gguf.GGMLQuantizationType.TQ2_0:
            data ^= data & data >> 1 & 0b01010101  # no code of 3
        data[..., scale_at : scale_at + 2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
        writer.add_tensor(name, data.reshape(rows, -1), raw_dtype=kind)

    two, six = gguf.GGMLQuantizationType.TQ2_0, gguf.GGMLQuantizationType.Q6_K
    blocks(words, hidden, 210, 208, six, "token_embd.weight")
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    for i in range(SHAPE["layers"]):
        for name, rows, cols in (
            ("attn_q", hidden, hidden), ("attn_k", keys, hidden), ("attn_v", keys, hidden),
            ("attn_output", hidden, hidden), ("ffn_gate", inner, hidden), ("ffn_up", inner, hidden),
            ("ffn_down", hidden, inner),
        ):  # fmt: skip
            blocks(rows, cols, 66, 64, two, f"blk.{i}.{name}.weight")
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{name}.weight", np.ones(hidden, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


TESTS = {
    "pp128": (128, lambda peer: peer.prompt_s(list(range(5, 133)))),
    "pp512": (512, lambda peer: peer.prompt_s(list(range(5, 517)))),
    "tg32": (1, lambda peer: peer.token_s(32)),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-t", "--threads", type=int, default=machine.default_num_threads())
    parser.add_argument("-r", "--repeats", type=int, default=5)
    parser.add_argument("--only", action="append", choices=PEERS, help="peers, repeatable (default: all installed)")
    parser.add_argument("--plot", metavar="FILE", help="draw it, too (needs matplotlib)")
    args = parser.parse_args()
    entrants = [Ours(args.threads)]
    for module in args.only or PEERS:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.suppress(ImportError))
            entrants.append(PEERS[module](args.threads))
            continue
        print(f"left out, not installed: {module}", file=sys.stderr)
    speeds = {(one.name, test): [] for one in entrants for test in TESTS}
    for turn in range(args.repeats + 1):  # the first one warms up
        for test, (tokens, run) in TESTS.items():
            for one in entrants:
                time.sleep(0.2)  # threads of the one before, that still spin
                seconds = run(one)
                if turn:
                    speeds[one.name, test].append(tokens / seconds)
    rows = [["tokens/s, " + str(args.threads) + " threads", *TESTS]]
    rows += [[one.name, *(cell(speeds[one.name, test]) for test in TESTS)] for one in entrants]
    for one in entrants[1:]:
        ratios = [
            statistics.median(a / b for a, b in zip(speeds[entrants[0].name, t], speeds[one.name, t], strict=True))
            for t in TESTS
        ]
        rows.append([f"bitnet / {one.name.split()[0]}", *(f"{ratio:.2f} x" for ratio in ratios)])
    rows.insert(1, ["---"] * (len(TESTS) + 1))
    print("\n".join("| " + " | ".join(row) + " |" for row in rows))
    found = machine.describe()
    print(f"\n{found.cpu}, {found.cpus} CPUs, {found.isa}, {time.strftime('%Y-%m-%d')}")
    if args.plot:
        plot(args.plot, [one.name for one in entrants], speeds)
    return 0


def cell(values):
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def plot(path, names, speeds):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, test in zip(figure.subplots(1, len(TESTS), sharey=True), TESTS, strict=True):
        medians = [statistics.median(speeds[name, test]) for name in names]
        axes.barh([name.split(",")[0] for name in names], medians, color=["#c44", *["#888"] * (len(names) - 1)])
        axes.set_title(f"{test}, tokens/s")
        axes.invert_yaxis()
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
