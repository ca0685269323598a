"""A model that learns from labels: what its stage can be told."""

from pydantic import model_validator

from raydistill.kinds.stage_bases import BalanceConfig, PartsConfig, WeightsConfig
from raydistill.plan.config_errors import located_error
from raydistill.plan.model import ModelConfig


class TrainConfig(BalanceConfig, WeightsConfig, PartsConfig):
    """Train a model on labels: a teacher, a generalist, a baseline."""

    word = "train"
    implementation = "raydistill.stages.train:train"
    prepares = "raydistill.stages.train:prepare"
    learns_by = "labels alone"

    model: ModelConfig
    """What is trained."""

    @model_validator(mode="after")
    def _labels_are_there(self) -> "TrainConfig":
        if not self.transfer.labelled:
            raise located_error(
                "`train` learns from labels; an unlabelled transfer set needs `distill`", "transfer"
            )
        return self
