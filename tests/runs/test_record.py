"""The one line that stands for an error."""

import pytest

from raydistill.errors import StoreError
from raydistill.runs.record import Record, summary_of

LOADED = """Caught {name} in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "/somewhere/worker.py", line 370, in _worker_loop
    raise ValueError("no: this line is code")
{full}: `a.png` is damaged
 and more of it
note: also at the margin
"""


def loaded(name: str, full: str) -> str:
    """What torch makes of an error in a process that loads data."""
    return LOADED.format(name=name, full=full)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\nlines"), "ValueError: two"),
        (StoreError("`x` is gone"), "`x` is gone"),
        (ValueError(""), "ValueError: "),
        (ValueError(loaded("ValueError", "ValueError")), "ValueError: `a.png` is damaged"),
        (OSError(loaded("Odd", "PIL.Odd")), "PIL.Odd: `a.png` is damaged"),
        (StoreError(loaded("StoreError", "raydistill.errors.StoreError")), "`a.png` is damaged"),
        (
            ValueError("Caught Odd in DataLoader worker process 0."),
            "Caught Odd in DataLoader worker process 0.",
        ),
    ],
)
def test_an_error_is_its_first_line_and_of_a_loader_its_causes(error: Exception, line: str) -> None:
    assert summary_of(error) == line


@pytest.mark.parametrize(("stacked", "hours"), [(None, (8.0, 1.0)), (4, (2.0, 0.25))])
def test_hours_of_trainings_that_were_stacked_are_shared(
    stacked: int | None, hours: tuple[float, ...]
) -> None:
    held = {"cpus": 4.0, "gpus": 0.5}
    found = Record(
        kind="train", fingerprint="f", status="done", seconds=7200, finished=0, reserved=held, stacked=stacked
    ).hours
    assert (found.cpus, found.gpus) == hours
