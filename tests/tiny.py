"""Small models without files: random weights under a family's names, runs of them, and their function in NumPy."""

import zlib

import numpy as np
import reference

from bitnet._core import packing, quant
from bitnet._core.builder import Builder, TableInFile
from bitnet._core.head import Int8Rows
from bitnet._core.program import Execution, Program
from bitnet.config import ModelConfig
from bitnet.kv_cache import KVCache, Sequence
from bitnet.models import MODELS


def config(**fields):
    """Awkward sizes, two layers, 300 positions: pages and blocks of 64 are crossed."""
    sizes = {
        "vocab_size": 97, "hidden_size": 40, "intermediate_size": 68, "num_hidden_layers": 2, "head_dim": 22,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 300,
    }  # fmt: skip
    return ModelConfig(**{**sizes, **fields})


class Weights:
    """What a `Builder` asks for; `change` maps names to functions of the array that the name would have."""

    def __init__(self, cfg, kind="i2", head_dtype="float32", own_norms=(), change=(), embedding_file=None):
        self.cfg, self.kind, self.head_dtype, self.own_norms = cfg, kind, head_dtype, own_norms
        self.embedding_file = embedding_file
        self.change = dict(change)

    def _rng(self, name):
        return np.random.default_rng(zlib.crc32(name.encode()))

    def _changed(self, name, array):
        return self.change.get(name, lambda same: same)(array)

    def shape(self, name):
        c, last = self.cfg, name.rpartition(".")[2]
        queries, keys = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        return {
            "q_proj": (queries, c.hidden_size), "k_proj": (keys, c.hidden_size), "v_proj": (keys, c.hidden_size),
            "o_proj": (c.hidden_size, queries), "gate_proj": (c.intermediate_size, c.hidden_size),
            "up_proj": (c.intermediate_size, c.hidden_size), "down_proj": (c.hidden_size, c.intermediate_size),
            "q_norm": (c.head_dim,), "k_norm": (c.head_dim,), "attn_sub_norm": (queries,),
            "ffn_sub_norm": (c.intermediate_size,),
        }.get(last, (c.hidden_size,))  # fmt: skip

    def floats(self, name):
        size = self.shape(name.removesuffix(".weight"))
        return self._changed(name, self._rng(name).uniform(0.5, 1.5, size).astype(np.float32))

    def own_norm(self, name):
        if not name.endswith(tuple(self.own_norms)):
            return None
        gain = self._rng(name + ".rms_norm").uniform(0.5, 1.5, self.shape(name)[1])
        return gain.astype(np.float32), 1e-6

    def codes(self, name):
        """The codes and the scale of a layer."""
        rng = self._rng(name)
        codes = rng.integers(-1, 2, self.shape(name)).astype(np.int8)
        return self._changed(name, codes), np.float32(rng.uniform(0.1, 0.3))

    def packed(self, name):
        return packing.pack_codes(*self.codes(name), self.kind)

    def table(self, name):
        table = self._rng(name).normal(0, 1, (self.cfg.vocab_size, self.cfg.hidden_size))
        return self._changed(name, table.astype(np.float32))

    def embedding(self, name):
        if self.embedding_file is not None:
            shape = (self.cfg.vocab_size, self.cfg.hidden_size)
            return TableInFile(self.embedding_file, 3, shape, "float32"), "float32"
        return self.table(name), "float32"

    def head(self, name):
        table, dtype = self.table(name), self.head_dtype
        if dtype == "float32":
            return table, dtype
        if dtype == "float16":
            return table.astype(np.float16).view(np.uint16), dtype
        if dtype == "bfloat16":
            return (table.view(np.uint32) >> 16).astype(np.uint16), dtype
        rows = Int8Rows(*table.shape)
        rows.fill(0, *quant.quantize_activations(table))
        return rows, dtype

    def head_floats(self, name):
        """The head's numbers as they are stored."""
        stored, dtype = self.head(name)
        if dtype == "float16":
            return stored.view(np.float16).astype(np.float32)
        if dtype == "bfloat16":
            return (stored.astype(np.uint32) << 16).view(np.float32)
        return stored if dtype == "float32" else stored.dequantize()


def builder(weights, family="bitnet"):
    b = Builder(weights, weights.cfg)
    MODELS[family].build(b, weights.cfg)
    return b


def program(cfg=None, family="bitnet", kv_dtype="float32", **how):
    return Program(builder(Weights(cfg or config(), **how), family), kv_dtype)


