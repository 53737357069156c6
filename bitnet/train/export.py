"""From a trained checkpoint to the folder that the runtime and transformers read."""

import contextlib
import json
import os
import shutil

import torch

from bitnet.errors import ConfigurationError, TrainingError
from bitnet.train.checkpoint import load_trained
from bitnet.train.data import END_OF_TEXT
from bitnet.train.linear import BitLinear, weight_codes
from bitnet.train.lora import merge_lora as merge_adapters

__all__ = ["export_checkpoint", "pack_rows"]

DTYPES = ("bfloat16", "float32")


def pack_rows(codes):
    """Pack ternary codes as transformers does: byte r of a column has the rows r, r + rows / 4, ... from bit 0 on.

    Parameters
    ----------
    codes : Tensor, shape (rows, cols)
        -1, 0 or 1; rows is a multiple of 4.

    Returns
    -------
    Tensor of uint8, shape (rows // 4, cols)
    """
    quarters = (codes + 1).to(torch.uint8).chunk(4)
    return quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6


def export_checkpoint(source, folder, *, dtype="bfloat16", merge_lora=False):
    """Write a trained model as a Hugging Face folder: packed ternary weights, and floats for the rest.

    Parameters
    ----------
    source : str
        As of `load_trained`.
    folder : str
        To be made; it must not exist, or be empty.
    dtype : {"bfloat16", "float32"}
        Of all that is not ternary: embedding, which is the head too, and norms; transformers wants them alike. Scales
        are float32 in any case.
    merge_lora : bool
        Whether to quantise adapters into the ternary weights, which changes the function a little.

    Returns
    -------
    int
        Bytes of the weights.

    Raises
    ------
    TrainingError
        If the model is one whose function the runtime does not compute.
    """
    from safetensors.torch import save_file

    if dtype not in DTYPES:
        raise ConfigurationError.choice("dtype", dtype, DTYPES)
    trained = load_trained(source)
    config, model = trained.config, trained.model()
    if os.path.exists(folder) and (not os.path.isdir(folder) or os.listdir(folder)):
        raise TrainingError.not_the_runtimes(source, f"'{folder}' is there already; give a new folder")
    if config.lora_rank and not merge_lora:
        raise TrainingError.not_the_runtimes(source, "the runtime has no adapters; merge_lora quantises them into "
                                             "the weights")  # fmt: skip
    if config.activations != "int8":
        raise TrainingError.not_the_runtimes(source, "it was trained without 8-bit activations, and the runtime "
                                             "always has them")  # fmt: skip
    if not config.ternary or trained.step < config.quantize_over:
        raise TrainingError.not_the_runtimes(source, "its weights are not ternary yet")
    merge_adapters(model)
    tensors = _tensors(source, model, getattr(torch, dtype))
    import tokenizers

    end = tokenizers.Tokenizer.from_file(trained.tokenizer).token_to_id(END_OF_TEXT)
    written = config.hugging_face(config.vocab_size) | {"bos_token_id": end, "eos_token_id": end}
    written["torch_dtype"] = dtype
    written["quantization_config"] = {
        "quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline",
        "modules_to_not_convert": None,
    }  # fmt: skip
    if config.input_norm:
        written["quantization_config"] |= {"use_rms_norm": True, "rms_norm_eps": 1e-6}
    part = os.fspath(folder).rstrip(os.sep) + ".part"
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(part)
    os.makedirs(part)
    save_file(tensors, os.path.join(part, "model.safetensors"), metadata={"format": "pt"})
    shutil.copyfile(trained.tokenizer, os.path.join(part, "tokenizer.json"))
    for name, content in {
        "config.json": written,
        "generation_config.json": {"bos_token_id": end, "eos_token_id": end},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT,
            "model_max_length": config.context, "clean_up_tokenization_spaces": False,
        },
    }.items():  # fmt: skip
        with open(os.path.join(part, name), "w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=2) + "\n")
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(folder)
    os.rename(part, folder)
    return sum(one.nbytes for one in tensors.values())


def _tensors(source, model, dtype):
    found = {}
    ternary = {f"{name}.weight": one for name, one in model.named_modules() if isinstance(one, BitLinear)}
    for name, parameter in model.state_dict().items():
        if name in ternary:
            if len(parameter) % 4:
                raise TrainingError.not_the_runtimes(source, f"'{name}' has {len(parameter)} rows, no multiple of 4")
            codes, s = weight_codes(parameter)
            found[name] = pack_rows(codes.detach())
            found[f"{name}_scale"] = (1 / s).reshape(1)
        else:
            found[name] = parameter.to(dtype)
    return {name: one.contiguous() for name, one in found.items()}
