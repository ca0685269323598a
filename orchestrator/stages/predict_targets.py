"""Store a teacher's logits on a transfer set."""

from collections.abc import Iterator
from itertools import chain

import torch

from raydistill.errors import StageError, StageStopped
from raydistill.kinds.targets import PredictTargetsConfig
from raydistill.metrics import Accuracy
from raydistill.models.taps import Tapped
from raydistill.plan.fingerprint import digest
from raydistill.runs.context import StageContext
from raydistill.stages.transfer_data import load_transfer_set, sources_of, split_name
from raydistill.targets.reader import open_targets
from raydistill.targets.store import MANIFEST, Description, TargetWriter
from raydistill.tasks.labels import UNLABELLED
from raydistill.training import model_files
from raydistill.training.data import Batch, TransferSet, Views
from raydistill.training.method import Features

COUNT_ELEMENTS = 1 << 22  # 16 MB of float32 logits, whatever the number of classes


def predict_targets(config: PredictTargetsConfig, context: StageContext) -> dict[str, float]:
    """Run the teacher once over the transfer set, for every view; resumes at the last finished shard.

    No more than one batch of logits is ever there; of each row the store takes all, or its `top_k`.
    """
    folder = context.input(config.teacher)
    teacher = model_files.load(folder, context.device)
    views = Views(config.augment, config.view_seed, config.views or None)
    transfer = load_transfer_set(config.transfer, views, context, with_unlabelled=True)
    description = describe_targets(config, context, teacher.description, len(transfer))
    writer = TargetWriter(
        context.folder.path,
        description,
        top_k=config.top_k,
        features=shapes_of(config, teacher),
        form=None if config.has_logits else "features",
    )
    model = Tapped(teacher.model, config.stored_features)
    for batch in batches_from(transfer, writer.rows_done, description.views_stored, config.batch_size):
        if context.should_stop():
            raise StageStopped(f"stopped after {writer.rows_done} rows; run the plan again to continue")
        with torch.no_grad():
            output = model(batch.inputs)
        known = writer.rows_done - (batch.view * len(transfer) + int(batch.rows[0]))
        features = {name: feature[known:] for name, feature in output.features.items()}
        writer.append(batch.ids[known:], output.logits.float()[known:], features)
    manifest = writer.close()
    context.payload.update([MANIFEST, *manifest.files])
    accuracy = folder.done_record().metrics.get(Accuracy.on("validation"))
    metrics = {"targets/rows": float(description.rows * description.views_stored)}
    if config.has_logits:
        metrics["targets/errors"] = float(count_errors(context, transfer))
    return metrics | ({} if accuracy is None else {Accuracy.on("teacher/validation"): accuracy})


def shapes_of(config: PredictTargetsConfig, teacher: model_files.TrainedModel) -> dict[str, tuple[int, ...]]:
    """The features that are stored, and their shapes for one sample."""
    if not config.stored_features:
        return {}
    known = Features(teacher.model, teacher.input_shape, teacher.input_dtype == torch.int64)
    try:
        shapes = known.shapes(config.stored_features)
    except ValueError as error:
        raise StageError(f"{error}; name another of `outputs`") from error
    return dict(zip(config.stored_features, map(tuple, shapes), strict=True))


def describe_targets(
    config: PredictTargetsConfig, context: StageContext, teacher: dict[str, object], rows: int
) -> Description:
    """What the store will say it is."""
    sources = sources_of(config.transfer, context)
    unsaid = {key for key in ("unlabelled", "also") if getattr(config.transfer, key) is None}
    transfer = config.transfer.model_dump(mode="json", exclude={"synthesized", *unsaid})
    return Description(
        task=digest(context.task_identity),
        split=split_name(sources),
        transfer=transfer | ({"synthesized": sources} if sources else {}),
        num_classes=int(str(teacher["num_classes"])),
        rows=rows,
        views=config.views,
        view_seed=config.view_seed,
        augment=tuple(step.model_dump(mode="json") for step in config.augment),
        teachers=(context.input(config.teacher).done_record().fingerprint,),
    )


def batches_from(transfer: TransferSet, done: int, views: int, batch_size: int) -> Iterator[Batch]:
    """The batches of all views in order, from the one that holds the row at position `done`.

    They are cut at the same places every time: in another batch the same sample's logits may round differently.
    """
    batches = torch.arange(len(transfer)).split(batch_size)

    def of_view(view: int) -> Iterator[Batch]:
        done_here = max(0, done - view * len(transfer))
        left = () if done_here >= len(transfer) else batches[done_here // batch_size :]
        return transfer.batches(left, view) if left else iter(())

    return chain.from_iterable(of_view(view) for view in range(views))


def count_errors(context: StageContext, transfer: TransferSet) -> int:
    """Stored rows, of all views, whose largest logit is not at the label, if they have one."""
    targets = open_targets(context.folder.path, root=context.root, expect=None, verify_checksums=False)
    labels, views = transfer.split.labels.cpu(), max(targets.views, 1)
    labelled = (labels != UNLABELLED).nonzero()[:, 0]
    size = max(1, COUNT_ELEMENTS // targets.num_classes)
    return sum(
        int((targets.read(rows, view).logits[:, 0].argmax(dim=1) != labels[rows]).sum())
        for view in range(views)
        for rows in labelled.split(size)
    )
