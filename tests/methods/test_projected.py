"""Projected embeddings: values computed elsewhere, slow loops, and what they are blind to."""

import math

import pytest
import torch
from torch import Tensor

from raydistill.methods.projected import Projected, distance, normalised, pooled

MLP = {"name": "mlp", "widths": [12, 6]}
LARGER = {"name": "mlp", "widths": [20, 9]}


def fill(shape: tuple[int, ...], slope: float) -> Tensor:
    count = math.prod(shape)
    return torch.sin(slope * torch.arange(1, count + 1, dtype=torch.float64)).reshape(shape)


OWN, AIM = fill((2, 3), 0.7), fill((2, 3), 1.1)


@pytest.mark.parametrize(
    ("kind", "value"), [("squared", 0.719266462), ("cosine", 0.791843291), ("smooth_l1", 0.349957818)]
)
def test_distances_have_their_known_values(kind: str, value: float) -> None:
    assert distance(OWN, AIM, kind).item() == pytest.approx(value, rel=1e-8)
    assert distance(AIM, AIM, kind).item() == pytest.approx(0, abs=1e-12)


def test_smooth_l1_against_what_is_normalised_has_its_known_value() -> None:
    assert distance(OWN, normalised(AIM, "layer_norm"), "smooth_l1").item() == pytest.approx(
        0.729329670, rel=1e-4
    )


def test_a_unit_vector_has_length_1_and_no_vector_has_no_direction() -> None:
    lengths = normalised(AIM, "unit").norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(2, dtype=torch.float64))
    nothing = torch.zeros(1, 3, requires_grad=True)
    distance(nothing, torch.ones(1, 3), "cosine").backward()
    assert nothing.grad is not None
    assert nothing.grad.abs().max() < 1


def test_the_cosine_sees_no_length_and_the_squares_do() -> None:
    torch.testing.assert_close(distance(7 * OWN, AIM, "cosine"), distance(OWN, AIM, "cosine"))
    assert distance(7 * OWN, AIM, "squared") > 2 * distance(OWN, AIM, "squared")


def test_maps_are_averaged_over_their_places() -> None:
    maps = fill((2, 3, 4, 5), 0.3)
    slow = [[sum(map(float, maps[b, c].flatten())) / 20 for c in range(3)] for b in range(2)]
    torch.testing.assert_close(pooled(maps), torch.tensor(slow))


def test_labels_do_not_matter_and_sizes_may_differ(pair, images) -> None:
    both = pair.of(MLP, LARGER)
    method = both.method("embedding")
    assert isinstance(method, Projected)
    assert method.projector.weight.shape == (9, 6)
    inputs, labels = images
    one, other = (both.losses(method, inputs, which)["embedding"] for which in (labels, labels.flip(0)))
    assert torch.equal(one, other)
    single = both.losses(method, inputs[:1], labels[:1])["embedding"]
    single.backward()
    assert all(parameter.grad.isfinite().all() for parameter in method.parameters())


def test_the_projector_reaches_a_student_that_is_its_teacher_turned(pair, images) -> None:
    both = pair.of(LARGER, LARGER)
    both.student.load_state_dict(both.teacher.state_dict())
    method = both.method("embedding", normalize="none", distance="squared")
    with torch.no_grad():
        method.projector.weight.copy_(torch.eye(9))
        method.projector.bias.zero_()
    assert both.losses(method, *images)["embedding"].item() == pytest.approx(0, abs=1e-12)
