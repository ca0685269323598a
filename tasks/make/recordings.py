"""The manifest of a speech corpus: which sound holds which words, spoken by whom, and the split it belongs to."""

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

COLUMNS = ("path", "text", "speaker", "split")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Recording:
    """One line of the manifest; `id` is the path as written there."""

    id: str
    file: Path
    text: str
    speaker: str
    split: str


def read_manifest(path: Path) -> list[Recording]:
    """The recordings of a .tsv or .csv file. `ValueError` names the line that is not valid."""
    delimiter = "," if path.suffix == ".csv" else "\t"
    with path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream, delimiter=delimiter, strict=True)
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(
                f"`{path}` has no column `{missing[0]}`; its first line names {', '.join(COLUMNS)}"
            )
        recordings = [_recording(path, reader.line_num, row) for row in reader]
    repeated = [name for name, count in Counter(each.id for each in recordings).items() if count > 1]
    if repeated:
        raise ValueError(f"`{path}` lists `{repeated[0]}` more than once")
    return recordings


def _recording(path: Path, line: int, row: dict[str, str | None]) -> Recording:
    values = [(row[column] or "").strip() for column in COLUMNS]
    for column, value in zip(COLUMNS, values, strict=True):
        if not value:
            raise ValueError(f"line {line} of `{path}` has an empty `{column}`")
    name, text, speaker, split = values
    if split not in SPLITS:
        raise ValueError(f"line {line} of `{path}` has the split `{split}`; write {', '.join(SPLITS)}")
    return Recording(name, path.parent / name, text, speaker, split)
