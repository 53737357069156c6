"""BitNet b1.58 with sub-norms and a squared ReLU: microsoft/bitnet-b1.58-2B-4T.

The function of ``BitNetForCausalLM`` in the transformers library (``models/bitnet/modeling_bitnet.py``).
"""

from bitnet.config import ModelConfig


def config(raw):
    """Read a ``config.json``."""
    return ModelConfig.from_hugging_face(
        raw, model_type="bitnet", hidden_act="relu2", rms_norm_eps=1e-5, rope_theta=500000.0,
        max_position_embeddings=2048, tie_word_embeddings=False,
    )  # fmt: skip


def build(b, cfg, attention_norm="self_attn.attn_sub_norm", feed_forward_norm="mlp.ffn_sub_norm"):
    """Write the forward pass."""
    heads, kv_heads = cfg.num_attention_heads * cfg.head_dim, cfg.num_key_value_heads * cfg.head_dim
    hidden, inner = cfg.hidden_size, cfg.intermediate_size
    h = b.embed("model.embed_tokens")
    for i in range(cfg.num_hidden_layers):
        at = f"model.layers.{i}."
        n = b.rms_norm(h, at + "input_layernorm")
        qkv = b.linear(n, at + "self_attn.q_proj", at + "self_attn.k_proj", at + "self_attn.v_proj",
                       rows=(heads, kv_heads, kv_heads))  # fmt: skip
        o = b.attention(qkv, at + "self_attn", layer=i)
        o = b.rms_norm(o, at + attention_norm)
        h = b.add(h, b.linear(o, at + "self_attn.o_proj", rows=(hidden,)), at + "attention_residual")
        n = b.rms_norm(h, at + "post_attention_layernorm")
        f = b.gate(b.linear(n, at + "mlp.gate_proj", at + "mlp.up_proj", rows=(inner, inner)), at + "mlp.act")
        f = b.rms_norm(f, at + feed_forward_norm)
        h = b.add(h, b.linear(f, at + "mlp.down_proj", rows=(hidden,)), at + "mlp_residual")
    b.head(b.rms_norm(h, "model.norm"), "lm_head")
