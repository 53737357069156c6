"""Writes a program: the operations of a forward pass, with names and shapes, and their scratch memory planned.

A model file calls a `Builder`'s methods in the order of the mathematics; `bitnet._core.program.Program` runs what comes
of it.
"""

from dataclasses import dataclass

import numpy as np

from bitnet._core.fusion import fuse
from bitnet.errors import ModelLoadError

KINDS = ("embed", "rms_norm", "linear", "rope", "attention", "gate", "add", "head", "dense")
"""The kinds of operations."""


@dataclass(frozen=True, eq=False)
class TableInFile:
    """A table that stays in its file: the rows that a run needs are read when it needs them.

    A mapping of the file would do, but brings up to 2 MiB into this process's size for each row, and a file that
    someone cuts short would end the process.

    Parameters
    ----------
    file : object
        Has ``fileno()``; open for as long as the object lives.
    offset : int
        Of the table's first byte.
    shape : tuple of int
        (rows, width).
    dtype : {"float32", "float16", "bfloat16"}
    """

    file: object
    offset: int
    shape: tuple
    dtype: str


class Value:
    """What an operation makes: so many floats for each token.

    Attributes
    ----------
    name : str
        The operation's.
    width : int
    """

    def __init__(self, name, width):
        self.name, self.width = name, width
        self.first = self.last = None  # the operations that write it first and use it last
        self.offset = None             # bytes a token, in the scratch memory


