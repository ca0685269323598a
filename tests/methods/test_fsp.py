"""FSP against matrices worked out by hand, slow loops, and what its definition keeps unchanged."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raydistill.methods.fsp import flow_matrix

SMALL = {"name": "cnn", "widths": [4, 6, 6]}
LARGE = {"name": "cnn", "widths": [4, 6, 6], "convolutions": [2, 2, 2]}


def slow_flow(first: Tensor, second: Tensor) -> Tensor:
    """G of one sample by loops, for maps on the same grid, float64."""
    channels, height, width = first.shape
    flow = torch.zeros(channels, len(second), dtype=torch.float64)
    for i in range(channels):
        for j in range(len(second)):
            for row in range(height):
                for column in range(width):
                    flow[i, j] += first[i, row, column] * second[j, row, column] / (height * width)
    return flow


def slow_pool(values: Tensor) -> Tensor:
    """The largest of every 2 x 2 places, by loops."""
    channels, height, width = values.shape
    pooled = torch.zeros(channels, height // 2, width // 2, dtype=values.dtype)
    for channel in range(channels):
        for row in range(height // 2):
            for column in range(width // 2):
                square = values[channel, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                pooled[channel, row, column] = max(square.flatten().tolist())
    return pooled


@pytest.mark.parametrize("size", [(1, 1), (3, 5)])
def test_constant_maps_have_the_flow_of_their_constants(size: tuple[int, int]) -> None:
    first = torch.tensor([2.0, 3.0]).view(1, 2, 1, 1).expand(1, 2, *size)
    second = torch.tensor([1.0, -1.0, 4.0]).view(1, 3, 1, 1).expand(1, 3, *size)
    assert flow_matrix(first, second).tolist() == [[[2, -2, 8], [3, -3, 12]]]


@pytest.mark.parametrize("batch", [1, 3])
def test_the_flow_is_that_of_loops_with_the_larger_map_pooled(batch: int) -> None:
    first, second = torch.randn(batch, 3, 4, 6), torch.randn(batch, 2, 2, 3)
    expected = torch.stack(
        [slow_flow(slow_pool(one.double()), other.double()) for one, other in zip(first, second, strict=True)]
    )
    torch.testing.assert_close(flow_matrix(first, second).double(), expected, atol=1e-6, rtol=1e-5)


def test_enlarging_both_maps_changes_nothing_and_scaling_one_scales_the_flow() -> None:
    first, second = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4)
    flow = flow_matrix(first, second)
    larger = [F.interpolate(part, scale_factor=2, mode="nearest") for part in (first, second)]
    torch.testing.assert_close(flow_matrix(*larger), flow)
    torch.testing.assert_close(flow_matrix(3 * first, second), 3 * flow)


def test_permuting_channels_permutes_the_flow() -> None:
    first, second = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4)
    rows, columns = torch.randperm(3), torch.randperm(5)
    permuted = flow_matrix(first[:, rows], second[:, columns])
    torch.testing.assert_close(permuted, flow_matrix(first, second)[:, rows][:, :, columns])


def test_the_loss_sums_squares_and_its_mean_divides_by_their_number(pair: Any, images: Any) -> None:
    models = pair.of(SMALL, LARGE)
    one_section = {"student_pairs": [["stage1", "stage3"]], "teacher_pairs": [["stage1", "stage3"]]}
    total, mean = (models.method("fsp", reduction=kind, **one_section) for kind in ("sum", "mean"))
    loss = models.losses(total, *images)["flow"]
    student, teacher = models.outputs(total, images[0])
    expected = 0.0
    for sample in range(8):
        flows = []
        for features in (student.features, teacher.features):
            first, second = (features[name][sample].detach().double() for name in ("stage1", "stage3"))
            flows.append(slow_flow(slow_pool(slow_pool(first)), second))
        expected += float((flows[1] - flows[0]).square().sum()) / 8
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert models.losses(mean, *images)["flow"].item() == pytest.approx(expected / (4 * 6), rel=1e-4)


def test_a_student_that_is_its_teacher_has_no_loss_and_no_gradient(pair: Any, images: Any) -> None:
    models = pair.of(SMALL, SMALL)
    models.teacher.load_state_dict(models.student.state_dict())
    loss = models.losses(models.method("fsp"), *images)["flow"]
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in models.student.parameters())


def test_the_gradient_is_that_of_the_formula() -> None:
    """dL/dF1_i = 2 / (N h w) Σ_j (G_S - G_T)_ij F2_j."""
    first, second = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 5, 4, 4)
    aim = torch.randn(2, 3, 5)
    difference = flow_matrix(first, second) - aim
    difference.square().sum(dim=(1, 2)).mean().backward()
    expected = 2 / (2 * 16) * torch.einsum("bij,bjhw->bihw", difference.detach(), second)
    torch.testing.assert_close(first.grad, expected)


@pytest.mark.parametrize(
    ("student", "teacher", "sizes"),
    [
        ({"name": "resnet8"}, {"name": "resnet20"}, [(16, 16), (16, 8), (8, 4)]),
        (SMALL, LARGE, [(16, 16), (16, 8), (8, 4)]),
        ({"name": "vgg8"}, {"name": "vgg13"}, [(16, 8), (8, 4), (4, 2), (2, 2)]),
    ],
    ids=["resnet", "cnn", "vgg"],
)
def test_by_default_there_is_a_pair_for_every_size_of_maps_from_the_first_layer_on(
    pair: Any, student: Any, teacher: Any, sizes: list[tuple[int, int]]
) -> None:
    """Heights of both maps of every pair, on inputs of 16x16; the paper's three groups, RepDistiller's taps."""
    models = pair.of(student, teacher)
    method = models.method("fsp")
    for features, pairs in (
        (models.setting().student, method.student_pairs),
        (models.setting().teacher, method.teacher_pairs),
    ):
        assert pairs[0] == ("stem", "stage1")
        assert [tuple(shape[1] for shape in features.shapes(both)) for both in pairs] == sizes


def test_the_first_layers_of_the_group_of_the_largest_maps_learn(pair: Any, images: Any) -> None:
    """Of a stage of two convolutions, `stem` is what the first one gives."""
    models = pair.of(LARGE, LARGE)
    method = models.method("fsp", student_pairs=[["stem", "stage1"]])
    first, _ = models.outputs(method, images[0])
    assert torch.equal(first.features["stem"], models.student.stage1[:2](images[0]))
    models.losses(method, *images)["flow"].backward()
    reached = {name for name, p in models.student.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {
        f"stage1.{part}" for part in ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias")
    }


def test_a_network_without_a_stem_has_the_pairs_of_its_stages(pair: Any) -> None:
    models = pair.of(SMALL, LARGE)
    del models.teacher.feature_paths["stem"]
    method = models.method("fsp")
    assert method.student_pairs == method.teacher_pairs == (("stage1", "stage2"), ("stage2", "stage3"))


def test_unequal_channels_are_refused_with_both_names(pair: Any) -> None:
    with pytest.raises(ValueError, match="the student's `stem` has 5, the teacher's `stem` has 4; choose"):
        pair.of({**SMALL, "widths": [5, 6, 6]}, LARGE).method("fsp")


def test_a_missing_feature_is_refused(pair: Any) -> None:
    with pytest.raises(ValueError, match="no feature `stage9`"):
        pair.of(SMALL, LARGE).method("fsp", student_pairs=[["stage1", "stage9"]])


def test_in_float16_wide_features_do_not_overflow() -> None:
    wide = torch.full((1, 4, 8, 8), 300.0, dtype=torch.float16)
    assert flow_matrix(wide, wide).eq(90000).all()
