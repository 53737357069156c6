"""The training loop: steps, evaluation, samples, checkpoints, log.

A checkpoint holds all that the rest of the run depends on, the places in the data and the states of the generators
included, so that a run that was stopped continues as if it had not been.
"""

import json
import math
import os
import statistics
import time

import numpy as np
import torch

from bitnet.errors import ConfigurationError, TrainingError
from bitnet.train.checkpoint import BEST, LAST, TOKENIZER, build, load_trained, read_state
from bitnet.train.data import END_OF_TEXT, Rows, encode_documents, pack, read_documents, train_tokenizer
from bitnet.train.linear import set_quantized
from bitnet.train.losses import IGNORED, cross_entropy, distillation
from bitnet.train.optimizer import Optimizers, schedule

__all__ = ["Trainer"]

LOG = "log.jsonl"
LOG_EVERY = 10  # steps
SAMPLE_TOKENS = 60


class Trainer:
    """A training run.

    Parameters
    ----------
    config : TrainConfig
    resume : bool
        Whether to go on where the run in ``config.output`` stopped. Its weights must fit; schedule, rates and data may
        be others than before.
    report : callable, optional
        Called with each line of the log, a dict, and with ``{"event": "progress", ...}`` after each step.

    Attributes
    ----------
    config : TrainConfig
        With the vocabulary and, where there is a start, the shape that came with it.
    model : BitNetForCausalLM
    tokenizer : tokenizers.Tokenizer
    step, tokens : int
        What is done.
    elapsed : float
        Seconds of training, without those in which the process was stopped.
    best : float
        The lowest validation loss so far, in nats a token.

    Notes
    -----
    One thread may train; `stop` may be called from any, also from a signal handler.
    """

    def __init__(self, config, *, resume=False, report=None):
        self.report = report
        if config.threads:
            torch.set_num_threads(config.threads)
        self.device = _device(config.device)
        self.dtype = _dtype(config.dtype, self.device)
        if not config.data:
            raise ConfigurationError.value("TrainConfig", "data", list(config.data), "one text file or more")
        start = load_trained(config.start_from) if config.start_from else None
        if start:
            config = config.replace(**start.shape, tokenizer=config.tokenizer or start.tokenizer)
        if not resume and os.path.exists(os.path.join(config.output, LAST)):
            raise TrainingError.unusable(config.output, "a run is there already; resume it, or give another folder")
        os.makedirs(config.output, exist_ok=True)
        self._load_data(config)
        self.config = config = config.replace(vocab_size=self.tokenizer.get_vocab_size())
        torch.manual_seed(config.seed)
        self.model = build(config, config.vocab_size).to(self.device)
        if start:
            self._start_from(start)
        if not config.ternary:
            set_quantized(self.model, 0.0)
        self._teacher = self._load_teacher()
        self.optimizers = Optimizers(self.model, config)
        self.step, self.tokens, self.elapsed = 0, 0, 0.0
        self.best, self._worse = math.inf, 0
        self._durations, self._log, self._is_stopping = [], None, False
        self._loss = torch.compile(self._compute_loss, dynamic=False) if config.compile else self._compute_loss
        if resume:
            self.restore(self.path(LAST))

    def path(self, name):
        """Where a file of this run lies."""
        return os.path.join(self.config.output, name)

    def stop(self):
        """End the training after the step that is under way; its state is saved."""
        self._is_stopping = True

    # ---- what training begins with

    def _load_data(self, config):
        import tokenizers

        texts = [one for path in config.data for one in read_documents(path)]
        mixed = [one for path in config.mixed_data for one in read_documents(path)]
        own = os.path.join(config.output, TOKENIZER)
        name = config.tokenizer or own
        if config.tokenizer or os.path.exists(own):
            try:
                self.tokenizer = tokenizers.Tokenizer.from_file(name)
            except Exception as error:
                raise TrainingError.unreadable(name, error) from error
            if self.tokenizer.token_to_id(END_OF_TEXT) is None:
                raise TrainingError.unusable(name, f"it has no token '{END_OF_TEXT}', which ends a text")
        else:
            self.tokenizer = train_tokenizer(texts + mixed, config.vocab_size)
        self.tokenizer.save(own)
        length = config.row_tokens or config.context
        self._rows = Rows(encode_documents(self.tokenizer, texts, length), length, config.seed)
        self._mixed = Rows(encode_documents(self.tokenizer, mixed, length), length, config.seed) if mixed else None
        self._validation = None
        if config.validation:
            held = read_documents(config.validation)
            self._validation = pack(encode_documents(self.tokenizer, held, config.context), config.context)
            self._validation_characters = sum(map(len, held))

    def _start_from(self, start):
        names = self.model.state_dict()
        state = start.state
        if self.config.lora_rank and not start.config.lora_rank:  # the weights are inside of the adapters' layers
            state = {name if name in names else f"{name.removesuffix('.weight')}.base.weight": one
                     for name, one in state.items()}  # fmt: skip
        wrong = sorted(name for name in names.keys() ^ state.keys() if not name.endswith((".a", ".b")))
        wrong += [name for name in names.keys() & state.keys() if names[name].shape != state[name].shape]
        if wrong:
            raise TrainingError.unusable(start.path, f"its weights do not fit: '{wrong[0]}'")
        self.model.load_state_dict(state, strict=False)

    def _load_teacher(self):
        if not self.config.teacher:
            return None
        teacher = load_trained(self.config.teacher)
        if teacher.config.vocab_size != self.config.vocab_size:
            raise TrainingError.unusable(
                teacher.path,
                f"as a teacher it needs the same tokenizer, and has {teacher.config.vocab_size} tokens instead of "
                f"{self.config.vocab_size}",
            )
        return teacher.model().to(self.device).eval().requires_grad_(False)

    # ---- steps

    def _compute_loss(self, ids, targets, documents, positions, noise=None):
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            logits = self.model(ids, documents, positions, noise)
            loss = cross_entropy(logits, targets)
            if self._teacher is not None and self.model.training:
                with torch.no_grad():
                    wanted = self._teacher(ids, documents, positions)
                share, temperature = self.config.distill_weight, self.config.distill_temperature
                loss = (1 - share) * loss + share * distillation(logits, wanted, targets, temperature)
        return loss

    def _tensors(self, rows):
        return [torch.from_numpy(np.stack(one)).long().to(self.device) for one in zip(*rows, strict=True)]

    @property
    def done(self):
        """The share of the training that is done, 0 to 1."""
        steps, minutes = self.config.steps, self.config.minutes
        return min(1.0, max(self.step / steps if steps else 0, self.elapsed / (60 * minutes) if minutes else 0))

    def _next_batches(self, is_second):
        config, mixed = self.config, 0
        count = config.rows * config.accumulate
        if self._mixed is not None and not is_second:  # as many as keep the share over all steps
            mixed = math.floor((self.step + 1) * count * config.mixed_share)
            mixed -= math.floor(self.step * count * config.mixed_share)
        rows = self._rows.take(count - mixed) + (self._mixed.take(mixed) if mixed else [])
        return [self._tensors(rows[i :: config.accumulate]) for i in range(config.accumulate)]

    def train(self):
        """Train until the steps or the time are over, nothing gets better, or `stop` is called.

        Returns
        -------
        float
            The lowest validation loss, in nats a token.

        Raises
        ------
        TrainingError
            If the loss is no number any more; the last checkpoint is from before.
        """
        config = self.config
        with open(self.path(LOG), "a", encoding="utf-8") as self._log:
            self._write(event="start", step=self.step, parameters=sum(p.numel() for p in self.model.parameters()),
                        config=config.to_dict())  # fmt: skip
            while self.done < 1 and not self._is_stopping:
                self._take_step()
                is_last = self.done >= 1
                if self._validation is not None and (is_last or self.step % config.evaluate_every == 0):
                    self.evaluate()
                    if config.patience and self._worse >= config.patience:
                        self._write(event="early stop", step=self.step)
                        break
                if self.step % config.checkpoint_every == 0:
                    self.save(self.path(LAST))
            self.save(self.path(LAST))
        return self.best

    def _take_step(self):
        config, began = self.config, time.monotonic()
        rate, is_second = schedule(config.schedule, self.done, config.decay_share)
        rate *= min(1, (self.step + 1) / max(config.warmup, 1))
        self.optimizers.set_rates(rate, is_second)
        if config.ternary and config.quantize_over and self.step <= config.quantize_over:
            set_quantized(self.model, self.step / config.quantize_over)
        batches = self._next_batches(is_second)
        count = sum(int((targets != IGNORED).sum()) for _, targets, _, _ in batches)
        self.model.train()
        total = 0.0
        for batch in batches:
            loss = self._loss(*batch, self.model.noise(batch[0])) / count
            loss.backward()
            total += float(loss.detach())
        if not math.isfinite(total):
            raise TrainingError.diverged(total, self.step)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip or math.inf)
        self.optimizers.step()
        self.step += 1
        self.tokens += count
        took = self._counted(time.monotonic() - began)
        self.elapsed += took
        if self.report:
            self.report({"event": "progress", "step": self.step, "done": self.done, "loss": total,
                         "tokens_per_s": count / took})  # fmt: skip
        if self.step % LOG_EVERY == 0:
            self._write(event="step", step=self.step, loss=round(total, 4), norm=round(float(norm), 3),
                        rate=round(rate, 5), tokens=self.tokens, tokens_per_s=round(count / took),
                        epochs=round(self._rows.epochs, 2), elapsed=round(self.elapsed, 1))  # fmt: skip

    def _counted(self, seconds):
        """A step's duration, less what a process that was stopped meanwhile stood still."""
        self._durations = [*self._durations[-20:], seconds]
        return min(seconds, 3 * statistics.median(self._durations))

    # ---- evaluation

    @torch.no_grad()
    def validation_loss(self):
        """Measure on the validation text.

        Returns
        -------
        nats : float
            The mean loss of a token.
        bits : float
            The information of all tokens, over the number of characters.
        """
        self.model.eval()
        total, count, held = 0.0, 0, len(self._validation)
        rows = max(1, self.config.rows * (self.config.row_tokens or self.config.context) // self.config.context)
        for start in range(0, held, rows):
            # All batches of one size: what is compiled is compiled for it.
            batch = self._tensors([self._validation.row(min(i, held - 1)) for i in range(start, start + rows)])
            batch[1][held - start :] = IGNORED
            total += float(self._loss(*batch))
            count += int((batch[1] != IGNORED).sum())
        return total / count, total / math.log(2) / self._validation_characters

    def evaluate(self):
        """Measure, write samples, and keep the model if it is the best so far."""
        began = time.monotonic()
        nats, bits = self.validation_loss()
        self._worse += 1
        if nats < self.best:
            self.best, self._worse = nats, 0
            self.save(self.path(BEST), model_only=True)
        self._write(event="evaluate", step=self.step, tokens=self.tokens, loss=round(nats, 4),
                    bits_per_character=round(bits, 4), is_best=not self._worse,
                    samples={one: self.sample(one) for one in self.config.prompts},
                    took=round(time.monotonic() - began, 1))  # fmt: skip

    @torch.no_grad()
    def sample(self, prompt, tokens=SAMPLE_TOKENS):
        """Continue a text with the most likely tokens.

        Parameters
        ----------
        prompt : str
        tokens : int
            The most to add.

        Returns
        -------
        str
            The whole text.
        """
        self.model.eval()
        end = self.tokenizer.token_to_id(END_OF_TEXT)
        ids = [end, *self.tokenizer.encode(prompt, add_special_tokens=False).ids]
        for _ in range(tokens):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
                logits = self.model(torch.tensor([ids[-self.config.context :]], device=self.device))
            ids.append(int(logits[0, -1].argmax()))
            if ids[-1] == end:
                break
        return self.tokenizer.decode(ids)

    # ---- files

    def save(self, path, model_only=False):
        """Write a checkpoint; until it is whole, the old one stays.

        Parameters
        ----------
        path : str
        model_only : bool
            Whether to leave out what only going on needs.
        """
        state = {"model": self.model.state_dict(), "config": self.config.to_dict(), "step": self.step}
        if not model_only:
            state |= {
                "optimizers": self.optimizers.state_dict(),
                "elapsed": self.elapsed, "tokens": self.tokens, "best": self.best, "worse": self._worse,
                "rows": self._rows.place, "mixed": self._mixed.place if self._mixed else None,
                "generator": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else None,
            }  # fmt: skip
        torch.save(state, path + ".part")
        os.replace(path + ".part", path)

    def restore(self, path):
        """Go on from a checkpoint.

        Parameters
        ----------
        path : str
            Of `save`.

        Raises
        ------
        TrainingError
            If it is none, or of another model.
        """
        state = read_state(path)
        try:
            self.model.load_state_dict(state["model"])
            self.optimizers.load_state_dict(state["optimizers"])
            self.step, self.tokens, self.elapsed = state["step"], state["tokens"], state["elapsed"]
            self.best, self._worse = state["best"], state["worse"]
            for rows, place in ((self._rows, state["rows"]), (self._mixed, state["mixed"])):
                if rows is not None and place:
                    rows.go_to(place)
            torch.set_rng_state(state["generator"])
            if state["cuda"] and self.device.type == "cuda":
                torch.cuda.set_rng_state_all(state["cuda"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise TrainingError.unusable(path, f"this run cannot go on from it: {error}") from error

    def _write(self, **line):
        line["time"] = round(time.time(), 1)
        if self._log is not None and not self._log.closed:
            self._log.write(json.dumps(line) + "\n")
            self._log.flush()
        if self.report:
            self.report(line)


def _device(name):
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError.value("TrainConfig", "device", name, "a device that PyTorch has here") from error
    return device


def _dtype(name, device):
    if name == "auto":
        if device.type == "cuda":
            has_it = torch.cuda.is_bf16_supported()
        else:  # where a CPU only emulates bfloat16, float32 is faster
            has_it = bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())
        name = "bfloat16" if has_it else "float32"
    return getattr(torch, name)
