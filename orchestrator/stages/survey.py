"""The survey before work, as it runs where stages run: what it finds is left in a file of its folder."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from raydistill.errors import DistillError
from raydistill.kinds.survey import (
    FOUND,
    OwnImplementation,
    ProbeModelsConfig,
    SurveyDataConfig,
    SurveyStagesConfig,
)
from raydistill.lookup import load_object
from raydistill.plan.stage import stage_of
from raydistill.runs.context import StageContext
from raydistill.runs.files import write_json
from raydistill.runs.record import summary_of
from raydistill.stages.model_probe import probe_model, two_samples
from raydistill.stages.training_stage import load_data
from raydistill.tasks.survey import survey_task


def survey_data(config: SurveyDataConfig, context: StageContext) -> dict[str, float]:
    """Look at the task's data."""
    survey = survey_task(context.task, [also.pool for also in config.pools])
    write_json(context.path(FOUND), asdict(survey))
    return {}


def survey_stages(config: SurveyStagesConfig, context: StageContext) -> dict[str, float]:
    """Let stages look at their files."""
    findings: list[dict[str, Any]] = []
    for look in config.looks:
        stage = stage_of(look.config)
        try:
            found = list(load_object(stage.surveyed_by)(stage, context))
        except DistillError as error:
            found = [("error", str(error))]
        findings += [{"level": level, "text": text, "stages": look.stages} for level, text in found]
    write_json(context.path(FOUND), {"findings": findings})
    return {}


def probe_models(config: ProbeModelsConfig, context: StageContext) -> dict[str, float]:
    """Import what is the user's own, and try every model on two samples."""
    findings = [finding for own in config.implementations for finding in _import(own)]
    if findings:
        write_json(context.path(FOUND), {"findings": findings})
        return {}
    data = load_data(context)
    samples = two_samples(data, context.device)
    probes = [probe_model(probed, context.task, data, samples) for probed in config.models]
    write_json(context.path(FOUND), {"models": [asdict(probe) for probe in probes]})
    return {}


def _import(own: OwnImplementation) -> Iterator[dict[str, Any]]:
    try:
        is_callable = callable(load_object(own.address))
        problem = None if is_callable else "is neither a function nor a class"
    except Exception as error:  # whatever the user's module does while it is imported
        problem = f"cannot be imported: {summary_of(error)}"
    if problem is not None:
        text = f"the implementation `{own.address}` of {own.of} {problem}"
        yield {"level": "error", "text": text, "stages": own.stages}
