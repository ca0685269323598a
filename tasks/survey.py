"""Counts of samples per class, and remarks about the data, found before anything is trained on it.

Call `survey_task`. `Task.survey` reports what a task's own files show; remarks that follow from the counts are made
here, for all tasks. numpy is imported where there are labels to count: a dry run without them loads none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from raydistill.tasks.pool import Pool
    from raydistill.tasks.task import Arrays, Task

NAMED = 3  # of many classes
RARE = 5  # samples below which a class is hardly learned
UNEVEN = 10  # times as many samples in the largest class as in the smallest
FEW = 0.01  # a share of a split below which it is no warning
SAMPLES_AT_ONCE = 2048

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One line about the data that names the place and the way out. An `error` stops; a `warning` is in the report."""

    level: Level
    text: str


@dataclass(frozen=True)
class Survey:
    """`counts`: split → samples per class, in the order of the labels; `findings` in the order of their weight."""

    counts: Mapping[str, tuple[int, ...]]
    findings: tuple[Finding, ...] = ()


def survey_task(task: Task, pools: Sequence[Pool] = ()) -> Survey:
    """A task's own look at its data, and what the counts and the `pools` beside it show. Data that cannot be read is an
    error in it."""
    try:
        survey = task.survey()
        findings = [*survey.findings, *unlabelled_findings(task.unlabelled)]
        findings += count_findings(survey.counts, task.class_names)
        findings += [finding for pool in pools for finding in pool.findings(task)]
    except (ValueError, OSError) as error:
        return Survey({}, (Finding("error", str(error)),))
    return replace(survey, findings=tuple(findings))


def survey_labels(task: Task) -> Survey | None:
    """As `survey_task`, of the labels alone: no input is read and torch is not loaded. None where `Task.listed` is."""
    try:
        task.require_files()
        if (found := task.survey_listed()) is None:
            return None
        from raydistill.tasks.cuts import three_parts

        listed, unread = found
        counts = class_counts(task, three_parts(task, listed))
    except (ValueError, OSError) as error:
        return Survey({}, (Finding("error", str(error)),))
    return Survey(counts, (*count_findings(counts, task.class_names), *unread))


def survey_arrays(task: Task, parts: Mapping[str, Arrays]) -> Survey:
    """The three splits of a task whose parts are arrays. `ValueError` names the first sample that is not valid."""
    from raydistill.tasks.cuts import three_parts
    from raydistill.tasks.splits import check_inputs

    parts = three_parts(task, parts)
    findings: list[Finding] = []
    if all(part.inputs.shape[1:] == task.input_shape for part in parts.values()):
        for name, part in parts.items():
            check_inputs(task, name, part)
        findings += input_findings(parts)
    return Survey(class_counts(task, parts), tuple(findings))


def class_counts(task: Task, parts: Mapping[str, Arrays]) -> dict[str, tuple[int, ...]]:
    """Labelled samples per split and class."""
    import numpy as np

    return {
        name: tuple(np.bincount(part.labels[part.labels >= 0], minlength=task.num_classes).tolist())
        for name, part in parts.items()
    }


def unlabelled_findings(count: int) -> Iterator[Finding]:
    """Training samples without a label, if there are any."""
    if count:
        text = f"{count:,} training samples have no label: students learn from them what their teachers say"
        yield Finding("note", text)


