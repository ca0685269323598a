"""What is set aside for validation and test, against counts by hand and against every other choice there is."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydistill.tasks.cuts import group_ids, set_aside
from raydistill.tasks.labels import UNLABELLED
from raydistill.tasks.seeds import Purpose
from raydistill.tasks.task import Arrays, Cut
from raydistill.tasks.tensors import Tensors


def task(seed: int = 0, **cut: Any) -> Tensors:
    return Tensors(file=Path("nowhere.npz"), cut=Cut(**cut) if cut else None, split_seed=seed)


def part(labels: list[int], groups: list[int] | None = None) -> Arrays:
    count = len(labels)
    numbers = None if groups is None else np.array(groups)
    return Arrays(np.zeros((count, 1)), np.array(labels), np.arange(count) * 7919, numbers)


def aside(made: Tensors, samples: Arrays, fraction: float) -> np.ndarray[Any, Any]:
    return set_aside(made, samples, fraction, Purpose.VALIDATION_CUT)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-1, 4), min_size=1, max_size=80), st.floats(0, 0.9), st.integers(0, 9))
def test_each_class_keeps_its_share_to_less_than_one_and_all_together_are_as_many_as_without(
    labels: list[int], fraction: float, seed: int
) -> None:
    samples = part(labels)
    chosen = aside(task(seed, stratified=True), samples, fraction)
    assert chosen.sum() == aside(task(seed), samples, fraction).sum()
    assert not chosen[samples.labels == UNLABELLED].any()
    for label in range(5):
        of_class = samples.labels == label
        assert abs(chosen[of_class].sum() - fraction * of_class.sum()) < 1


def test_which_samples_depends_on_the_seed_and_not_on_their_order() -> None:
    labels = [0, 1, 2] * 40
    samples = part(labels)
    chosen = aside(task(stratified=True), samples, 0.2)
    order = np.random.default_rng(0).permutation(len(labels))
    shuffled = Arrays(samples.inputs, samples.labels[order], samples.ids[order])
    assert (aside(task(stratified=True), shuffled, 0.2) == chosen[order]).all()
    assert (aside(task(1, stratified=True), samples, 0.2) != chosen).any()


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 25)), min_size=30, max_size=90),
    st.booleans(),
    st.integers(0, 5),
)
def test_no_group_is_on_both_sides_and_every_class_stays_in_training(
    samples: list[tuple[int, int]], stratified: bool, seed: int
) -> None:
    labels, groups = [label for label, _ in samples], [group for _, group in samples]
    try:
        chosen = aside(task(seed, by="group", stratified=stratified), part(labels, groups), 0.25)
    except ValueError:  # no group can: the test below
        return
    numbers = np.array(groups)
    assert not set(numbers[chosen]) & set(numbers[~chosen])
    assert set(np.array(labels)[~chosen]) == set(labels)


def test_groups_come_near_to_the_best_that_any_choice_of_groups_reaches() -> None:
    draw = np.random.default_rng(3)
    groups = np.repeat(np.arange(12), draw.integers(1, 12, size=12))
    labels = draw.integers(0, 3, size=len(groups))
    samples = part(labels.tolist(), groups.tolist())
    wanted = 0.25 * np.bincount(labels)

    def off(chosen: np.ndarray[Any, Any]) -> float:
        return float(np.abs(np.bincount(labels[chosen], minlength=3) - wanted).sum())

    best = min(
        off(np.isin(groups, chosen)) for size in range(1, 7) for chosen in combinations(range(12), size)
    )
    found = [off(aside(task(seed, by="group", stratified=True), samples, 0.25)) for seed in range(20)]
    nothing = off(np.zeros(len(groups), dtype=bool))
    assert np.median(found) < nothing / 3
    assert max(found) < nothing
    assert min(found) <= best + 1


def test_a_group_that_holds_a_whole_class_stays_in_training() -> None:
    samples = part([0, 0, 1, 1, 0, 0, 1, 2, 2], [1, 1, 1, 1, 2, 2, 2, 3, 3])
    for seed in range(20):
        assert not aside(task(seed, by="group"), samples, 0.3)[-2:].any()


def test_what_has_no_groups_and_what_cannot_be_parted_is_said() -> None:
    with pytest.raises(ValueError, match="has no groups to set aside"):
        aside(task(by="group"), part([0, 1]), 0.5)
    with pytest.raises(ValueError, match="none of its 1 groups can be set aside"):
        aside(task(by="group"), part([0, 1], [4, 4]), 0.5)


def test_a_group_keeps_its_number_when_others_come() -> None:
    few, many = group_ids(np.array(["ann", "bob"])), group_ids(np.array(["abe", "ann", "bob", "zoe"]))
    assert few.tolist() == many[1:3].tolist()
    assert group_ids(np.array([5, 3], dtype=np.int16)).tolist() == [5, 3]


def test_tensors_are_cut_by_their_groups(tmp_path: Path) -> None:
    file, names = tmp_path / "data.npz", np.array(["ann", "bob", "cat", "dan", "eve", "fay"])
    groups = np.repeat(names, 20)
    inputs = np.random.default_rng(0).random((120, 3)).astype(np.float32)
    np.savez(file, inputs=inputs, labels=np.arange(120) % 2, groups=groups)
    made = Tensors(file=file, cut=Cut(by="group"), validation_fraction=0.2)
    data = made.load()
    sides = [set(groups[split.ids.numpy()]) for split in (data.train, data.validation, data.test)]
    assert all(sides)
    assert set.union(*sides) == set(names.tolist())
    assert sum(map(len, sides)) == 6
    before = made.identity()
    np.savez(file, inputs=inputs, labels=np.arange(120) % 2, groups=groups[::-1])
    assert made.identity() != before


def test_an_identity_is_what_it_was_where_nothing_is_said_of_a_cut(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", inputs=np.zeros((20, 3)), labels=np.arange(20) % 2)
    plain = Tensors(file=tmp_path / "data.npz").identity()
    assert not {"cut", "groups"} & plain.keys()
    assert Tensors(file=tmp_path / "data.npz", cut=Cut(stratified=True)).identity()["cut"]["stratified"]
