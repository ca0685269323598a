"""Trainings of a few steps: 23 small images in batches of 5, so that every epoch ends with an uneven batch."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from raydistill.errors import StageStopped
from raydistill.kinds.augmentations import AugmentationOptions
from raydistill.kinds.train import TrainConfig
from raydistill.methods.supervised import Supervised
from raydistill.runs.context import StageContext, never
from raydistill.runs.folder import StageFolder
from raydistill.tasks.mnist import Mnist
from raydistill.tasks.normalisation import Normalisation
from raydistill.tasks.splits import TensorSplit
from raydistill.training.data import TransferSet, Views
from raydistill.training.loop import Teacher, fit
from raydistill.training.method import Method

SAMPLES, CLASSES, EPOCHS = 23, 3, 3


def mlp(seed: int = 0, *, dropout: float = 0.0) -> nn.Module:
    """64-16-3."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, CLASSES)
    )


def cnn(seed: int = 0) -> nn.Module:
    """Two convolutions, the first with batch normalisation."""
    torch.manual_seed(seed)
    first = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(first, nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, CLASSES))


class StopAt:
    """Asks to stop once, after `steps` steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


@dataclass
class Bench:
    """Trains models in folders of their own below `root`, on the same samples."""

    root: Path
    augment: tuple[AugmentationOptions, ...] = ()
    channels_last: bool = False
    config: dict[str, Any] = field(default_factory=dict)

    mlp = staticmethod(mlp)
    cnn = staticmethod(cnn)

    def split(self, seed: int = 0, samples: int = SAMPLES) -> TensorSplit:
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.rand(samples, 1, 8, 8, generator=generator)
        labels = torch.randint(CLASSES, (samples,), generator=generator)
        return TensorSplit(inputs, labels, torch.arange(samples) * 3 + 1)

    def transfer(self, samples: int = SAMPLES) -> TransferSet:
        mean, std = torch.full((1, 1, 1), 0.5), torch.full((1, 1, 1), 0.3)
        views = Views(self.augment, seed=9)
        return TransferSet(self.split(samples=samples), Normalisation(mean, std), views, self.channels_last)

    def settings(self, **changes: Any) -> TrainConfig:
        values = {"stage": "train", "model": {"name": "mlp"}, "epochs": EPOCHS, "batch_size": 5}
        extra = {"channels_last": self.channels_last}
        return TrainConfig.model_validate(values | extra | self.config | changes)

    def context(self, name: str, should_stop: Callable[[], bool] = never, attempt: str = "") -> StageContext:
        folder = StageFolder(self.root / name)
        folder.path.mkdir(parents=True, exist_ok=True)
        return StageContext(name, folder, self.root, Mnist(), attempt=attempt, should_stop=should_stop)

    def train(
        self,
        model: nn.Module,
        name: str = "train-0",
        *,
        method: Method | None = None,
        teacher: Teacher | None = None,
        should_stop: Callable[[], bool] = never,
        attempt: str = "",
        **changes: Any,
    ) -> nn.Module:
        """Fit `model` in place and return it."""
        context = self.context(name, should_stop, attempt)
        config = self.settings(**changes)
        fit(model, method or Supervised(), self.transfer(), self.split(1, 12), config, context, teacher)
        context.flush()
        return model

    def stopped(self, model: nn.Module, steps: int, name: str = "train-0", **arguments: Any) -> nn.Module:
        """Train for `steps` steps of a training that is then asked to stop."""
        with pytest.raises(StageStopped):
            self.train(model, name, should_stop=StopAt(steps), **arguments)
        return model

    def metrics(self, name: str = "train-0") -> list[dict[str, float]]:
        """The lines of metrics.jsonl, without the times."""
        lines = [json.loads(line) for line in (self.root / name / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if key != "time"} for line in lines]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)
