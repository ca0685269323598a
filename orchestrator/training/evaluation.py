"""How good a model is on a split, by the metrics of the table; and its predictions, kept for whoever asks later.

Of a split's logits (N, C) columns (N,) are kept, and all of them only where they are few or a metric needs them: with
millions of samples or of classes nobody could hold them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from raydistill.errors import StageError, StageStopped
from raydistill.metrics import METRICS, Answers, Columns, Metric, compute_all
from raydistill.runs.claims import STOPPED, claimed, is_there
from raydistill.runs.context import StageContext
from raydistill.runs.files import atomic_write, make_folder
from raydistill.runs.folder import predictions_of
from raydistill.runs.mirror import remove, send
from raydistill.targets.store import FLOAT16_LARGEST
from raydistill.tasks.splits import Split
from raydistill.training.calibration import doubts
from raydistill.training.workers import ALONE, Workers

BATCH = 500
PIECE = 4  # batches that one worker claims at a time
COARSE = 32.0  # from here on float16 is off by up to 0.016
MOST_LOGITS = 1 << 27  # of a split that are kept: 512 MiB in memory
SAMPLED_LOGITS = 1 << 25  # that stand for those of a larger one in reports: 64 MiB on disk

COLUMNS, LOGITS = "columns", "logits"

Predict = Callable[[Tensor], Tensor]
Keep = Callable[[int], Tensor]  # from the number of classes to the positions whose logits are kept, in order


class Predictions(NamedTuple):
    """What a model of `num_classes` classes says about the N samples of a split: columns of all of them, and the
    logits (K, C), float32 on the CPU, of the samples at `rows` (K,). Of several workers only the main one has them."""

    columns: Columns
    rows: Tensor
    logits: Tensor
    num_classes: int

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> "Predictions":
        """With all logits (N, C)."""
        columns = Columns.of(logits.numpy(), labels.cpu().numpy())
        return cls(columns, torch.arange(len(logits)), logits, logits.shape[1])

    @property
    def is_whole(self) -> bool:
        """Whether all logits are there."""
        return len(self.rows) == len(self.columns.predicted)

    def answers(self, labels: Tensor, teacher: NDArray[np.int64] | None = None) -> Answers:
        """What metrics look at. `teacher` are the classes (N,) that the model's teacher predicts."""
        whole = self.logits.numpy() if self.is_whole else None
        return Answers(self.columns, labels.cpu().numpy(), self.num_classes, teacher, whole)


def logits_in_batches(predict: Predict, split: Split, batch_size: int = BATCH) -> Iterator[Tensor]:
    """Logits (B, C) float32 on the CPU of a whole split, batch after batch; `predict` maps raw inputs (B, ...) to
    logits."""
    order = torch.arange(len(split)).split(batch_size)
    for inputs in split.batches(order, None):
        with torch.no_grad():  # not around a `yield`, or it would hold for the caller too
            logits = predict(inputs).float().cpu()
        yield logits


@torch.no_grad()
def ask(
    predict: Predict, split: Split, keep: Keep, batch_size: int = BATCH, workers: Workers = ALONE
) -> Predictions:
    """What a model says about a split of one sample or more. All workers call this, with the same split and model; each
    predicts some of the batches that one alone would make, so that every number is the same."""
    batches = torch.arange(len(split)).split(batch_size)
    own, labels = workers.own(batches), split.labels.cpu()
    inputs = (
        split.batches(own, None) if own else ()
    )  # no processes that read pictures where there are none to read
    found = ((batch, predict(each).float().cpu()) for batch, each in zip(own, inputs, strict=True))
    first = list(_one(found))
    num_classes = workers.largest(first[0][1].shape[1] if first else 0)
    kept = keep(num_classes)
    parts = [_Part.of(each, labels[batch], batch, kept) for batch, each in chain(first, found)]
    columns, rows = _Part.joined(parts, num_classes)
    gathered = workers.gathered(columns, workers.counts([len(batch) for batch in batches]))
    collected = workers.collected(rows, workers.counts([len(_among(kept, batch)) for batch in batches]))
    return Predictions(_columns(gathered), kept, rows if collected is None else collected, num_classes)


