"""What the survey before work is told. It runs where stages run and as they do, but no plan can name it."""

from typing import Annotated, Any

from pydantic import Field

from raydistill.kinds.stage_bases import BatchSize
from raydistill.kinds.training import AlsoConfig, ParameterGroupConfig, TransferConfig
from raydistill.plan.config import Boolean, Config, Integer
from raydistill.plan.model import ModelConfig
from raydistill.plan.stage import StageConfig

FOUND = "found.json"
"""What a survey leaves in its folder."""


class SurveyDataConfig(StageConfig):
    """Look at the task's data."""

    word = "survey_data"
    implementation = "raydistill.stages.survey:survey_data"
    makes = "survey"

    pools: tuple[AlsoConfig, ...] = ()
    """Samples without labels that lie beside it."""


class ProbedModel(Config):
    """A model, and what the stages of these names will ask of it.

    It gives `num_classes` logits, and learns unless it is taken as it is. Without a `transfer` it sees no part of the
    task's data while it learns; of what it sees, each of so many `shards` is another model's. Where it starts with the
    weights of another stage, `initial` made them.
    """

    stages: tuple[str, ...]
    model: ModelConfig
    num_classes: Annotated[Integer, Field(ge=1)]
    workers: Annotated[Integer, Field(ge=1)] = 1
    batch_size: BatchSize = 128
    transfer: TransferConfig | None = None
    with_unlabelled: Boolean = False
    shards: Annotated[Integer, Field(ge=1)] = 1
    initial: ModelConfig | None = None
    is_trained: Boolean = True
    freeze: tuple[str, ...] = ()
    parameter_groups: tuple[ParameterGroupConfig, ...] = ()


class OwnImplementation(Config):
    """The address of what does the work of a kind of the user's own, and the stages that need it."""

    stages: tuple[str, ...]
    of: str
    address: str


class StageLook(Config):
    """Stages of one config, given as JSON values, that want their files looked at."""

    stages: tuple[str, ...]
    config: dict[str, Any]


class ProbeModelsConfig(StageConfig):
    """Import what is the user's own; build every model, and try it on two samples."""

    word = "probe_models"
    implementation = "raydistill.stages.survey:probe_models"
    makes = "survey"

    implementations: tuple[OwnImplementation, ...] = ()
    models: tuple[ProbedModel, ...] = ()


class SurveyStagesConfig(StageConfig):
    """Look at what some stages will read from files."""

    word = "survey_stages"
    implementation = "raydistill.stages.survey:survey_stages"
    makes = "survey"

    looks: tuple[StageLook, ...] = ()


SURVEYS = (SurveyDataConfig, ProbeModelsConfig, SurveyStagesConfig)
"""What looks at data and models before the first stage: run as stages are, but no plan can name it."""
