"""OFD against its closed forms, loops in float64, samples of a normal distribution, and networks of several builds."""

import math

import pytest
import torch
from torch import Tensor, nn

from raydistill.methods.margins import batch_norm_behind, margins
from raydistill.methods.ofd import build_connector, partial_distance
from raydistill.models.build import build_model
from raydistill.models.layers import ResidualBlock, chain
from raydistill.training.method import Features

STUDENT = {"name": "cnn", "widths": [4, 6], "batch_norm": True}
TEACHER = {"name": "cnn", "widths": [5, 7], "batch_norm": True}
MARGINS = [
    (0, 1, -0.7978846),
    (1, 1, -0.5251353),
    (-1, 1, -1.2876000),
    (2, 1, -0.3732155),
    (3, 1, -0.2830987),
    (3.09, 1, -0.2768735),
    (3.0903, 1, -3),
    (0, 2, -1.5957691),
    (1, -2, -1.2821554),
    (0.5, 0.25, -0.0933039),
]


def margins_of(*affine: tuple[float, float]) -> Tensor:
    """Margins of a batch norm whose channels have these biases μ and weights σ."""
    norm = nn.BatchNorm2d(len(affine))
    mean, deviation = torch.tensor(affine, dtype=torch.float32).T
    norm.bias.data, norm.weight.data = mean.clone(), deviation.clone()
    return margins(norm)


@pytest.mark.parametrize(("mean", "deviation", "expected"), MARGINS)
def test_the_margin_is_that_of_the_table(mean: float, deviation: float, expected: float) -> None:
    assert margins_of((mean, deviation)).item() == pytest.approx(expected, abs=3e-7)


# At a ratio of 3.09 the formula jumps, and rounding decides.
@pytest.mark.parametrize(("mean", "deviation"), [row[:2] for row in MARGINS if row[0] / row[1] < 3.05])
def test_the_margin_scales_with_what_is_scaled(mean: float, deviation: float) -> None:
    one, large = margins_of((mean, deviation)), margins_of((10 * mean, 10 * deviation))
    torch.testing.assert_close(large, 10 * one)


def test_the_margin_is_the_mean_of_the_negative_part_of_a_normal_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(1_000_000, generator=generator)
    for mean, deviation in [(0.0, 1.0), (0.7, 0.5), (-0.4, 2.0)]:
        samples = mean + deviation * normal
        assert margins_of((mean, deviation)).item() == pytest.approx(
            samples[samples < 0].mean().item(), abs=4e-3
        )


@pytest.mark.parametrize(
    ("mean", "deviation", "expected"),
    [(-40, 1, -40), (-1e6, 1e-6, -1e6), (-1e-20, 1e-30, -1e-20), (1e6, 1e-3, -3e-3), (1, 1e-30, -3e-30)],
)
def test_the_margin_is_finite_far_out(mean: float, deviation: float, expected: float) -> None:
    assert margins_of((mean, deviation)).item() == pytest.approx(expected, rel=1e-6)


def test_a_channel_without_scale_has_its_bias_for_a_margin_or_none() -> None:
    assert margins_of((-0.5, 0), (0.5, 0), (0, 0)).tolist() == [-0.5, 0, 0]


def test_a_norm_without_weights_has_the_margin_of_the_standard_normal() -> None:
    expected = torch.full((3,), -math.sqrt(2 / math.pi))
    torch.testing.assert_close(margins(nn.BatchNorm2d(3, affine=False)), expected)


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [
        (-2, -1, 0),
        (-2, -0.5, 0.09),
        (-0.3, -0.3, 0),
        (-0.3, 0.2, 0.25),
        (0.5, -1, 2.25),
        (2, 3, 1),
        (-0.1, -5, 0),
    ],
)
def test_the_distance_is_partial(teacher: float, student: float, expected: float) -> None:
    s = torch.full((1, 1, 1, 1), float(student), requires_grad=True)
    t, margin = torch.full((1, 1, 1, 1), float(teacher)), torch.full((1, 1, 1), -0.8)
    loss = partial_distance(s, t, margin)
    loss.backward()
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    slope = 0.0 if expected == 0 else 2 * (student - max(teacher, -0.8))
    assert s.grad.item() == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("batch", [1, 3])
