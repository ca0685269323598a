"""Take soft targets from a file that another program wrote."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from raydistill.errors import StageError, StageStopped
from raydistill.kinds.external import ExternalTargetsConfig
from raydistill.models.outputs import merge_classes, unmapped_mass
from raydistill.plan.fingerprint import digest
from raydistill.runs.context import StageContext
from raydistill.runs.view import read_identity
from raydistill.stages.flat_features import warn_of_flat_store
from raydistill.stages.predict_targets import count_errors
from raydistill.stages.training_stage import load_data
from raydistill.stages.transfer_data import load_transfer_set, sources_of, split_name
from raydistill.targets.external import Match, Predictions, match_rows, open_predictions
from raydistill.targets.store import FROM_FILE, MANIFEST, Description, TargetWriter
from raydistill.tasks.digests import digest_file
from raydistill.tasks.picture_task import PictureTask
from raydistill.tasks.task import Task
from raydistill.training.data import TransferSet, Views

ARRANGED = "arranged"
ROW_ELEMENTS = 1 << 20
CHANCE = 1.5  # times the agreement with labels that guessing has


def external_targets(config: ExternalTargetsConfig, context: StageContext) -> dict[str, float]:
    """Match the file's rows with samples, check them, and store them as a teacher's."""
    identity = read_identity(context.folder.path)
    if digest_file(config.file) != identity["config"]["file"]:
        raise StageError(f"`{config.file}` changed while the plan ran; run it again")
    transfer = load_transfer_set(config.transfer, Views(), context)
    predictions = _open(config, context)
    match = _match(predictions, config, context, transfer)
    values, classes = _arrange(predictions, match, len(transfer), context)
    description = _describe(config, context, len(transfer))
    kept = None if config.indices is None else min(predictions.width, description.num_classes)
    features = dict.fromkeys(config.stored_features, (predictions.width,))
    form: Literal["features"] | None = "features" if features else None
    writer = TargetWriter(context.folder.path, description, top_k=kept, features=features, form=form)
    size, unmapped = max(1, ROW_ELEMENTS // predictions.num_classes), 0.0
    members = _members(config, context)
    for start in range(0, len(transfer), size):
        if context.should_stop():
            raise StageStopped("stopped while targets were read; run the plan again to continue")
        rows = slice(start, start + size)
        logits = predictions.logits(values[rows], None if classes is None else classes[rows])
        if members is not None and config.classes is not None:
            unmapped += float(unmapped_mass(logits, members, config.classes.temperature).sum())
            logits = merge_classes(logits, members, config.classes.temperature)
        known = writer.rows_done - start
        if known < len(logits):
            logits = logits[max(known, 0) :]
            ids = transfer.split.ids[rows][max(known, 0) :].cpu()
            writer.append(ids, logits, dict.fromkeys(features, logits))
    manifest = writer.close()
    for name in ("values", "classes"):
        with suppress(OSError):
            (context.folder.path / f"{ARRANGED}-{name}.npy").unlink()
    context.payload.update([MANIFEST, *manifest.files])
    warn_of_flat_store(context)
    return {
        "targets/rows": float(len(transfer)),
        **({"targets/errors": float(count_errors(context, transfer))} if config.has_logits else {}),
        "targets/unknown": float(len(match.unknown)),
        **({} if members is None else {"targets/unmapped": unmapped / len(transfer)}),
    }


def survey_external(config: ExternalTargetsConfig, context: StageContext) -> Iterator[tuple[str, str]]:
    """Read the whole file once, before anything is trained: pairs of level and text."""
    if config.transfer.synthesized is not None:
        return  # the samples are not there yet
    transfer = load_transfer_set(config.transfer, Views(), context)
    predictions = _open(config, context)
    match = _match(predictions, config, context, transfer)
    if match.unknown:
        named = ", ".join(f"`{name}`" for name in match.unknown[:3])
        yield (
            "note",
            f"`{config.file}`: {len(match.unknown)} ids are no sample's and are left out ({named}, …)",
        )
    members, labels, agree, known = _members(config, context), transfer.split.labels.cpu(), 0, 0
    for first, values, classes in predictions.blocks():
        _check(predictions, first, values, classes)
        places = torch.from_numpy(match.places[first : first + len(values)])
        logits, wanted = predictions.logits(values, classes)[places >= 0], labels[places[places >= 0]]
        if members is not None and config.classes is not None:
            logits = merge_classes(logits, members, config.classes.temperature)
        known += int((wanted >= 0).sum())
        agree += int((logits.argmax(dim=1) == wanted).sum())
        if first == 0 and predictions.looks_like_probabilities(values):
            text = f"`{predictions.values}` of `{config.file}` sum to 1: these look like probabilities; write"
            level = "warning" if predictions.is_told else "error"
            yield level, f"{text} `gives: probabilities`, or `gives: logits` if they are logits"
    if config.has_logits and known and agree <= CHANCE / context.task.num_classes * known:
        yield (
            "warning",
            f"`{config.file}` agrees with {agree / known:.1%} of the labels, as guessing would; are its classes in"
            " another order? name them in `classes`",
        )


def _open(config: ExternalTargetsConfig, context: StageContext) -> Predictions:
    columns = context.task.num_classes if config.classes is None else len(config.classes.names)
    return open_predictions(config.file, config.ids, config.values, config.indices, config.gives, columns)


def _members(config: ExternalTargetsConfig, context: StageContext) -> list[list[int]] | None:
    return None if config.classes is None else config.classes.members(context.task.class_names)


def _match(
    predictions: Predictions, config: ExternalTargetsConfig, context: StageContext, transfer: TransferSet
) -> Match:
    wanted = transfer.split.ids.cpu().numpy()
    if config.transfer.synthesized is not None:
        return match_rows(predictions, wanted, wanted, None)
    data = load_data(context)
    everybody = np.concatenate([part.ids.cpu().numpy() for part in (data.train, data.validation, data.test)])
    try:
        names = paths_by_id(context.task) if predictions.read_ids().dtype.kind == "U" else None
        return match_rows(predictions, wanted, everybody, names)
    except (OSError, ValueError) as error:
        raise StageError(str(error)) from error


def paths_by_id(task: Task) -> dict[int, str] | None:
    """The names of samples by their ids, where the task's inputs are pictures in files."""
    if not isinstance(task, PictureTask):
        return None
    store = task.store()
    pairs = (zip(part.ids.tolist(), part.inputs.tolist(), strict=True) for part in task.read().values())
    return {number: store.name(place) for part in pairs for number, place in part}


