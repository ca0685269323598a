"""Take a model that somebody trained before: nothing is learned, it is stored and judged."""

import torch

from raydistill.kinds.pretrained import PretrainedConfig
from raydistill.models.outputs import MATRIX, match_classes, unmapped_mass
from raydistill.runs.context import StageContext
from raydistill.stages.training_stage import load_data
from raydistill.tasks.hashing import fold_key
from raydistill.tasks.seeds import Purpose
from raydistill.tasks.splits import Split
from raydistill.training import model_files
from raydistill.training.cost import note_size
from raydistill.training.evaluation import judge_splits

UNMAPPED = "validation/unmapped"


def pretrained(config: PretrainedConfig, context: StageContext) -> dict[str, float]:
    """Metrics of the model as it came."""
    data = load_data(context)
    torch.manual_seed(fold_key(0, Purpose.INITIAL))  # of what `ignore` leaves as drawn
    model = model_files.build_whole(config.model, context.task, data.normalisation, context.warn)
    model_files.save(context, model, config.model, data)
    trained = model_files.load_saved(context)
    note_size(context, [trained.model])
    splits = {
        name: split.to(context.device)
        for name, split in (("validation", data.validation), ("test", data.test))
    }
    judged = judge_splits(context, trained.logits, splits, config.batch_size)
    if config.model.classes is None or not len(data.validation):
        return judged
    return judged | {UNMAPPED: unmapped_share(config, context, trained, splits["validation"])}


@torch.no_grad()
def unmapped_share(
    config: PretrainedConfig, context: StageContext, trained: model_files.TrainedModel, split: Split
) -> float:
    """The mean probability of the model's own classes that no class of the task is made of."""
    own = config.model.classes
    assert own is not None
    members = own.members(context.task.class_names)
    matrix = trained.model.get_buffer(MATRIX) if own.has_matrix else None
    outputs = len(own.names) if matrix is None else matrix.shape[1]
    plain = config.model.replace(classes=None, num_classes=outputs)
    whole = model_files.build_whole(plain, context.task, trained.normalisation)
    if matrix is not None:
        match_classes(whole, matrix.cpu(), own.scale, own.normalize)
    whole.load_state_dict(trained.model.state_dict())
    whole.to(context.device).eval()
    order = torch.arange(len(split)).split(config.batch_size)
    shares = [
        unmapped_mass(whole(trained.prepared(inputs)), members, own.temperature).sum()
        for inputs in split.batches(order, None)
    ]
    return float(torch.stack(shares).sum()) / len(split)
