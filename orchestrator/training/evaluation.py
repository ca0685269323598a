"""How good a model is on a split, by the metrics of the table; and its predictions, kept for whoever asks later."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from raydistill.metrics import METRICS, Answers, Metric, compute_all
from raydistill.runs.context import StageContext
from raydistill.runs.files import atomic_write
from raydistill.runs.folder import predictions_of
from raydistill.targets.store import FLOAT16_LARGEST
from raydistill.tasks.splits import Split
from raydistill.training.calibration import doubts

BATCH = 500
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
        logits = predict_split(predict, split, batch_size)
        teacher = context.teacher_predicted(name, split)
        judged = judge(logits, split.labels, context.metrics, teacher=teacher)
        metrics |= {f"{name}/{key}": value for key, value in judged.items()}
        save_predictions(context, name, split, logits)
        if name == "validation" and not guesses:
            _warn(context, logits, split.labels.cpu())
    return metrics


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
