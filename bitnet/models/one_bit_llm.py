"""BitNet b1.58 as 1bitLLM reproduced it: 1bitLLM/bitnet_b1_58-large, -xl and -3B.

The function of ``BitnetForCausalLM`` (1bitLLM's modeling_bitnet.py, with a small n): that of `bitnet.models.bitnet`
with SiLU and other names of the sub-norms. Its ``model_type`` is ``llama``, so the architecture tells.
"""

from bitnet.config import ModelConfig
from bitnet.models import bitnet

ARCHITECTURE = "BitnetForCausalLM"

TIES_WITHOUT_HEAD = True
"""Whether a checkpoint without ``lm_head.weight`` takes the embedding, whatever it says."""


def config(raw):
    """Read a ``config.json``."""
    return ModelConfig.from_hugging_face(
        raw, model_type="llama", hidden_act="silu", rms_norm_eps=1e-6, rope_theta=10000.0,
        max_position_embeddings=2048, tie_word_embeddings=False,
    )  # fmt: skip


def build(b, cfg):
    """Write the forward pass."""
    bitnet.build(b, cfg, attention_norm="self_attn.inner_attn_ln", feed_forward_norm="mlp.ffn_layernorm")
