"""Optimizers, and the schedules of their learning rate and weight decay."""

import math

import torch

from bitnet.errors import ConfigurationError
from bitnet.train.linear import BitLinear

__all__ = ["Optimizers", "schedule"]

LAST = 0.02  # of the peak: where a decay ends


def schedule(kind, done, decay_share):
    """Find the rates of one moment.

    Parameters
    ----------
    kind : {"wsd", "two_stage", "cosine"}
        ``wsd``: constant, then linear decay. ``two_stage``: linear decay towards half of the peak, then from a third
        of it to the end [1]_. ``cosine``: half a cosine.
    done : float
        The share of the training that is done, 0 to 1.
    decay_share : float
        The share of the training that the second stage takes.

    Returns
    -------
    rate : float
        Factor of the peak learning rate.
    is_second : bool
        Whether the second stage has begun, in which there is no weight decay.

    References
    ----------
    .. [1] Wang et al., "The Era of 1-bit LLMs: Training Tips, Code and FAQ", 2024: a second, lower peak at half of the
       training, where weight decay ends.
    """
    start = 1 - decay_share
    is_second = done >= start and decay_share > 0
    left = max(0.0, 1 - done)
    if kind == "cosine":
        return LAST + (1 - LAST) * 0.5 * (1 + math.cos(math.pi * min(done, 1))), is_second
    if is_second:
        peak = 1.0 if kind == "wsd" else 1 / 3
        return LAST + (peak - LAST) * left / decay_share, True
    return (1.0, False) if kind == "wsd" else (1 - 0.5 * done / start, False)


class Optimizers:
    """AdamW for all parameters, or Muon for the masters of ternary layers and AdamW for the rest.

    Parameters
    ----------
    model : torch.nn.Module
    config : TrainConfig
    """

    def __init__(self, model, config):
        masters = {id(m.weight) for m in model.modules() if isinstance(m, BitLinear)}
        trained = [p for p in model.parameters() if p.requires_grad]
        matrices = [p for p in trained if id(p) in masters]
        groups = [{"params": [p for p in trained if id(p) not in masters], "weight_decay": 0.0}]
        self._optimizers = []
        if config.optimizer == "adamw":
            groups.append({"params": matrices, "weight_decay": config.weight_decay})
        elif not hasattr(torch.optim, "Muon"):
            raise ConfigurationError.conflict("TrainConfig", "optimizer 'muon' needs PyTorch 2.9 or newer")
        elif matrices:
            self._add(torch.optim.Muon(matrices, lr=config.matrix_learning_rate, weight_decay=config.weight_decay,
                                       adjust_lr_fn="match_rms_adamw"))  # fmt: skip
        if groups := [group for group in groups if group["params"]]:
            self._add(torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True))

    def _add(self, optimizer):
        self._optimizers.append(optimizer)
        for group in optimizer.param_groups:
            group["peak"], group["decays"] = group["lr"], group["weight_decay"]

    def set_rates(self, rate, is_second):
        """Set the rates of the next step, as `schedule` gives them."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate
                group["weight_decay"] = 0.0 if is_second else group["decays"]

    def step(self):
        """Change the parameters, and forget the gradients."""
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()

    def state_dict(self):
        """Get what `load_state_dict` takes."""
        return [optimizer.state_dict() for optimizer in self._optimizers]

    def load_state_dict(self, states):
        """Go on with other optimizers' state; the peaks stay those of this configuration."""
        for optimizer, state in zip(self._optimizers, states, strict=True):
            peaks = [(group["peak"], group["decays"]) for group in optimizer.param_groups]
            optimizer.load_state_dict(state)
            for group, (peak, decays) in zip(optimizer.param_groups, peaks, strict=True):
                group["peak"], group["decays"] = peak, decays
