"""Take a model that somebody trained before: nothing is learned, it is stored and judged."""

import torch

from raydistill.kinds.pretrained import PretrainedConfig
from raydistill.runs.context import StageContext
from raydistill.stages.training_stage import load_data
from raydistill.tasks.hashing import fold_key
from raydistill.tasks.seeds import Purpose
from raydistill.training import model_files
from raydistill.training.evaluation import judge_splits


def pretrained(config: PretrainedConfig, context: StageContext) -> dict[str, float]:
    """Metrics of the model as it came."""
    data = load_data(context)
    torch.manual_seed(fold_key(0, Purpose.INITIAL))  # of what `ignore` leaves as drawn
    model = model_files.build_whole(config.model, context.task, context.warn)
    context.parameters = (
        sum(parameter.numel() for parameter in model.parameters()) or None
    )  # ONNX keeps its own
    model_files.save(context, model, config.model, data)
    trained = model_files.load_saved(context)
    splits = {
        name: split.to(context.device)
        for name, split in (("validation", data.validation), ("test", data.test))
    }
    return judge_splits(context, trained.logits, splits, config.batch_size)
