"""Multiply-adds against closed forms."""

import pytest
import torch
from torch import nn

from raydistill.models.build import build_model
from raydistill.models.multiply_adds import count_multiply_adds


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_has_one_for_each_weight(bias: bool) -> None:
    assert count_multiply_adds(nn.Linear(7, 5, bias=bias), torch.zeros(1, 7)) == 7 * 5


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_has_its_kernel_for_each_place(groups: int, stride: int) -> None:
    layer = nn.Conv2d(4, 8, (3, 5), stride=stride, padding=(1, 2), groups=groups)
    height, width = -(-9 // stride), -(-11 // stride)
    expected = height * width * 8 * (4 // groups) * 3 * 5
    assert count_multiply_adds(layer, torch.zeros(1, 4, 9, 11)) == expected


def test_a_recurrent_layer_has_its_products_for_each_step() -> None:
    model = nn.LSTM(6, 5, batch_first=True).eval()
    assert count_multiply_adds(model, torch.zeros(1, 3, 6)) == 3 * 4 * 5 * (6 + 5)


def test_a_transformer_has_projections_attention_and_two_layers() -> None:
    model = nn.TransformerEncoderLayer(8, 2, dim_feedforward=12, batch_first=True).eval()
    projections, attention, layers = 4 * 3 * 8 * 8, 2 * 3 * 3 * 8, 2 * 3 * 8 * 12
    assert count_multiply_adds(model, torch.zeros(1, 3, 8)) == projections + attention + layers
    assert torch.backends.mha.get_fastpath_enabled()


def test_resnet56_is_as_large_as_it_is_said_to_be() -> None:
    """RepDistiller's variant of the CIFAR networks; by hand: a stem, three stages of 18 convolutions, two shortcuts."""
    model = build_model("resnet56", {}, (3, 32, 32), 100).eval()
    stem = 32 * 32 * 9 * 3 * 16
    stages = [18 * 32 * 32 * 9 * 16 * 16] + [
        size * size * (9 * width // 2 * width + 17 * 9 * width * width + width // 2 * width)
        for size, width in ((16, 32), (8, 64))
    ]
    assert count_multiply_adds(model, torch.zeros(1, 3, 32, 32)) == stem + sum(stages) + 64 * 100


def test_what_computes_nothing_has_no_count() -> None:
    assert count_multiply_adds(nn.Flatten(), torch.zeros(1, 2, 2)) is None
