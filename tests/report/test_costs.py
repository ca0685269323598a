"""Which method should I pick? Rivals of one size, by errors and by what their trainings cost."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raydistill.report.costs import pareto_front, weighed
from raydistill.report.page import build_page
from raydistill.report.plot_results import draw_front
from raydistill.report.plots import draw_plots
from raydistill.report.summary import summarize_run
from raydistill.runs.view import open_run

COST = {"seconds_per_step": 0.02, "peak_bytes": 700 * 2**20, "trained_parameters": 1000}


def rows(text: str) -> list[list[str]]:
    """The cells of the table's rows, without markup."""
    body = text.partition("<tbody>")[2].partition("</tbody>")[0]
    return [
        [re.sub(r"<[^>]+>|\s", " ", cell).strip() for cell in row.split("</td>")[:-1]]
        for row in body.split("<tr>")[1:]
    ]


def section(run: Any) -> str:
    page = build_page(summarize_run(open_run(run.write(), run.root)), ())
    return page.partition('id="costs"')[2].partition("<h2")[0]


def test_rivals_are_ordered_by_errors_and_measured_against_plain_training(
    tmp_path: Path, fake_run: Callable[..., Any]
) -> None:
    run = fake_run(tmp_path)
    run.stage("plain", role="baseline", parameters=1000, errors=50, costs=COST)
    for index, seconds in enumerate((0.05, 0.03)):  # the slower one was disturbed
        run.stage(
            f"hints.{index}",
            "distill",
            role="student",
            parameters=1000,
            errors=40 + 2 * index,
            costs=COST | {"seconds_per_step": seconds, "trained_parameters": 1600},
            config={"methods": [{"method": "hinton"}, {"method": "hints"}]},
        )
    run.stage(
        "soft",
        "distill",
        role="student",
        parameters=1000,
        errors=45,
        costs=COST,
        config={"method": {"method": "hinton"}},
    )
    assert rows(section(run)) == [
        ["hints  ×2", "hinton and hints", "41.0 ± 1.4", "1.50", "600", "700 MiB"],
        ["soft", "hinton", "45", "1.00", "0", "700 MiB"],
        ["plain", "labels alone", "50", "1.00", "0", "700 MiB"],
    ]


def test_hours_are_of_one_replica_and_gpus_have_a_column_where_any_was_held(
    tmp_path: Path, fake_run: Callable[..., Any]
) -> None:
    run = fake_run(tmp_path)
    held = {"cpus": 4.0, "gpus": 0.0}
    run.stage("plain", role="baseline", parameters=1000, errors=50, costs=COST, reserved=held)
    run.stage("old", "distill", role="student", parameters=1000, errors=45, costs=COST)
    for index in range(2):
        more = held | {"gpus": float(index)}  # 1.5 s each: entries of this run
        run.stage(
            f"soft.{index}", "distill", role="student", parameters=1000, errors=40, costs=COST, reserved=more
        )
    found = {row[0]: row[-2:] for row in rows(section(run))}
    assert found == {"soft  ×2": ["0.0017", "0.00021"], "old": ["–", "–"], "plain": ["0.0017", "–"]}


def test_a_single_student_has_no_rivals(tmp_path: Path, fake_run: Callable[..., Any]) -> None:
    run = fake_run(tmp_path)
    run.stage("plain", role="baseline", parameters=1000, errors=50, costs=COST)
    run.stage("soft", "distill", role="student", parameters=1000, errors=45, costs=COST)
    assert section(run) == ""


def test_models_of_another_size_and_results_without_costs_are_no_rivals(
    tmp_path: Path, fake_run: Callable[..., Any]
) -> None:
    run = fake_run(tmp_path)
    run.stage("plain", role="baseline", parameters=1000, errors=50, costs=COST)
    run.stage("soft", "distill", role="student", parameters=1000, errors=45, costs=COST)
    run.stage("big", "distill", role="student", parameters=2000, errors=45, costs=COST)
    run.stage("old", "distill", role="student", parameters=1000, errors=45)
    assert section(run) == ""


