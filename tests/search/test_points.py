"""Points that are known in advance, and what a search tries next after what."""

from typing import Any

import pytest

from raydistill.plan.search import SearchConfig
from raydistill.runs.search_formatting import short_names
from raydistill.runs.search_run import TrialRecord, TrialStatus, trial_id
from raydistill.search.points import grid_point, known_points, random_point
from raydistill.search.suggestions import Suggestion, Suggestions

HEAT = "student.method.temperature"


def config_of(**options: Any) -> SearchConfig:
    space = {HEAT: {"loguniform": [1, 20]}, "student.method.hard_weight": {"uniform": [0, 1]}}
    return SearchConfig.model_validate(
        {"space": space, "searcher": {"name": "random"}, "samples": 6} | options
    )


def record_of(
    suggestion: Suggestion, status: TrialStatus = "done", metric: float | None = 0.5
) -> TrialRecord:
    return TrialRecord(
        id=suggestion.id,
        number=suggestion.number,
        values=suggestion.values,
        status=status,
        metric=metric,
        epochs={1: 0.4},
    )


def drawn(suggestions: Suggestions) -> list[Suggestion]:
    """All that is left."""
    found = []
    while (suggestion := suggestions.next()) is not None:
        found.append(suggestion)
    return found


def test_a_grid_goes_through_all_combinations_last_path_fastest() -> None:
    config = SearchConfig.model_validate(
        {"space": {"s.a": {"choice": [[1], "x"]}, "s.b": {"integer": [3, 5]}}, "searcher": {"name": "grid"}}
    )
    points = [tuple(point.values()) for point in known_points(config)]
    assert points == [([1], 3), ([1], 4), ([1], 5), ("x", 3), ("x", 4), ("x", 5)]


def test_a_grid_of_a_billion_points_is_not_listed() -> None:
    space = {f"s.{letter}": {"integer": [1, 1000]} for letter in "abc"}
    config = SearchConfig.model_validate({"space": space, "searcher": {"name": "grid"}})
    assert config.size == 10**9
    assert grid_point(config.space, 10**9 - 1) == {"s.a": 1000, "s.b": 1000, "s.c": 1000}


def test_a_random_point_depends_on_its_number_and_the_seed_alone() -> None:
    space = config_of().space
    assert random_point(space, 7, 3) == random_point(dict(reversed(space.items())), 7, 3)
    assert random_point(space, 7, 3) != random_point(space, 8, 3)
    assert random_point(space, 7, 3) != random_point(space, 7, 4)


def test_random_points_fill_the_range_evenly_on_its_scale() -> None:
    points = [random_point(config_of().space, 0, index) for index in range(2000)]
    below = sum(point[HEAT] < 20**0.5 for point in points) / len(points)
    assert below == pytest.approx(0.5, abs=0.04)  # 3.5 standard deviations of a fair coin
    weights = [point["student.method.hard_weight"] for point in points]
    assert sum(weights) / len(weights) == pytest.approx(0.5, abs=0.025)


def test_a_small_space_is_drawn_without_repetition() -> None:
    config = config_of(space={HEAT: {"choice": [1, 2, 4]}, "student.seed": {"integer": [0, 3]}}, samples=50)
    found = drawn(Suggestions(config, [], "max"))
    assert len({suggestion.id for suggestion in found}) == len(found) == 12


@pytest.mark.parametrize("searcher", ["random", "tpe"])
def test_more_samples_go_on_where_fewer_ended(searcher: str) -> None:
    options = {"searcher": {"name": searcher, "seed": 3}}
    first = drawn(Suggestions(config_of(samples=4, **options), [], "max"))
    records = [record_of(suggestion) for suggestion in first]
    more = drawn(Suggestions(config_of(samples=6, **options), records, "max"))
    assert [suggestion.number for suggestion in more] == [5, 6]
    assert not {suggestion.id for suggestion in more} & {suggestion.id for suggestion in first}
    if searcher == "random":
        assert first + more == drawn(Suggestions(config_of(samples=6, **options), [], "max"))


@pytest.mark.parametrize("searcher", ["random", "tpe"])
def test_unfinished_trials_come_first_and_keep_their_numbers(searcher: str) -> None:
    config = config_of(searcher={"name": searcher})
    first = drawn(Suggestions(config, [], "max"))[:4]
    statuses: list[TrialStatus] = ["done", "interrupted", "failed", "interrupted"]
    records = [record_of(suggestion, status) for suggestion, status in zip(first, statuses, strict=True)]
    again = drawn(Suggestions(config, records, "max"))
    assert again[:2] == [first[1], first[3]]
    assert [suggestion.number for suggestion in again] == [2, 4, 5, 6]


def test_nothing_is_tried_when_all_samples_are_over() -> None:
    config = config_of()
    records = [record_of(suggestion) for suggestion in drawn(Suggestions(config, [], "max"))]
    assert Suggestions(config, records, "max").next() is None


def test_tpe_learns_from_trials_of_earlier_runs() -> None:
    config = config_of(samples=60, searcher={"name": "tpe", "startup": 5})
    known = drawn(Suggestions(config_of(samples=30), [], "max"))
    records = [record_of(point, metric=-abs(point.values[HEAT] - 5)) for point in known]
    suggestions, near = Suggestions(config, records, "max"), []
    for _ in range(10):
        point = suggestions.next()
        assert point is not None
        near.append(abs(point.values[HEAT] - 5))
        suggestions.tell(record_of(point, metric=-near[-1]))
    far = [abs(point.values[HEAT] - 5) for point in known]
    assert sum(near) / len(near) < 0.6 * sum(far) / len(far)


def test_tpe_draws_lists_and_sections_and_never_the_same_twice() -> None:
    choice = [["a"], ["a", "b"], {"rule": "geometric"}]
    config = config_of(
        space={"student.teachers": {"choice": choice}, "student.seed": {"integer": [0, 4]}},
        searcher={"name": "tpe"},
        samples=99,
    )
    suggestions = Suggestions(config, [], "min")
    found = []
    while (suggestion := suggestions.next()) is not None:
        found.append(suggestion)
        suggestions.tell(record_of(suggestion, metric=suggestion.values["student.seed"] / 7))
    assert len({suggestion.id for suggestion in found}) == 15
    assert all(trial_id(suggestion.values) == suggestion.id for suggestion in found)


def test_a_failed_or_stopped_trial_leaves_tpe_able_to_go_on() -> None:
    suggestions = Suggestions(config_of(searcher={"name": "tpe", "startup": 1}), [], "max")
    for status in ("failed", "stopped_early", "done", "failed", "done"):
        suggestion = suggestions.next()
        assert suggestion is not None
        suggestions.tell(record_of(suggestion, status))  # type: ignore[arg-type]
    assert suggestions.next() is not None


def test_a_path_is_shortened_as_far_as_it_stays_clear() -> None:
    names = short_names(["a.optimizer.learning_rate", "b.optimizer.learning_rate", "b.methods.0", "b.seed"])
    assert list(names.values()) == [
        "a.optimizer.learning_rate",
        "b.optimizer.learning_rate",
        "methods.0",
        "seed",
    ]