def count_findings(counts: Mapping[str, Sequence[int]], names: Sequence[str]) -> Iterator[Finding]:
    """What the samples per split and class show."""
    import numpy as np

    if "train" not in counts:
        return
    train = np.array(counts["train"])
    there = np.flatnonzero(train)
    if len(there) < 2 <= len(names):
        what = "there are no training samples"
        if len(there):
            what = f"all {train.sum():,} training samples are of the class `{names[there[0]]}`"
        yield Finding("error", f"{what}: nothing can be learned from them")
        return
    every = np.sum(list(counts.values()), axis=0)
    from_one = every[0] == 0 and (every[1:] > 0).all()
    if from_one:
        yield Finding(
            "warning",
            f"class `{names[0]}` has no samples and all {len(names) - 1} others have: are the labels counted from 1?"
            " Count them from 0",
        )
    yield from _absent_classes(counts, names, 1 if from_one else 0)
    rare = np.flatnonzero((train > 0) & (train < RARE))
    if len(rare):
        yield Finding("warning", f"fewer than {RARE} training samples have {_named(rare, names)}")
    most, least = there[train[there].argmax()], there[train[there].argmin()]
    if train[most] >= UNEVEN * train[least]:
        share = 100 * train / train.sum()
        yield Finding(
            "warning",
            f"`{names[most]}` has {share[most]:.3g} % of the training samples, `{names[least]}` {share[least]:.3g} %:"
            f" a model that never says `{names[least]}` looks good; mind `worst_class_recall` beside the accuracy",
        )


def _absent_classes(
    counts: Mapping[str, Sequence[int]], names: Sequence[str], first: int
) -> Iterator[Finding]:
    import numpy as np

    is_trained = np.array(counts["train"]) > 0
    missing = np.flatnonzero(~is_trained[first:]) + first
    if len(missing):
        tested = sum(int(np.array(split)[missing].sum()) for split in counts.values())
        though = f", though {tested:,} samples to be judged are of them" if tested else ""
        yield Finding("warning", f"no training samples have {_named(missing, names)}{though}")
    for split in sorted(counts.keys() & {"validation", "test"}):
        # Validation may be small, and is only looked at to choose.
        level: Level = "warning" if split == "test" else "note"
        absent = np.flatnonzero(is_trained & (np.array(counts[split]) == 0))
        if not any(counts[split]):
            yield Finding(level, f"there are no {split} samples: nothing is judged on them")
        elif len(absent):
            yield Finding(
                level, f"no {split} samples have {_named(absent, names)}: it says nothing about them"
            )


def input_findings(parts: Mapping[str, Arrays]) -> Iterator[Finding]:
    """Inputs without information, and test or validation samples that are in the training split too."""
    digests = {name: _digests(part.inputs) for name, part in parts.items()}
    train = digests["train"]
    if len(train) > 1 and len(set(train)) == 1:
        yield Finding(
            "error", f"all {len(train):,} training inputs are equal: nothing can be learned from them"
        )
    for name, part in parts.items():
        if blank := _count_blank(part.inputs):
            yield Finding(
                "warning" if blank >= FEW * len(part.ids) else "note",
                f"{blank:,} of {len(part.ids):,} {name} inputs are blank: one value throughout",
            )
    known = dict(zip(train, parts["train"].ids.tolist(), strict=True))
    for name in ("validation", "test"):
        twice = [index for index, digest in enumerate(digests[name]) if digest in known]
        if twice:
            own, share = int(parts[name].ids[twice[0]]), len(twice) / len(digests[name])
            yield Finding(
                "warning" if share >= FEW else "note",
                f"{len(twice):,} of {len(digests[name]):,} {name} samples ({100 * share:.2g} %) are in the training"
                f" split too, such as sample {own} as {known[digests[name][twice[0]]]}: on them {name} judges memory",
            )


def _count_blank(inputs: NDArray[Any]) -> int:
    if inputs[:1].size < 2:
        return 0
    pieces = (inputs[start : start + SAMPLES_AT_ONCE] for start in range(0, len(inputs), SAMPLES_AT_ONCE))
    flat = (piece.reshape(len(piece), -1) for piece in pieces)
    return sum(int((piece == piece[:, :1]).all(axis=1).sum()) for piece in flat)


def _digests(inputs: NDArray[Any]) -> list[bytes]:
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in inputs]


def _named(labels: NDArray[np.intp], names: Sequence[str]) -> str:
    """`2 classes: `a`, `b``, and how many more there are of many."""
    shown = ", ".join(f"`{names[label]}`" for label in labels[:NAMED])
    more = f" and {len(labels) - NAMED:,} more" if len(labels) > NAMED else ""
    return f"{len(labels):,} class{'es' * (len(labels) > 1)}: {shown}{more}"