@torch.no_grad()
def ask_each(
    predict: Predict, members: int, split: Split, batch_size: int = BATCH, workers: Workers = ALONE
) -> list[Predictions]:
    """What each of several models says, whose logits (B, members, C) `predict` gives together; no logits are kept. As
    `ask`, but that every worker knows it."""
    batches = torch.arange(len(split)).split(batch_size)
    own, labels, num_classes = workers.own(batches), split.labels.cpu(), 0
    parts = [torch.zeros(0, members, len(Columns._fields), dtype=torch.float64)]
    for batch, inputs in zip(own, split.batches(own, None) if own else (), strict=True):
        logits = predict(inputs).float().cpu()
        num_classes = logits.shape[2]
        each = [_Part.of(one, labels[batch], batch, batch[:0]).columns for one in logits.unbind(dim=1)]
        parts.append(torch.stack(each, dim=1))
    num_classes = workers.largest(num_classes)
    told = workers.gathered(torch.cat(parts), workers.counts([len(batch) for batch in batches]))
    nothing = (torch.arange(0), torch.zeros(0, num_classes), num_classes)
    return [Predictions(_columns(columns), *nothing) for columns in told.unbind(dim=1)]


class _Part(NamedTuple):
    """Of a batch: its columns (B, 4) as float64, which holds all of them exactly, and the logits (K, C) kept of it."""

    columns: Tensor
    logits: Tensor

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, batch: Tensor, kept: Tensor) -> "_Part":
        columns = Columns.of(logits.numpy(), labels.numpy())
        stacked = torch.from_numpy(np.stack([column.astype(np.float64) for column in columns], axis=1))
        return cls(stacked, logits[_among(kept, batch) - batch[0]])

    @staticmethod
    def joined(parts: Sequence["_Part"], num_classes: int) -> tuple[Tensor, Tensor]:
        """The columns and the logits of parts, of which there may be none."""
        no_columns = torch.zeros(0, len(Columns._fields), dtype=torch.float64)
        columns = torch.cat([no_columns, *(part.columns for part in parts)])
        return columns, torch.cat([torch.zeros(0, num_classes), *(part.logits for part in parts)])


