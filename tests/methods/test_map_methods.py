"""Attention transfer and neuron selectivity: known values, slow loops, and what they are blind to."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from raydistill.methods.attention_transfer import activity
from raydistill.methods.features import shrink_to_match
from raydistill.methods.neuron_selectivity import discrepancy, patterns
from raydistill.training.data import Batch

SMALL = {"name": "cnn", "widths": [4, 6], "batch_norm": True}
LARGE = {"name": "cnn", "widths": [6, 8], "batch_norm": True}
WORDS = ("attention_transfer", "neuron_selectivity")


def fill(shape: tuple[int, ...], slope: float) -> Tensor:
    return torch.sin(slope * torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)).reshape(shape)


def attention(own: Tensor, aim: Tensor) -> Tensor:
    own, aim = shrink_to_match(own, aim)
    return (activity(own) - activity(aim)).square().mean()


def selectivity(own: Tensor, aim: Tensor) -> Tensor:
    own, aim = shrink_to_match(own, aim)
    return discrepancy(patterns(own), patterns(aim)).mean()


def row(*values: float) -> Tensor:
    """One sample of one channel, a map of one row."""
    return torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1)


STUDENT, TEACHER = fill((3, 2, 4, 4), 0.7), fill((3, 3, 4, 4), 1.1)


@pytest.mark.parametrize(
    ("loss", "own", "aim", "value"),
    [
        (attention, row(3, 0), row(1, 1), 0.292893219),
        (attention, row(1, 0), row(0, 1), 1),
        (attention, STUDENT, TEACHER, 0.002428426),
        (attention, fill((3, 2, 8, 8), 0.7), TEACHER, 0.013934457),
        (selectivity, row(1, 0), row(0, 1), 2),
        (selectivity, torch.eye(2, dtype=torch.float64).view(1, 2, 1, 2), row(0, 1), 0.5),
        (selectivity, STUDENT, TEACHER, 1.043112085),
    ],
)
def test_losses_have_their_known_values(
    loss: Callable[[Tensor, Tensor], Tensor], own: Tensor, aim: Tensor, value: float
) -> None:
    assert loss(own, aim).item() == pytest.approx(value, abs=2e-9)
    assert loss(own, own).item() == pytest.approx(0, abs=1e-12)


def slow_selectivity(own: Tensor, aim: Tensor) -> float:
    """The three means over pairs of channels, by loops over samples and channels."""

    def mean_kernel(left: Tensor, right: Tensor) -> float:
        kernels = [
            float((a.flatten() / a.norm()) @ (b.flatten() / b.norm())) ** 2 for a in left for b in right
        ]
        return sum(kernels) / len(kernels)

    parts = [
        mean_kernel(t, t) + mean_kernel(s, s) - 2 * mean_kernel(s, t) for s, t in zip(own, aim, strict=True)
    ]
    return sum(parts) / len(parts)


@pytest.mark.parametrize("places", [(2, 2), (5, 5)], ids=["fewer places", "fewer channels"])
def test_selectivity_is_the_same_from_channels_and_from_places(places: tuple[int, int]) -> None:
    own, aim = fill((2, 5, *places), 0.7), fill((2, 7, *places), 1.1)
    assert selectivity(own, aim).item() == pytest.approx(slow_selectivity(own, aim), rel=1e-9)


def test_selectivity_of_maps_of_one_place_is_nothing() -> None:
    assert selectivity(fill((2, 5, 1, 1), 0.7), fill((2, 3, 1, 1), 1.1)).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "same",
    [
        lambda maps: maps[:, torch.randperm(maps.shape[1])],
        lambda maps: maps.repeat(1, 2, 1, 1),
        lambda maps: -maps,
        lambda maps: 1e-5 * maps,
        lambda maps: 1e5 * maps,
    ],
    ids=["permuted", "doubled", "turned over", "small", "large"],
)
@pytest.mark.parametrize("loss", [attention, selectivity])
def test_order_number_signs_and_scale_of_channels_do_not_matter(
    loss: Callable[[Tensor, Tensor], Tensor], same: Callable[[Tensor], Tensor]
) -> None:
    assert loss(same(STUDENT), TEACHER).item() == pytest.approx(loss(STUDENT, TEACHER).item(), rel=1e-9)


def test_the_scale_of_a_sample_does_not_matter_to_attention_nor_that_of_a_channel_to_selectivity() -> None:
    samples = torch.tensor([3.0, 0.1, 7.0]).view(3, 1, 1, 1)
    assert attention(samples * STUDENT, TEACHER).item() == pytest.approx(attention(STUDENT, TEACHER).item())
    channels = torch.tensor([3.0, 0.1]).view(1, 2, 1, 1)
    assert selectivity(channels * STUDENT, TEACHER).item() == pytest.approx(
        selectivity(STUDENT, TEACHER).item()
    )


@pytest.mark.parametrize("loss", [attention, selectivity])
def test_the_gradient_is_that_of_differences(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert torch.autograd.gradcheck(lambda own: loss(own, TEACHER), STUDENT.clone().requires_grad_())


@pytest.mark.parametrize("size", [1, 8])
@pytest.mark.parametrize("word", WORDS)
def test_layers_that_say_nothing_have_a_finite_gradient(
    pair: Any, images: tuple[Tensor, Tensor], word: str, size: int
) -> None:
    """Maps of zeros, as behind a dead ReLU, and a batch of one."""
    models = pair.of(SMALL, LARGE)
    method = models.method(word)
    inputs, labels = (part[:size] for part in images)
    own, teacher = models.outputs(method, inputs)
    for feature in own.features.values():
        feature.data.zero_()
        feature.retain_grad()
    ids = torch.arange(size)
    (loss,) = method.losses(own, teacher, Batch(inputs, labels, ids, ids)).values()
    loss.backward()
    gradients = [feature.grad for feature in own.features.values()]
    assert all(gradient is not None and gradient.abs().max() < 1e3 for gradient in gradients)


@pytest.mark.parametrize("word", WORDS)
def test_a_copy_of_the_teacher_costs_nothing_and_all_stages_count(
    pair: Any, images: tuple[Tensor, Tensor], word: str
) -> None:
    models = pair.of(LARGE, LARGE)
    models.student.load_state_dict(models.teacher.state_dict())
    models.student.eval()
    both, one = (
        models.method(word),
        models.method(word, student_features=["stage2"], teacher_features=["stage2"]),
    )
    assert both.student_features == both.teacher_features == ("stage1", "stage2")
    assert sum(models.losses(both, *images).values()).item() == pytest.approx(0, abs=1e-6)
    models = pair.of(SMALL, LARGE)
    first = models.method(word, student_features=["stage1"], teacher_features=["stage1"])
    parts = [sum(models.losses(method, *images).values()).item() for method in (first, one, both)]
    assert parts[0] + parts[1] == pytest.approx(parts[2], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"student_features": ["stage1"]}, "there are 1 and 2; name as many"),
        ({"student_features": ["stage1", "embedding"]}, "`embedding` has the shape"),
        ({"teacher_features": ["stage1", "stage7"]}, "no feature `stage7`"),
    ],
)
@pytest.mark.parametrize("word", WORDS)
def test_layers_that_do_not_pair_are_refused(
    pair: Any, word: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        pair.of(SMALL, LARGE).method(word, **options)
