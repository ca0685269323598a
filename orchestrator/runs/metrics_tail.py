"""Reads what a running stage adds to its `metrics.jsonl`, the only place where its process reports metrics."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from raydistill.runs.files import parse_json
from raydistill.runs.folder import METRICS


class MetricsTail:
    """The lines that are added from now on; those already in the file were reported by an earlier attempt."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / METRICS
        self._told = self._size()

    def added(self) -> Iterator[Mapping[str, float]]:
        """Every whole line that was not told yet."""
        for line in self._lines():
            with suppress(ValueError):  # the middle of a line, where a restart has rewound the file
                yield parse_json(line)

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
