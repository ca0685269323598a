"""The report of a search, from records written here."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_runs import BuiltSearch

from raydistill.errors import StoreError
from raydistill.plan.search import Domain
from raydistill.report import write_search_report
from raydistill.report.figures import finished
from raydistill.report.importance import FEWEST, measure_importance
from raydistill.report.page import build_search_page
from raydistill.report.plot_search import best_so_far, search_drawings
from raydistill.report.search_summary import Axis, SearchSummary, metric_limits, summarize_search
from raydistill.runs.search_run import Segment, trial_id
from raydistill.runs.search_view import open_search

TEMPERATURE, RULE = "student.method.temperature", "student.combine.rule"
SPACE: dict[str, Any] = {
    TEMPERATURE: {"loguniform": [1, 20]},
    RULE: {"choice": ["arithmetic", "geometric"]},
}


def page_of(search: BuiltSearch) -> str:
    """The page on one line, without its plots, which take a while to draw."""
    summary = summary_of_search(search)
    return re.sub(r"[ \n]+", " ", build_search_page(summary, measure_importance(summary), ()))


def summary_of_search(search: BuiltSearch) -> SearchSummary:
    return summarize_search(open_search(search.folder, search.run.root))


def report_of(search: BuiltSearch) -> str:
    return write_search_report(search.folder, search.run.root).read_text()


def best_of(trial: str, metrics: dict[str, float]) -> dict[str, Any]:
    return {
        "trial": trial,
        "number": 1,
        "values": {},
        "metric": 0.9,
        "metrics": metrics,
        "plan_run": "plans/fake-best/r",
    }


def at(temperature: float, rule: str = "arithmetic") -> dict[str, Any]:
    return {TEMPERATURE: temperature, RULE: rule}


@pytest.fixture
def search(tmp_path: Path) -> BuiltSearch:
    return BuiltSearch(tmp_path, SPACE)


def test_the_answer_comes_first_with_the_test_split_and_the_plans_own_values(tmp_path: Path) -> None:
    judged = {"test/accuracy": 0.95, "test/errors": 50.0, "test/samples": 1000.0}
    best = best_of(trial_id(at(4.5)), judged)
    search = BuiltSearch(tmp_path, SPACE, own=at(1.0, "geometric"), best=best)
    search.trial(at(1.0, "geometric"), 0.91)
    search.trial(at(4.5), 0.9375)
    search.trial(at(19.0), 0.93, "stopped_early", epochs={1: 0.93})
    page = page_of(search)
    lead = page[page.index('class="lead"') : page.index("</p>", page.index('class="lead"'))]
    assert "<b>Trial 2</b> is the best of 3" in lead
    assert "temperature 4.5, rule arithmetic" in lead
    assert "93.75\N{NO-BREAK SPACE}%" in lead
    assert (
        "The plan’s own values (temperature 1, rule geometric, trial 1) reached 91.00\N{NO-BREAK SPACE}%"
        in lead
    )
    assert "<b>50 errors</b> on 1,000 samples" in lead
    # sqrt(0.9375 · 0.0625 / 400) = 1.21 %: the others are 2.75 % and, unfinished, not counted.
    assert "standard error of 1.21\N{NO-BREAK SPACE}%; no other trial is within it" in page


def test_a_better_trial_than_the_one_that_was_judged_is_not_given_its_test_result(
    search: BuiltSearch,
) -> None:
    search.write(best=best_of(trial_id(at(2.0)), {"test/accuracy": 0.5}))
    search.trial(at(2.0), 0.8)
    search.trial(at(3.0), 0.9)
    assert "test split" not in page_of(search)


def test_trials_that_trained_to_their_end_stand_first_and_every_outcome_is_told(search: BuiltSearch) -> None:
    search.trial(at(2.0), 0.8)
    search.trial(at(3.0), 0.9, "stopped_early")
    search.trial(
        at(4.0), None, "failed", error="the loss is <NaN>\nsecond line", stages={"student": "stages/s-1"}
    )
    search.trial(at(5.0), 0.7, "interrupted")
    page = page_of(search)
    rows = page[page.index('id="trials"') : page.index('id="space"')]
    assert rows.index("<td>1</td>") < rows.index("<td>2</td>") < rows.index("<td>4</td>")
    assert "stopped early" in rows
    assert "the loss is &lt;NaN&gt;</td>" in rows
    failures = page[page.index('id="failures"') : page.index('id="trials"')]
    assert "stages/s-1" in failures
    assert f"{trial_id(at(4.0))}.json" in failures


def test_failures_of_one_reason_are_told_once(search: BuiltSearch) -> None:
    for temperature in (2.0, 3.0, 4.0):
        search.trial(at(temperature), None, "failed", error="no such rule")
    page = page_of(search)
    assert page.count("<h3>3 trials</h3> <p>no such rule</p>") == 1
    assert "No trial has come to its end: 3 failed." in page


def test_a_search_without_trials_has_a_report(search: BuiltSearch) -> None:
    assert "No trial has come to its end: none was begun." in page_of(search)


def test_a_search_without_a_description_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"search.json"):
        write_search_report(tmp_path / "searches" / "fake-0123456789ab", tmp_path)


def test_every_searched_path_has_a_plot_and_pictures_lie_beside_the_page(search: BuiltSearch) -> None:
    for index in range(4):
        search.trial(at(2.0 + index, ["arithmetic", "geometric"][index % 2]), 0.8 + index / 100)
    page = report_of(search)
    names = {path.stem for path in (search.folder / "plots").glob("*.png")}
    assert names == {
        "parallel-coordinates",
        "value-temperature",
        "value-rule",
        "learning-curves",
        "over-time",
    }
    assert page.count("<svg") == len(names)
    assert "<script" not in page


def test_a_metric_of_which_less_is_better_has_its_lowest_trial_first(tmp_path: Path) -> None:
    search = BuiltSearch(tmp_path, SPACE, metric="student.validation/loss", mode="min")
    for temperature, loss in ((2.0, 0.5), (3.0, 0.2), (4.0, 0.4)):
        search.trial(at(temperature), loss)
    summary = summary_of_search(search)
    assert summary.best is not None
    assert summary.best.number == 2
    assert [summary.strength(trial) for trial in summary.trials] == [0, 1, 0.5]
    assert best_so_far(summary) == ([1, 2], [0.5, 0.2])
    assert "lowest validation/loss" in page_of(search)


def test_logarithmic_axes_are_logarithmic_and_choices_evenly_apart() -> None:
    temperature = Axis("t", "t", Domain(loguniform=(1, 100)))
    assert [temperature.place(value) for value in (1, 10, 100)] == pytest.approx([0, 0.5, 1])
    assert Axis("t", "t", Domain(uniform=(1, 5))).place(2) == 0.25
    teachers = Axis("t", "t", Domain(choice=(["a"], ["a", "b"], ["b"])))
    assert [teachers.place(value) for value in teachers.ticks] == [0, 0.5, 1]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_one_hopeless_trial_does_not_press_the_others_together(sign: float) -> None:
    good = [sign * value for value in np.linspace(0.90, 0.95, 20)]
    low, high = metric_limits([*good, sign * 0.1], sign)
    assert high - low < 0.15
    assert low < min(good)
    assert high > max(good)
    low, high = metric_limits(good, sign)
    assert low < min(good)


def many(root: Path, noise: float, count: int = 40) -> BuiltSearch:
    """Trials that are judged by their temperature alone, and by chance."""
    search = BuiltSearch(root, SPACE)
    chance = np.random.default_rng(0)
    for _ in range(count):
        heat, rule = (
            math.exp(chance.uniform(0, math.log(20))),
            str(chance.choice(["arithmetic", "geometric"])),
        )
        search.trial(at(heat, rule), 0.9 - 0.01 * abs(math.log(heat / 4)) + noise * chance.normal())
    return search


def test_importance_finds_the_option_that_decides(tmp_path: Path) -> None:
    importance = measure_importance(summary_of_search(many(tmp_path, noise=0.0)))
    assert importance.gap == ""
    assert importance.score > 0.8
    assert importance.means[0] > 10 * abs(importance.means[1])


def test_importance_is_not_made_up_from_chance_or_from_few_trials(tmp_path: Path) -> None:
    assert (
        "no option can be said" in measure_importance(summary_of_search(many(tmp_path / "a", noise=1.0))).gap
    )
    few = many(tmp_path / "b", noise=0.0, count=FEWEST - 1)
    assert f"It takes {FEWEST} finished trials" in measure_importance(summary_of_search(few)).gap
    assert f"there are {FEWEST - 1}" in page_of(few)


def test_plots_stand_a_single_trial_and_many_options(tmp_path: Path) -> None:
    space = {f"student.option{index}": {"integer": [0, 9]} for index in range(5)}
    search = BuiltSearch(tmp_path, space)
    search.trial(dict.fromkeys(space, 0), 0.5, epochs={})
    summary = summary_of_search(search)
    names = [plot.name for plot in finished(search_drawings(summary, measure_importance(summary)))]
    assert len([name for name in names if name.startswith("value-option")]) == 5


@pytest.fixture
def population(tmp_path: Path) -> BuiltSearch:
    """Three members, two rounds; member 3 goes on from member 1, and is the best."""
    search = BuiltSearch(tmp_path, {TEMPERATURE: SPACE[TEMPERATURE]}, scheduler={"name": "pbt"}, samples=6)
    plan = [
        (0, 0, None, {0: 2.0}, 0.8),
        (1, 0, None, {0: 9.0}, 0.95),
        (2, 0, None, {0: 5.0}, 0.5),
        (0, 1, None, {0: 2.0}, 0.85),
        (1, 1, None, {0: 9.0}, 0.7),
        (2, 1, 0, {0: 2.0, 2: 2.4}, 0.9),
    ]
    for member, turn, donor, history, metric in plan:
        past = {epoch: {TEMPERATURE: value} for epoch, value in history.items()}
        segment = Segment(
            member=member,
            round=turn,
            rounds=2,
            start=2 * turn,
            until=None if turn else 2,
            history=past,
            donor=donor,
        )
        epochs = {2 * turn + 1: metric - 0.1, 2 * turn + 2: metric}
        record = search.trial(past[max(past)], metric, epochs=epochs, segment=segment)
        (search.folder / "trials" / f"{record.id}.json").unlink()
        search.run.write_trial(record.model_copy(update={"id": segment.name}))
    return search


def test_members_of_a_population_are_compared_where_they_trained_equally_long(
    population: BuiltSearch,
) -> None:
    summary = summary_of_search(population)
    assert [trial.id for trial in summary.done] == [f"member-0{member}-round-2" for member in (3, 1, 2)]
    assert len(summary.measured) == 3
    page = page_of(population)
    assert "<b>Member 3, round 2/2</b> is the best of 3 members" in page
    assert "It began with temperature 2; its values changed after epoch 2." in page
    rows = page[page.index('id="trials"') : page.index('id="space"')]
    assert rows.index("member 2, round 2/2") < rows.index("member 2, round 1/2")


def test_the_way_of_the_best_member_leads_through_its_donor(population: BuiltSearch) -> None:
    found = summary_of_search(population).steps
    assert {step.trial.id for step in found if step.is_of_best} == {"member-03-round-2", "member-01-round-1"}
    before = {step.trial.id: step.before and step.before.id for step in found}
    assert before["member-03-round-2"] == before["member-01-round-2"] == "member-01-round-1"
    assert before["member-02-round-1"] is None


def test_a_population_has_a_plot_of_its_members_for_every_option(population: BuiltSearch) -> None:
    page = report_of(population)
    names = {path.stem for path in (population.folder / "plots").glob("*.png")}
    assert names == {
        "parallel-coordinates",
        "value-temperature",
        "population-metric",
        "population-temperature",
    }
    assert page.count("<svg") == len(names)


def test_a_population_of_which_nobody_got_far_has_a_report(population: BuiltSearch) -> None:
    for path in (population.folder / "trials").glob("*.json"):
        if path.stem != "member-03-round-1":
            path.unlink()
    assert "Member 3, round 1/2" in report_of(population)


def test_hostile_values_stay_text(tmp_path: Path) -> None:
    search = BuiltSearch(tmp_path, {"student.name": {"choice": ["<b>x</b>", "$\\frac{"]}})
    search.trial({"student.name": "<b>x</b>"}, 0.5)
    search.trial({"student.name": "$\\frac{"}, 0.6)
    page = page_of(search)
    assert "<b>x</b>" not in page.replace("<b>name &lt;b&gt;x", "")
    assert json.loads((search.folder / "search.json").read_text())["space"]
