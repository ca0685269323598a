"""What running stages report, passed on to whoever asked."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from raydistill.execution.request import StageRequest
from raydistill.runs.metrics_tail import MetricsTail


class Listener:
    """Passes on the lines that attempts add to their `metrics.jsonl`; without an `on_report` nothing is read."""

    def __init__(self, on_report: Callable[[str, Mapping[str, float]], None] | None) -> None:
        self._on_report = on_report
        self._tails: dict[str, MetricsTail] = {}  # by the attempt

    def attend(self, request: StageRequest) -> None:
        """An attempt begins."""
        if self._on_report is not None:
            self._tails[request.attempt] = MetricsTail(Path(request.root, request.folder))

    def listen(self, requests: Iterable[StageRequest]) -> None:
        """Pass on what these attempts have added."""
        if self._on_report is None:
            return
        for request in requests:
            for line in self._tails[request.attempt].added():
                self._on_report(request.name, line)
