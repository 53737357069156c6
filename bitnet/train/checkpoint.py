"""A run's files, read back: models to go on from, to learn from, or to export."""

import os

import numpy as np
import torch

from bitnet._core import packing
from bitnet.errors import TrainingError
from bitnet.formats import open_checkpoint
from bitnet.models import family
from bitnet.train.config import TrainConfig
from bitnet.train.linear import set_quantized
from bitnet.train.lora import add_lora
from bitnet.train.model import BitNetForCausalLM

__all__ = ["Trained", "build", "load_trained", "read_state"]

BEST, LAST, TOKENIZER = "best.pt", "last.pt", "tokenizer.json"
# What the weights are made for; a run that starts from them takes it over.
SHAPE = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads", "context", "rope_theta", "rms_norm_eps", "input_norm")  # fmt: skip


class Trained:
    """A model that was trained.

    Attributes
    ----------
    config : TrainConfig
        Its shape, at least.
    state : dict of str to Tensor
        Its parameters.
    tokenizer : str
        The path of its ``tokenizer.json``.
    step : int
    """

    def __init__(self, path, config, state, tokenizer, step):
        self.path, self.config, self.state, self.tokenizer, self.step = path, config, state, tokenizer, step

    @property
    def shape(self):
        """The fields of the configuration that its weights were made for."""
        return {name: getattr(self.config, name) for name in SHAPE}

    def model(self):
        """Build the model.

        Returns
        -------
        BitNetForCausalLM
        """
        model = build(self.config, self.config.vocab_size)
        model.load_state_dict(self.state)
        if not self.config.ternary:
            set_quantized(model, 0.0)
        elif self.step < self.config.quantize_over:
            set_quantized(model, self.step / self.config.quantize_over)
        return model


def build(config, vocab_size):
    """Make the model that a configuration describes, with its adapters."""
    model = BitNetForCausalLM(
        config.model_config(vocab_size), dropout=config.dropout, activations=config.activations,
        rms_norm=config.input_norm,
    )  # fmt: skip
    if config.lora_rank:
        add_lora(model, config.lora_rank, config.lora_alpha)
    return model


def read_state(path):
    """Read a file that `Trainer.save` wrote; nothing in it is run.

    Parameters
    ----------
    path : str

    Returns
    -------
    dict
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise TrainingError.unreadable(path, error.strerror or error) from error
    except Exception as error:
        why = f"it is no checkpoint of a training run ({type(error).__name__})"
        raise TrainingError.unreadable(path, why) from error


def load_trained(path):
    """Read what was trained.

    Parameters
    ----------
    path : str
        The folder of a run, whose best model is taken, or its last; a ``.pt`` file in it; or a folder in the Hugging
        Face format, of the family ``bitnet``.

    Returns
    -------
    Trained

    Raises
    ------
    TrainingError
        If there is no such thing.
    """
    path = os.fspath(path)
    if os.path.isdir(path) and os.path.exists(os.path.join(path, "config.json")):
        return _from_hugging_face(path)
    file = path
    if os.path.isdir(path):
        names = [name for name in (BEST, LAST) if os.path.exists(os.path.join(path, name))]
        if not names:
            raise TrainingError.unusable(path, f"it has neither '{BEST}' nor '{LAST}' of a training run")
        file = os.path.join(path, names[0])
    state = read_state(file)
    try:
        config, parameters, step = TrainConfig.from_dict(state["config"]), state["model"], state["step"]
    except (KeyError, TypeError) as error:
        raise TrainingError.unreadable(file, f"it is no checkpoint of a training run ({error})") from error
    tokenizer = os.path.join(os.path.dirname(file), TOKENIZER)
    if not os.path.exists(tokenizer):
        raise TrainingError.unusable(file, f"there is no '{TOKENIZER}' beside it; copy that of its run there")
    return Trained(file, config, parameters, tokenizer, step)


def _from_hugging_face(path):
    with open_checkpoint(path) as checkpoint:
        raw = checkpoint.config
        read = family(raw, path).config(raw)
        is_known = read.model_type == "bitnet" and read.tie_word_embeddings and read.hidden_act == "relu2"
        is_known &= read.head_dim * read.num_attention_heads == read.hidden_size and "rope_scaling" not in read.extra
        if not is_known:
            needed = "only the family 'bitnet' with tied embeddings, as TrainConfig describes it, can be trained on"
            raise TrainingError.unusable(path, needed)
        if checkpoint.tokenizer_path is None:
            raise TrainingError.unusable(path, f"it has no '{TOKENIZER}'")
        quantization = raw.get("quantization_config") or {}
        fields = {name: getattr(read, name) for name in SHAPE if name not in ("context", "input_norm")}
        config = TrainConfig(**fields, context=read.max_position_embeddings,
                             input_norm=bool(quantization.get("use_rms_norm")))  # fmt: skip
        state = {}
        for name in checkpoint.names():
            layer = name.removesuffix(".weight")
            if name.endswith(".weight_scale"):
                continue
            is_ternary = layer != name and "proj" in layer.rpartition(".")[2] and checkpoint.is_quantized(layer)
            array = _masters(checkpoint.ternary(layer)) if is_ternary else checkpoint.floats(name)
            state[name] = torch.from_numpy(np.array(array, np.float32))
    return Trained(path, config, state, os.path.join(path, TOKENIZER), 0)


def _masters(stored):
    """Masters that quantise to the very codes and the scale that are stored."""
    if stored.kind != "packed":
        return stored.floats()
    codes = packing.pack_hugging_face_bytes(stored.data, 1.0, "i2").unpack().astype(np.float32)
    # The mean of |masters| is to be the scale; of the codes alone it is the share of those that are not 0.
    share = np.abs(codes).mean(dtype=np.float64)
    return codes * np.float32(stored.scale / max(share, 1e-9))
