"""Rounding in training: against grids by hand, and what it leaves alone."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raydistill.kinds.training import FakeQuantizationConfig
from raydistill.training.fake_quantization import FakeQuantized, rounded_inputs, rounded_weights


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 4))


def config(**options: Any) -> FakeQuantizationConfig:
    return FakeQuantizationConfig.model_validate(options)


def on_grid(weights: Tensor, bits: int) -> Tensor:
    """By hand: each output's weights in steps of its largest over 2^(bits - 1) - 1."""
    rows = []
    for row in weights:
        step = row.abs().max() / (2 ** (bits - 1) - 1)
        rows.append((row / step).round() * step)
    return torch.stack(rows)


@pytest.mark.parametrize("bits", [2, 4, 7, 8])
def test_weights_lie_on_a_grid_of_each_output(bits: int) -> None:
    weights = torch.randn(5, 3, 2, 2)
    torch.testing.assert_close(rounded_weights(weights, bits), on_grid(weights, bits))
    assert rounded_weights(torch.zeros(2, 3), bits).abs().max() == 0


@pytest.mark.parametrize("shift", [-5.0, 0.0, 5.0])
def test_inputs_lie_on_a_grid_that_holds_zero_and_all_of_them(shift: float) -> None:
    inputs = torch.randn(400) + shift
    rounded = rounded_inputs(inputs, 4)
    low, high = min(inputs.min().item(), 0), max(inputs.max().item(), 0)
    step = (high - low) / 15
    assert rounded.unique().numel() <= 16
    assert ((rounded / step).round() * step - rounded).abs().max() < 1e-5  # zero is on it
    assert (rounded - inputs).abs().max() <= step * 1.001  # half a step, and half of one where zero was moved


def test_a_step_sees_rounded_layers_and_its_gradient_passes_through() -> None:
    model, inputs = network(), torch.randn(6, 1, 8, 8)
    by_hand = copy.deepcopy(model)
    with torch.no_grad():
        for layer in (by_hand[0], by_hand[4]):
            layer.weight.copy_(on_grid(layer.weight, 3))
    FakeQuantized(model, config(weight_bits=3, activation_bits=None))(model, inputs).square().sum().backward()
    by_hand(inputs).square().sum().backward()
    for own, other in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_names_evaluation_and_copies_are_the_plain_network_s() -> None:
    model, inputs = network(), torch.randn(6, 1, 8, 8)
    keys, plain = list(model.state_dict()), model.eval()(inputs)
    rounded = FakeQuantized(model, config(weight_bits=2, activation_bits=3))
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model(inputs), plain, rtol=0, atol=0)
    assert (rounded(model, inputs) - plain).abs().max() > 0.01
    torch.testing.assert_close(model(inputs), plain, rtol=0, atol=0)
    pair = copy.deepcopy([model, rounded])
    torch.testing.assert_close(pair[1](pair[0], inputs), rounded(model, inputs))


def test_inputs_are_rounded_too_and_a_step_that_fails_leaves_nothing() -> None:
    model, inputs = network().eval(), torch.randn(6, 1, 8, 8)
    weights_alone = FakeQuantized(copy.deepcopy(model), config(activation_bits=None))
    both = FakeQuantized(model, config(activation_bits=2))
    assert (both(model, inputs) - weights_alone(model, inputs)).abs().max() > 0.01
    with pytest.raises(RuntimeError):
        both(model, inputs[:, :, :2])
    plain = network().eval()
    torch.testing.assert_close(model(inputs), plain(inputs), rtol=0, atol=0)
