"""The table of metrics: what each is called, how it is computed, which direction is better, and where it is shown.

A metric is a class, and this table is all that names it: training, early stopping, searches, terminal, reports and
tracking ask the class.

Plans are checked against the descriptions without numpy and torch: what computes imports them when it is called.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from raydistill.errors import StageError
from raydistill.lookup import load_object

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Better = Literal["max", "min"]
Form = Literal["percent", "count", "nats", "number"]
MANY_CLASSES = 20  # with fewer, the right class among five is no news


class ByClass(NamedTuple):
    """Counts (C,) for each class: its samples, how often it was predicted, and how often rightly."""

    samples: "NDArray[np.int64]"
    predicted: "NDArray[np.int64]"
    right: "NDArray[np.int64]"

    def recall(self) -> "NDArray[np.float64]":
        """The share of a class's samples that are predicted as such, (C,); nan for a class without samples."""
        return _quotient(self.right, self.samples)

    def precision(self) -> "NDArray[np.float64]":
        """The share of a class's predictions that are right, (C,); nan for a class that is never predicted."""
        return _quotient(self.right, self.predicted)

    def f1(self) -> "NDArray[np.float64]":
        """The harmonic mean of both, (C,): 0 where one of them is 0 or not defined, nan where neither is."""
        return _quotient(2 * self.right, self.samples + self.predicted)


