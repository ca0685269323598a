"""What a person sees of a search while it runs: a line per change of a trial."""

import time
from collections.abc import Mapping

from raydistill.plain import say
from raydistill.plan.search import Domain
from raydistill.runs.search_formatting import called, shown_values
from raydistill.runs.search_run import TrialRecord
from raydistill.search.objective import Objective

SECONDS_BETWEEN = 1.0  # between two lines about epochs of one trial


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
