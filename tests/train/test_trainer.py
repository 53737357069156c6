"""Training: it learns, it goes on exactly, and it ends when it should."""

import json
import time

import pytest

pytest.importorskip("torch", reason="the extra 'train' is not installed", exc_type=ImportError)

import torch

from bitnet.errors import ConfigurationError, TrainingError
from bitnet.train import TrainConfig, Trainer, load_trained, plot_losses
from bitnet.train.optimizer import schedule
from bitnet.train.plot import read_log


def events(trainer, event):
    return [line for line in read_log(trainer.path("log.jsonl")) if line["event"] == event]


def parameters(trainer):
    return {name: one.clone() for name, one in trainer.model.state_dict().items()}


def test_it_learns(trained):
    lines = read_log(f"{trained}/log.jsonl")
    held = [line for line in lines if line["event"] == "evaluate"]
    assert [line["step"] for line in held] == [60, 120]
    assert held[-1]["loss"] < 1.2 < 5 < lines[1]["loss"] + 2
    assert held[-1]["bits_per_character"] < 1
    # The story's rest, with the names and the thing of some story.
    assert held[-1]["samples"]["Ann had a"].startswith("Ann had a red ")
    assert lines[0]["parameters"] == sum(one.numel() for one in load_trained(trained).state.values())


@pytest.mark.parametrize("how", ["adamw", "muon", "two_stage", "mixed"])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(config, tmp_path, texts, how):
    settings = {
        "adamw": {"dropout": 0.2}, "muon": {"optimizer": "muon", "accumulate": 2, "quantize_over": 4},
        "two_stage": {"schedule": "two_stage", "dropout": 0.1},
        "mixed": {"mixed_data": texts[1], "mixed_share": 0.3, "decay_share": 0.2},
    }[how]  # fmt: skip
    whole = Trainer(config(**settings, output=str(tmp_path / "whole")))
    whole.train()
    first = Trainer(config(**settings))
    first.report = lambda line: first.stop() if line["event"] == "progress" and line["step"] == 4 else None
    first.train()
    assert first.step == 4
    second = Trainer(config(**settings), resume=True)
    assert second.step == 4
    second.train()
    assert second.step == whole.step == 6
    assert second.tokens == whole.tokens
    for (name, one), other in zip(parameters(whole).items(), parameters(second).values(), strict=True):
        assert torch.equal(one, other), name
    assert [line["loss"] for line in events(second, "evaluate")] == [line["loss"] for line in events(whole, "evaluate")]


def test_a_seed_makes_a_run(config, tmp_path):
    runs = [Trainer(config(output=str(tmp_path / str(i)), seed=seed, steps=2)) for i, seed in enumerate((1, 1, 2))]
    for run in runs:
        run.train()
    same, again, other = (parameters(run)["model.norm.weight"] for run in runs)
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


def test_accumulated_batches_are_one_large_batch(config, tmp_path):
    once = Trainer(config(rows=8, steps=1, warmup=0, output=str(tmp_path / "once")))
    twice = Trainer(config(rows=4, accumulate=2, steps=1, warmup=0))
    once.train()
    twice.train()
    assert once.tokens == twice.tokens
    for (name, one), other in zip(parameters(once).items(), parameters(twice).values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4, msg=name)


def test_the_gradient_is_clipped(config):
    trainer = Trainer(config(clip=1e-3, steps=1))
    norms = []
    step = trainer.optimizers.step
    trainer.optimizers.step = lambda: (norms.append(gradient_norm(trainer)), step())
    trainer.train()
    assert norms == [pytest.approx(1e-3, rel=1e-3)]


def gradient_norm(trainer):
    return torch.sqrt(sum(one.grad.pow(2).sum() for one in trainer.model.parameters())).item()


