"""What a person sees of a search: a line per change of a trial while it runs, and the table that ends it."""

import time
from collections.abc import Mapping, Sequence

from rich.table import Table

from raydistill.plain import escape, say
from raydistill.plan.search import Domain
from raydistill.runs.search_formatting import called, short, short_names, shown_values
from raydistill.runs.search_run import TrialRecord, best_first
from raydistill.search.objective import Objective

SHOWN = 10
SECONDS_BETWEEN = 1.0  # between two lines about epochs of one trial
STYLES = {
    "done": "green",
    "stopped_early": "yellow",
    "failed": "bold red",
    "interrupted": "yellow",
    "running": "bold blue",
}


class SearchProgress:
    """Plain lines on stderr: `12.3 s  trial 3 of 8 (temperature 4.1): epoch 5, 0.9331; best 0.9402 (trial 2)`."""

    def __init__(self, metric: Objective, space: Mapping[str, Domain], count: int) -> None:
        self._metric, self._space, self._count = metric, space, count
        self._started = time.monotonic()
        self._shown: dict[str, float] = {}
        self.best: TrialRecord | None = None

    def began(self, record: TrialRecord) -> None:
        """A trial has started."""
        self._line(record, "continues" if record.epochs else f"started{_origin(record)}")

    def reached(self, record: TrialRecord, epoch: int) -> None:
        """A trial has ended an epoch."""
        if time.monotonic() - self._shown.get(record.id, 0.0) < SECONDS_BETWEEN:
            return
        self._shown[record.id] = time.monotonic()
        self._line(record, f"epoch {epoch}, {record.metric:.4f}{self._best()}")

    def ended(self, record: TrialRecord) -> None:
        """A trial has ended."""
        reached = "" if record.metric is None else f" with {record.metric:.4f}"
        why = f": {record.error}" if record.error else ""
        status = record.status.replace("_", " ")
        took = f" in {record.seconds:.1f} s" if record.status == "done" else ""
        self._line(record, f"{status}{took}{reached}{why}{self._best()}")

    def _best(self) -> str:
        return "" if self.best is None else f"; best {self.best.metric:.4f} ({called(self.best)})"

    def _line(self, record: TrialRecord, text: str) -> None:
        stamp = f"{time.monotonic() - self._started:7.1f} s"
        values = shown_values(record.values, self._space)
        name = f"trial {record.number} of {self._count}" if record.segment is None else record.segment.shown
        say(f"{stamp}  {name} ({values}): {text}")


def _origin(record: TrialRecord) -> str:
    """From whom a member of a population goes on, if not from itself."""
    donor = record.segment.donor if record.segment is not None else None
    return "" if donor is None else f" from member {donor + 1}"


def trials_table(records: Sequence[TrialRecord], metric: Objective, space: Mapping[str, Domain]) -> Table:
    """The best trials, the best first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    names = short_names(list(space))
    for column in ("trial", "outcome", *names.values(), metric.name, "epochs", "seconds", "note"):
        table.add_column(column, overflow="fold")
    for record in best_first(records, metric.mode)[:SHOWN]:
        table.add_row(
            str(record.number) if record.segment is None else record.segment.shown,
            f"[{STYLES[record.status]}]{record.status.replace('_', ' ')}[/]",
            *(escape(short(record.values[path])) for path in names),
            "" if record.metric is None else f"{record.metric:.5g}",
            str(max(record.epochs, default="")),
            f"{record.seconds:.1f}",
            escape(record.error or ""),
        )
    return table


def left_out(records: Sequence[TrialRecord]) -> str:
    """What follows the table where it does not hold all trials."""
    count = len(records) - SHOWN
    return f"and {count} more, all of them in the report" if count > 0 else ""


def told_exchanges(records: Sequence[TrialRecord]) -> str:
    """Of a population in which nobody took another's place, that and why; else nothing.

    Whoever ends a round goes on with what is known by then. With a worker for each member all end it at about the same
    time, and the first ones find nobody to compare with.
    """
    segments = [record.segment for record in records if record.segment is not None]
    has_later = any(segment.round > 0 for segment in segments)
    if not has_later or any(segment.donor is not None for segment in segments):
        return ""
    return (
        "no member took another's place: those that ended a round went on before enough others had ended it, as happens"
        " with as many workers as members; set `search.concurrency` to half of the population, or more rounds"
    )


def took(seconds: float, session_seconds: float) -> str:
    """`12.1 s`, and of a search that went on, how long it has taken in all."""
    before = seconds - session_seconds
    return f"{session_seconds:.1f} s" + (
        f" ({seconds:.1f} s with earlier sessions)" if before >= 0.05 else ""
    )


def space_table(space: Mapping[str, Domain]) -> Table:
    """What `--dry-run` prints about the space."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("path", "domain", "values"):
        table.add_column(column, overflow="fold")
    for path, domain in space.items():
        written = ", ".join(short(value) for value in domain.choice or domain.ends)
        kind = domain.kind if domain.choice else f"{domain.kind} [{written}]"
        count = "" if domain.size is None else f"{domain.size:,}"
        table.add_row(path, escape(kind), escape(written) if domain.choice else count)
    return table