class Builder:
    """Writes a program: each method adds an operation, and returns the value it makes.

    Parameters
    ----------
    weights : object
        Has the model's numbers by name: ``floats(name)`` (float32 array), ``packed(name)`` (a `PackedWeight`),
        ``own_norm(name)`` (the gain and eps of an RMSNorm that a linear layer has of its own, or None),
        ``embedding(name)`` (a table, which may be a `TableInFile`, and its dtype's name) and ``head(name)`` (a table,
        for int8 an `Int8Rows`, and its dtype's name). It may have ``activations``, "float32" where linear layers do not
        quantise them; and ``dense(name)``, a table and its dtype's name of a weight that stays floats, else None.
    config : ModelConfig
    """

    fuse = staticmethod(fuse)  # how weights that multiply the same input become one

    def __init__(self, weights, config):
        self.weights, self.config = weights, config
        self._takes_floats = getattr(weights, "activations", "int8") == "float32"
        self.operations = []

    def _append(self, kind, name, inputs, result, **what):
        index = len(self.operations)
        for value in inputs:
            value.last = index
        if result is not None:
            if result.first is None:
                result.first = index
            result.last = index
        self.operations.append({"kind": kind, "name": name, "inputs": inputs, "result": result, **what})
        return result

    def embed(self, name, root_of_width=False):
        """Look the tokens up in a table, and multiply by the root of its width if that is asked for."""
        table, dtype = self.weights.embedding(name)
        self._fits(name, table.shape, (self.config.vocab_size, self.config.hidden_size))
        factor = np.float32(table.shape[1] ** 0.5 if root_of_width else 1)
        if dtype == "bfloat16":  # as Transformers does, which has the factor in the table's type
            bits = factor.view(np.uint32)
            factor = np.uint32((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)
        return self._append("embed", name, [], Value(name, table.shape[1]), table=table, dtype=dtype,
                            factor=float(factor))

    def rms_norm(self, x, name, plus_one=False):
        """Divide by the root mean square, and multiply by a gain, which may be stored without a 1."""
        return self._norm(x, name, self._gain(name, plus_one), self.config.rms_norm_eps)

    def _gain(self, name, plus_one):
        gain = self.weights.floats(f"{name}.weight")
        return gain + np.float32(1) if plus_one else gain

    def _norm(self, x, name, gain, eps):
        self._fits(f"{name}.weight", gain.shape, (x.width,))
        gain = np.ascontiguousarray(gain, np.float32)
        return self._append("rms_norm", name, [x], Value(name, x.width), gain=gain, eps=eps)

    def linear(self, x, *names, rows):
        """Multiply with ternary weights of so many rows each; the results of several lie side by side."""
        norms = [self.weights.own_norm(name) for name in names]
        dense = getattr(self.weights, "dense", lambda name: None)
        packed, tables = [], [dense(name) for name in names]
        for name, count, table in zip(names, rows, tables, strict=True):
            weight = self.weights.packed(name) if table is None else None
            self._fits(name, (weight.rows, weight.cols) if table is None else table[0].shape, (count, x.width))
            packed.append(weight)
        result = Value("+".join(names), sum(rows))
        if not any(norms) and not any(tables):
            # One product for all: they multiply the same quantised input.
            weight = packed[0] if len(packed) == 1 else self.fuse(packed)
            return self._append("linear", result.name, [x], result, weight=weight, column=0,
                                takes_floats=self._takes_floats)
        column = 0
        for name, weight, table, norm, count in zip(names, packed, tables, norms, rows, strict=True):
            normed = self._norm(x, f"{name}.rms_norm", *norm) if norm else x
            if table is None:
                self._append("linear", name, [normed], result, weight=weight, column=column,
                             takes_floats=self._takes_floats)
            else:
                self._append("dense", name, [normed], result, table=table[0], dtype=table[1], column=column)
            column += count
        return result

    def attention(self, qkv, name, layer, norms=None, plus_one=False, factor=None, theta=None,
                  window=None):
        """Rotate queries and keys, write keys and values to the cache, and attend to it.

        `norms` names the RMSNorms of each head's queries and keys, if there are any; scores are multiplied by `factor`,
        by default ``head_dim ** -0.5``; `theta` is the base of the rotary frequencies, by default the configuration's;
        a token sees the `window` positions that end with its own, by default all.
        """
        c, gains = self.config, {}
        if norms is not None:
            gains = {kind: np.ascontiguousarray(self._gain(norm, plus_one), np.float32)
                     for kind, norm in zip(("gain", "key_gain"), norms, strict=True)}
            for norm, gain in zip(norms, gains.values(), strict=True):
                self._fits(f"{norm}.weight", gain.shape, (c.head_dim,))
        self._fits(name, (qkv.width,), ((c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim,))
        self._append("rope", f"{name}.rope", [qkv], None, layer=layer, eps=c.rms_norm_eps,
                     theta=c.rope_theta if theta is None else theta, **gains)
        return self._append("attention", name, [qkv], Value(name, c.num_attention_heads * c.head_dim), layer=layer,
                            factor=c.head_dim ** -0.5 if factor is None else factor, window=window)

    def gate(self, x, name):
        """``function(first half) * second half``, by the configuration's ``hidden_act``."""
        return self._append("gate", name, [x], Value(name, x.width // 2), function=self.config.hidden_act)

    def add(self, h, x, name):
        """Add to a value in place."""
        self._fits(name, (x.width,), (h.width,))
        return self._append("add", name, [x], h)

    def head(self, x, name):
        """The logits: the last operation."""
        table, dtype = self.weights.head(name)
        self._fits(name, table.shape, (self.config.vocab_size, x.width))
        self._append("head", name, [x], None, table=table, dtype=dtype)

    def _fits(self, name, got, needed):
        if tuple(got) != tuple(needed):
            raise ModelLoadError.shape(name, needed, got)

    def plan(self):
        """Give each value its place in the scratch memory; values whose lives do not meet share one.

        Returns
        -------
        int
            Bytes of scratch memory a token.
        """
        placed, total = [], 0
        values = dict.fromkeys(one["result"] for one in self.operations)
        # The largest first: small ones fit into the holes between them, and large ones between small ones do not.
        for value in sorted((one for one in values if one is not None), key=lambda one: -one.width):
            size = -(-4 * value.width // 64) * 64
            taken = sorted((other.offset, other.offset + other_size) for other, other_size in placed
                           if other.last >= value.first and other.first <= value.last)
            value.offset = 0
            for start, end in taken:
                if value.offset + size <= start:
                    break
                value.offset = max(value.offset, end)
            placed.append((value, size))
            total = max(total, value.offset + size)
        return total
