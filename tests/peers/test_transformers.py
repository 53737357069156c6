"""Checkpoints against Transformers on PyTorch, in float32: folders that we write, and the families' functions."""

import copy
import warnings

import numpy as np
import pytest
from checkpoints import DATA

import bitnet
from bitnet import EngineConfig, train

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
FLOAT32 = EngineConfig(kv_dtype="float32", head_dtype="float32", num_threads=1)
IDS = np.array([5, 3, 60, 17, 2, 41, 33, 8, 1, 29])


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize("name", ["bitnet-packed-auto", "llama-packed-bitlinear"])
def test_a_folder_that_we_write_has_the_same_logits_there(tmp_path, name):
    # From GGUF, so that all of it is written by us.
    bitnet.convert(DATA / name, tmp_path / "a.gguf", to="gguf")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the layout
        bitnet.convert(tmp_path / "a.gguf", tmp_path / "folder", to="hugging_face")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    prompt = np.load(DATA / name / "prompt.npy")
    with torch.no_grad():
        theirs = model(torch.tensor(prompt)[None]).logits[0].float().numpy()
    with bitnet.load(tmp_path / "folder", FLOAT32) as loaded:
        ours = loaded.infer(prompt)
    known = np.load(DATA / name / "logits_float32.npy")
    assert np.abs(ours - known).max() < 1e-4
    # The folder's numbers are bfloat16, and so is then what Transformers computes; that moves logits by 1 to 2 here. A
    # wrong weight, order of rows or scale moves them by the whole of their spread.
    assert np.abs(theirs - known).mean() < 0.15 * known.std()
    assert (theirs.argmax(1) == known.argmax(1)).mean() > 0.7


class BitLinear(torch.nn.Module):
    """The function of a BitNet layer in float32, with a norm of its own if there is one."""

    def __init__(self, linear, norm=None, eps=1e-6):
        super().__init__()
        w = linear.weight.data
        s = 1 / w.abs().mean().clamp(min=1e-5)
        self.weight, self.norm, self.eps = (w * s).round().clamp(-1, 1) / s, norm, eps

    def forward(self, x):
        if self.norm is not None:
            x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.norm
        a = 127 / x.abs().max(-1, keepdim=True).values.clamp(min=1e-5)
        return torch.nn.functional.linear((x * a).round().clamp(-128, 127) / a, self.weight)


def both(folder, model, **settings):
    with torch.no_grad():
        theirs = model(torch.tensor(IDS)[None]).logits[0].numpy()
    with bitnet.load(folder, FLOAT32.replace(**settings)) as loaded:
        return loaded.infer(IDS), theirs


SIZES = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
         "rms_norm_eps": 1e-6}  # fmt: skip


def configuration(kind):
    if kind == "gemma3":
        return transformers.Gemma3TextConfig(
            **SIZES, head_dim=32, query_pre_attn_scalar=32, sliding_window=5,
            layer_types=["sliding_attention", "full_attention"],
        )  # fmt: skip
    if kind == "qwen3":
        return transformers.Qwen3Config(**SIZES, head_dim=32, rope_theta=1e6, tie_word_embeddings=True)
    return transformers.LlamaConfig(**SIZES, tie_word_embeddings=True)


def random_model(kind):
    torch.manual_seed(3)
    config = configuration(kind)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter.data, -0.5 if kind == "gemma3" else 0.5, 0.5 if kind == "gemma3" else 1.5)
        else:
            torch.nn.init.normal_(parameter.data)
    return config, model


def exchange_layers(model, norms):
    for name, module in list(model.named_modules()):
        if name.endswith("_proj"):
            owner = model.get_submodule(name.rpartition(".")[0])
            setattr(owner, name.rpartition(".")[2], BitLinear(module, norms.get(f"{name}.norm.weight")))


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
def test_float_weights_give_their_logits(tmp_path, kind):
    _, model = random_model(kind)
    model.save_pretrained(tmp_path / "model")
    ours, theirs = both(tmp_path / "model", model, weights="float")
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
def test_the_families_are_theirs_with_the_layers_exchanged(tmp_path, kind):
    config, model = random_model(kind)
    folder = tmp_path / "model"
    norms = {}
    for name, module in list(model.named_modules()):
        if name.endswith("_proj") and kind != "llama":
            norms[f"{name}.norm.weight"] = torch.rand(module.in_features) + 0.5
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != "lm_head.weight"} | norms
    from safetensors.torch import save_file

    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    config.save_pretrained(folder)
    if kind == "llama":  # masters, which only the configuration tells from ordinary weights
        import json

        raw = json.loads((folder / "config.json").read_text())
        raw["quantization_config"] = {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "online",
        }
        (folder / "config.json").write_text(json.dumps(raw))
    exchange_layers(model, norms)
    ours, theirs = both(folder, model)
    away = np.abs(ours - theirs).max(1)
    # One activation near a tie may be rounded the other way, and moves what comes after it.
    assert np.median(away) < 1e-3 * theirs.std()
    assert away.max() < 0.2 * theirs.std()


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
def test_their_models_become_ternary_and_learn(kind):
    _, model = random_model(kind)
    wanted = copy.deepcopy(model)
    exchange_layers(wanted, {})
    assert len(train.replace_linear(model)) == 2 * 7  # the head stays
    ids = torch.tensor(IDS)[None]
    with torch.no_grad():
        ours, theirs = (one(ids).logits[0].numpy() for one in (model, wanted))
    assert np.median(np.abs(ours - theirs).max(1)) < 1e-3 * theirs.std()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        losses.append(model(ids, labels=ids).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] / 4
