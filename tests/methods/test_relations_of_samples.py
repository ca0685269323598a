"""Relations between the samples of a batch: SP, PKT and CC against known values, loops, and what they are blind to."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from raydistill.methods.correlation_congruence import kernel
from raydistill.methods.probabilistic_transfer import neighbours
from raydistill.methods.similarity_preserving import similarities
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch

SMALL = {"name": "mlp", "widths": [12, 6]}
LARGE = {"name": "mlp", "widths": [20, 9]}
WORDS = ("similarity_preserving", "probabilistic_transfer", "correlation_congruence")


def fill(shape: tuple[int, ...], slope: float) -> Tensor:
    return torch.sin(slope * torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)).reshape(shape)


def loss_of(method: Any, own: Tensor, aim: Tensor) -> Tensor:
    """The one term for features (B, ...) of both."""
    size = len(own)
    targets = TeacherTargets(torch.zeros(size, 1, 2), torch.ones(size, 1), {"embedding": aim})
    rows = torch.arange(size)
    terms = method.losses(
        Output(torch.zeros(size, 2), {"embedding": own}), targets, Batch(own, rows, rows, rows)
    )
    (loss,) = terms.values()
    return loss


ORTHONORMAL, EQUAL = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
VECTORS = fill((3, 4), 0.7).float(), fill((3, 5), 1.1).float()
MAPS = fill((3, 2, 4, 4), 0.7).float(), fill((3, 3, 4, 4), 1.1).float()


@pytest.mark.parametrize(
    ("word", "features", "value"),
    [
        ("similarity_preserving", (ORTHONORMAL, EQUAL), 0.292893219),
        ("similarity_preserving", MAPS, 0.009682847),
        ("similarity_preserving", VECTORS, 0.626409256),
        ("probabilistic_transfer", (ORTHONORMAL, EQUAL), 0.029445759),
        ("probabilistic_transfer", VECTORS, 0.365621751),
        ("correlation_congruence", (ORTHONORMAL, EQUAL), 0.126629496),
        ("correlation_congruence", VECTORS, 0.164644178),
    ],
)
def test_losses_have_their_known_values(
    pair: Any, word: str, features: tuple[Tensor, Tensor], value: float
) -> None:
    method = pair.of(SMALL, LARGE).method(word)
    assert loss_of(method, *features).item() == pytest.approx(value, rel=1e-5)


def test_parts_are_those_of_loops() -> None:
    rows = fill((4, 3), 0.7)
    products = [[sum(map(float, a * b)) for b in rows] for a in rows]
    lengths = [math.sqrt(products[i][i]) for i in range(4)]
    cosines = [[products[i][j] / lengths[i] / lengths[j] for j in range(4)] for i in range(4)]
    similar = [
        [products[i][j] / math.sqrt(sum(p**2 for p in products[i])) for j in range(4)] for i in range(4)
    ]
    torch.testing.assert_close(similarities(rows), torch.tensor(similar).double())
    shares = [[(cosine + 1) / sum(other + 1 for other in row) for cosine in row] for row in cosines]
    torch.testing.assert_close(neighbours(rows), torch.tensor(shares).double())
    series = [
        [math.exp(-0.8) * sum((0.8 * cosine) ** p / math.factorial(p) for p in range(3)) for cosine in row]
        for row in cosines
    ]
    torch.testing.assert_close(kernel(rows, 0.4, 2), torch.tensor(series).double())


def test_a_long_series_is_the_gaussian_kernel() -> None:
    units = torch.nn.functional.normalize(fill((5, 3), 0.7), dim=1)
    torch.testing.assert_close(kernel(units, 0.4, 20), torch.exp(-0.4 * torch.cdist(units, units).square()))


@pytest.mark.parametrize("word", WORDS)
def test_a_scaled_and_rotated_copy_of_the_teacher_costs_nothing(pair: Any, word: str) -> None:
    teacher = torch.randn(7, 4)
    rotation = torch.linalg.qr(torch.randn(4, 4))[0]
    method = pair.of(SMALL, LARGE).method(word)
    for scale in (1e-5, 3.0, 1e5):
        # A float32 logarithm near 0 is good to 1e-7; here it is a mean over seven of a row.
        assert loss_of(method, scale * teacher @ rotation, teacher).item() == pytest.approx(0, abs=1e-7 / 7)
    assert loss_of(method, teacher * torch.tensor([9, 1, 1, 1]), teacher).item() > 1e-5


@pytest.mark.parametrize(("word", "blind"), [(word, word != WORDS[0]) for word in WORDS])
def test_only_inner_products_see_the_length_of_one_sample(pair: Any, word: str, blind: bool) -> None:
    own, aim = torch.randn(6, 4), torch.randn(6, 3)
    longer = own * torch.tensor([9.0, 1, 1, 1, 1, 1]).view(-1, 1)
    method = pair.of(SMALL, LARGE).method(word)
    before, after = loss_of(method, own, aim).item(), loss_of(method, longer, aim).item()
    assert (after == pytest.approx(before, rel=1e-4)) is blind


@pytest.mark.parametrize("word", WORDS)
def test_the_order_of_samples_does_not_matter(pair: Any, word: str) -> None:
    own, aim, order = torch.randn(6, 4), torch.randn(6, 3), torch.randperm(6)
    method = pair.of(SMALL, LARGE).method(word)
    torch.testing.assert_close(loss_of(method, own[order], aim[order]), loss_of(method, own, aim))


@pytest.mark.parametrize("part", [similarities, neighbours, lambda rows: kernel(rows, 0.4, 2)])
def test_gradients_are_those_of_differences(part: Any) -> None:
    assert torch.autograd.gradcheck(part, fill((4, 3), 0.7).requires_grad_())


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize(
    "own", [torch.randn(1, 4), torch.zeros(3, 4), torch.tensor([[1.0, 2, 3, 4], [0, 0, 0, 0], [1, 0, 1, 0]])]
)
def test_one_sample_and_samples_without_features_have_a_finite_gradient(
    pair: Any, word: str, own: Tensor
) -> None:
    own = own.clone().requires_grad_()
    loss = loss_of(pair.of(SMALL, LARGE).method(word), own, torch.randn(len(own), 5))
    loss.backward()
    assert own.grad is not None
    assert own.grad.abs().max() < 1e3
    if len(own) == 1:
        assert loss.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("word", WORDS)
def test_a_batch_is_learned_by_heart_and_the_teacher_gets_no_gradient(
    pair: Any, images: Any, word: str
) -> None:
    models = pair.of({"name": "mlp", "widths": [40, 40]}, LARGE)
    method = models.method(word)
    optimizer = torch.optim.Adam(models.student.parameters(), 0.003)
    history = []
    for _ in range(200):
        loss = sum(models.losses(method, *images).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < history[0] / 5
    teacher = torch.randn(6, 3, requires_grad=True)
    loss_of(method, torch.randn(6, 4, requires_grad=True), teacher).backward()
    assert teacher.grad is None
