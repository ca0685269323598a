"""How samples are set aside, for validation or for the test: by themselves or in groups, of each class alike or not.

Every choice is one of hashes of ids: it does not depend on the order in which samples lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raydistill.tasks.hashing import cut, fold_key, hash_ids, smallest_hashes, text_id
from raydistill.tasks.labels import UNLABELLED
from raydistill.tasks.seeds import Purpose

if TYPE_CHECKING:
    from raydistill.tasks.task import Arrays, Task

Integers = NDArray[np.int64]


def set_aside(task: Task, part: Arrays, fraction: float, purpose: Purpose) -> NDArray[np.bool_]:
    """Mark the samples (N,) to set aside: so large a fraction of those that have a label, and with a group whatever
    belongs to it. `ValueError` where that cannot be."""
    key = fold_key(task.split_seed, purpose)
    is_stratified = task.cut is not None and task.cut.stratified
    if task.cut is not None and task.cut.by == "group":
        return _groups(task, part, fraction, key, stratified=is_stratified)
    chosen: NDArray[np.bool_] = part.labels != UNLABELLED
    choose = _of_each_class if is_stratified else _of_all
    chosen[chosen] = choose(part.ids[chosen], part.labels[chosen], fraction, key)
    return chosen


def three_parts(task: Task, parts: Mapping[str, Arrays]) -> dict[str, Arrays]:
    """Training, validation (cut from labelled training samples if the data brings none) and test, after checks."""
    train, validation = parts["train"], parts.get("validation")
    if validation is None:
        chosen = set_aside(task, train, task.validation_fraction, Purpose.VALIDATION_CUT)
        train, validation = train.take(~chosen), train.take(chosen)
    complete = {"train": train, "validation": validation, "test": parts["test"]}
    _check_ids(task, complete)
    for name, part in complete.items():
        _check_labels(task, name, part)
    return complete


def _check_ids(task: Task, parts: Mapping[str, Arrays]) -> None:
    ids, counts = np.unique(np.concatenate([part.ids for part in parts.values()]), return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"task `{task.name}`: the id {ids[counts > 1][0]} belongs to more than one sample")


def _check_labels(task: Task, split: str, part: Arrays) -> None:
    wrong = (part.labels < 0) | (part.labels >= task.num_classes)
    if split == "train":
        wrong &= part.labels != UNLABELLED
    if wrong.any():
        label, sample = part.labels[wrong][0], part.ids[wrong][0]
        if label == UNLABELLED:
            raise ValueError(
                f"task `{task.name}`: sample {sample} of `{split}` has no label, and nothing is judged by it; samples"
                " without labels are of `train`"
            )
        raise ValueError(
            f"task `{task.name}`: sample {sample} of `{split}` has the label {label}; "
            f"{task.num_classes} classes allow 0 to {task.num_classes - 1}"
        )


def _of_all(ids: Integers, labels: Integers, fraction: float, key: int) -> NDArray[np.bool_]:
    return cut(ids, fraction, key)


def group_ids(groups: NDArray[Any]) -> NDArray[np.int64]:
    """Numbers of groups (N,) by what they are called: integers as they are, texts by hash, so that a group keeps its
    number when others come or go."""
    if groups.dtype.kind in "iu":
        return groups.astype(np.int64)
    names, inverse = np.unique(groups.astype(str), return_inverse=True)
    return np.array([text_id(name) for name in names.tolist()], dtype=np.int64)[inverse.reshape(-1)]


def _of_each_class(ids: Integers, labels: Integers, fraction: float, key: int) -> NDArray[np.bool_]:
    """So many of each class that their sum is that of an ordinary cut, each class less than one from its share."""
    shares = fraction * np.bincount(labels)
    counts = np.floor(shares).astype(np.int64)
    missing = round(fraction * len(ids)) - int(counts.sum())
    counts[np.argsort(counts - shares, kind="stable")[:missing]] += 1
    chosen = np.zeros(len(ids), dtype=bool)
    for label in np.flatnonzero(counts):
        members = np.flatnonzero(labels == label)
        chosen[members] = smallest_hashes(ids[members], int(counts[label]), key)
    return chosen


def _groups(task: Task, part: Arrays, fraction: float, key: int, *, stratified: bool) -> NDArray[np.bool_]:
    """Whole groups, in the order of their hashes, each if it brings the counts nearer to what is wanted, and leaves of
    every class something behind."""
    if part.groups is None:
        raise ValueError(f"task `{task.name}` has no groups to set aside; leave out `cut: {{by: group}}`")
    names, group = np.unique(part.groups, return_inverse=True)
    is_labelled = part.labels != UNLABELLED
    classes = part.labels[is_labelled]
    width = int(classes.max(initial=0)) + 1
    by_class = np.bincount(group[is_labelled] * width + classes, minlength=len(names) * width)
    by_class = by_class.reshape(len(names), width)
    counted = by_class if stratified else by_class.sum(axis=1, keepdims=True)
    left, wanted = by_class.sum(axis=0), fraction * counted.sum(axis=0)
    taken = np.zeros(len(names), dtype=bool)
    for number in np.argsort(hash_ids(names, key), kind="stable"):
        without, nearer = left - by_class[number], wanted - counted[number]
        loses_a_class = bool(((without == 0) & (by_class[number] > 0)).any())
        if not loses_a_class and np.square(nearer).sum() < np.square(wanted).sum():
            taken[number], left, wanted = True, without, nearer
    if fraction and not taken.any():
        raise ValueError(
            f"task `{task.name}`: none of its {len(names)} groups can be set aside: each is too large for"
            f" {100 * fraction:.3g} % of the samples, or holds all there is of a class"
        )
    return taken[group]
