"""Hints against slow loops, and what is trained by them."""

from typing import Any

import pytest
import torch
from torch import nn

from raydistill.methods.hints import build_regressor, build_toolbox_regressor

SMALL = {"name": "cnn", "widths": [4, 6, 8]}
LARGE = {"name": "cnn", "widths": [5, 9, 8]}


def test_equal_features_through_the_identity_have_no_loss(pair: Any, images: Any) -> None:
    models = pair.of(SMALL, SMALL)
    models.teacher.load_state_dict(models.student.state_dict())
    method = models.method("hints")
    method.regressor = nn.Identity()
    assert models.losses(method, *images)["hint"].item() == 0


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_loss_is_that_of_loops(pair: Any, images: Any, reduction: str) -> None:
    models = pair.of(SMALL, LARGE)
    method = models.method("hints", reduction=reduction)
    loss = models.losses(method, *images)["hint"]
    student, teacher = models.outputs(method, images[0])
    guided = method.regressor(student.features["stage2"]).detach().double()
    hint = teacher.features["stage2"].double()
    total = 0.0
    for sample in range(8):
        for channel in range(9):
            for row in range(hint.shape[2]):
                for column in range(hint.shape[3]):
                    total += (
                        float(guided[sample, channel, row, column] - hint[sample, channel, row, column]) ** 2
                    )
    expected = total / 8 / 2 if reduction == "sum" else total / hint.numel()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_loss_reaches_the_layers_below_the_guided_one_and_the_regressor(pair: Any, images: Any) -> None:
    models = pair.of(SMALL, LARGE)
    method = models.method("hints")
    models.losses(method, *images)["hint"].backward()
    reached = {name.split(".")[0] for name, p in models.student.named_parameters() if p.grad is not None}
    assert reached == {"stage1", "stage2"}
    assert all(p.grad is not None for p in method.parameters())
    assert all(p.grad is None for p in models.teacher.parameters())


@pytest.mark.parametrize(
    ("guided", "hint"),
    [((4, 8, 8), (6, 8, 8)), ((4, 8, 8), (6, 3, 5)), ((4, 3, 5), (6, 8, 8)), ((7,), (3,))],
)
def test_a_regressor_has_the_shape_of_the_hint(guided: tuple[int, ...], hint: tuple[int, ...]) -> None:
    assert build_regressor(guided, hint)(torch.rand(2, *guided)).shape[1:] == hint


def test_a_regressor_to_a_smaller_map_is_one_kernel_without_padding() -> None:
    kernel = build_regressor((4, 8, 8), (6, 3, 5))[0]
    assert kernel.kernel_size == (6, 4)
    assert kernel.padding == (0, 0)


@pytest.mark.parametrize(("guided", "hint"), [((4, 8, 3), (6, 3, 8)), ((7,), (6, 3, 3))])
def test_features_of_unlike_shapes_are_refused(guided: tuple[int, ...], hint: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="name"):
        build_regressor(guided, hint)


@pytest.mark.parametrize(
    ("guided", "hint", "parameters", "layer"),
    [
        (
            (16, 32, 32),
            (32, 16, 16),
            4_704,
            "Conv2d(16, 32, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))",
        ),
        (
            (16, 8, 8),
            (32, 16, 16),
            8_288,
            "ConvTranspose2d(16, 32, kernel_size=(4, 4), stride=(2, 2), padding=(1, 1))",
        ),
        ((16, 8, 8), (32, 8, 8), 608, "Conv2d(16, 32, kernel_size=(1, 1), stride=(1, 1))"),
        ((16, 8, 8), (32, 5, 6), 6_240, "Conv2d(16, 32, kernel_size=(4, 3), stride=(1, 1))"),
    ],
)
def test_the_toolboxes_regressor_is_theirs(
    guided: tuple[int, ...], hint: tuple[int, ...], parameters: int, layer: str
) -> None:
    """Parameters by hand: weights, bias, and two numbers of batch norm for each of 32 channels."""
    regressor = build_toolbox_regressor(guided, hint)
    assert [str(regressor[0]), *(type(part) for part in regressor[1:])] == [layer, nn.BatchNorm2d, nn.ReLU]
    assert sum(p.numel() for p in regressor.parameters()) == parameters
    assert regressor(torch.rand(2, *guided)).shape[1:] == hint


def test_the_papers_regressor_to_half_the_size_has_a_kernel_of_17(pair: Any) -> None:
    regressor = build_regressor((16, 32, 32), (32, 16, 16))
    assert sum(p.numel() for p in regressor.parameters()) == 16 * 32 * 17 * 17 + 32


def test_a_plan_names_the_regressor(pair: Any) -> None:
    models = pair.of(SMALL, LARGE)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in models.method("hints").modules())
    toolbox = models.method("hints", regressor="toolbox", reduction="mean")
    assert any(isinstance(part, nn.BatchNorm2d) for part in toolbox.modules())


@pytest.mark.parametrize(("guided", "hint"), [((4, 8, 8), (6, 12, 12)), ((7,), (3,)), ((4, 8, 4), (6, 4, 8))])
def test_what_the_toolboxes_regressor_cannot_do_is_refused(
    guided: tuple[int, ...], hint: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="leave `regressor` out"):
        build_toolbox_regressor(guided, hint)


def test_a_network_without_stages_asks_for_a_name(pair: Any) -> None:
    with pytest.raises(ValueError, match="say which feature is meant with `student_feature`"):
        pair.of({"name": "mlp", "widths": [5]}, LARGE).method("hints")
