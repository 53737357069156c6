"""Gemma 3 with ternary linear layers: microsoft/BitNet-embedding-270M.

The function of ``Gemma3ForCausalLM`` in the transformers library, for text: embeddings are multiplied by the square
root of their width, norms by 1 + their gain, and each half of a block ends with a norm of its own. In most layers a
token sees a window of the positions that end with its own.
"""

from bitnet.config import ModelConfig
from bitnet.errors import ModelLoadError

TIES_WITHOUT_HEAD = True
"""Whether a checkpoint without ``lm_head.weight`` takes the embedding."""


FULL, SLIDING = "full_attention", "sliding_attention"


def config(raw):
    """Read a ``config.json``.

    ``extra["layer_thetas"]`` has the base of the rotary frequencies of each layer, ``extra["layer_windows"]`` how many
    positions a token sees there, its own included, or None for all.
    """
    said = {"hidden_act": raw.get("hidden_activation"), **{key: one for key, one in raw.items() if one is not None}}
    for name in ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"):
        if said.get(name):
            raise ModelLoadError.unsupported("config.json", name, said[name], "absent, null or false")
    layers, window = said.get("num_hidden_layers"), said.get("sliding_window")
    pattern = said.pop("sliding_window_pattern", said.pop("_sliding_window_pattern", 6))
    kinds = said.get("layer_types")
    if kinds is None and isinstance(layers, int) and isinstance(pattern, int) and pattern > 0:
        # Without a window, as in GGUF files, there is one kind.
        kinds = [SLIDING if window is not None and (i + 1) % pattern else FULL for i in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or not set(kinds) <= {FULL, SLIDING}:
        raise ModelLoadError.unsupported("config.json", "layer_types", kinds, f"a list of '{FULL}' and '{SLIDING}'")
    thetas = {FULL: said.pop("rope_theta", 1000000.0), SLIDING: said.pop("rope_local_base_freq", 10000.0)}
    told = said.get("rope_parameters")
    if isinstance(told, dict) and set(told) & {FULL, SLIDING}:  # as Transformers 5 writes it
        del said["rope_parameters"]
        for kind in set(told) & set(kinds):
            if told[kind].get("rope_type", "default") != "default":
                raise ModelLoadError.unsupported("config.json", f"rope_parameters.{kind}", told[kind], "'default'")
            thetas[kind] = told[kind].get("rope_theta", thetas[kind])
    is_window = isinstance(window, int) and not isinstance(window, bool) and window > 0
    if SLIDING in kinds and window is not None and not is_window:
        raise ModelLoadError.unsupported("config.json", "sliding_window", window, "a number of positions above 0")
    return ModelConfig.from_hugging_face(
        {key: one for key, one in said.items() if key != "hidden_activation"}, model_type="gemma3_text",
        hidden_act="gelu_pytorch_tanh", rms_norm_eps=1e-6, rope_theta=float(thetas[FULL]),
        max_position_embeddings=131072, tie_word_embeddings=True, head_dim=256,
        extra={"layer_thetas": [float(thetas[kind]) for kind in kinds],
               "layer_windows": [window if kind == SLIDING else None for kind in kinds]},
    )  # fmt: skip


def build(b, cfg):
    """Write the forward pass."""
    heads, kv_heads = cfg.num_attention_heads * cfg.head_dim, cfg.num_key_value_heads * cfg.head_dim
    hidden, inner = cfg.hidden_size, cfg.intermediate_size
    factor = cfg.extra.get("query_pre_attn_scalar", cfg.head_dim) ** -0.5
    h = b.embed("model.embed_tokens", root_of_width=True)
    for i in range(cfg.num_hidden_layers):
        at = f"model.layers.{i}."
        n = b.rms_norm(h, at + "input_layernorm", plus_one=True)
        qkv = b.linear(n, at + "self_attn.q_proj", at + "self_attn.k_proj", at + "self_attn.v_proj",
                       rows=(heads, kv_heads, kv_heads))  # fmt: skip
        o = b.attention(qkv, at + "self_attn", layer=i, norms=(at + "self_attn.q_norm", at + "self_attn.k_norm"),
                        plus_one=True, factor=factor, theta=cfg.extra["layer_thetas"][i],
                        window=cfg.extra["layer_windows"][i])  # fmt: skip
        o = b.rms_norm(b.linear(o, at + "self_attn.o_proj", rows=(hidden,)), at + "post_attention_layernorm", True)
        h = b.add(h, o, at + "attention_residual")
        n = b.rms_norm(h, at + "pre_feedforward_layernorm", plus_one=True)
        f = b.gate(b.linear(n, at + "mlp.gate_proj", at + "mlp.up_proj", rows=(inner, inner)), at + "mlp.act")
        f = b.rms_norm(b.linear(f, at + "mlp.down_proj", rows=(hidden,)), at + "post_feedforward_layernorm", True)
        h = b.add(h, f, at + "mlp_residual")
    b.head(b.rms_norm(h, "model.norm", plus_one=True), "lm_head")
