"""Where a stage's transfer set comes from: the task's training split, or samples that other stages synthesised."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file

from raydistill.errors import StageError
from raydistill.kinds.augmentations import AugmentationOptions
from raydistill.kinds.training import TransferConfig
from raydistill.plan.fingerprint import digest
from raydistill.runs.context import StageContext
from raydistill.runs.files import read_json
from raydistill.runs.folder import StageFolder
from raydistill.stages.training_stage import load_data
from raydistill.targets.store import Description
from raydistill.tasks.normalisation import Normalisation
from raydistill.tasks.splits import TaskData, TensorSplit
from raydistill.tasks.task import Task
from raydistill.training.data import TransferSet, Views, build_transfer_set

SAMPLES = "samples.json"


def load_transfer_set(
    transfer: TransferConfig,
    views: Views,
    context: StageContext,
    data: TaskData | None = None,
    *,
    channels_last: bool = False,
    with_unlabelled: bool = False,
) -> TransferSet:
    """The part that `transfer` describes of the task's training split, with `data` loaded unless it is given; or of
    synthesised samples, without a look at the task's data. Samples without a label are there if they are asked for."""
    if transfer.synthesized is None:
        data = load_data(context) if data is None else data
    else:
        data = synthesized_data([context.input(ref) for ref in transfer.synthesized], context.task)
        transfer = transfer.replace(synthesized=None)
    return build_transfer_set(
        data,
        transfer,
        views,
        context.device,
        channels_last=channels_last,
        with_unlabelled=with_unlabelled,
        task=context.task,
    )


def synthesized_data(folders: Sequence[StageFolder], task: Task) -> TaskData:
    """The samples of finished `synthesize` stages as training split; validation and test are empty.

    The normalisation is that of the teacher they were made with. They are ordered by id, however many stages made them.
    """
    parts = []
    for folder in folders:
        description = read_json(folder.payload(SAMPLES))
        parts += [load_file(folder.payload(file)) for file in description["files"]]
    inputs, labels, ids = (torch.cat([part[name] for part in parts]) for name in ("inputs", "labels", "ids"))
    order = ids.argsort()
    if not ids[order].diff().all():
        raise StageError(
            "samples with the same ids were synthesised: name the shards of one stage, each once"
        )
    split = TensorSplit(inputs[order].float(), labels[order], ids[order])
    nothing = split.select(order[:0])
    normalisation = Normalisation(torch.tensor(description["mean"]), torch.tensor(description["std"]))
    return TaskData(split, nothing, nothing, task.num_classes, task.class_names, normalisation)


def sources_of(transfer: TransferConfig, context: StageContext) -> list[str]:
    """Fingerprints of the stages that synthesised the transfer set; none when it is a part of the training split."""
    return sorted(context.input(ref).done_record().fingerprint for ref in transfer.synthesized or ())


def described_transfer_set(
    description: Description, root: Path, task: Task, load: Callable[[], TaskData], device: str
) -> TransferSet:
    """The samples and views that stored targets are about; `load` gives the task's data, if they are a part of it."""
    selection = dict(description.transfer)
    sources = selection.pop("synthesized", None)
    folders = [StageFolder.of_fingerprint(source, root) for source in sources or ()]
    steps = TypeAdapter(tuple[AugmentationOptions, ...]).validate_python(description.augment)
    return build_transfer_set(
        synthesized_data(folders, task) if folders else load(),
        TransferConfig.model_validate(selection),
        Views(steps, description.view_seed, description.views or None),
        device,
        with_unlabelled=True,
        task=task,
    )


def split_name(sources: Sequence[str]) -> str:
    """The name of the split in a store of targets. Synthesised samples are named by their sources: their ids alone do
    not tell them apart."""
    return f"synthesized-{digest({'sources': list(sources)})[:12]}" if sources else "train"
