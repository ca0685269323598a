"""A model that exists: what its stage can be told."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import model_validator

from raydistill.kinds.stage_bases import BatchSize, WeightsConfig
from raydistill.models.weight_files import is_registered
from raydistill.plan.config_errors import Mistake
from raydistill.plan.model import ModelConfig
from raydistill.plan.model_input import InputConfig

if TYPE_CHECKING:
    from raydistill.plan.order import Site

PUBLISHED = re.compile(r"-[0-9a-f]{8}\.pth$")
"""How torchvision's files of weights end: with the beginning of their digest."""


class PretrainedConfig(WeightsConfig):
    """Take a model as it is, and judge it: a teacher that somebody trained before.

    Its `weights` are a file, beside the model or in it; a function of your own may load them by itself. They and the
    statistics of batch norms stay what they are, bit for bit. A student that was registered in MLflow needs no `model`:
    `weights: models:/name/3`, `models:/name@alias` or `runs:/id/name`.

    A network of timm, or of torchvision with a file of weights called as it was published, is shown pictures as its
    library tells (`input: published`), unless the model says something else; `input: {}` shows it the task's.
    """

    word = "pretrained"
    implementation = "raydistill.stages.pretrained:pretrained"
    makes = "model"

    model: ModelConfig
    """What the weights belong to."""
    batch_size: BatchSize = 500
    """Samples at a time, when it is judged."""

    @model_validator(mode="before")
    @classmethod
    def _what_lies_in_mlflow_is_a_program(cls, raw: Any) -> Any:
        has_model = not isinstance(raw, Mapping) or raw.get("model") is not None
        if has_model or not isinstance(weights := raw.get("weights"), str) or not is_registered(weights):
            return raw
        return {**raw, "model": {"name": "exported"}}

    @property
    def revision(self) -> int:
        """2: a `.pt2` of `distill export` is not given inputs that are normalised already."""
        weights = self.model.weights or ""
        return 2 if self.model.is_exported and Path(weights).suffix == ".pt2" else 1

    @property
    def existing_model(self) -> ModelConfig:
        return self.model

    def settled(self, site: "Site") -> Self:
        if self.model.input is not None or not _is_told_of(self.model) or len(site.task.input_shape) != 3:
            return self
        return self.replace(model=self.model.replace(input=InputConfig(like="published")))

    def advice(self, site: "Site") -> Iterator[Mistake]:
        model = self.model
        if model.name == "torchvision" and model.weights and model.input is None and not _is_told_of(model):
            yield Mistake(
                ("model",),
                "is shown the task's pictures in their size, normalised by their mean; if its weights were trained as"
                " ImageNet's are, write `input: published`, and `input: {}` if not",
            )

    @property
    def judged_on(self) -> tuple[str, ...]:
        return ("validation", "test")


def _is_told_of(model: ModelConfig) -> bool:
    """Whether its library tells how it wants its input, and means these weights."""
    if model.name == "torchvision":
        return model.weights is not None and PUBLISHED.search(model.weights) is not None
    return model.is_users_own and model.own_modules[0].partition(".")[0] == "timm"
