"""A model that exists: what its stage can be told."""

from raydistill.kinds.stage_bases import BatchSize, WeightsConfig
from raydistill.plan.model import ModelConfig


class PretrainedConfig(WeightsConfig):
    """Take a model as it is, and judge it: a teacher that somebody trained before.

    Its `weights` are a file, beside the model or in it; a function of your own may load them by itself. They and the
    statistics of batch norms stay what they are, bit for bit.
    """

    word = "pretrained"
    implementation = "raydistill.stages.pretrained:pretrained"
    makes = "model"

    model: ModelConfig
    """What the weights belong to."""
    batch_size: BatchSize = 500
    """Samples at a time, when it is judged."""

    @property
    def existing_model(self) -> ModelConfig:
        return self.model

    @property
    def judged_on(self) -> tuple[str, ...]:
        return ("validation", "test")