def _one(pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterable[tuple[Tensor, Tensor]]:
    """The first pair, if there is one."""
    for pair in pairs:
        yield pair
        return


def _among(kept: Tensor, batch: Tensor) -> Tensor:
    """Those of the positions `kept` that lie in a batch, which is a run of positions."""
    start, stop = torch.searchsorted(kept, torch.stack([batch[0], batch[-1] + 1])).tolist()
    return kept[start:stop]


def _columns(stacked: Tensor) -> Columns:
    predicted, losses, confidences, before = stacked.numpy().T
    return Columns(
        predicted.astype(np.int64),
        losses.astype(np.float32),
        confidences.astype(np.float32),
        before.astype(np.int64),
    )


def keep_what_is_needed(samples: int, metrics: Iterable[type[Metric]], num_classes: int) -> Tensor:
    """The positions of all samples where a metric needs their logits, else none; `StageError` names a metric that needs
    more than anybody holds."""
    asking = [metric.name for metric in metrics if metric.needs_logits]
    if asking and samples * num_classes > MOST_LOGITS:
        raise StageError(too_many_logits(asking[0], samples, num_classes))
    return torch.arange(samples if asking else 0)


def keep_for_report(samples: int, metrics: Iterable[type[Metric]], num_classes: int) -> Tensor:
    """The positions of all samples, or of those that are drawn to stand for more than can be kept, in order."""
    if samples * num_classes <= MOST_LOGITS or len(keep_what_is_needed(samples, metrics, num_classes)):
        return torch.arange(samples)
    drawn = torch.randperm(samples, generator=torch.Generator().manual_seed(0))
    return drawn[: max(1, SAMPLED_LOGITS // num_classes)].sort().values


def too_many_logits(metric: str, samples: int, num_classes: int) -> str:
    """What is wrong with a metric that looks at so many logits."""
    return (
        f"metric `{metric}` needs the logits of all classes, which are {4e-9 * samples * num_classes:,.1f} GB for"
        f" {samples:,} samples of {num_classes:,} classes, and up to {4e-9 * MOST_LOGITS:.1f} GB are held; take it out"
        " of `metrics`, or compute it from what `answers` has as columns"
    )


def judge(
    predictions: Predictions,
    labels: Tensor,
    metrics: Iterable[type[Metric]] = METRICS,
    *,
    teacher: NDArray[np.int64] | None = None,
    only_every_epoch: bool = False,
) -> dict[str, float]:
    """Metrics of predictions against labels (N,), by name. `teacher` are the classes (N,) that the model's teacher
    predicts."""
    return compute_all(metrics, predictions.answers(labels, teacher), only_every_epoch=only_every_epoch)


def judge_after_epoch(
    context: StageContext, predict: Predict, split: Split, workers: Workers
) -> dict[str, float]:
    """What is known of a model every epoch, on the validation split; nothing on other workers than the main one."""
    now = [metric for metric in context.metrics if metric.every_epoch]
    predictions = ask(predict, split, partial(keep_what_is_needed, len(split), now), workers=workers)
    if not context.is_main:
        return {}
    teacher = context.teacher_predicted("validation", split)
    judged = judge(predictions, split.labels, context.metrics, teacher=teacher, only_every_epoch=True)
    return {f"validation/{name}": value for name, value in judged.items()}


def judge_splits(
    context: StageContext,
    predict: Predict,
    splits: dict[str, Split],
    batch_size: int = BATCH,
    *,
    guesses: bool = False,
    workers: Workers = ALONE,
) -> dict[str, float]:
    """Judge a final model on named splits, and keep its predictions for the report. Doubts about its validation results
    become warnings of the stage: other stages may be about to learn from it. One that `guesses`, its classifier never
    trained, is not doubted. Of several workers, all of which call this, only the main one keeps and knows anything."""
    metrics: dict[str, float] = {}
    for name, split in splits.items():
        context.is_untested |= name == "test" and not context.sees_test
        if not len(split):
            continue
        keep = partial(keep_for_report, len(split), context.metrics)
        predictions = ask(predict, split, keep, batch_size, workers)
        if context.is_main:
            metrics |= judge_predictions(context, name, split, predictions, guesses=guesses)
    return metrics


def judge_predictions(
    context: StageContext, name: str, split: Split, predictions: Predictions, *, guesses: bool = False
) -> dict[str, float]:
    """Judge what a final model says about a named split, and keep it, as `judge_splits` does."""
    teacher = context.teacher_predicted(name, split)
    judged = judge(predictions, split.labels, context.metrics, teacher=teacher)
    save_predictions(context, name, split, predictions)
    if name == "validation" and not guesses:
        _warn(context, predictions, split.labels.cpu())
    return {f"{name}/{key}": value for key, value in judged.items()}


@torch.no_grad()
def predict_together(
    context: StageContext,
    name: str,
    split: Split,
    batch_size: int,
    predict: Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]],
) -> tuple[Predictions, dict[str, Tensor]] | None:
    """What is said about a named split, as one of the stage's workers: they divide the batches among themselves by
    claims. `predict` gives logits (B, C) of raw inputs (B, ...) and labels (B,), and more columns (B, ...), which are
    also returned, (N, ...) on the CPU. Only the main one gets them."""
    batches = torch.arange(len(split)).split(batch_size)
    # Another test split is no other stage: what is left of an attempt at this one is no answer for that one.
    folder = make_folder(context.folder.path / f"answers-{name}-{context.test[:12]}")
    pieces = [batches[start : start + PIECE] for start in range(0, len(batches), PIECE)]
    files = [folder / f"{index:05d}.safetensors" for index in range(len(pieces))]
    context.when_done.append(lambda: _empty(files))
    keep = partial(keep_for_report, len(split), context.metrics)

    def is_done(index: int) -> bool:
        # Who comes after the main one has read, judged and emptied it all finds that nothing is left to do.
        mark = files[index].with_suffix(".done")
        return is_there(files[index]) or (not context.is_main and is_there(mark))

    def answer(batch: Tensor, inputs: Tensor) -> dict[str, Tensor]:
        if context.should_stop():
            raise StageStopped(STOPPED)
        labels = split.labels[batch.to(split.labels.device)]
        logits, more = predict(inputs, labels)
        part = _Part.of(logits.float().cpu(), labels.cpu(), batch, keep(logits.shape[1]))
        return {COLUMNS: part.columns, LOGITS: part.logits, **more}

    for claim in claimed(folder, len(pieces), is_done, context.should_stop):
        own = pieces[claim.index]
        found = [answer(batch, inputs) for batch, inputs in zip(own, split.batches(own, None), strict=True)]
        with atomic_write(files[claim.index]) as temporary:
            save_file(_joined(found), temporary)
        send(files[claim.index])
    if not context.is_main:
        return None
    told = _joined([load_file(file) for file in files])
    columns, logits = told.pop(COLUMNS), told.pop(LOGITS)
    return Predictions(_columns(columns), keep(logits.shape[1]), logits, logits.shape[1]), told


def _joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.cat([part[key].cpu() for part in parts]).contiguous() for key in parts[0]}


