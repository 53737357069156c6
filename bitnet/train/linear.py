"""A ternary linear layer that can be trained: the runtime's product, with straight-through gradients.

The masters are floats; each forward pass quantises them, and the activations, and multiplies what came out. Rounding
has no useful gradient, so the backward pass takes it for the identity (the straight-through estimator [2]_).

References
----------
.. [1] Ma et al., "The Era of 1-bit LLMs: All Large Language Models are in 1.58 Bits", 2024, section 2.
.. [2] Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons", 2013.
"""

import torch
from torch import nn
from torch.nn import functional

from bitnet.errors import ConfigurationError
from bitnet.train.config import ACTIVATIONS

__all__ = ["BitLinear", "activation_codes", "replace_linear", "set_quantized", "weight_codes"]

FLOOR = 1e-5  # of a scale's denominator: a row of zeros has a scale too


def _straight_through(value, rounded):
    # Exact: both are multiples of the value's last bit, so the difference is a float, and so is the sum.
    return value + (rounded - value).detach()


def weight_codes(weight):
    """Make ternary codes of masters, as the runtime does when it loads them.

    Parameters
    ----------
    weight : Tensor of float32, shape (rows, cols)

    Returns
    -------
    codes : Tensor of float32, shape (rows, cols)
        -1, 0 or 1; the gradient goes through as if there were no rounding and no clipping.
    s : Tensor of float32, shape ()
        ``1 / max(mean|w|, 1e-5)``; the weight that is multiplied with is ``codes / s``. Constant for the gradient.
    """
    weight = weight.float()
    s = 1 / weight.detach().abs().mean().clamp(min=FLOOR)
    scaled = weight * s
    return _straight_through(scaled, scaled.round().clamp(-1, 1)), s


def activation_codes(x):
    """Make 8-bit codes of activations, a scale for each token.

    Parameters
    ----------
    x : Tensor of float32, shape (..., cols)

    Returns
    -------
    codes : Tensor of float32, shape (..., cols)
        Whole numbers from -127 to 127; the gradient goes through as if there were no rounding.
    a : Tensor of float32, shape (..., 1)
        ``127 / max(max|x|, 1e-5)``; the codes stand for ``codes / a``. Constant for the gradient.
    """
    x = x.float()
    a = 127 / x.detach().abs().amax(dim=-1, keepdim=True).clamp(min=FLOOR)
    scaled = x * a
    return _straight_through(scaled, scaled.round().clamp(-128, 127)), a


class BitLinear(nn.Module):
    """A linear layer with ternary weights and 8-bit activations.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
        Whether to add floats to the product. No BitNet model has them, and the runtime does not; others do.
    activations : {"int8", "none"}
        Whether the input is quantised: W1.58A8, which is what the runtime computes, or W1.58A16.
    rms_norm : bool
        Whether the input is normalised first, by a gain of its own.
    rms_norm_eps : float
    device, dtype
        Of the masters.

    Attributes
    ----------
    weight : Parameter, shape (out_features, in_features)
        The masters.
    bias : Parameter, shape (out_features,), or None
    quantized : Tensor of float32, shape ()
        How much of the function is quantised: 1 is the whole, which the runtime computes, 0 the product of the masters.
        Between them lies a mixture ``x + quantized * (Q(x) - x)`` of weights and inputs, for a warm-up from full
        precision.

    Notes
    -----
    ``y = (codes(x) @ codes(W).T) / (a * s)``: the codes are multiplied, and the scales applied to the sums. Codes are
    exact in bfloat16 too, so under autocast only the sums and the gradients are rounded.
    """

    def __init__(
        self, in_features, out_features, *, bias=False, activations="int8", rms_norm=False, rms_norm_eps=1e-6,
        device=None, dtype=None,
    ):  # fmt: skip
        super().__init__()
        if activations not in ACTIVATIONS:
            raise ConfigurationError.choice("activations", activations, ACTIVATIONS)
        self.in_features, self.out_features, self.activations = in_features, out_features, activations
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None
        self.rms_norm = nn.RMSNorm(in_features, eps=rms_norm_eps, device=device, dtype=dtype) if rms_norm else None
        self.register_buffer("quantized", torch.ones((), device=device), persistent=False)
        self.blends = False
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)  # as nn.Linear does

    @classmethod
    def from_linear(cls, linear, **options):
        """Take over a layer's weights as masters, and its bias.

        Parameters
        ----------
        linear : torch.nn.Linear
        **options
            As of the class.

        Returns
        -------
        BitLinear
        """
        made = cls(linear.in_features, linear.out_features, device=linear.weight.device, dtype=linear.weight.dtype,
                   **options)  # fmt: skip
        made.weight, made.bias = linear.weight, linear.bias
        return made

    def forward(self, x):
        """Multiply.

        Parameters
        ----------
        x : Tensor, shape (..., in_features)

        Returns
        -------
        Tensor, shape (..., out_features)
        """
        if self.rms_norm is not None:
            x = self.rms_norm(x)
        y = self._mixture(x) if self.blends else self._product(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _product(self, x):
        codes, s = weight_codes(self.weight)
        if self.activations == "none":
            return functional.linear(x, codes.to(x.dtype)) / s
        q, a = activation_codes(x)
        y = functional.linear(q.to(x.dtype), codes.to(x.dtype))
        return y * (1 / (a * s)).to(y.dtype)

    def _mixture(self, x):
        codes, s = weight_codes(self.weight)
        weight = torch.lerp(self.weight.float(), codes / s, self.quantized)
        if self.activations != "none":
            q, a = activation_codes(x)
            x = torch.lerp(x.float(), q / a, self.quantized)
        return functional.linear(x, weight.to(x.dtype))

    def extra_repr(self):
        return f"{self.in_features}, {self.out_features}, activations={self.activations!r}"


def set_quantized(model, share):
    """Say how much of every `BitLinear` of a model is quantised.

    Parameters
    ----------
    model : torch.nn.Module
    share : float
        0 to 1.
    """
    for module in model.modules():
        if isinstance(module, BitLinear):
            module.quantized.fill_(share)
            module.blends = share < 1


def replace_linear(model, skip=("lm_head",), **options):
    """Make every linear layer of a model a ternary one, in place; the weights become the masters.

    Parameters
    ----------
    model : torch.nn.Module
        Any, a transformers model too.
    skip : sequence of str
        Names, or ends of names, of layers that stay as they are: the output head, by default.
    **options
        As of `BitLinear`.

    Returns
    -------
    list of str
        The names of the layers that were replaced.
    """
    replaced = []
    for name, module in list(model.named_modules()):
        if type(module) is not nn.Linear or any(name == one or name.endswith("." + one) for one in skip):
            continue
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, BitLinear.from_linear(module, **options))
        replaced.append(name)
    return replaced
