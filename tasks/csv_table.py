"""Tables of text, row by row: whatever reads a CSV file reads it here, and names the line that it cannot use."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raydistill.tasks.picture_files import printable

SEPARATORS = ",;\t"


class CsvTable:
    """The rows of cells below `header`, which is the first row. A row may take several lines: `line` is where the last
    one read began. `ValueError` for a row with more or fewer cells."""

    def __init__(self, file: Path, reader: Any) -> None:
        self._file, self._reader = file, reader
        self.begun = self.line = 1
        self.header = [name.strip() for name in self._read() or []]

    def __iter__(self) -> Iterator[list[str]]:
        while (cells := self._read()) is not None:
            if cells and len(cells) != len(self.header):
                raise ValueError(
                    f"`{self._file}`, line {self.line}: {len(cells)} cells below {len(self.header)} columns"
                )
            if cells:
                yield cells

    def _read(self) -> list[str] | None:
        cells: list[str] | None = next(self._reader, None)
        self.line, self.begun = self.begun, self._reader.line_num + 1
        return cells


@contextmanager
def opened_csv(file: Path) -> Iterator[CsvTable]:
    """A table of UTF-8 whose cells are separated by commas, semicolons or tabs, whichever its first line has most of.
    `ValueError` for what is none, also while its rows are read."""
    table = None
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            first = stream.readline()
            separator = max(SEPARATORS, key=first.count)
            stream.seek(0)
            table = CsvTable(file, csv.reader(stream, delimiter=separator, strict=True))
            yield table
    except csv.Error as error:
        line = 1 if table is None else table.begun
        raise ValueError(f"`{file}`, line {line}: {error}; is a quotation mark not closed?") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"`{file}` is no table of UTF-8 text: {error}") from None


def path_below(path: str, file: Path, line: int) -> str:
    """A path that stands in a table, with "/"; `ValueError` unless it stays below where it begins."""
    path = path.replace("\\", "/")
    parts = [part for part in path.split("/") if part not in {"", "."}]  # a path object per row is slow
    if not parts or path[0] == "/" or ".." in parts or parts[0].endswith(":"):
        raise ValueError(
            f"`{file}`, line {line}: `{printable(path)}` is no path below a folder; write paths relative to the option"
            " `folder`"
        )
    return "/".join(parts)
