"""The survey before work, as it runs where stages run: what it finds is left in a file of its folder."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from raydistill.errors import DistillError, StageError
from raydistill.kinds.survey import (
    FOUND,
    OwnImplementation,
    ProbeModelsConfig,
    SurveyDataConfig,
    SurveyStagesConfig,
)
from raydistill.lookup import load_object
from raydistill.metrics import Answers, compute_all
from raydistill.plan.own_metrics import metric_at
from raydistill.plan.stage import stage_of
from raydistill.runs.context import StageContext
from raydistill.runs.files import write_json
from raydistill.runs.record import summary_of
from raydistill.stages.model_probe import probe_model, two_samples
from raydistill.stages.training_stage import load_data
from raydistill.tasks.splits import TaskData
from raydistill.tasks.survey import survey_task
from raydistill.training.evaluation import MOST_LOGITS, too_many_logits

TRIED_ON = 100  # samples


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
    findings += _try_metrics(context)
    if findings:
        write_json(context.path(FOUND), {"findings": findings})
        return {}
    data = load_data(context)
    if large := _need_too_many_logits(context, data):
        write_json(context.path(FOUND), {"findings": large})
        return {}
    samples = two_samples(data, context.device)
    probes = [probe_model(probed, context.task, data, samples) for probed in config.models]
    write_json(context.path(FOUND), {"models": [asdict(probe) for probe in probes]})
    return {}


def _try_metrics(context: StageContext) -> list[dict[str, Any]]:
    """The user's metrics on answers that are made up: what fails on every answer must not fail after a training."""
    classes = context.task.num_classes
    draw = np.random.default_rng(0)
    labels = np.arange(max(TRIED_ON, 2 * classes), dtype=np.int64) % classes
    logits = draw.standard_normal((len(labels), classes), dtype=np.float32)
    answers = Answers.of(logits, labels, draw.integers(classes, size=len(labels)))
    try:
        compute_all([metric_at(own.address) for own in context.own_metrics], answers)
    except StageError as error:
        return [{"level": "error", "text": f"tried on made-up answers, {error.message}"}]
    return []


def _need_too_many_logits(context: StageContext, data: TaskData) -> list[dict[str, Any]]:
    """The user's metrics that need more logits than anybody holds of a split that models are judged on."""
    samples = max(len(data.validation), len(data.test))
    if samples * data.num_classes <= MOST_LOGITS:
        return []
    metrics = [metric_at(own.address) for own in context.own_metrics]
    texts = [too_many_logits(each.name, samples, data.num_classes) for each in metrics if each.needs_logits]
    return [{"level": "error", "text": text} for text in texts]


def _import(own: OwnImplementation) -> Iterator[dict[str, Any]]:
    try:
        is_callable = callable(load_object(own.address))
        problem = None if is_callable else "is neither a function nor a class"
    except Exception as error:  # whatever the user's module does while it is imported
        problem = f"cannot be imported: {summary_of(error)}"
    if problem is not None:
        text = f"the implementation `{own.address}` of {own.of} {problem}"
        yield {"level": "error", "text": text, "stages": own.stages}
