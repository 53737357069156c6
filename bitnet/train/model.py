"""The family `bitnet` in PyTorch, to be trained: the function of `bitnet/models/bitnet.py`, with its tensors' names.

RMSNorm, rotary positions, grouped heads, squared ReLU, sub-norms before both output projections, tied embeddings.
"""

import math

import torch
from torch import nn
from torch.nn import functional

from bitnet.train.linear import BitLinear

__all__ = ["BitNetForCausalLM"]

BLOCK = 128  # queries whose attention is computed together


class _RMSNorm(nn.Module):
    # In float32 whatever autocast says: nn.RMSNorm would keep the statistics of a bfloat16 input in bfloat16.
    def __init__(self, size, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        x = x.float()
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def _rotated(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


def _attention(q, k, v, mask):
    """Attention of a block of queries at a time to the keys up to its end.

    Not `scaled_dot_product_attention`, whose kernel for CPUs takes twice as long with a mask: it computes the upper
    triangle too, and its bfloat16 products are slower (26 ms against 52 ms for 8 rows of 512 tokens with 4 heads of 64,
    forward and backward, 2 cores of an EPYC 9004).
    """
    length, found = q.shape[2], []
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        scores = (q[:, :, start:end] @ k[:, :, :end].transpose(-1, -2)).float() * q.shape[-1] ** -0.5
        scores = scores.masked_fill(~mask[:, :, start:end, :end], -math.inf)
        found.append(scores.softmax(-1).to(v.dtype) @ v[:, :, :end])
    return torch.cat(found, 2)


class _Attention(nn.Module):
    def __init__(self, config, options):
        super().__init__()
        self.head_dim, self.heads = config.head_dim, config.num_attention_heads
        self.kv_heads, hidden = config.num_key_value_heads, config.hidden_size
        self.q_proj = BitLinear(hidden, self.heads * self.head_dim, **options)
        self.k_proj = BitLinear(hidden, self.kv_heads * self.head_dim, **options)
        self.v_proj = BitLinear(hidden, self.kv_heads * self.head_dim, **options)
        self.o_proj = BitLinear(self.heads * self.head_dim, hidden, **options)
        self.attn_sub_norm = _RMSNorm(self.heads * self.head_dim, config.rms_norm_eps)

    def forward(self, n, cos, sin, mask):
        batch, length = n.shape[:2]
        q, k, v = (
            proj(n).view(batch, length, -1, self.head_dim).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = _rotated(q, cos, sin).to(v.dtype), _rotated(k, cos, sin).to(v.dtype)
        if self.kv_heads != self.heads:
            k, v = (one.repeat_interleave(self.heads // self.kv_heads, dim=1) for one in (k, v))
        o = _attention(q, k, v, mask)
        return self.o_proj(self.attn_sub_norm(o.transpose(1, 2).flatten(2)))


class _MLP(nn.Module):
    def __init__(self, config, options):
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = BitLinear(hidden, inner, **options)
        self.up_proj = BitLinear(hidden, inner, **options)
        self.down_proj = BitLinear(inner, hidden, **options)
        self.ffn_sub_norm = _RMSNorm(inner, config.rms_norm_eps)

    def forward(self, n):
        return self.down_proj(self.ffn_sub_norm(functional.relu(self.gate_proj(n)).pow(2) * self.up_proj(n)))


class _Layer(nn.Module):
    def __init__(self, config, options):
        super().__init__()
        self.input_layernorm = _RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = _Attention(config, options)
        self.post_attention_layernorm = _RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = _MLP(config, options)

    def forward(self, h, cos, sin, mask, kept):
        h = h + kept(self.self_attn(self.input_layernorm(h), cos, sin, mask))
        return h + kept(self.mlp(self.post_attention_layernorm(h)))


class _Decoder(nn.Module):
    def __init__(self, config, options):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(_Layer(config, options) for _ in range(config.num_hidden_layers))
        self.norm = _RMSNorm(config.hidden_size, config.rms_norm_eps)


class BitNetForCausalLM(nn.Module):
    """A BitNet b1.58 language model.

    Parameters
    ----------
    config : ModelConfig
        Of the family ``bitnet``.
    dropout : float
        Of the embedding and of what each sub-layer adds, while training.
    activations : {"int8", "none"}
        As of `BitLinear`.
    rms_norm : bool
        As of `BitLinear`: a norm in front of each projection.
    """

    def __init__(self, config, *, dropout=0.0, activations="int8", rms_norm=False):
        super().__init__()
        self.config, self.dropout = config, dropout
        self.model = _Decoder(config, {"activations": activations, "rms_norm": rms_norm})
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
        angles = torch.outer(
            torch.arange(config.max_position_embeddings, dtype=torch.float64), config.rope_theta**-exponents
        )
        angles = torch.cat((angles, angles), dim=-1)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)
        self._initialize()

    def _initialize(self):
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                std = 0.02
                if name.endswith(("o_proj.weight", "down_proj.weight")):  # they add to the residual stream
                    std /= math.sqrt(2 * self.config.num_hidden_layers)
                nn.init.normal_(parameter, std=std)

    def noise(self, ids):
        """Draw the random bytes of a forward pass with dropout.

        Made outside of what is compiled: inductor draws random numbers on a CPU one by one, and 13 masks took longer
        than all products. Here one draw of 64 bits gives eight bytes.

        Parameters
        ----------
        ids : Tensor, shape (batch, tokens)

        Returns
        -------
        Tensor of uint8, shape (2 * layers + 1, batch, tokens, hidden_size)
            None without dropout.
        """
        if not self.dropout or not self.training:
            return None
        shape = (2 * self.config.num_hidden_layers + 1, *ids.shape, self.config.hidden_size)
        words = torch.empty(math.ceil(math.prod(shape) / 8), dtype=torch.int64, device=ids.device)
        return words.random_(-(2**63), None).view(torch.uint8)[: math.prod(shape)].view(shape)

    def hidden(self, ids, documents=None, positions=None, noise=None):
        """Compute what the head is given.

        Parameters
        ----------
        ids : Tensor of int64, shape (batch, tokens)
        documents : Tensor of int, shape (batch, tokens), optional
            The number of the document each token is of: a token sees its own only. By default they are all of one.
        positions : Tensor of int64, shape (batch, tokens), optional
            In its document, from 0; by default in the row.
        noise : Tensor of uint8, optional
            Of `noise`: with it there is dropout.

        Returns
        -------
        Tensor of float32, shape (batch, tokens, hidden_size)
        """
        length = ids.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()[None, None]
        if documents is not None:
            mask = mask & (documents[:, :, None] == documents[:, None, :])[:, None]
        cos, sin = (
            table[:length] if positions is None else table[positions][:, None] for table in (self.cos, self.sin)
        )
        least = round(256 * self.dropout)  # of a byte that keeps its value
        masks = iter(()) if noise is None else iter(noise)

        def kept(x):
            return x if noise is None else x * (next(masks) >= least) * (256 / (256 - least))

        h = kept(self.model.embed_tokens(ids))
        for layer in self.model.layers:
            h = layer(h, cos, sin, mask, kept)
        return self.model.norm(h)

    def head(self, hidden):
        """Compute logits of hidden states."""
        tied = self.config.tie_word_embeddings
        return functional.linear(hidden, self.model.embed_tokens.weight if tied else self.lm_head.weight)

    def forward(self, ids, documents=None, positions=None, noise=None):
        """Compute logits.

        Parameters
        ----------
        ids, documents, positions, noise
            As of `hidden`.

        Returns
        -------
        Tensor, shape (batch, tokens, vocab_size)
        """
        return self.head(self.hidden(ids, documents, positions, noise))
