"""Every ``raise`` of `bitnet.train` that needs PyTorch is reached, and its message read (see ``test_raises.py``)."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the extra 'train' is not installed", exc_type=ImportError)

import tokenizers
import torch
from checkpoints import DATA
from test_raises import PACKAGE, outcome, python_sites

from bitnet.train import BitLinear, Trainer, export_checkpoint, load_trained, plot_losses
from bitnet.train.data import train_tokenizer

FILES = sorted(path for path in (PACKAGE / "train").glob("*.py") if path.stem not in ("__init__", "config"))
SITES = [site for path in FILES
         for site in python_sites(path.relative_to(PACKAGE).as_posix(), path.read_text(encoding="utf-8"))]  # fmt: skip


class Setting:
    """What the rows need: a folder, and runs in it."""

    def __init__(self, config, trained, folder):
        self.config, self.trained, self.folder = config, trained, folder

    def new(self, **settings):
        return Trainer(self.config(**settings))

    def exported(self, target="model", dtype="bfloat16", **settings):
        run = self.new(steps=1, **settings)
        run.train()
        export_checkpoint(run.config.output, str(self.folder / target), dtype=dtype)

    def file(self, name, content=b"no checkpoint"):
        (self.folder / name).parent.mkdir(exist_ok=True)
        (self.folder / name).write_bytes(content)
        return str(self.folder / name)

    def without_end(self):
        path = self.folder / "tokenizer.json"
        tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(path))
        return str(path)

    def resumed(self):
        self.new(steps=1).train()
        Trainer(self.config(hidden_size=64), resume=True)

    def other_state(self):
        torch.save({"a": 1}, self.folder / "best.pt")
        load_trained(self.folder)

    def moved(self):
        return self.file("best.pt", Path(self.trained, "best.pt").read_bytes())

    def diverged(self):
        run = self.new()
        run.model.model.norm.weight.data.fill_(float("nan"))
        run.train()

    def started_wrongly(self):
        state = torch.load(Path(self.trained, "best.pt"), weights_only=True)
        state["model"]["model.extra.weight"] = torch.zeros(1)
        (self.folder / "start").mkdir()
        torch.save(state, self.folder / "start" / "best.pt")
        Path(self.folder, "start", "tokenizer.json").write_bytes(Path(self.trained, "tokenizer.json").read_bytes())
        self.new(start_from=str(self.folder / "start"))

    def without(self, module, trigger, holder=sys.modules):
        with pytest.MonkeyPatch.context() as patch:
            if holder is sys.modules:
                patch.setitem(holder, module, None)
            else:
                patch.delattr(holder, module)
            trigger()


ROWS = [
    ("train/data.py", "TrainingError.unreadable", lambda s: s.new(data="nothing.txt"),
     "cannot read 'nothing.txt': No such file or directory"),
    ("train/data.py", "TrainingError.unusable", lambda s: s.new(data="/dev/null"),
     "cannot use '/dev/null': it has no text"),
    ("train/data.py", "ConfigurationError.value", lambda s: train_tokenizer(["a"], 256),
     "train_tokenizer.vocab_size is 256; it must be 257 or more: the bytes and an end"),
    ("train/linear.py", "ConfigurationError.choice", lambda s: BitLinear(4, 4, activations="int4"),
     "activations is 'int4'; it must be one of 'int8', 'none'"),
    ("train/optimizer.py", "ConfigurationError.conflict",
     lambda s: s.without("Muon", lambda: s.new(optimizer="muon"), torch.optim),
     "TrainConfig: optimizer 'muon' needs PyTorch 2.9 or newer"),
    ("train/checkpoint.py", "TrainingError.unreadable", lambda s: load_trained("nothing.pt"),
     "cannot read 'nothing.pt': No such file or directory"),
    ("train/checkpoint.py", "TrainingError.unreadable", lambda s: load_trained(s.file("a.pt")),
     "cannot read '.../a.pt': it is no checkpoint of a training run (UnpicklingError)"),
    ("train/checkpoint.py", "TrainingError.unusable", lambda s: load_trained(s.folder),
     "cannot use '...': it has neither 'best.pt' nor 'last.pt' of a training run"),
    ("train/checkpoint.py", "TrainingError.unreadable", lambda s: s.other_state(),
     "cannot read '.../best.pt': it is no checkpoint of a training run ('config')"),
    ("train/checkpoint.py", "TrainingError.unusable", lambda s: load_trained(s.moved()),
     "cannot use '.../best.pt': there is no 'tokenizer.json' beside it; copy that of its run there"),
    ("train/checkpoint.py", "TrainingError.unusable", lambda s: load_trained(DATA / "llama-packed-bitlinear"),
     f"cannot use '{DATA / 'llama-packed-bitlinear'}': only the family 'bitnet' with tied embeddings, as TrainConfig "
     "describes it, can be trained on"),
    ("train/checkpoint.py", "TrainingError.unusable", lambda s: load_trained(DATA / "bitnet-packed-auto"),
     f"cannot use '{DATA / 'bitnet-packed-auto'}': it has no 'tokenizer.json'"),
    ("train/export.py", "ConfigurationError.choice", lambda s: s.exported(dtype="int4"),
     "dtype is 'int4'; it must be one of 'bfloat16', 'float32'"),
    ("train/export.py", "TrainingError.not_the_runtimes", lambda s: s.exported(Path(s.file("a/b")).parent),
     "cannot export '.../run': '.../a' is there already; give a new folder"),
    ("train/export.py", "TrainingError.not_the_runtimes", lambda s: s.exported(start_from=s.trained, lora_rank=2),
     "cannot export '.../run': the runtime has no adapters; merge_lora quantises them into the weights"),
    ("train/export.py", "TrainingError.not_the_runtimes", lambda s: s.exported(activations="none"),
     "cannot export '.../run': it was trained without 8-bit activations, and the runtime always has them"),
    ("train/export.py", "TrainingError.not_the_runtimes", lambda s: s.exported(ternary=False),
     "cannot export '.../run': its weights are not ternary yet"),
    ("train/export.py", "TrainingError.not_the_runtimes", lambda s: s.exported(intermediate_size=66),
     "cannot export '.../run': 'model.layers.0.mlp.gate_proj.weight' has 66 rows, no multiple of 4"),
    ("train/plot.py", "TrainingError.unreadable", lambda s: plot_losses(str(s.folder), "loss.svg"),
     "cannot read '.../log.jsonl': No such file or directory"),
    ("train/plot.py", "DeviceError.missing_extra",
     lambda s: s.without("matplotlib", lambda: plot_losses(s.trained, "loss.svg")),
     "'matplotlib' is not installed; run: pip install 'bitnet-runtime[train]'"),
    ("train/trainer.py", "ConfigurationError.value", lambda s: s.new(data=()),
     "TrainConfig.data is []; it must be one text file or more"),
    ("train/trainer.py", "TrainingError.unusable", lambda s: s.new(output=s.trained),
     "cannot use '.../trained': a run is there already; resume it, or give another folder"),
    ("train/trainer.py", "TrainingError.unreadable", lambda s: s.new(tokenizer=s.file("t.json", b"{}")),
     "cannot read '.../t.json': Model missing. at line 1 column 2"),
    ("train/trainer.py", "TrainingError.unusable", lambda s: s.new(tokenizer=s.without_end()),
     "cannot use '.../tokenizer.json': it has no token '<|endoftext|>', which ends a text"),
    ("train/trainer.py", "TrainingError.unusable", lambda s: s.started_wrongly(),
     "cannot use '.../start/best.pt': its weights do not fit: 'model.extra.weight'"),
    ("train/trainer.py", "TrainingError.unusable", lambda s: s.new(teacher=s.trained),
     "cannot use '.../trained/best.pt': as a teacher it needs the same tokenizer, and has 320 tokens instead of 300"),
    ("train/trainer.py", "TrainingError.diverged", lambda s: s.diverged(),
     "the loss is NaN at step 0; go on from the last checkpoint with a lower learning rate"),
    ("train/trainer.py", "TrainingError.unusable", lambda s: s.resumed(),
     "cannot use '.../run/last.pt': this run cannot go on from it: Error(s) in loading state_dict"),
    ("train/trainer.py", "ConfigurationError.value", lambda s: s.new(device="abacus"),
     "TrainConfig.device is 'abacus'; it must be a device that PyTorch has here"),
]  # fmt: skip


@pytest.fixture(scope="module")
def reached():
    return []


@pytest.mark.parametrize(("file", "raised", "trigger", "sentence"), ROWS, ids=[f"{row[0]}-{row[1]}" for row in ROWS])
def test_the_sentence_is_said(config, trained, tmp_path, reached, file, raised, trigger, sentence):
    found = outcome(lambda: trigger(Setting(config, trained, tmp_path)))
    said = found.sentence.replace(str(tmp_path), "...").replace(trained, ".../trained")
    assert said.startswith(sentence)
    [site] = [one for one in SITES if one.file == found.file and one.first <= found.line <= one.last]
    assert (site.file, site.raised) == (file, raised)
    assert site not in reached, "an earlier row has reached this line already"
    reached.append(site)


def test_every_raise_has_a_row(reached):
    if not reached:
        pytest.skip("the rows were not run")
    assert [site for site in SITES if site not in reached] == []