def test_the_table_of_models_says_how_much_each_computes(
    tmp_path: Path, fake_run: Callable[..., Any]
) -> None:
    run = fake_run(tmp_path)
    run.stage("teacher", role="teacher", parameters=4000, errors=30, costs={"multiply_adds": 41_700_000.0})
    run.stage("student", "distill", role="student", parameters=1000, errors=40, costs=COST)
    page = build_page(summarize_run(open_run(run.write(), run.root)), ())
    table = page.partition('id="comparison"')[2].partition("<h2")[0]
    heads = re.findall(r"<th[^>]*>(.*?)</th>", table)
    column = heads.index("multiply-adds")
    plain = table.replace('<tr class="chosen">', "<tr>")
    assert {row[0].split()[0]: row[column] for row in rows(plain)} == {"teacher": "41.7 M", "student": "–"}


def test_the_front_has_whom_nobody_beats_in_both(tmp_path: Path, fake_run: Callable[..., Any]) -> None:
    run = fake_run(tmp_path)
    for name, errors, count in (
        ("large", 20, 900),
        ("waste", 21, 950),
        ("small", 50, 10),
        ("middle", 30, 90),
        ("same", 31, 90),
        ("worse", 60, 20),
        ("equal", 20, 1000),
        ("unknown", 1, None),
    ):
        costs = {} if count is None else {"multiply_adds": float(count)}
        run.stage(name, role="model", parameters=7, errors=errors, costs=costs)
    summary = summarize_run(open_run(run.write(), run.root))
    rows = weighed(summary.comparison)
    assert {row.name for row in rows} == {"large", "waste", "small", "middle", "same", "worse", "equal"}
    assert [row.name for row in pareto_front(rows)] == ["small", "middle", "large"]
    assert any(plot.name == "front" and ">middle<" in plot.svg for plot in draw_plots(summary))


def test_the_topmost_point_of_the_front_and_its_name_are_whole(
    tmp_path: Path, fake_run: Callable[..., Any]
) -> None:
    run = fake_run(tmp_path)
    for name, errors, count in (("large", 400, 900), ("small", 410, 10)):
        run.stage(name, role="model", parameters=7, errors=errors, costs={"multiply_adds": float(count)})
    figure = draw_front(weighed(summarize_run(open_run(run.write(), run.root)).comparison))
    figure.canvas.draw()
    (axes,) = figure.axes
    ceiling = axes.get_window_extent().y1
    (name,) = [text for text in axes.texts if text.get_text() == "small"]
    assert name.get_window_extent().y1 <= ceiling
    mark = axes.transData.transform((10, 410))[1] + 5.5 / 2 * figure.dpi / 72
    assert mark <= ceiling


@pytest.mark.parametrize(
    "counts", [(328_000, 635_000), (10, 11), (3_100_000, 4_600_000), (1, 100_000_000)], ids=str
)
def test_the_axis_of_costs_has_two_to_ten_numbers(
    tmp_path: Path, fake_run: Callable[..., Any], counts: tuple[int, int]
) -> None:
    run = fake_run(tmp_path)
    for name, errors, count in zip(("small", "large"), (410, 400), counts, strict=True):
        run.stage(name, role="model", parameters=7, errors=errors, costs={"multiply_adds": float(count)})
    figure = draw_front(weighed(summarize_run(open_run(run.write(), run.root)).comparison))
    figure.canvas.draw()
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    shown = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert 2 <= len(shown) <= 10


def test_models_of_one_size_have_no_front(tmp_path: Path, fake_run: Callable[..., Any]) -> None:
    run = fake_run(tmp_path)
    for name in ("one", "other"):
        run.stage(name, role="model", parameters=7, errors=9, costs={"multiply_adds": 10.0})
    summary = summarize_run(open_run(run.write(), run.root))
    assert not weighed(summary.comparison)
    assert all(plot.name != "front" for plot in draw_plots(summary))
