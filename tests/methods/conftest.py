"""A student, a teacher and a batch for any method, without a stage around them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raydistill.kinds.method_options import MethodOptions
from raydistill.lookup import load_object
from raydistill.models.build import build_model
from raydistill.models.taps import Output, Tapped
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch
from raydistill.training.method import Features, Method, MethodContext

METHODS = MethodOptions.choices()

SHAPE, CLASSES = (1, 16, 16), 4


@dataclass
class Pair:
    """A small student and a larger teacher, and what a method sees of them."""

    student: nn.Module
    teacher: nn.Module

    @classmethod
    def of(cls, student: Mapping[str, Any], teacher: Mapping[str, Any], seed: int = 0) -> "Pair":
        """Models by name and options."""
        torch.manual_seed(seed)
        built = [
            build_model(
                model["name"], {key: value for key, value in model.items() if key != "name"}, SHAPE, CLASSES
            )
            for model in (student, teacher)
        ]
        return cls(built[0], built[1].eval().requires_grad_(False))

    def setting(self, **changes: Any) -> MethodContext:
        values = {"num_classes": CLASSES, "batch_size": 8, "epochs": 3} | changes
        values = {"labels": torch.arange(8) % CLASSES} | values
        return MethodContext(Features(self.student, SHAPE), Features(self.teacher, SHAPE), **values)

    def method(self, name: str, changes: Mapping[str, Any] | None = None, /, **options: Any) -> Method:
        """`changes`: of what it is built for."""
        kind = METHODS[name]
        config = kind.model_validate({"method": name, **options})
        built: Method = load_object(kind.implementation)(config, self.setting(**changes or {}))
        return built

    def outputs(self, method: Method, inputs: Tensor) -> tuple[Output, TeacherTargets]:
        """What the loop hands to the method for inputs (B, ...)."""
        student = Tapped(self.student, method.student_features)
        teacher = Tapped(self.teacher, method.teacher_features)
        own = student(inputs)
        with torch.no_grad():
            logits, features = teacher(inputs)
        student.remove_hooks()
        teacher.remove_hooks()
        targets = TeacherTargets(logits.unsqueeze(1), torch.ones(len(inputs), 1), features)
        return own, targets

    def losses(self, method: Method, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        ids = torch.arange(len(inputs))
        return method.losses(*self.outputs(method, inputs), Batch(inputs, labels, ids, ids))


@pytest.fixture(autouse=True)
def drawn_alike() -> None:
    """What a test draws does not hang on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture
def pair() -> type[Pair]:
    return Pair


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    """Inputs (8, 1, 16, 16) and labels (8,)."""
    generator = torch.Generator().manual_seed(3)
    return torch.rand(8, *SHAPE, generator=generator), torch.randint(CLASSES, (8,), generator=generator)
