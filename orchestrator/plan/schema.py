"""The whole plan: a task and a graph of stages."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SerializeAsAny, StringConstraints, ValidationError

from orchestrator.errors import did_you_mean
from orchestrator.lookup import load_object
from orchestrator.plan.config import Config, located_error, relocated
from orchestrator.plan.stage_configs import STAGES, AnyStageConfig
from tasks import TASKS
from tasks.task import Task


def build_task(raw: Any) -> Task:
    """The task that `{name: ..., options}` describes; its options are checked, its files are not opened."""
    if isinstance(raw, Task):
        return raw
    if not isinstance(raw, Mapping) or "name" not in raw:
        raise located_error("a task is written `{name: mnist}`, with the task's options beside the name")
    name = raw["name"]
    if name not in TASKS:
        raise located_error(f"unknown task `{name}`{did_you_mean(str(name), TASKS)}", "name")
    task_type = load_object(TASKS[name])
    for key in raw:
        if key not in task_type.model_fields:
            raise located_error(
                f"task `{name}` has no option `{key}`{did_you_mean(str(key), task_type.model_fields)}", key
            )
    try:
        return task_type.model_validate(raw)
    except ValidationError as error:
        raise relocated(error) from None


def build_stage(raw: Any) -> Any:
    """The config of one stage, by the name of its kind."""
    if not isinstance(raw, Mapping):
        return raw
    if "stage" not in raw:
        raise located_error(
            f"`stage` is missing: the kind of stage, one of {', '.join(f'`{k}`' for k in STAGES)}"
        )
    kind = raw["stage"]
    if kind not in STAGES:
        raise located_error(f"unknown stage kind `{kind}`{did_you_mean(str(kind), STAGES)}", "stage")
    return raw


StageName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]*$")]
PlanName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=100)]


class TrackingConfig(Config):
    """Where the runs appear in MLflow: the experiment (the plan's name when left out), and the name under which
    the student is registered as a model (not registered when left out)."""

    experiment: str | None = None
    register_student_as: str | None = None


class Plan(Config):
    """What a user writes: one task, and stages that read one another."""

    name: PlanName
    task: Annotated[SerializeAsAny[Task], BeforeValidator(build_task)]
    stages: dict[
        StageName,
        Annotated[
            Annotated[AnyStageConfig, Field(discriminator="stage")],
            BeforeValidator(build_stage),
        ],
    ] = Field(min_length=1)
    tracking: TrackingConfig = TrackingConfig()
