"""One teacher per batch: replayable, all equally often, and on average the arithmetic mean."""

from dataclasses import replace

import pytest
import torch

from raydistill.kinds.committee_methods import TeacherSwitchingConfig
from raydistill.methods.losses import soft_loss
from raydistill.methods.teacher_switching import TeacherSwitching, drawn_teacher
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch

ROWS = torch.tensor([7, 3, 11, 2])
BATCH = Batch(torch.zeros(4), ROWS % 3, ROWS, ROWS)


def build(seed: int = 0) -> TeacherSwitching:
    config = {"method": "teacher_switching", "hard_weight": 0, "switch_seed": seed}
    return TeacherSwitching(TeacherSwitchingConfig.model_validate(config))


def test_all_weight_goes_to_the_teacher_that_was_drawn() -> None:
    weights = build().weights(torch.zeros(4, 3), torch.zeros(4, 5, 3), BATCH)
    expected = torch.zeros(4, 5)
    expected[:, drawn_teacher(0, BATCH, 5)] = 1
    assert torch.equal(weights, expected)


def test_every_teacher_is_drawn_equally_often_over_batches_epochs_and_seeds() -> None:
    for vary in ("rows", "epoch", "seed"):
        counts = [0] * 3
        for number in range(3000):
            batch = replace(BATCH, rows=ROWS + number * (vary == "rows"), epoch=number * (vary == "epoch"))
            counts[drawn_teacher(number * (vary == "seed"), batch, 3)] += 1
        assert all(abs(count - 1000) < 5 * (3000 * 2 / 9) ** 0.5 for count in counts)


def test_the_gradient_is_on_average_that_of_the_mean_of_the_teachers() -> None:
    student, teachers = torch.randn(4, 3), 2 * torch.randn(4, 3, 3)
    targets, gradients = TeacherTargets(teachers, torch.full((4, 3), 1 / 3)), {}
    for epoch in range(40):
        own, batch = student.clone().requires_grad_(), replace(BATCH, epoch=epoch)
        (loss,) = build().losses(Output(own, {}), targets, batch).values()
        loss.backward()
        gradients[drawn_teacher(0, batch, 3)] = own.grad
    mean = student.clone().requires_grad_()
    soft_loss(mean, targets, 4.0).backward()
    assert set(gradients) == {0, 1, 2}
    torch.testing.assert_close(sum(gradients.values()) / 3, mean.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 5])
def test_the_draw_is_the_same_again_and_does_not_touch_the_generators(seed: int) -> None:
    state = torch.get_rng_state()
    first = [drawn_teacher(seed, replace(BATCH, epoch=epoch), 4) for epoch in range(20)]
    assert first == [drawn_teacher(seed, replace(BATCH, epoch=epoch), 4) for epoch in range(20)]
    assert torch.equal(torch.get_rng_state(), state)