class Runner:
    """Sequences of one program: `step` runs the next tokens of any of them together."""

    def __init__(self, program, max_tokens=64):
        self.program = program
        self.execution = Execution(program, max_tokens)
        self.cache = KVCache(program.page_bytes)

    def sequence(self):
        return Sequence(self.cache)

    def step(self, parts, num_threads=1, rng=None):
        """Run ``[(sequence, ids), ...]``, mixed by `rng`; gives the logits of all tokens of each part."""
        of = np.concatenate([np.full(len(ids), i, np.int32) for i, (_, ids) in enumerate(parts)])
        if rng is not None:
            rng.shuffle(of)
        ids, positions = np.empty(len(of), np.int32), np.empty(len(of), np.int32)
        for i, (sequence, mine) in enumerate(parts):
            sequence.reserve(sequence.length + len(mine))
            ids[of == i] = mine
            positions[of == i] = np.arange(sequence.length, sequence.length + len(mine))
            sequence.length += len(mine)
        tables = [sequence.table for sequence, _ in parts]
        logits = self.execution.run(ids, positions, of, tables, np.arange(len(of), dtype=np.int32), num_threads)
        return [logits[of == i] for i in range(len(parts))]

    def alone(self, ids, chunks=None, num_threads=1):
        """The logits of one sequence, run in chunks; then its pages go back."""
        sequence, found, start = self.sequence(), [], 0
        for chunk in [len(ids)] if chunks is None else chunks:
            found += self.step([(sequence, ids[start : start + chunk])], num_threads)
            start += chunk
        sequence.close()
        return np.concatenate(found)


def forward(weights, ids, family="bitnet", kv_dtype="float32"):
    """The logits in NumPy: linear layers in the core's own order of operations, the rest in float64."""
    c, act = weights.cfg, weights.cfg.hidden_act
    heads, keys, dim, last = c.num_attention_heads, c.num_key_value_heads, c.head_dim, len(ids)

    def norm(x, gain, eps=c.rms_norm_eps):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * gain

    def linear(x, name):
        if weights.own_norm(name):
            x = norm(x, *weights.own_norm(name))
        return reference.matmul(*weights.codes(name), x.astype(np.float32)).astype(np.float64)

    def rotated(x):
        angles = np.arange(last)[:, None] * c.rope_theta ** (-np.arange(0, dim, 2) / dim)
        cosine, sine, (a, b) = np.cos(angles)[:, None], np.sin(angles)[:, None], np.split(x, 2, -1)
        return np.concatenate([a * cosine - b * sine, b * cosine + a * sine], -1)

    def stored(x):
        if kv_dtype == "int8":
            step = np.abs(x).max(-1, keepdims=True) / 127
            kept = np.rint(x / step) * step
        else:
            kept = x.astype(kv_dtype).astype(np.float64)
        return np.repeat(kept, heads // keys, 1)

    h = weights.table("model.embed_tokens")[ids].astype(np.float64)
    for i in range(c.num_hidden_layers):
        at = f"model.layers.{i}."
        n = norm(h, weights.floats(at + "input_layernorm.weight"))
        q, k, v = (linear(n, f"{at}self_attn.{one}_proj").reshape(last, -1, dim) for one in "qkv")
        scores = np.einsum("ahd,bhd->hab", rotated(q), stored(rotated(k))) / np.sqrt(dim)
        scores[:, ~np.tri(last, dtype=bool)] = -np.inf
        power = np.exp(scores - scores.max(-1, keepdims=True))
        o = np.einsum("hab,bhd->ahd", power / power.sum(-1, keepdims=True), stored(v)).reshape(last, -1)
        if family == "bitnet":
            o = norm(o, weights.floats(at + "self_attn.attn_sub_norm.weight"))
        h = h + linear(o, at + "self_attn.o_proj")
        n = norm(h, weights.floats(at + "post_attention_layernorm.weight"))
        gate, up = linear(n, at + "mlp.gate_proj"), linear(n, at + "mlp.up_proj")
        f = (np.maximum(gate, 0) ** 2 if act == "relu2" else gate / (1 + np.exp(-gate))) * up
        if family == "bitnet":
            f = norm(f, weights.floats(at + "mlp.ffn_sub_norm.weight"))
        h = h + linear(f, at + "mlp.down_proj")
    return norm(h, weights.floats("model.norm.weight")) @ weights.head_floats("lm_head").astype(np.float64).T