class Columns(NamedTuple):
    """What is kept of each of N samples' logits, an array (N,) each: all that our metrics look at.

    The class that is `predicted`, int64: that of the largest logit, of equal ones the first. The negative
    log-likelihood of the label, float32. The probability of the predicted class, float32. How many classes come before
    the label by their logits, int64; of equal ones the first comes first, and a label whose logit is nan comes last.
    """

    predicted: "NDArray[np.int64]"
    losses: "NDArray[np.float32]"
    confidences: "NDArray[np.float32]"
    before: "NDArray[np.int64]"

    @classmethod
    def of(cls, logits: "NDArray[np.float32]", labels: "NDArray[np.int64]") -> "Columns":
        """Of logits (N, C) and labels (N,). A row's numbers do not depend on the other rows."""
        import numpy as np
        import torch
        import torch.nn.functional as F

        values = torch.from_numpy(logits)
        own = np.take_along_axis(logits, labels[:, None], axis=1)
        is_first = np.arange(logits.shape[1]) < labels[:, None]
        before = ((logits > own) | (is_first & (logits == own))).sum(axis=1)
        return cls(
            logits.argmax(axis=1).astype(np.int64),
            F.cross_entropy(values, torch.from_numpy(labels), reduction="none").numpy(),
            values.softmax(dim=1).amax(dim=1).numpy(),
            # Compared with nan nothing is larger: such a logit is no answer.
            np.where(np.isnan(own[:, 0]), logits.shape[1], before),
        )


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model says about N samples of `num_classes` classes C, by columns; their labels (N,) int64, and where
    there is a teacher the classes that it predicts for them, (N,) int64. `whole` are the logits (N, C) float32, for
    those metrics that say they look at them."""

    columns: Columns
    labels: "NDArray[np.int64]"
    num_classes: int
    teacher: "NDArray[np.int64] | None" = None
    whole: "NDArray[np.float32] | None" = None

    @classmethod
    def of(
        cls,
        logits: "NDArray[np.float32]",
        labels: "NDArray[np.int64]",
        teacher: "NDArray[np.int64] | None" = None,
    ) -> "Answers":
        """With the logits (N, C)."""
        return cls(Columns.of(logits, labels), labels, logits.shape[1], teacher, logits)

    @property
    def predicted(self) -> "NDArray[np.int64]":
        """The class of the largest logit, (N,); of equal ones the first."""
        return self.columns.predicted

    @property
    def logits(self) -> "NDArray[np.float32]":
        """(N, C); for a metric that `needs_logits`."""
        if self.whole is None:
            raise StageError(
                "looks at the logits or probabilities of all classes, which nobody holds of a large split; write"
                " `needs_logits = True` in its body, and they are kept for it"
            )
        return self.whole

    @cached_property
    def probabilities(self) -> "NDArray[np.float32]":
        """Softmax of the logits, (N, C); for a metric that `needs_logits`."""
        import torch

        found: NDArray[np.float32] = torch.from_numpy(self.logits).softmax(dim=1).numpy()
        return found

    @cached_property
    def by_class(self) -> ByClass:
        """How often each class is there, predicted, and told."""
        import numpy as np

        right = self.labels[self.predicted == self.labels]
        counted = [
            np.bincount(found, minlength=self.num_classes) for found in (self.labels, self.predicted, right)
        ]
        return ByClass(*counted)


class Metric:
    """A number that says how good answers are. A record has it as `validation/NAME` and `test/NAME`."""

    name: ClassVar[str]
    """What it is called in records, in `early_stopping`, and in a search's `metric`."""
    title: ClassVar[str] = ""
    """What it is called on pages and in tables; its name when left out."""
    better: ClassVar[Better | None] = "max"
    """Whether more of it is better, or less; None for a number that nothing can be chosen by."""
    form: ClassVar[Form] = "percent"
    """How it is written: a fraction in percent, a whole number, nats, or any other number."""
    every_epoch: ClassVar[bool] = True
    """Whether it is computed on validation after each epoch, so that it can stop trainings and prune trials; False for
    one that takes long."""
    compared: ClassVar[bool] = False
    """Whether reports put models side by side by it."""
    needs_teacher: ClassVar[bool] = False
    """Whether it is about a student that has a teacher."""
    needs_logits: ClassVar[bool] = False
    """Whether it looks at the logits or probabilities of all classes: they are kept for it, as far as they fit."""
    minimum_classes: ClassVar[int] = 2
    """With how many classes it begins to mean something; not computed with fewer."""
    version: ClassVar[int] = 1
    """Raised by hand when it is computed in another way: finished stages are judged by it again."""

    @classmethod
    def on(cls, split: str) -> str:
        """Its name in a record: `validation/accuracy`."""
        return f"{split}/{cls.name}"

    @classmethod
    def called(cls) -> str:
        """What people read."""
        return cls.title or cls.name.replace("_", " ")

    @classmethod
    def why_not(cls, num_classes: int, *, has_teacher: bool) -> str | None:
        """Why it is not computed for a model with so many classes; None when it is."""
        if cls.needs_teacher and not has_teacher:
            return f"`{cls.name}` compares a student with its teacher, and this stage has none"
        if num_classes < cls.minimum_classes:
            return (
                f"`{cls.name}` is computed from {cls.minimum_classes} classes on, and here are {num_classes}"
            )
        return None

    @classmethod
    def text(cls, value: float, deviation: float | None = None) -> str:
        """Its value as a person reads it, with the deviation over replicas."""
        return written(cls.form, value, deviation)

    def compute(self, answers: Answers) -> float:
        """Its value for one sample or more."""
        raise NotImplementedError


class Accuracy(Metric):
    """The share of samples whose class is predicted."""

    name = "accuracy"
    compared = True

    def compute(self, answers: Answers) -> float:
        return int((answers.predicted == answers.labels).sum()) / len(answers.labels)


class Errors(Metric):
    """How many samples are predicted wrongly."""

    name = "errors"
    better = "min"
    form = "count"
    compared = True

    def compute(self, answers: Answers) -> float:
        return int((answers.predicted != answers.labels).sum())


class Samples(Metric):
    """How many samples the others are computed from."""

    name = "samples"
    better = None
    form = "count"
    every_epoch = False

    def compute(self, answers: Answers) -> float:
        return len(answers.labels)


class Loss(Metric):
    """The mean negative log-likelihood of the labels."""

    name = "loss"
    title = "negative log-likelihood"
    better = "min"
    form = "nats"
    compared = True

    def compute(self, answers: Answers) -> float:
        import numpy as np

        return float(answers.columns.losses.mean(dtype=np.float64))