def _empty(files: Iterable[Path]) -> None:
    for file in files:
        mark = file.with_suffix(".done")
        mark.touch()
        send(mark)
        file.unlink(missing_ok=True)
        remove(file)


def _warn(context: StageContext, predictions: Predictions, labels: Tensor) -> None:
    names = context.task.class_names
    if len(names) != predictions.num_classes:  # a specialist's
        names = tuple(str(label) for label in range(predictions.num_classes))
    for text in doubts(predictions.columns.predicted, labels.numpy(), names):
        context.warn(f"on validation {text}")


def save_predictions(context: StageContext, name: str, split: Split, predictions: Predictions) -> None:
    """Keep logits as float16 beside ids and labels, as payload of the stage; of large ones also the rounding error.
    Where logits are those of a sample, there are columns of all samples too."""
    context.is_judged |= name == "test"
    ids, labels = split.ids.cpu(), split.labels.cpu()
    tensors = {
        "ids": ids[predictions.rows],
        "labels": labels[predictions.rows],
        **_in_float16(predictions.logits),
    }
    if not predictions.is_whole:
        columns = predictions.columns
        tensors |= {"all_ids": ids, "all_labels": labels}
        tensors |= {"all_predicted": torch.from_numpy(columns.predicted)}
        tensors |= {"all_confidences": torch.from_numpy(columns.confidences)}
    with atomic_write(context.path(predictions_of(name))) as temporary:
        save_file({key: value.contiguous() for key, value in tensors.items()}, temporary)


def _in_float16(logits: Tensor) -> dict[str, Tensor]:
    """Logits (N, C), and `remainders` to add to them where they are so large that rounding costs 1 % of p and more.

    A model whose logits lie at 2,000 would have other predictions in the report than those it was judged by.
    """
    bounded = logits.clamp(-FLOAT16_LARGEST, FLOAT16_LARGEST)
    stored = bounded.half().contiguous()
    if not stored.numel() or stored.abs().max() < COARSE:
        return {"logits": stored}
    return {"logits": stored, "remainders": (bounded - stored.float()).half().contiguous()}
