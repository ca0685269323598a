"""The report of a plan run: one page that answers whether the student is good enough, and the same plots as PNG.

`data` reads what the run left, `comparison` and `predictions` work out what there is to say, `layout` places the
graph, `plots` draws, `page` writes. Every number comes from a record or from predictions that a stage stored.
"""

from pathlib import Path

from orchestrator.report.data import read_run
from orchestrator.report.page import build_page
from orchestrator.report.story import tell
from orchestrator.runs.files import atomic_write, make_folder

REPORT = "report.html"
PLOTS = "plots"


def write_report(plan_run_folder: Path, root: Path) -> Path:
    """Write `report.html` and `plots/*.png` into the folder of a plan run below the storage root.

    Whatever a stage did not leave is missing from the report, which says so. `StoreError` when the run's own
    `graph.json` or `results.json` cannot be read.
    """
    from orchestrator.report.plots import draw_plots

    story = tell(read_run(plan_run_folder, root))
    plots = draw_plots(story)
    _write_pictures(plan_run_folder / PLOTS, {plot.name: plot.png for plot in plots})
    report = plan_run_folder / REPORT
    with atomic_write(report) as temporary:
        temporary.write_text(build_page(story, plots), encoding="utf-8")
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
