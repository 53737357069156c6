"""What training makes small: cross-entropy, and the distance from a teacher's predictions."""

import torch
from torch.nn import functional

__all__ = ["IGNORED", "cross_entropy", "distillation"]

IGNORED = -100  # a target where there is nothing to predict


def cross_entropy(logits, targets):
    """Sum the cross-entropy over all targets.

    Parameters
    ----------
    logits : Tensor, shape (batch, tokens, vocab_size)
    targets : Tensor of int64, shape (batch, tokens)
        `IGNORED` where there is none.

    Returns
    -------
    Tensor of float32, shape ()
        In nats.
    """
    return functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def distillation(logits, teacher, targets, temperature):
    """Sum the Kullback-Leibler divergence from a teacher's predictions over all targets.

    Parameters
    ----------
    logits, teacher : Tensor, shape (batch, tokens, vocab_size)
    targets : Tensor of int64, shape (batch, tokens)
        Tell where there is something to predict.
    temperature : float

    Returns
    -------
    Tensor of float32, shape ()
        In nats, times ``temperature ** 2``, which keeps gradients as large as those of `cross_entropy` [1]_.

    References
    ----------
    .. [1] Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.
    """
    mine, wanted = (torch.log_softmax(one.float() / temperature, -1) for one in (logits, teacher))
    distance = functional.kl_div(mine, wanted, reduction="none", log_target=True).sum(-1)
    return torch.where(targets != IGNORED, distance, 0).sum() * temperature**2
