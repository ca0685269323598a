"""Every method at the edge of the numbers: what it says is finite and right, or so plainly wrong that the loop stops.

Driven by the table of methods: a new one is covered by being in it.
"""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from raydistill.kinds.method_options import MethodOptions, SoftTargetOptions
from raydistill.lookup import load_object
from raydistill.methods import ca_mkd, ofd, semckd
from raydistill.methods.dafl import negative_entropy
from raydistill.methods.losses import divergence
from raydistill.models.build import build_model
from raydistill.models.taps import Output, Tapped
from raydistill.targets.mixing import (
    TeacherTargets,
    divergence_from,
    entropy,
    mean_logits,
    tempered_log_probabilities,
)
from raydistill.training.data import Batch
from raydistill.training.method import Features, Method, MethodContext

METHODS = MethodOptions.choices()

SHAPE = (1, 16, 16)
AVERAGED = ("class_attention", "softmax_regression")  # of maps that are averaged into the classifier
SOFT = [name for name, kind in METHODS.items() if issubclass(kind, SoftTargetOptions)]


@pytest.mark.parametrize(
    "adapter",
    [ca_mkd.build_channel_regressor(3, 5), ofd.build_connector(3, 5), semckd.build_projection(3, 5)],
)
def test_what_is_trained_beside_the_student_takes_a_single_value_per_channel(adapter: nn.Module) -> None:
    maps = torch.randn(1, 3, 1, 1, requires_grad=True)
    adapter.train()(maps).sum().backward()
    assert maps.grad is not None
    assert maps.grad.isfinite().all()


def excluding(logits: Tensor, value: float) -> Tensor:
    """The same logits but for the last class, which has this one."""
    return torch.cat([logits[:, :-1], torch.full_like(logits[:, -1:], value)], dim=1)


