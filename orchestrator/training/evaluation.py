"""How good a model is on a split, by the metrics of the table; and its predictions, kept for whoever asks later."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from raydistill.errors import StageStopped
from raydistill.metrics import METRICS, Answers, Metric, compute_all
from raydistill.runs.claims import STOPPED, claimed
from raydistill.runs.context import StageContext
from raydistill.runs.files import atomic_write, make_folder
from raydistill.runs.folder import predictions_of
from raydistill.targets.store import FLOAT16_LARGEST
from raydistill.tasks.splits import Split
from raydistill.training.calibration import doubts

BATCH = 500
PIECE = 4  # batches that one worker claims at a time
COARSE = 32.0  # from here on float16 is off by up to 0.016


@torch.no_grad()
def predict_split(predict: Callable[[Tensor], Tensor], split: Split, batch_size: int = BATCH) -> Tensor:
    """Logits (N, C) float32 on the CPU of a whole split; `predict` maps raw inputs (B, ...) to logits."""
    order = torch.arange(len(split)).split(batch_size)
    return torch.cat([predict(inputs).float().cpu() for inputs in split.batches(order, None)])


def judge(
    logits: Tensor,
    labels: Tensor,
    metrics: Iterable[type[Metric]] = METRICS,
    *,
    teacher: NDArray[np.int64] | None = None,
    only_every_epoch: bool = False,
) -> dict[str, float]:
    """Metrics of float32 logits (N, C) on the CPU against labels (N,), by name. `teacher` are the classes (N,) that the
    model's teacher predicts."""
    answers = Answers(logits.numpy(), labels.cpu().numpy(), teacher)
    return compute_all(metrics, answers, only_every_epoch=only_every_epoch)


def judge_splits(
    context: StageContext,
    predict: Callable[[Tensor], Tensor],
    splits: dict[str, Split],
    batch_size: int = BATCH,
    *,
    guesses: bool = False,
) -> dict[str, float]:
    """Judge a final model on named splits, and keep its predictions for the report. Doubts about its validation results
    become warnings of the stage: other stages may be about to learn from it. One that `guesses`, its classifier never
    trained, is not doubted."""
    metrics: dict[str, float] = {}
    for name, split in splits.items():
        context.is_untested |= name == "test" and not context.sees_test
        if not len(split):
            continue
        metrics |= judge_predictions(
            context, name, split, predict_split(predict, split, batch_size), guesses=guesses
        )
    return metrics


def judge_predictions(
    context: StageContext, name: str, split: Split, logits: Tensor, *, guesses: bool = False
) -> dict[str, float]:
    """Judge a final model's logits (N, C) on a named split, and keep them, as `judge_splits` does."""
    teacher = context.teacher_predicted(name, split)
    judged = judge(logits, split.labels, context.metrics, teacher=teacher)
    save_predictions(context, name, split, logits)
    if name == "validation" and not guesses:
        _warn(context, logits, split.labels.cpu())
    return {f"{name}/{key}": value for key, value in judged.items()}


@torch.no_grad()
def predict_together(
    context: StageContext,
    name: str,
    split: Split,
    batch_size: int,
    predict: Callable[[Tensor], dict[str, Tensor]],
) -> dict[str, Tensor] | None:
    """What `predict` gives for each batch of raw inputs of a named split, each tensor (N, ...) on the CPU, as one of
    the stage's workers: they divide the batches among themselves by claims. Only the main one gets it."""
    batches = torch.arange(len(split)).split(batch_size)
    # Another test split is no other stage: what is left of an attempt at this one is no answer for that one.
    folder = make_folder(context.folder.path / f"pieces-{name}-{context.test[:12]}")
    pieces = [batches[start : start + PIECE] for start in range(0, len(batches), PIECE)]
    files = [folder / f"{index:05d}.safetensors" for index in range(len(pieces))]
    context.when_done.append(lambda: _empty(files))

    def is_done(index: int) -> bool:
        # Who comes after the main one has read, judged and emptied it all finds that nothing is left to do.
        mark = files[index].with_suffix(".done")
        return files[index].exists() or (mark.exists() and not context.is_main)

    for claim in claimed(folder, len(pieces), is_done, context.should_stop):
        parts = []
        for inputs in split.batches(pieces[claim.index], None):
            if context.should_stop():
                raise StageStopped(STOPPED)
            parts.append(predict(inputs))
        found = {key: torch.cat([part[key].cpu() for part in parts]).contiguous() for key in parts[0]}
        with atomic_write(files[claim.index]) as temporary:
            save_file(found, temporary)
    if not context.is_main:
        return None
    written = [load_file(file) for file in files]
    return {key: torch.cat([part[key] for part in written]) for key in written[0]}


def _empty(files: Iterable[Path]) -> None:
    for file in files:
        file.with_suffix(".done").touch()
        file.unlink(missing_ok=True)


def _warn(context: StageContext, logits: Tensor, labels: Tensor) -> None:
    names = context.task.class_names
    if len(names) != logits.shape[1]:  # a specialist's
        names = tuple(str(label) for label in range(logits.shape[1]))
    for text in doubts(logits.argmax(dim=1).numpy(), labels.numpy(), names):
        context.warn(f"on validation {text}")


def save_predictions(context: StageContext, name: str, split: Split, logits: Tensor) -> None:
    """Keep logits as float16 beside ids and labels, as payload of the stage; of large ones also the rounding error."""
    context.is_judged |= name == "test"
    with atomic_write(context.path(predictions_of(name))) as temporary:
        save_file(
            {
                "ids": split.ids.cpu().contiguous(),
                "labels": split.labels.cpu().contiguous(),
                **_in_float16(logits),
            },
            temporary,
        )


def _in_float16(logits: Tensor) -> dict[str, Tensor]:
    """Logits (N, C), and `remainders` to add to them where they are so large that rounding costs 1 % of p and more.

    A model whose logits lie at 2,000 would have other predictions in the report than those it was judged by.
    """
    bounded = logits.clamp(-FLOAT16_LARGEST, FLOAT16_LARGEST)
    stored = bounded.half().contiguous()
    if not stored.numel() or stored.abs().max() < COARSE:
        return {"logits": stored}
    return {"logits": stored, "remainders": (bounded - stored.float()).half().contiguous()}