def _arrange(
    predictions: Predictions, match: Match, rows: int, context: StageContext
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """The file's checked rows in the order of the transfer set, (N, W), in files of the stage's folder."""
    values: NDArray[Any] | None = None
    indices: NDArray[Any] | None = None
    for first, block, classes in predictions.blocks():
        _check(predictions, first, block, classes)
        if first == 0 and not predictions.is_told and predictions.looks_like_probabilities(block):
            raise StageError(
                f"`{predictions.values}` of `{predictions.file}` sum to 1; write `gives: probabilities`"
            )
        if values is None:
            values = _scratch(context, "values", block.dtype, rows, predictions.width)
            indices = (
                None
                if classes is None
                else _scratch(context, "classes", classes.dtype, rows, predictions.width)
            )
        places = match.places[first : first + len(block)]
        values[places[places >= 0]] = block[places >= 0]
        if classes is not None and indices is not None:
            indices[places[places >= 0]] = classes[places >= 0]
    if values is None:
        raise StageError(f"`{predictions.file}` has no rows")
    return values, indices


def _scratch(context: StageContext, name: str, dtype: np.dtype[Any], rows: int, width: int) -> NDArray[Any]:
    path = context.folder.path / f"{ARRANGED}-{name}.npy"
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(rows, width))


def _check(
    predictions: Predictions,
    first: int,
    values: NDArray[Any],
    classes: NDArray[Any] | None,
) -> None:
    problem = predictions.problem(values, classes)
    if problem is not None:
        row, why = problem
        raise StageError(
            f"row {first + row} of `{predictions.values}` in `{predictions.file}` (id"
            f" `{predictions.read_ids()[first + row]}`) {why}"
        )


def _describe(config: ExternalTargetsConfig, context: StageContext, rows: int) -> Description:
    sources = sources_of(config.transfer, context)
    transfer = config.transfer.model_dump(mode="json", exclude={"synthesized"})
    return Description(
        task=digest(context.task_identity),
        split=split_name(sources),
        transfer=transfer | ({"synthesized": sources} if sources else {}),
        num_classes=context.task.num_classes,
        rows=rows,
        teachers=(f"{FROM_FILE}{digest_file(config.file)[:12]}",),
    )
