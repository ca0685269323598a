"""Several methods as one: sums, weights, ramps."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from raydistill.kinds.method_options import RampConfig
from raydistill.kinds.methods import HintonConfig
from raydistill.methods.combined import Combined, ramp
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch
from raydistill.training.method import Method


class Constant(Method):
    """Losses of known size."""

    def __init__(self, **sizes: float) -> None:
        super().__init__()
        self.sizes = sizes

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        return {name: torch.tensor(size) for name, size in self.sizes.items()}


def options(**values: Any) -> HintonConfig:
    return HintonConfig.model_validate({"method": "hinton", **values})


def told(combined: Combined, epoch: int = 0) -> dict[str, float]:
    ids = torch.arange(2)
    batch = Batch(torch.rand(2, 1), ids, ids, ids, epoch=epoch)
    return {
        name: loss.item() for name, loss in combined.losses(Output(torch.rand(2, 2), {}), None, batch).items()
    }


def test_losses_of_several_methods_carry_their_names_and_weights() -> None:
    methods = [Constant(a=2.0), Constant(a=3.0, b=5.0), Constant(c=7.0)]
    combined = Combined(methods, [options(), options(weight=0.5), options(weight=0)], ["x", "y", "z"])
    assert told(combined) == {"x/a": 2.0, "y/a": 1.5, "y/b": 2.5}


def test_a_single_method_keeps_its_names() -> None:
    assert told(Combined([Constant(a=2.0)], [options()], ["x"])) == {"a": 2.0}


def test_a_ramp_changes_the_weight_over_epochs_and_never_leaves_a_loss_out() -> None:
    rising = options(weight=10, ramp={"start": 0, "end": 1, "epochs": 4})
    combined = Combined([Constant(a=1.0)], [rising], ["x"])
    assert [told(combined, epoch)["a"] for epoch in (0, 1, 2, 4, 9)] == pytest.approx([0, 2.5, 5, 10, 10])


@pytest.mark.parametrize(
    ("epoch", "factor"), [(0, 0.0067379), (20, 0.0600547), (40, 0.2865048), (80, 1), (200, 1)]
)
def test_the_exponential_ramp_has_the_published_values(epoch: int, factor: float) -> None:
    config = RampConfig.model_validate({"shape": "exponential", "epochs": 80})
    assert ramp(config, epoch) == pytest.approx(factor, abs=1e-7)


def test_a_cosine_is_half_way_up_in_the_middle_and_flat_at_its_ends() -> None:
    config = RampConfig.model_validate({"shape": "cosine", "epochs": 100, "start": 4, "end": 1})
    assert ramp(config, 50) == pytest.approx(2.5)
    assert ramp(config, 1) == pytest.approx(4 - 3 * (1 - math.cos(math.pi / 100)) / 2)
    assert (ramp(config, 0), ramp(config, 100)) == (4, 1)


def test_a_step_is_its_start_before_its_epochs_are_over_and_its_end_from_then_on() -> None:
    config = RampConfig.model_validate({"shape": "step", "epochs": 3, "start": 1, "end": 0})
    assert [ramp(config, epoch) for epoch in range(5)] == [1, 1, 1, 0, 0]
