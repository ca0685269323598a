"""AE-KD's weights: closed forms, and a certificate that no feasible weights are better."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raydistill.methods.adaptive_weights import member_losses
from raydistill.methods.ae_kd import capped_weights, mean_gradients, normalized_weights


def closed_form(one: Any, other: Any, cap: float) -> list[float]:
    """M = 2: α_1 = clip((g_2 - g_1) · g_2 / ‖g_1 - g_2‖², 1 - C, C)."""
    first = float(np.clip((other - one) @ other / ((one - other) @ (one - other)), 1 - cap, cap))
    return [first, 1 - first]


def slack(gradients: Any, weights: Any, cap: float) -> float:
    """How far from optimal: α · Gα - min over feasible v of v · Gα, relative to the mean squared length; 0 if optimal.

    The minimum of a linear function fills the smallest entries of Gα up to the cap, one after another.
    """
    gram = gradients @ gradients.T
    slope, left, least = gram @ weights, 1.0, 0.0
    for value in sorted(slope):
        least += min(cap, left) * value
        left -= min(cap, left)
    return float((weights @ slope - least) / max(np.trace(gram) / len(gram), 1e-300))


def test_two_orthogonal_gradients_have_the_published_weights() -> None:
    gradients = np.array([[1.0, 0.0], [0.0, 2.0]])
    weights = capped_weights(gradients, 1.0)
    assert weights.tolist() == pytest.approx([0.8, 0.2], abs=1e-8)
    assert (weights @ gradients).tolist() == pytest.approx([0.8, 0.4], abs=1e-8)


@pytest.mark.parametrize("cap", [0.5, 0.6, 0.9, 1.0])
def test_two_gradients_have_the_weights_of_the_closed_form(cap: float) -> None:
    for gradients in np.random.default_rng(0).normal(size=(50, 2, 5)):
        expected = closed_form(*gradients, cap)
        assert capped_weights(gradients, cap).tolist() == pytest.approx(expected, abs=1e-7)


@given(
    seed=st.integers(0, 10**9),
    count=st.integers(1, 9),
    width=st.integers(1, 12),
    cap=st.floats(0.05, 1.0),
    likeness=st.sampled_from([0.0, 1.0, 30.0, 1000.0]),
    copies=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_no_feasible_weights_are_better(
    seed: int, count: int, width: int, cap: float, likeness: float, copies: bool
) -> None:
    draw = np.random.default_rng(seed)
    gradients = draw.normal(size=(count, width)) + likeness * draw.normal(size=width)
    if copies:
        gradients = gradients[draw.integers(count, size=count)]
    weights, cap = capped_weights(gradients, cap), max(cap, 1 / count)
    assert weights.sum() == pytest.approx(1)
    assert weights.min() >= 0
    assert weights.max() <= cap + 1e-12
    assert slack(gradients, weights, cap) < 1e-8


@pytest.mark.parametrize("cap", [0.25, 0.2, 0.6, 1.0])
def test_gradients_that_are_equal_or_zero_get_equal_weights(cap: float) -> None:
    for gradients in (np.ones((4, 3)), np.zeros((4, 3)), np.tile([[0.3, -1.7, 0.11]], (4, 1))):
        assert capped_weights(gradients, cap).tolist() == pytest.approx([0.25] * 4, abs=1e-5)


@pytest.mark.parametrize("cap", [0.25, 0.01])
def test_a_cap_that_leaves_no_choice_makes_weights_equal(cap: float) -> None:
    weights = capped_weights(np.random.default_rng(0).normal(size=(4, 3)), cap)
    assert weights.tolist() == [0.25] * 4


def test_a_short_gradient_takes_what_the_cap_allows() -> None:
    gradients = np.array([[0.01, 0.0], [5.0, 0.0], [5.0, 0.1]])
    assert capped_weights(gradients, 0.6)[0] == pytest.approx(0.6)
    assert capped_weights(gradients, 1.0)[0] == pytest.approx(1.0)


def test_normalized_weights_undo_the_length_of_a_gradient() -> None:
    """Directions at right angles get 1/2 each, divided by the lengths 1 and 2 and scaled: 2/3 and 1/3."""
    gradients = np.array([[1.0, 0.0], [0.0, 2.0]])
    assert normalized_weights(gradients, 1.0).tolist() == pytest.approx([2 / 3, 1 / 3])
    assert normalized_weights(np.zeros((2, 3)), 1.0).tolist() == [0.5, 0.5]


def test_gradients_are_those_that_autograd_finds() -> None:
    student, teachers = torch.randn(6, 5, requires_grad=True), 3 * torch.randn(6, 3, 5)
    losses = member_losses(student, teachers, 4.0).sum(dim=0)
    expected = [torch.autograd.grad(loss, student, retain_graph=True)[0].mean(dim=0) for loss in losses]
    torch.testing.assert_close(mean_gradients(student.detach(), teachers, 4.0), torch.stack(expected))


def test_a_gradient_that_is_not_finite_ends_in_weights_that_are_not() -> None:
    with np.errstate(invalid="ignore"):
        assert np.isnan(capped_weights(np.array([[np.nan, 0.0], [1.0, 0.0]]), 0.6)).any()
