"""Adapters: low-rank float corrections of ternary layers whose own weights stay as they are.

The runtime has no adapters, so `merge_lora` makes masters of the sums, which are quantised anew: the function changes
by what rounding takes away.

References
----------
.. [1] Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021.
"""

import torch
from torch import nn
from torch.nn import functional

from bitnet.train.linear import BitLinear, weight_codes

__all__ = ["LoRALinear", "add_lora", "merge_lora"]


class LoRALinear(nn.Module):
    """A frozen ternary layer and its adapter: ``base(x) + alpha / rank * (x @ a.T) @ b.T``.

    Parameters
    ----------
    base : BitLinear
    rank : int
    alpha : float

    Attributes
    ----------
    a : Parameter, shape (rank, in_features)
    b : Parameter, shape (out_features, rank)
        Zeros at first: then the function is that of `base`.
    """

    def __init__(self, base, rank, alpha):
        super().__init__()
        self.base, self.factor = base.requires_grad_(False), alpha / rank
        self.a = nn.Parameter(torch.empty(rank, base.in_features, device=base.weight.device))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))
        nn.init.kaiming_uniform_(self.a, a=5**0.5)

    def forward(self, x):
        """Multiply.

        Parameters
        ----------
        x : Tensor, shape (..., in_features)

        Returns
        -------
        Tensor, shape (..., out_features)
        """
        return self.base(x) + functional.linear(functional.linear(x, self.a), self.b) * self.factor

    @torch.no_grad()
    def merged(self):
        """Make a ternary layer of the sum.

        Returns
        -------
        BitLinear
        """
        codes, s = weight_codes(self.base.weight)
        self.base.weight.copy_(codes / s + self.factor * (self.b @ self.a))
        return self.base


def add_lora(model, rank, alpha=16.0):
    """Freeze a model, and give each ternary layer an adapter, in place.

    Parameters
    ----------
    model : torch.nn.Module
    rank : int
    alpha : float

    Returns
    -------
    list of str
        The names of the layers.
    """
    model.requires_grad_(False)
    return _replaced(model, BitLinear, lambda layer: LoRALinear(layer, rank, alpha))


def merge_lora(model):
    """Put the adapters into the ternary layers, in place; the sums are quantised anew.

    Parameters
    ----------
    model : torch.nn.Module

    Returns
    -------
    list of str
        The names of the layers.
    """
    return _replaced(model, LoRALinear, LoRALinear.merged)


def _replaced(model, kind, replacement):
    found = [name for name, module in model.named_modules() if isinstance(module, kind)]
    for name in found:
        parent, _, own = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, own, replacement(getattr(owner, own)))
    return found
