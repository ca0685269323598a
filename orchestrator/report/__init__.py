"""The reports of plan runs and of searches: one page that answers first, and the same plots as PNG.

    comparison, predictions, ...   what there is to say about a run, gathered in `summary`; of a search `search_summary`
    layout, graph, plot_*, plots   the drawings, in the style of `figures`
    page, templates/               the page

Every number comes from a record or from predictions that a stage stored.
"""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from raydistill.runs.files import atomic_write, make_folder
from raydistill.runs.mirror import send
from raydistill.runs.run_files import PLOTS, REPORT

if TYPE_CHECKING:
    from raydistill.report.figures import Plot


def write_report(plan_run_folder: Path, root: Path) -> Path:
    """Write `report.html` and `plots/*.png` into the folder of a plan run below the storage root.

    Whatever a stage did not leave is missing from the report, which says so. `StoreError` when the run's own
    `graph.json` or `results.json` cannot be read.
    """
    from raydistill.report.page import build_page
    from raydistill.report.plots import draw_plots
    from raydistill.report.summary import summarize_run
    from raydistill.runs.view import open_run

    summary = summarize_run(open_run(plan_run_folder, root))
    plots = draw_plots(summary)
    return _write(plan_run_folder, build_page(summary, plots), plots)


def write_search_report(folder: Path, root: Path) -> Path:
    """Write `report.html` and `plots/*.png` into the folder of a search. `StoreError` when it has no description."""
    from raydistill.report.figures import finished
    from raydistill.report.importance import measure_importance
    from raydistill.report.page import build_search_page
    from raydistill.report.plot_front import front_drawings
    from raydistill.report.plot_search import search_drawings
    from raydistill.report.search_summary import summarize_search
    from raydistill.runs.search_view import open_search

    summary = summarize_search(open_search(folder, root))
    importance = measure_importance(summary)
    plots = finished(chain(front_drawings(summary), search_drawings(summary, importance)))
    return _write(folder, build_search_page(summary, importance, plots), plots)


def _write(folder: Path, page: str, plots: "Sequence[Plot]") -> Path:
    _write_pictures(folder / PLOTS, {plot.name: plot.png for plot in plots})
    report = folder / REPORT
    with atomic_write(report) as temporary:
        temporary.write_text(page, encoding="utf-8")
    send(folder)
    return report


def _write_pictures(folder: Path, pictures: dict[str, bytes]) -> None:
    """Replace rather than overwrite: a run that only reused results shares these files with an older one."""
    make_folder(folder)
    for name, png in pictures.items():
        with atomic_write(folder / f"{name}.png") as temporary:
            temporary.write_bytes(png)
    for path in folder.glob("*.png"):
        if path.stem not in pictures:
            path.unlink()
