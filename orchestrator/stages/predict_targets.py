"""Store a teacher's logits on a transfer set."""

import shutil
from collections.abc import Callable, Iterator
from itertools import chain

import torch
from torch import Tensor

from raydistill.errors import StageError, StageStopped
from raydistill.kinds.targets import PredictTargetsConfig
from raydistill.metrics import Accuracy
from raydistill.models.taps import Output, Tapped
from raydistill.plan.fingerprint import digest
from raydistill.runs.claims import STOPPED, claimed
from raydistill.runs.context import StageContext
from raydistill.stages.flat_features import warn_of_flat_store
from raydistill.stages.transfer_data import load_transfer_set, sources_of, split_name
from raydistill.targets.reader import open_targets
from raydistill.targets.store import MANIFEST, Description, Manifest, TargetWriter
from raydistill.tasks.labels import UNLABELLED
from raydistill.training import model_files
from raydistill.training.data import Batch, TransferSet, Views
from raydistill.training.method import Features
from raydistill.training.parity import forward_pass, parity

CLAIMS = "claims"
PARITY_ROWS = 512
MOST_DIVERGENCE = 0.01  # nats: what a student is off by that agrees with 99 % of its teacher's probability
COUNT_ELEMENTS = 1 << 22  # 16 MB of float32 logits, whatever the number of classes


def predict_targets(config: PredictTargetsConfig, context: StageContext) -> dict[str, float]:
    """Run the teacher once over the transfer set, for every view, shard by shard, on any number of workers; resumes at
    the shards that are not finished.

    No more than one batch of logits is ever there; of each row the store takes all, or its `top_k`.
    """
    folder = context.input(config.teacher)
    teacher = model_files.load(folder, context.device)
    views = Views(config.augment, config.view_seed, config.views or None)
    transfer = load_transfer_set(
        config.transfer, views, context, channels_last=config.channels_last, with_unlabelled=True
    )
    description = describe_targets(config, context, teacher.description, len(transfer))
    writer = TargetWriter(
        context.folder.path,
        description,
        top_k=config.top_k,
        features=shapes_of(config, teacher),
        form=None if config.has_logits else "features",
        batch_size=config.batch_size,
        shared=True,
        precision=config.precision,
    )
    model = Tapped(teacher.model, config.stored_features)
    exact = forward_pass(model, context.device, "float32")
    predict = forward_pass(
        model, context.device, config.precision, compiled=config.compile, channels_last=config.channels_last
    )
    if (
        manifest := write_shards(
            writer, transfer, lambda batch: predict(batch.inputs), config.batch_size, context
        )
    ) is None:
        return {}
    context.payload.update([MANIFEST, *manifest.files])
    warn_of_flat_store(context)
    accuracy = folder.done_record().metrics.get(Accuracy.on("validation"))
    metrics = {"targets/rows": float(description.rows * description.views_stored)}
    if config.has_logits:
        metrics["targets/errors"] = float(count_errors(context, transfer))
        if config.precision != "float32":
            metrics |= measure_parity(transfer, predict, exact, config, context)
    return metrics | ({} if accuracy is None else {Accuracy.on("teacher/validation"): accuracy})


@torch.no_grad()
def write_shards(
    writer: TargetWriter,
    transfer: TransferSet,
    predict: Callable[[Batch], Output],
    batch_size: int,
    context: StageContext,
) -> Manifest | None:
    """Write a store of what is predicted for every batch of every view, as one of the workers. The main one closes it,
    once all shards are whole; the others get None."""
    claims, known = context.folder.path / CLAIMS, -1
    while True:
        for claim in claimed(claims, writer.num_shards, writer.is_written, context.should_stop):
            positions = writer.seek(claim.index)
            for batch in batches_at(transfer, positions, writer.description.views_stored, batch_size):
                first = int(batch.view) * len(transfer) + int(batch.rows[0])
                if first != known:  # else two shards divide it, and it is still there from the one before
                    if context.should_stop():
                        raise StageStopped(STOPPED)
                    known, output = first, predict(batch)
                if not claim.is_ours():
                    break
                own = slice(max(0, positions.start - first), positions.stop - first)
                features = {name: feature[own] for name, feature in output.features.items()}
                writer.append(batch.ids[own], output.logits[own], features)
        if not context.is_main:
            return None
        if not writer.forget_damaged():
            shutil.rmtree(claims, ignore_errors=True)
            return writer.close()


@torch.no_grad()
def measure_parity(
    transfer: TransferSet,
    predict: Callable[[Tensor], Output],
    exact: Callable[[Tensor], Output],
    config: PredictTargetsConfig,
    context: StageContext,
) -> dict[str, float]:
    """How far the teacher's answers are from those in float32, on a sample of the inputs of the first view."""
    order = torch.randperm(len(transfer), generator=torch.Generator().manual_seed(0))
    rows = order[:PARITY_ROWS].sort().values.split(config.batch_size)
    pairs = [
        (predict(batch.inputs).logits.cpu(), exact(batch.inputs).logits.cpu())
        for batch in transfer.batches(rows, 0)
    ]
    metrics = parity(*(torch.cat(logits) for logits in zip(*pairs, strict=True)))
    if (mean := max(value for name, value in metrics.items() if "/mean_" in name)) > MOST_DIVERGENCE:
        context.warn(
            f"in `precision: {config.precision}` the teacher's answers are {mean:.2g} nats from those in float32, on"
            f" average, which is more than {MOST_DIVERGENCE:g}: a student learns its rounding; write `float32`"
        )
    return metrics


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


def batches_at(transfer: TransferSet, positions: range, views: int, batch_size: int) -> Iterator[Batch]:
    """The batches, of all views in order, that hold rows at these positions.

    They are cut at the same places every time: in another batch the same sample's logits may round differently.
    """
    batches = torch.arange(len(transfer)).split(batch_size)

    def of_view(view: int) -> Iterator[Batch]:
        start, stop = (position - view * len(transfer) for position in (positions.start, positions.stop))
        held = batches[max(0, start) // batch_size : max(0, -(-stop // batch_size))]
        return transfer.batches(held, view) if held else iter(())

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
