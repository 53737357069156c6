"""The ternary layer: the runtime's product, and straight-through gradients."""

import pytest

pytest.importorskip("torch", reason="the extra 'train' is not installed", exc_type=ImportError)

import numpy as np
import reference
import torch
from torch import nn

import bitnet
from bitnet.train import BitLinear, replace_linear, set_quantized
from bitnet.train.linear import activation_codes, weight_codes


@pytest.fixture
def layer():
    torch.manual_seed(3)
    return BitLinear(48, 20)


@pytest.fixture
def x():
    return torch.randn(5, 48, generator=torch.Generator().manual_seed(4)) * 3


def test_the_codes_are_those_of_the_runtime(layer, x):
    weight = layer.weight.detach().numpy()
    codes, s = weight_codes(layer.weight)
    found, scale = bitnet.quantize_weights(weight)
    np.testing.assert_array_equal(codes.detach().numpy(), found)
    assert float(1 / s) == pytest.approx(float(scale), rel=1e-6)
    q, a = activation_codes(x)
    found, scale = bitnet.quantize_activations(x.numpy())
    np.testing.assert_array_equal(q.numpy(), found)
    np.testing.assert_allclose(1 / a[:, 0].numpy(), scale, rtol=1e-6)


def test_rounding_is_to_even_and_a_row_of_zeros_has_codes():
    x = torch.tensor([[127.0, 0.5, 1.5, -2.5], [0.0, 0.0, 0.0, 0.0]])
    q, a = activation_codes(x)
    assert q.tolist() == [[127, 0, 2, -2], [0, 0, 0, 0]]
    assert a[1].item() == pytest.approx(127e5)


def test_the_product_is_that_of_the_reference(layer, x):
    weight = layer.weight.detach().numpy()
    s = reference.reciprocal_scale(weight)
    wanted = reference.matmul(reference.ternarize(weight, s), np.float32(1) / s, x.numpy())
    np.testing.assert_allclose(layer(x).detach().numpy(), wanted, rtol=1e-6, atol=1e-6)


def test_gradients_go_straight_through(layer, x):
    x.requires_grad_()
    g = torch.randn(5, 20, generator=torch.Generator().manual_seed(5))
    layer(x).backward(g)
    codes, s = weight_codes(layer.weight)
    q, a = activation_codes(x)
    torch.testing.assert_close(x.grad, g @ (codes / s))
    torch.testing.assert_close(layer.weight.grad, g.T @ (q / a))


def test_activations_may_stay_as_they_are(x):
    layer = BitLinear(48, 20, activations="none")
    codes, s = weight_codes(layer.weight)
    torch.testing.assert_close(layer(x), x @ (codes / s).T)
    with pytest.raises(bitnet.ConfigurationError, match="activations is 'int4'; it must be one of 'int8', 'none'"):
        BitLinear(48, 20, activations="int4")


def test_a_norm_may_come_first(x):
    layer = BitLinear(48, 20, rms_norm=True)
    layer.rms_norm.weight.data.uniform_(0.5, 1.5)
    normed = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * layer.rms_norm.weight
    plain = BitLinear(48, 20)
    plain.weight = layer.weight
    wanted = plain(normed).detach()
    torch.testing.assert_close(layer(x).detach(), wanted, rtol=0, atol=2 * float(wanted.abs().max()) / 127)


def test_the_warm_up_begins_with_the_product_of_the_masters_and_ends_quantised(layer, x):
    whole = layer(x).detach()
    set_quantized(layer, 0.0)
    torch.testing.assert_close(layer(x), x @ layer.weight.T)
    set_quantized(layer, 0.5)
    half = layer(x).detach()
    set_quantized(layer, 1.0)
    torch.testing.assert_close(layer(x), whole, rtol=0, atol=0)
    assert not torch.allclose(half, whole)


def test_autocast_multiplies_the_same_codes(layer, x):
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    torch.testing.assert_close(y.float(), layer(x), rtol=0.02, atol=0.02)


class TwoLayers(nn.Module):
    def __init__(self, bias=False):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(48, 16, bias=bias), nn.ReLU(), nn.Linear(16, 8, bias=False))
        self.lm_head = nn.Linear(8, 30, bias=False)

    def forward(self, x):
        return self.lm_head(self.block(x))


def test_linear_layers_of_any_model_are_replaced(x):
    model = TwoLayers()
    masters = model.block[0].weight
    assert replace_linear(model, skip=["lm_head", "block.2"]) == ["block.0"]
    assert isinstance(model.block[0], BitLinear)
    assert model.block[0].weight is masters
    assert type(model.block[2]) is type(model.lm_head) is nn.Linear
    model(x).sum().backward()
    assert masters.grad.abs().sum() > 0


def test_a_bias_is_kept(x):
    plain, model = TwoLayers(), TwoLayers(bias=True)
    model.load_state_dict(plain.state_dict(), strict=False)
    bias = model.block[0].bias
    assert replace_linear(model) == replace_linear(plain) == ["block.0", "block.2"]
    assert model.block[0].bias is bias
    torch.testing.assert_close(model.block[0](x), plain.block[0](x) + bias)
