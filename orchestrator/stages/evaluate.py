"""Judge a model, or several as an ensemble, on a split, which the stage's workers divide among themselves."""

from raydistill.errors import StageError
from raydistill.kinds.evaluate import EvaluateConfig
from raydistill.runs.context import StageContext
from raydistill.stages.committees import judge_committee
from raydistill.stages.training_stage import load_data
from raydistill.training import model_files
from raydistill.training.cost import note_size
from raydistill.training.ensemble import Ensemble
from raydistill.training.evaluation import judge_predictions, predict_together


def evaluate(config: EvaluateConfig, context: StageContext) -> dict[str, float]:
    """Metrics of the members' mean, or of a generalist with its committee."""
    data = load_data(context)
    split = data.validation if config.split == "validation" else data.test
    if not len(split):
        raise StageError(f"the {config.split} split is empty; set the task's `validation_fraction` above 0")
    split = split.to(context.device)
    if config.committee is not None:
        return judge_committee(config, context, split)
    members = [model_files.load(context.input(ref), context.device) for ref in config.models]
    note_size(context, [member.model for member in members])
    weights = config.weights if isinstance(config.weights, tuple) else None
    ensemble = Ensemble(members, config.rule, weights)
    context.is_untested |= config.split == "test" and not context.sees_test
    found = predict_together(
        context,
        config.split,
        split,
        config.batch_size,
        lambda inputs, _: (ensemble.logits(inputs), {}),
    )
    return {} if found is None else judge_predictions(context, config.split, split, found[0])
