"""The report of a search that weighs its metric against a cost."""

import re
from pathlib import Path
from typing import Any

import pytest
from built_runs import BuiltRun, BuiltSearch
from matplotlib.figure import Figure

from raydistill.report import write_search_report
from raydistill.report.importance import measure_importance
from raydistill.report.page import build_search_page
from raydistill.report.plot_front import Landmark, draw_front, landmarks_of
from raydistill.report.search_summary import SearchSummary, summarize_search
from raydistill.report.theme import light
from raydistill.runs.search_view import open_search

WIDTH = "student.student.widths.0"
SPACE: dict[str, Any] = {WIDTH: {"integer": [1, 64]}}
# Accuracy and cost by width: 8 is beaten by 4, and 32 by 16 in both.
TRIALS = {4: (0.90, 40.0), 8: (0.88, 80.0), 16: (0.95, 160.0), 32: (0.94, 320.0), 2: (0.50, 20.0)}


def searched(root: Path, **more: Any) -> BuiltSearch:
    search = BuiltSearch(root, SPACE, cost="parameters", scheduler={"name": "none"}, **more)
    for width, (accuracy, cost) in TRIALS.items():
        search.trial({WIDTH: width}, accuracy, cost=cost)
    return search


def summary_of(search: BuiltSearch) -> SearchSummary:
    return summarize_search(open_search(search.folder, search.run.root))


def page_of(search: BuiltSearch) -> str:
    summary = summary_of(search)
    return re.sub(r"[ \n]+", " ", build_search_page(summary, measure_importance(summary), ()))


def points(figure: Figure, colour: str) -> list[tuple[float, float]]:
    """What is drawn as dots or diamonds of a colour."""
    (axes,) = figure.axes
    lines = [line for line in axes.lines if line.get_color() == light(colour) and line.get_marker() != "None"]
    return [tuple(map(float, point)) for line in lines for point in zip(*line.get_data(), strict=True)]


def test_the_front_is_a_table_from_the_cheapest_to_the_best(tmp_path: Path) -> None:
    page = page_of(searched(tmp_path))
    front = page[page.index('id="front"') : page.index('id="trials"')]
    rows = re.findall(r"<tr[^>]*><td>(\d)</td>", front)
    assert rows == ["5", "1", "3"]
    assert "3 trials are not beaten" in front
    assert "highest validation/accuracy of student against parameters" in page


def test_dominated_trials_are_drawn_apart_from_the_front(tmp_path: Path) -> None:
    figure = draw_front(summary_of(searched(tmp_path)), [])
    assert points(figure, "student") == [(20, 0.50), (40, 0.90), (160, 0.95)]
    assert sorted(points(figure, "muted")) == [(80, 0.88), (320, 0.94)]


def test_the_front_has_a_plot_and_a_search_without_a_cost_none(tmp_path: Path) -> None:
    search = searched(tmp_path)
    page = write_search_report(search.folder, tmp_path).read_text()
    assert (search.folder / "plots" / "front.png").exists()
    assert 'id="front"' in page
    plain = BuiltSearch(tmp_path, SPACE, plan="plain")
    plain.trial({WIDTH: 4}, 0.9)
    assert 'id="front"' not in write_search_report(plain.folder, tmp_path).read_text()
    assert not (plain.folder / "plots" / "front.png").exists()


@pytest.mark.parametrize("trials", [[], [(0.9, 40.0)], [(0.9, 40.0), (0.9, 40.0)]])
def test_few_or_equal_trials_can_be_drawn(tmp_path: Path, trials: list[tuple[float, float]]) -> None:
    search = BuiltSearch(tmp_path, SPACE, cost="latency", machine="a box")
    for width, (accuracy, cost) in enumerate(trials):
        search.trial({WIDTH: width + 1}, accuracy, cost=cost)
    page = write_search_report(search.folder, tmp_path).read_text()
    assert ("one model at a time (a box)" in re.sub(r"\s+", " ", page)) == bool(trials)


def test_teachers_and_baselines_of_the_plan_are_marked_where_both_are_known(tmp_path: Path) -> None:
    run = BuiltRun(tmp_path)
    for number, accuracy in enumerate((0.97, 0.99)):
        judged = {"validation/accuracy": accuracy}
        run.stage(f"teacher.{number}", metrics=judged, parameters=1000, costs={"multiply_adds": 7000})
    run.stage("plain", role="baseline", metrics={"validation/accuracy": 0.9}, parameters=160)
    run.stage("unjudged", role="baseline", metrics={}, parameters=160)
    run.stage("student", "distill", role="student", metrics={"validation/accuracy": 0.95}, parameters=160)
    run.write()
    gone = "plans/fake/20200101-000000-0000"
    search = searched(tmp_path, plan_runs=[gone, str(run.folder.relative_to(tmp_path))])
    found = landmarks_of(open_search(search.folder, tmp_path))
    assert found == [
        Landmark("teacher", "teacher", pytest.approx(0.98), 1000.0),
        Landmark("plain", "baseline", 0.9, 160.0),
    ]
    figure = draw_front(summary_of(search), found)
    assert points(figure, "teacher") == [(1000.0, pytest.approx(0.98))]
    search.write(cost="multiply_adds")
    assert landmarks_of(open_search(search.folder, tmp_path)) == [
        Landmark("teacher", "teacher", pytest.approx(0.98), 7000.0)
    ]
    search.write(cost="latency")
    assert landmarks_of(open_search(search.folder, tmp_path)) == []


def test_of_a_metric_of_which_less_is_better_the_front_falls(tmp_path: Path) -> None:
    search = BuiltSearch(tmp_path, SPACE, metric="student.validation/loss", mode="min", cost="bytes")
    for width, loss in ((4, 0.9), (8, 0.5), (16, 0.7), (32, 0.2)):
        search.trial({WIDTH: width}, loss, cost=100.0 * width)
    assert points(draw_front(summary_of(search), []), "student") == [(400, 0.9), (800, 0.5), (3200, 0.2)]