@pytest.mark.parametrize(
    ("kind", "rates"),
    [
        ("wsd", [(0, 1, False), (0.7, 1, False), (0.75, 1, True), (0.875, 0.51, True), (1, 0.02, True)]),
        ("two_stage", [(0, 1, False), (0.375, 0.75, False), (0.75, 1 / 3, True), (1, 0.02, True)]),
        ("cosine", [(0, 1, False), (0.5, 0.51, False), (1, 0.02, True)]),
    ],
)
def test_the_schedules(kind, rates):
    for done, rate, is_second in rates:
        found = schedule(kind, done, 0.25)
        assert found == (pytest.approx(rate), is_second), done


def test_the_second_stage_has_no_weight_decay_and_no_mixed_data(config, texts):
    trainer = Trainer(config(mixed_data=texts[1], mixed_share=0.5, steps=4, decay_share=0.5))
    seen = []
    step = trainer.optimizers.step

    def stepped():
        groups = [group for one in trainer.optimizers._optimizers for group in one.param_groups]
        seen.append((max(group["weight_decay"] for group in groups), trainer._mixed.place[:2]))
        step()

    trainer.optimizers.step = stepped
    trainer.train()
    decays, places = zip(*seen, strict=True)
    assert decays == (0.1, 0.1, 0, 0)
    assert places[1] == places[2] == places[3] != (0, 0)


def test_time_is_a_budget(config):
    trainer = Trainer(config(minutes=0.02, steps=None, validation=None, checkpoint_every=10**6))
    start = time.monotonic()
    trainer.train()
    assert 1 < trainer.elapsed < 10
    assert time.monotonic() - start < 60
    assert trainer.done == 1
    assert TrainConfig().steps == 1000


def test_time_in_which_the_process_stood_still_is_not_counted(config):
    trainer = Trainer(config())
    for _ in range(5):
        assert trainer._counted(2.0) == 2.0
    assert trainer._counted(500.0) == 6.0


def test_it_ends_early_when_nothing_gets_better(config):
    trainer = Trainer(config(learning_rate=1e-12, steps=50, evaluate_every=1, patience=3, warmup=0))
    trainer.validation_loss = lambda: (5.0, 1.0)
    trainer.train()
    assert trainer.step == 4  # the first is the best so far
    assert events(trainer, "early stop")[0]["step"] == 4


def test_the_best_model_is_kept(config):
    trainer = Trainer(config(evaluate_every=1, steps=4))
    losses = iter([3.0, 2.0, 2.5, 2.6])
    trainer.validation_loss = lambda: (next(losses), 1.0)
    trainer.train()
    assert trainer.best == 2.0
    assert load_trained(trainer.config.output).step == 2



def test_a_document_sees_no_other(config):
    model = Trainer(config()).model.eval()
    ids = torch.arange(20)[None] + 1
    documents = torch.tensor([[0] * 8 + [1] * 12])
    positions = torch.cat((torch.arange(8), torch.arange(12)))[None]
    together = model(ids, documents, positions)
    torch.testing.assert_close(together[:, :8], model(ids[:, :8]))
    torch.testing.assert_close(together[:, 8:], model(ids[:, 8:]))


def test_dropout_leaves_out_its_share_and_keeps_the_mean(config):
    trainer = Trainer(config(dropout=0.25))
    trainer.model.train()
    ids = torch.zeros(8, 64, dtype=torch.int64)
    noise = trainer.model.noise(ids)
    assert noise.shape == (5, 8, 64, 32)
    assert (noise < 64).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert trainer.model.eval().noise(ids) is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")
def test_compiled_it_is_the_same_function(config, tmp_path):
    plain = Trainer(config(steps=2, output=str(tmp_path / "plain")))
    compiled = Trainer(config(steps=2, compile=True))
    plain.train()
    compiled.train()
    wanted, found = (events(one, "evaluate")[-1]["loss"] for one in (plain, compiled))
    assert found == pytest.approx(wanted, abs=2e-3)


