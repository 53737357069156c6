"""Qwen3 with ternary linear layers: microsoft/BitNet-embedding-0.6B, prism-ml/Ternary-Bonsai.

The function of ``Qwen3ForCausalLM`` in the transformers library: that of Llama with an RMSNorm of each head's queries
and keys before they are rotated. BitNet-embedding has an RMSNorm in front of each projection, too (``X.norm.weight``).
"""

from bitnet.config import ModelConfig

TIES_WITHOUT_HEAD = True
"""Whether a checkpoint without ``lm_head.weight`` takes the embedding: those that embed texts need no head."""


def config(raw):
    """Read a ``config.json``."""
    return ModelConfig.from_hugging_face(
        raw, model_type="qwen3", hidden_act="silu", rms_norm_eps=1e-6, rope_theta=1000000.0,
        max_position_embeddings=32768, tie_word_embeddings=False, head_dim=128,
    )  # fmt: skip


def build(b, cfg):
    """Write the forward pass."""
    heads, kv_heads = cfg.num_attention_heads * cfg.head_dim, cfg.num_key_value_heads * cfg.head_dim
    hidden, inner = cfg.hidden_size, cfg.intermediate_size
    h = b.embed("model.embed_tokens")
    for i in range(cfg.num_hidden_layers):
        at = f"model.layers.{i}."
        n = b.rms_norm(h, at + "input_layernorm")
        qkv = b.linear(n, at + "self_attn.q_proj", at + "self_attn.k_proj", at + "self_attn.v_proj",
                       rows=(heads, kv_heads, kv_heads))  # fmt: skip
        o = b.attention(qkv, at + "self_attn", layer=i, norms=(at + "self_attn.q_norm", at + "self_attn.k_norm"))
        h = b.add(h, b.linear(o, at + "self_attn.o_proj", rows=(hidden,)), at + "attention_residual")
        n = b.rms_norm(h, at + "post_attention_layernorm")
        f = b.gate(b.linear(n, at + "mlp.gate_proj", at + "mlp.up_proj", rows=(inner, inner)), at + "mlp.act")
        h = b.add(h, b.linear(f, at + "mlp.down_proj", rows=(hidden,)), at + "mlp_residual")
    b.head(b.rms_norm(h, "model.norm"), "lm_head")
