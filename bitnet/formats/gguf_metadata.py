"""What GGUF metadata say about a model, as a configuration in the words of a ``config.json``.

The gate's function is not among them. The graph of the architecture ``bitnet`` has SiLU, those of ``bitnet-25`` and
``bitnet-b1.58`` a squared ReLU; but converters have written ``bitnet-b1.58`` for 1bitLLM's models too, which have SiLU
and a SentencePiece vocabulary.

References
----------
.. [1] ggml-org/llama.cpp, gguf-py/gguf/constants.py (the keys).
.. [2] microsoft/BitNet, utils/convert-hf-to-gguf-bitnet.py.
"""

import numpy as np

from bitnet.formats.base import need

__all__ = ["ARCHITECTURES", "GGUFMetadata"]

ARCHITECTURES = {
    "bitnet": ("bitnet", "BitNetForCausalLM", "silu"),
    "bitnet-25": ("bitnet", "BitNetForCausalLM", "relu2"),
    "bitnet-b1.58": ("bitnet", "BitNetForCausalLM", "relu2"),
    "llama": ("llama", "LlamaForCausalLM", "silu"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM", "silu"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM", "gelu_pytorch_tanh"),
}
"""``general.architecture``: the family, Transformers' class, and the gate's function."""


class GGUFMetadata:
    """The metadata of a file, checked when they are asked for.

    Parameters
    ----------
    metadata : dict
    file : str
        Where they come from, for errors.

    Attributes
    ----------
    architecture : str
        A key of `ARCHITECTURES`.
    """

    def __init__(self, metadata, file):
        self.metadata, self.file = metadata, file
        found = metadata.get("general.architecture")
        is_known = isinstance(found, str) and found in ARCHITECTURES
        need(is_known, file, "general.architecture", found, f"one of {', '.join(ARCHITECTURES)}")
        self.architecture = found

    def value(self, key, default=None, kinds=(int,)):
        """A value of the architecture, whose types are checked; arrays of one value are that value."""
        key = key if "." in key and key.partition(".")[0] in ("general", "tokenizer") else f"{self.architecture}.{key}"
        found = self.metadata.get(key, default)
        if isinstance(found, np.ndarray) and found.size and (found == found[0]).all():
            found = found[0].item()
        fits = found is default or type(found) in kinds
        need(fits, self.file, key, found, f"of the type {kinds[0].__name__}, one value for all layers")
        return found

    def _needed(self, key, kinds=(int,)):
        found = self.value(key, None, kinds)
        need(found is not None, self.file, f"{self.architecture}.{key}", None, "there")
        return found

    def _real(self, key, default):
        found = self.value(key, default, (float, int))
        # As the shortest decimal that is this float32: 1e-05 and not 9.999999747378752e-06.
        return float(str(np.float32(found))) if isinstance(found, float) else found

    def config(self, shapes, notes):
        """Make a configuration in the words of a ``config.json``.

        Parameters
        ----------
        shapes : dict of str to tuple
            Of the tensors, by our names.
        notes : list of str
            Gets a sentence for what was not certain.

        Returns
        -------
        dict
        """
        model_type, architecture, hidden_act = ARCHITECTURES[self.architecture]
        table = shapes.get("model.embed_tokens.weight")
        hidden, heads = self._needed("embedding_length"), self._needed("attention.head_count")
        need(heads > 0, self.file, f"{self.architecture}.attention.head_count", heads, "above 0")
        tokens = self.metadata.get("tokenizer.ggml.tokens", ())
        vocabulary = table[0] if table else self.value("vocab_size", len(tokens))
        head_dim = self.value("attention.key_length", self.value("rope.dimension_count", hidden // heads))
        config = {
            "model_type": model_type, "architectures": [architecture], "vocab_size": vocabulary, "hidden_size": hidden,
            "intermediate_size": self._needed("feed_forward_length"), "num_hidden_layers": self._needed("block_count"),
            "num_attention_heads": heads, "num_key_value_heads": self.value("attention.head_count_kv", heads),
            "head_dim": head_dim, "hidden_act": self._gate(hidden_act, notes),
            "rms_norm_eps": self._real("attention.layer_norm_rms_epsilon", None) or 1e-5,
            "rope_theta": self._real("rope.freq_base", 10000.0),
            "max_position_embeddings": self._needed("context_length"),
            # bitnet.cpp's own graphs take the embedding as the head, even if there is an output.weight.
            "tie_word_embeddings": self.architecture.startswith("bitnet") or "lm_head.weight" not in shapes,
        }  # fmt: skip
        rotated = self.value("rope.dimension_count", head_dim)
        need(rotated == head_dim, self.file, f"{self.architecture}.rope.dimension_count", rotated,
             f"{head_dim}, the width of a head")  # fmt: skip
        need(self.value("attention.value_length", head_dim) == head_dim, self.file,
             f"{self.architecture}.attention.value_length", self.value("attention.value_length", head_dim),
             f"{head_dim}, the width of a head")  # fmt: skip
        scaling, factor = self.value("rope.scaling.type", "none", (str,)), self._real("rope.scaling.factor", 1.0)
        if "rope_freqs.weight" in shapes:
            config["rope_scaling"] = {"rope_type": "llama3"}
        elif scaling != "none" and not (scaling == "linear" and factor == 1):
            config["rope_scaling"] = {"rope_type": scaling, "factor": factor}
        if any(name.endswith("_proj.bias") for name in shapes):
            config["attention_bias"] = True
        if self.architecture == "gemma3":
            config["query_pre_attn_scalar"] = head_dim
            if window := self.value("attention.sliding_window", 0):
                config["sliding_window"] = window
        for key, name in (("bos", "bos_token_id"), ("eos", "eos_token_id")):
            id = self.value(f"tokenizer.ggml.{key}_token_id", None)
            if id is not None and id < vocabulary:
                config[name] = id
        return config

    def _gate(self, named, notes):
        vocabulary = self.metadata.get("tokenizer.ggml.model")
        if named == "relu2" and vocabulary == "llama":
            notes.append(
                f"architecture '{self.architecture}' means a squared ReLU, but a SentencePiece vocabulary is what "
                "1bitLLM's models have, whose gate is SiLU: hidden_act is taken for 'silu'; set it to 'relu2' if it is "
                "not"
            )
            return "silu"
        return named
