"""Curriculum temperature: values of its paper's equations, a layer that turns gradients round, and who learns what."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from raydistill.kinds.logit_methods import CurriculumTemperatureConfig
from raydistill.methods.curriculum_temperature import CurriculumTemperature, soft_loss_at, strength
from raydistill.methods.losses import soft_loss
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch

Z = torch.tensor([[1, 2, 3], [0, -1, 2], [0.5, 0.5, -1], [2, 0, 1]])
V = torch.tensor([[3, 1, 0.5], [-1, 0, 4], [1, 2, -1], [0.5, 0.2, 0.1]])
Y = torch.tensor([0, 2, 1, 0])
START = 15.621171573


def method_of(**options: Any) -> CurriculumTemperature:
    given = {"method": "curriculum_temperature", "soft_weight": 1, "hard_weight": 0} | options
    return CurriculumTemperature(CurriculumTemperatureConfig.model_validate(given))


def targets_of(*teachers: Tensor) -> TeacherTargets:
    logits = torch.stack(teachers, dim=1)
    return TeacherTargets(logits, torch.full(logits.shape[:2], 1 / len(teachers)))


def total(method: CurriculumTemperature, student: Tensor, *teachers: Tensor, epoch: int = 4) -> Tensor:
    rows = torch.arange(len(student))
    batch = Batch(student.detach(), Y[: len(student)], rows, rows, epoch=epoch)
    terms = method.losses(Output(student, {}), targets_of(*teachers or (V,)), batch)
    return torch.stack(list(terms.values())).sum()


def test_it_has_the_values_of_its_equations() -> None:
    method = method_of()
    found = total(method, Z)  # the fifth epoch of ten: half the strength
    found.backward()
    assert method.temperature().item() == pytest.approx(START, rel=1e-6)
    assert found.item() == pytest.approx(0.748685601, rel=1e-5)
    assert method.position.grad is not None
    assert method.position.grad.abs().item() == pytest.approx(
        0.000464174, rel=0.02
    )  # of float32, differences of 1e-5


def test_the_slope_in_the_temperature_is_that_of_the_equations() -> None:
    for heat, slope in ((1.0, 0.642163807), (2.0, 0.056629956), (4.0, -0.008498457)):
        temperature = torch.tensor(heat, requires_grad=True)
        soft_loss_at(Z[:1], targets_of(V[:1]), temperature).backward()
        assert temperature.grad is not None
        assert temperature.grad.item() == pytest.approx(slope, rel=1e-3)


def test_the_strength_is_half_a_wave_that_ends_in_the_last_epoch_of_the_curriculum() -> None:
    found = [strength(10, epoch) for epoch in range(11)]
    expected = [0.024472, 0.095492, 0.206107, 0.345492, 0.5, 0.654508, 0.793893, 0.904508, 0.975528, 1, 1]
    assert found == pytest.approx(expected, abs=1e-6)


def test_the_student_learns_what_soft_targets_at_that_temperature_teach() -> None:
    other = V.flip(0)
    for teachers in ((V,), (V, other)):
        one, two = Z.clone().requires_grad_(), Z.clone().requires_grad_()
        found = total(method_of(), one, *teachers)
        expected = soft_loss(two, targets_of(*teachers), START)
        (slope,), (known,) = torch.autograd.grad(found, one), torch.autograd.grad(expected, two)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(slope, known, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("position", [-4.0, -3.0, 0.0])
def test_a_step_of_the_temperature_alone_makes_the_task_no_easier(position: float) -> None:
    method = method_of()
    with torch.no_grad():
        method.position.fill_(position)
    before = total(method, Z)
    before.backward()
    assert method.position.grad is not None
    assert method.position.grad.abs() > 1e-5
    with torch.no_grad():
        method.position -= method.position.grad
    assert total(method, Z) > before


def test_the_temperature_stays_within_its_range_and_is_observed() -> None:
    method = method_of(lowest_temperature=2, temperature_range=5)
    for position in (-3.0, 3.0):
        with torch.no_grad():
            method.position.fill_(position)
        total(method, Z)
        expected = 2 + 5 / (1 + math.exp(-position))
        assert method.observations()["temperature"].item() == pytest.approx(expected, rel=1e-6)


def test_a_class_that_both_exclude_is_as_if_it_were_not_there() -> None:
    never = torch.full((4, 1), -torch.inf)
    plain, wider, student = method_of(), method_of(), torch.cat((Z, never), dim=1).requires_grad_()
    total(plain, Z).backward()
    total(wider, student, torch.cat((V, never), dim=1)).backward()
    torch.testing.assert_close(wider.position.grad, plain.position.grad, rtol=0.02, atol=0)
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert total(wider, student, torch.cat((V, Z[:, :1]), dim=1)) == torch.inf


def test_a_single_sample_is_enough() -> None:
    method, student = method_of(hard_weight=1), Z[:1].clone().requires_grad_()
    found = total(method, student, V[:1])
    assert found.item() == pytest.approx(
        soft_loss(Z[:1], targets_of(V[:1]), START).item() + F.cross_entropy(Z[:1], Y[:1]).item(), rel=1e-5
    )
    found.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_decay_spares_the_temperature() -> None:
    method = method_of()
    assert list(method.undecayed()) == list(method.parameters()) == [method.position]


def test_a_temperature_that_could_leave_float32_is_refused() -> None:
    with pytest.raises(ValidationError, match="lower `temperature_range`"):
        method_of(temperature_range=100)