class CalibrationError(Metric):
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599): how far confidence is from accuracy, over 15
    bins of equal width."""

    name = "ece"
    title = "calibration error"
    better = "min"
    compared = True

    def compute(self, answers: Answers) -> float:
        bins = load_object("raydistill.training.calibration:bins_by_confidence")
        is_right = answers.predicted == answers.labels
        return float(bins(answers.columns.confidences, is_right).error)


class WorstClassRecall(Metric):
    """The smallest share of a class's samples that are predicted as such, over the classes that have samples."""

    name = "worst_class_recall"

    def compute(self, answers: Answers) -> float:
        import numpy as np

        return float(np.nanmin(answers.by_class.recall()))


class BalancedAccuracy(Metric):
    """The mean over classes of the share of their samples that are predicted as such; without classes that have no
    samples."""

    name = "balanced_accuracy"
    compared = True

    def compute(self, answers: Answers) -> float:
        import numpy as np

        return float(np.nanmean(answers.by_class.recall()))


class MacroF1(Metric):
    """The mean over classes of the harmonic mean of precision and recall. A class counts that has samples, or is
    predicted."""

    name = "macro_f1"
    title = "macro F1"
    compared = True

    def compute(self, answers: Answers) -> float:
        import numpy as np

        return float(np.nanmean(answers.by_class.f1()))


class Top5Accuracy(Metric):
    """The share of samples whose class is among the five with the largest logits; of equal logits the first classes
    count as larger, as for `accuracy`."""

    name = "top5_accuracy"
    title = "top-5 accuracy"
    minimum_classes = MANY_CLASSES + 1

    def compute(self, answers: Answers) -> float:
        return float((answers.columns.before < 5).mean())


class Agreement(Metric):
    """The share of samples for which a student predicts what its teacher predicts, right or wrong."""

    name = "agreement"
    title = "agreement with the teacher"
    compared = True
    needs_teacher = True

    def compute(self, answers: Answers) -> float:
        assert answers.teacher is not None
        return float((answers.predicted == answers.teacher).mean())


METRICS: tuple[type[Metric], ...] = (
    Accuracy,
    Errors,
    Samples,
    Loss,
    CalibrationError,
    WorstClassRecall,
    BalancedAccuracy,
    MacroF1,
    Top5Accuracy,
    Agreement,
)


def compute_all(
    metrics: Iterable[type[Metric]], answers: Answers, *, only_every_epoch: bool = False
) -> dict[str, float]:
    """The value of each of these metrics that is about such answers, by name; `StageError` names one that fails."""
    has_teacher = answers.teacher is not None
    by_columns = replace(answers, whole=None)
    return {
        metric.name: _value(metric, answers if metric.needs_logits else by_columns)
        for metric in metrics
        if metric.why_not(answers.num_classes, has_teacher=has_teacher) is None
        and (metric.every_epoch or not only_every_epoch)
    }


def _value(metric: type[Metric], answers: Answers) -> float:
    if metric in METRICS:
        return metric().compute(answers)
    try:
        value = float(metric().compute(answers))
    except StageError as error:
        raise StageError(f"metric `{metric.name}` {error.message}") from None
    except Exception as error:  # whatever the user's code does
        raise StageError(f"metric `{metric.name}`: {type(error).__name__}: {error}") from error
    if not math.isfinite(value):
        raise StageError(
            f"metric `{metric.name}` is {value} for {len(answers.labels)} samples; return a number"
        )
    return value


def find(name: str, metrics: Iterable[type[Metric]] = METRICS) -> type[Metric] | None:
    """The metric of this name."""
    return next((metric for metric in metrics if metric.name == name), None)


def written(form: str, value: float, deviation: float | None = None) -> str:
    """A value as a person reads it: `95.10 %`, `43`, `0.153`; with its deviation `95.10 % ± 0.21`."""
    if form == "percent":
        spread = "" if deviation is None else f" ± {100 * deviation:.2f}"
        return f"{100 * value:.2f} %{spread}"
    if form == "count":
        return f"{value:.0f}" if deviation is None else f"{value:.1f} ± {deviation:.1f}"
    return f"{value:.3f}" + ("" if deviation is None else f" ± {deviation:.3f}")


def _quotient(part: "NDArray[np.int64]", whole: "NDArray[np.int64]") -> "NDArray[np.float64]":
    import numpy as np

    return np.divide(part, whole, out=np.full(len(part), math.nan), where=whole > 0)