class Scene:
    """A student and two teachers of one architecture, which the method takes, and a batch of theirs."""

    def __init__(self, name: str, classes: int = 4, batch: int = 8, **options: Any) -> None:
        torch.manual_seed(1)
        self.kind, self.classes, self.batch = METHODS[name], classes, batch
        size = {"widths": [4, 6], "batch_norm": True, "hidden": [8]}
        word, options_of = ("resnet8", {}) if name in AVERAGED else ("cnn", size)
        self.student, *teachers = (build_model(word, options_of, SHAPE, classes) for _ in range(3))
        self.teachers = [teacher.eval().requires_grad_(False) for teacher in teachers]
        if not self.kind.weighs_teachers:
            self.teachers = self.teachers[:1]
        features = [Features(teacher, SHAPE) for teacher in self.teachers]
        self.inputs = torch.rand(batch, *SHAPE)
        self.labels = torch.arange(batch) % classes
        setting = MethodContext(
            *(Features(self.student, SHAPE), features[0], classes, 8),
            epochs=3,
            teachers=tuple(features),
            labels=torch.arange(8) % classes,
        )
        config = self.kind.model_validate({"method": name, **options})
        self.method: Method = load_object(self.kind.implementation)(config, setting)

    def losses(
        self, student_logits: Tensor, teacher_logits: Tensor, *, autocasts: bool = False
    ) -> dict[str, Tensor]:
        """The losses of given logits (B, C) and (B, C), beside features as the networks make them."""
        tapped = [Tapped(teacher, self.method.teacher_features) for teacher in self.teachers]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocasts):
            own = Tapped(self.student, self.method.student_features)(self.inputs)
            members = tuple(teacher(self.inputs).features for teacher in tapped)
        count = len(self.teachers)
        logits = teacher_logits.unsqueeze(1).repeat(1, count, 1)
        weights = torch.full((self.batch, count), 1 / count)
        targets = TeacherTargets(logits, weights, members[0], members)
        rows = torch.arange(self.batch)
        output = Output(student_logits.to(own.logits.dtype), own.features)
        return self.method.losses(output, targets, Batch(self.inputs, self.labels, rows, rows))

    def check(
        self, student_logits: Tensor, teacher_logits: Tensor, *, autocasts: bool = False, share: float = 1.0
    ) -> None:
        """Value and gradient of this share of the losses are finite; of none of them, they are 0."""
        student_logits = student_logits.clone().requires_grad_()
        losses = self.losses(student_logits, teacher_logits, autocasts=autocasts)
        total = torch.stack([share * loss for loss in losses.values()]).sum()
        assert total.dtype == torch.float32
        assert total.isfinite(), losses
        if not total.requires_grad:  # a term of a batch that has nothing to compare
            return
        total.backward()
        learned = [student_logits, *self.student.parameters(), *self.method.parameters()]
        gradients = [part.grad for part in learned if part.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert share or not any(gradient.any() for gradient in (total, *gradients))

    def draw(self, size: float = 2.0, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return size * torch.randn(self.batch, self.classes, generator=generator)


def with_temperature(name: str, temperature: float) -> dict[str, float]:
    return {"temperature": temperature} if "temperature" in METHODS[name].model_fields else {}


@pytest.mark.parametrize("autocasts", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("name", METHODS)
def test_wide_logits_at_any_temperature_give_finite_values_and_gradients(
    name: str, temperature: float, autocasts: bool
) -> None:
    scene = Scene(name, **with_temperature(name, temperature))
    sure, other = (200 * scene.draw(seed=seed).sign() for seed in (0, 1))
    for student, teacher in ((sure, other), (sure, sure), (sure, -sure), (other * 0, other)):
        scene.check(student, teacher, autocasts=autocasts)


@pytest.mark.parametrize("temperature", [0.99e-3, 1.01e4])
@pytest.mark.parametrize("name", [name for name in METHODS if with_temperature(name, 1)])
def test_a_temperature_beyond_these_is_refused(name: str, temperature: float) -> None:
    with pytest.raises(ValidationError, match="temperature"):
        METHODS[name].model_validate({"method": name, "temperature": temperature})


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", METHODS)
def test_two_classes_and_a_batch_of_one_are_enough(name: str, classes: int, batch: int) -> None:
    for share in (1.0, 0.0):  # a worker without samples repeats one, which counts for nothing
        scene = Scene(name, classes=classes, batch=batch)
        scene.check(scene.draw(), scene.draw(seed=1), share=share)


@pytest.mark.parametrize("who", ["teacher", "student", "both"])
@pytest.mark.parametrize("name", METHODS)
def test_a_class_that_is_excluded_costs_its_limit_or_stops_the_training(name: str, who: str) -> None:
    def loss(value: float) -> Tensor:
        scene = Scene(name)  # anew: a method may remember
        scene.labels = scene.labels % 3  # never the class that is excluded
        student, teacher = scene.draw(), scene.draw(seed=1)
        torch.manual_seed(2)  # negatives may be drawn
        return torch.stack(
            list(
                scene.losses(
                    excluding(student, value) if who != "teacher" else student,
                    excluding(teacher, value) if who != "student" else teacher,
                ).values()
            )
        ).sum()

    nearly, more, wholly = loss(-1e4), loss(-1e5), loss(-torch.inf)
    has_limit = torch.isclose(nearly, more, rtol=1e-4)
    if name in SOFT and who != "student":
        assert has_limit
        assert wholly.isfinite()
    assert not wholly.isfinite() or (has_limit and torch.isclose(wholly, more, rtol=1e-4))


@pytest.mark.parametrize("name", SOFT)
def test_where_both_exclude_a_class_the_gradient_is_that_of_the_others(name: str) -> None:
    scene = Scene(name)
    scene.labels = scene.labels % 3
    scene.check(excluding(scene.draw(), -torch.inf), excluding(scene.draw(seed=1), -torch.inf))


def test_peers_that_exclude_a_class_are_as_far_apart_as_without_it() -> None:
    own, other = (torch.randn(5, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    student, teacher = (excluding(logits, -torch.inf).requires_grad_() for logits in (own, other))
    apart = divergence(student, teacher, 3.0)
    apart.backward()
    torch.testing.assert_close(apart, divergence(own[:, :3], other[:, :3], 3.0))
    assert student.grad.isfinite().all()  # type: ignore[union-attr]
    assert teacher.grad.isfinite().all()  # type: ignore[union-attr]
    assert divergence(student, other, 3.0) == torch.inf


def test_teachers_that_exclude_a_class_are_weighed_by_what_they_say() -> None:
    logits = torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(0))
    logits[:, 0, 3] = -torch.inf
    torch.testing.assert_close(entropy(logits)[:, 0], entropy(logits[:, :1, :3])[:, 0])
    weights = torch.tensor([0.0, 1.0]).expand(5, 2)
    torch.testing.assert_close(mean_logits(TeacherTargets(logits, weights)), logits[:, 1])
    even = TeacherTargets(logits, torch.full((5, 2), 0.5))
    apart = divergence_from(logits, tempered_log_probabilities(even, 1.0))
    assert apart.isfinite().all()
    p, mean = logits.softmax(dim=-1).double(), logits.softmax(dim=-1).double().mean(dim=1, keepdim=True)
    torch.testing.assert_close(apart.double(), torch.xlogy(p, p / mean).sum(dim=-1), rtol=1e-5, atol=1e-6)


def test_a_generator_whose_answers_are_all_of_one_class_still_learns() -> None:
    logits = torch.tensor([[200.0, -200.0, -200.0]] * 4, requires_grad=True)
    value = negative_entropy(logits)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-30)
    assert logits.grad.isfinite().all()  # type: ignore[union-attr]