def test_loss_and_gradients_are_those_of_loops_in_float64(pair, batch: int) -> None:
    two = pair.of(STUDENT, TEACHER, seed=batch)
    for module in two.teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    method = two.method("ofd", weight=1)
    images, labels = torch.rand(batch, 1, 16, 16), torch.zeros(batch, dtype=torch.int64)
    own, targets = two.outputs(method, images)
    (loss,) = two.losses(method, images, labels).values()
    leaves = list(method.parameters())
    found = torch.autograd.grad(loss, leaves)
    slow = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = torch.zeros((), dtype=torch.float64)
    for stage, share in ((0, 0.5), (1, 1.0)):
        weight, scale, shift = slow[3 * stage : 3 * stage + 3]
        source = own.features[f"stage{stage + 1}_pre"].detach().double()
        aim = targets.features[f"stage{stage + 1}_pre"].double()
        norm = two.teacher.get_submodule(f"stage{stage + 1}.norm1")
        for c in range(aim.shape[1]):
            mixed = sum(weight[c, k, 0, 0] * source[:, k] for k in range(source.shape[1]))
            centred = mixed - mixed.mean()
            s = centred / ((centred**2).mean() + 1e-5).sqrt() * scale[c] + shift[c]
            mean, deviation = norm.bias[c].item(), abs(norm.weight[c].item())
            density = math.exp(-((mean / deviation) ** 2) / 2) / math.sqrt(2 * math.pi)
            probability = math.erfc(mean / deviation / math.sqrt(2)) / 2
            margin = mean - deviation * density / probability if probability > 0.001 else -3 * deviation
            for predicted, wanted in zip(s.flatten(), aim[:, c].flatten().tolist(), strict=True):
                wanted = max(wanted, margin)
                if not predicted.item() <= wanted <= 0:
                    expected = expected + share * (wanted - predicted) ** 2 / batch
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(found, torch.autograd.grad(expected, slow), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-3)


def test_earlier_stages_count_half_of_the_next(pair, images) -> None:
    deep = {"name": "cnn", "widths": [4, 4, 4, 4], "batch_norm": True}
    two = pair.of(deep, deep)
    method = two.method("ofd")
    (whole,) = two.losses(method, *images).values()
    own, targets = two.outputs(method, images[0])
    total = 0.0
    for index, share in enumerate((0.125, 0.25, 0.5, 1.0)):
        name = f"stage{index + 1}_pre"
        connected = method.connectors[index](own.features[name])
        margin = margins(two.teacher.get_submodule(f"stage{index + 1}.norm1")).view(-1, 1, 1)
        total += share * partial_distance(connected, targets.features[name], margin).item()
    assert whole.item() == pytest.approx(total, rel=1e-5)


def test_a_student_as_silent_as_its_teacher_learns_nothing() -> None:
    teacher, margin = -torch.rand(3, 2, 4, 4) - 0.1, torch.full((2, 1, 1), -0.5)
    student = (torch.maximum(teacher, margin) - torch.rand(3, 2, 4, 4)).requires_grad_()
    loss = partial_distance(student, teacher, margin)
    loss.backward()
    assert loss.item() == 0
    assert student.grad.abs().sum() == 0


def test_no_gradient_reaches_the_teacher(pair, images) -> None:
    two = pair.of(STUDENT, TEACHER)
    method = two.method("ofd")
    own, targets = two.outputs(method, images[0])
    features = {name: value.requires_grad_() for name, value in targets.features.items()}
    (loss,) = method.losses(own, targets._replace(features=features), None).values()
    loss.backward()
    assert all(value.grad is None for value in features.values())
    assert all(parameter.grad is not None for parameter in method.parameters())


