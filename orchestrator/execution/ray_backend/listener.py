"""What running stages report: their processes write it to their folders and tell nobody else."""

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from raydistill.execution.request import StageRequest
from raydistill.runs.folder import METRICS


class Listener:
    """Passes on the lines that attempts add to their `metrics.jsonl`; without an `on_report` nothing is read."""

    def __init__(self, on_report: Callable[[str, Mapping[str, float]], None] | None) -> None:
        self._on_report = on_report
        self._heard: dict[str, int] = {}  # bytes, by the attempt

    def attend(self, request: StageRequest) -> None:
        """An attempt begins: what its folder holds by now was told by an earlier one."""
        if self._on_report is not None:
            self._heard[request.attempt] = _size(_file(request))

    def listen(self, requests: Iterable[StageRequest]) -> None:
        """Pass on what these attempts have added."""
        if self._on_report is None:
            return
        for request in requests:
            for line in self._added(request):
                with suppress(ValueError):  # the middle of a line, where a restart has rewound the file
                    self._on_report(request.name, json.loads(line))

    def _added(self, request: StageRequest) -> list[bytes]:
        file = _file(request)
        start = min(self._heard[request.attempt], _size(file))
        with suppress(FileNotFoundError), file.open("rb") as stream:
            stream.seek(start)
            added = stream.read()
            added = added[: added.rfind(b"\n") + 1]
            self._heard[request.attempt] = start + len(added)
            return added.splitlines()
        return []


def _file(request: StageRequest) -> Path:
    return Path(request.root, request.folder, METRICS)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0