def test_a_full_precision_teacher_and_its_pupil(config, tmp_path):
    teacher = Trainer(config(ternary=False, steps=3, output=str(tmp_path / "teacher")))
    teacher.train()
    layer = teacher.model.model.layers[0].mlp.up_proj
    x = torch.randn(3, 32)
    torch.testing.assert_close(layer(x), x @ layer.weight.T)
    pupil = Trainer(config(teacher=str(tmp_path / "teacher"), tokenizer=str(tmp_path / "teacher" / "tokenizer.json"),
                           distill_weight=1.0, steps=1, warmup=0))  # fmt: skip
    batch = pupil._next_batches(False)[0]
    before = pupil._compute_loss(*batch)
    pupil.model.load_state_dict(teacher.model.state_dict())
    pupil.model.train()
    from bitnet.train import set_quantized

    set_quantized(pupil.model, 0.0)
    assert pupil._compute_loss(*batch).item() < 0.05 * before.item()  # of itself there is nothing to learn



def test_adapters_learn_on_weights_that_stay(config, trained, texts):
    trainer = Trainer(config(start_from=trained, lora_rank=4, data=texts[1], steps=8, learning_rate=1e-2))
    assert trainer.config.hidden_size == 64
    start = load_trained(trained)
    before = trainer.validation_loss()[0]
    trainer.train()
    assert trainer.validation_loss()[0] < before
    for name, one in trainer.model.state_dict().items():
        if not name.endswith((".a", ".b")):
            assert torch.equal(one, start.state[name.replace(".base.", ".")]), name
    again = Trainer(trainer.config, resume=True)
    assert again.step == 8


def test_it_goes_on_from_other_weights(config, trained):
    trainer = Trainer(config(start_from=trained, steps=1))
    assert trainer.validation_loss()[0] == pytest.approx(load_losses(trained), abs=1e-4)


def load_losses(run):
    return [line["loss"] for line in read_log(f"{run}/log.jsonl") if line["event"] == "evaluate"][-1]


def test_the_loss_curve(trained, tmp_path):
    pytest.importorskip("matplotlib")
    file = tmp_path / "loss.svg"
    plot_losses(trained, str(file))
    assert "<svg" in file.read_text()
    with pytest.raises(TrainingError, match="cannot read"):
        plot_losses(str(tmp_path), str(file))


def test_a_log_of_a_run_that_went_on_has_each_step_once(tmp_path):
    log = tmp_path / "log.jsonl"
    lines = [("start", 0), ("step", 10), ("step", 20), ("start", 10), ("step", 20)]
    log.write_text("".join(json.dumps({"event": event, "step": step}) + "\n" for event, step in lines))
    assert [line["step"] for line in read_log(log) if line["event"] == "step"] == [10, 20]


def test_settings_are_checked(texts):
    with pytest.raises(ConfigurationError, match="use 'learning_rate'"):
        TrainConfig(lr=1)
    for wrong in ({"dropout": 1.0}, {"steps": 0}, {"betas": (0.9,)}, {"schedule": "none"}, {"mixed_share": 0.5},
                  {"lora_rank": 4}, {"hidden_size": 30}, {"row_tokens": 1000}, {"minutes": 0}, {"output": ""},
                  {"tokenizer": 3}):  # fmt: skip
        with pytest.raises(ConfigurationError):
            TrainConfig(data=texts[0], **wrong)


def test_settings_from_a_file(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('data = ["a.txt"]\nsteps = 7\nbetas = [0.8, 0.9]\n')
    config = TrainConfig.from_toml(file, steps=8)
    assert (config.data, config.steps, config.betas) == (("a.txt",), 8, (0.8, 0.9))
    file.write_text("steps = ")
    with pytest.raises(TrainingError, match="it is no TOML"):
        TrainConfig.from_toml(file)
    with pytest.raises(TrainingError, match="No such file"):
        TrainConfig.from_toml(tmp_path / "nothing.toml")
