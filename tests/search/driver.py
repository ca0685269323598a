"""`distill` in a process that a test may kill, without MLflow and reports."""

import sys
from pathlib import Path
from typing import Any

from raydistill import report, run_plan
from raydistill.cli import main
from raydistill.search import run_search


class NoTracking:
    """Stands in for the mirror to MLflow."""

    def __init__(self, *arguments: Any) -> None: ...
    def has_sent(self, previous: Path) -> bool:
        return True

    def adopt(self, previous: Path) -> None: ...
    def start(self) -> None: ...
    def check(self) -> None: ...
    def hurry(self) -> None: ...
    def finish(self, seconds: float, rest: str = "next time") -> None: ...
    def description(self) -> dict[str, Any]:
        return {"tracking_uri": "nowhere"}


def write_nothing(folder: Path, root: Path) -> None:
    """In place of a report."""
    (folder / "report.html").touch()


def silence() -> None:
    """Take tracking and reports out of this process."""
    for module in (run_plan, run_search):
        module.Mirror = NoTracking  # type: ignore[attr-defined]
    run_search.write_report_of = lambda run: None
    report.write_report = write_nothing  # type: ignore[assignment]


if __name__ == "__main__":
    silence()
    main(sys.argv[1:], prog_name="distill")
