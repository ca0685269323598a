"""The survey before work, as it runs where stages run: what it finds is left in a file of its folder."""

from dataclasses import asdict

from raydistill.kinds.survey import FOUND, ProbeModelsConfig, SurveyDataConfig
from raydistill.runs.context import StageContext
from raydistill.runs.files import write_json
from raydistill.stages.model_probe import probe_model, two_samples
from raydistill.stages.training_stage import load_data
from raydistill.tasks.survey import survey_task


def survey_data(config: SurveyDataConfig, context: StageContext) -> dict[str, float]:
    """Look at the task's data."""
    write_json(context.path(FOUND), asdict(survey_task(context.task)))
    return {}


def probe_models(config: ProbeModelsConfig, context: StageContext) -> dict[str, float]:
    """Try every model on two samples."""
    data = load_data(context)
    samples = two_samples(data, context.device)
    probes = [probe_model(probed, context.task, data, samples) for probed in config.models]
    write_json(context.path(FOUND), {"models": [asdict(probe) for probe in probes]})
    return {}
