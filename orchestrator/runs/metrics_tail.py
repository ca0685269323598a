"""What a running stage adds to its `metrics.jsonl`: its process writes it there and tells nobody else."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from raydistill.runs.folder import METRICS


class MetricsTail:
    """The lines that are added from now on; what the file holds by now was told by an earlier attempt."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / METRICS
        self._told = self._size()

    def added(self) -> Iterator[Mapping[str, float]]:
        """Every whole line that was not told yet."""
        for line in self._lines():
            with suppress(ValueError):  # the middle of a line, where a restart has rewound the file
                yield json.loads(line)

    def _lines(self) -> list[bytes]:
        start = min(self._told, self._size())
        with suppress(FileNotFoundError), self._file.open("rb") as stream:
            stream.seek(start)
            added = stream.read()
            added = added[: added.rfind(b"\n") + 1]
            self._told = start + len(added)
            return added.splitlines()
        return []

    def _size(self) -> int:
        try:
            return self._file.stat().st_size
        except FileNotFoundError:
            return 0