def test_under_autocast_the_loss_is_that_of_float32(pair, images) -> None:
    two = pair.of(STUDENT, TEACHER)
    method = two.method("ofd")
    own, targets = two.outputs(method, images[0])
    (expected,) = method.losses(own, targets, None).values()
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = method.losses(own, targets, None).values()
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_a_connector_makes_the_teachers_channels_with_weights_of_the_releases_size() -> None:
    torch.manual_seed(0)
    connector = build_connector(64, 200)
    assert connector(torch.rand(2, 64, 3, 3)).shape == (2, 200, 3, 3)
    assert connector[0].weight.std().item() == pytest.approx(math.sqrt(2 / 200), rel=0.03)
    assert connector[0].bias is None


def test_it_overfits_a_batch(pair, images) -> None:
    two = pair.of(STUDENT, TEACHER)
    method = two.method("ofd")
    optimizer = torch.optim.Adam([*two.student.parameters(), *method.parameters()], 0.05)
    values = []
    for _ in range(30):
        (loss,) = two.losses(method, *images).values()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.2 * values[0]


def test_the_teacher_normalises_by_the_batch_unless_told_otherwise(pair) -> None:
    two = pair.of(STUDENT, TEACHER)
    assert two.method("ofd").teacher_in_training_mode
    assert not two.method("ofd", teacher_bn="running").teacher_in_training_mode


@pytest.mark.parametrize(
    ("model", "options", "feature", "norm"),
    [
        ("resnet8x4", {}, "stage2_pre", "stage2.0.branch.norm2"),  # beside a shortcut with a norm
        ("resnet20", {}, "stage1_pre", "stage1.2.branch.norm2"),
        ("wrn_16_2", {}, "stage1_pre", "stage2.0.norm1"),
        ("wrn_16_2", {}, "stage3_pre", "norm"),
        ("vgg8", {}, "stage2_pre", "stage2.norm1"),
        ("mobilenet_v2", {}, "stage3_pre", "stage3.6.branch.norm3"),  # the shortcut comes first in the sum
        ("torchvision", {"architecture": "resnet18"}, "stage2_pre", "layer2.1.bn2"),
        ("torchvision", {"architecture": "resnet50"}, "layer3.0.relu:input", "layer3.0.bn3"),
    ],
)
def test_the_norm_behind_a_feature_is_found(
    model: str, options: dict[str, str], feature: str, norm: str
) -> None:
    network = build_model(model, options, (3, 32, 32), 4)
    features = Features(network, (3, 32, 32))
    assert batch_norm_behind(features, feature) is network.get_submodule(norm)
    assert network.training
    assert not network.get_submodule(norm)._forward_hooks


def test_the_norm_of_the_longer_way_counts_whichever_comes_first_in_a_sum() -> None:
    def branch(length: int) -> nn.Module:
        return nn.Sequential(*(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)) for _ in range(length)))

    for lengths in ((1, 2), (2, 1)):
        block = ResidualBlock(branch(lengths[0]), branch(lengths[1]))
        network = chain(block=block, flatten=nn.Flatten(), classifier=nn.Linear(16, 2))
        longer = (block.branch, block.shortcut)[lengths.index(2)]
        found = batch_norm_behind(Features(network, (1, 4, 4)), "block.pre_activation")
        assert found is longer[1][1]


@pytest.mark.parametrize(
    ("teacher", "options", "message"),
    [
        (
            {"name": "cnn", "widths": [5, 7]},
            {},
            "OFD needs a network with batch normalisation: none .* `stage1_pre`",
        ),
        ({**TEACHER, "widths": [5, 7, 7]}, {}, "but there are 2 and 3; name as many"),
        (
            TEACHER,
            {"teacher_features": ["stage2_pre", "stage1_pre"]},
            "equal height and width: .* name others",
        ),
        (TEACHER, {"student_features": ["embedding", "stage1"]}, r"`embedding` has the shape \(96,\)"),
        ({"name": "mlp"}, {}, "no stages; write the features before a ReLU as `teacher_features`"),
        (
            TEACHER,
            {"teacher_features": ["stage1", "stage2"]},
            "none makes all channels of the teacher's `stage1`",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    pair, teacher: dict[str, object], options: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pair.of(STUDENT, teacher).method("ofd", **options)
