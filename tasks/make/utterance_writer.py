"""Aligned utterances as Parquet files, and the account of what could not be aligned.

Files appear when all of them are complete, and only when enough of every split is in them.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydistill.tasks.make.forced_alignment import Aligned
from raydistill.tasks.make.recordings import Recording

UTTERANCES_AT_ONCE = 64


class UtteranceWriter:
    """Writes utterances to one Parquet file per split, a few at a time; labels are numbered as states appear."""

    def __init__(self, folder: Path, coefficients: int) -> None:
        import pyarrow

        self.folder = folder
        self.labels: dict[str, int] = {}
        self.writers: dict[str, Any] = {}
        self.waiting: dict[str, list[Aligned]] = {}
        self.schema = pyarrow.schema(
            {
                "id": pyarrow.string(),
                "speaker": pyarrow.string(),
                "features": pyarrow.list_(pyarrow.list_(pyarrow.float32(), coefficients)),
                "labels": pyarrow.list_(pyarrow.int32()),
            }
        )

    def add(self, aligned: Aligned) -> None:
        """Keep one aligned utterance for its split's file."""
        waiting = self.waiting.setdefault(aligned.recording.split, [])
        waiting.append(aligned)
        if len(waiting) >= UTTERANCES_AT_ONCE:
            self._write(aligned.recording.split)

    def close(self) -> None:
        """Write what waits, and `classes.json` with the states' names in the order of the labels."""
        for split in self.waiting:
            self._write(split)
        for writer in self.writers.values():
            writer.close()
        (self.folder / "classes.json").write_text(
            json.dumps(list(self.labels), indent=0, allow_nan=False) + "\n", encoding="utf-8"
        )

    def _write(self, split: str) -> None:
        import pyarrow
        import pyarrow.parquet

        if split not in self.writers:
            self.writers[split] = pyarrow.parquet.ParquetWriter(self.folder / f"{split}.parquet", self.schema)
        utterances = self.waiting[split]
        columns = {
            "id": [each.recording.id for each in utterances],
            "speaker": [each.recording.speaker for each in utterances],
            "features": [list(each.features) for each in utterances if each.features is not None],
            "labels": [
                [self.labels.setdefault(state, len(self.labels)) for state in each.states]
                for each in utterances
            ],
        }
        self.writers[split].write_table(pyarrow.table(columns, schema=self.schema))
        utterances.clear()


@dataclass
class Report:
    """How many recordings of each split were aligned, how many frames that gave, and what failed why."""

    recordings: Counter[str]
    aligned: Counter[str]
    frames: Counter[str]
    failures: list[tuple[str, str]]

    @classmethod
    def of(cls, recordings: Sequence[Recording]) -> "Report":
        """A report before the first alignment."""
        return cls(Counter(each.split for each in recordings), Counter(), Counter(), [])

    def add(self, aligned: Aligned) -> None:
        """Count one outcome."""
        if aligned.failure:
            self.failures.append((aligned.recording.id, aligned.failure))
            return
        self.aligned[aligned.recording.split] += 1
        self.frames[aligned.recording.split] += len(aligned.states)

    def share(self, split: str) -> float:
        """The part of a split's recordings that was aligned."""
        return self.aligned[split] / self.recordings[split]

    def lines(self) -> Iterator[str]:
        """A sentence per failure and per split."""
        yield from (f"`{name}`: {reason}" for name, reason in self.failures)
        for split, count in self.recordings.items():
            yield (
                f"{split}: {self.aligned[split]} of {count} aligned ({self.share(split):.1%}), "
                f"{self.frames[split]} frames"
            )

    def values(self) -> dict[str, Any]:
        """The report as JSON values."""
        splits = {
            split: {"recordings": count, "aligned": self.aligned[split], "frames": self.frames[split]}
            for split, count in self.recordings.items()
        }
        return {"splits": splits, "failures": dict(self.failures)}

    def require(self, minimum_share: float) -> None:
        """`ValueError` when a split lost more than it may."""
        for split in self.recordings:
            if self.share(split) < minimum_share:
                raise ValueError(
                    f"only {self.share(split):.1%} of `{split}` could be aligned, less than the "
                    f"{minimum_share:.1%} asked for; nothing was written. Mend what is listed above, or lower "
                    "`--minimum-share`"
                )


def write_utterances(
    outcomes: Iterable[Aligned], report: Report, folder: Path, coefficients: int, minimum_share: float
) -> None:
    """Put the utterances into `folder` when all of them are written. `ValueError` when too much failed."""
    if folder.exists() and any(folder.glob("*.parquet")):
        raise ValueError(f"`{folder}` already holds utterances; name another folder or remove them")
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / ".unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        writer = UtteranceWriter(unfinished, coefficients)
        for outcome in outcomes:
            report.add(outcome)
            if not outcome.failure:
                writer.add(outcome)
        writer.close()
        report.require(minimum_share)
        (unfinished / "alignment.json").write_text(
            json.dumps(report.values(), indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )
        for path in sorted(unfinished.iterdir(), key=lambda path: path.suffix == ".parquet"):
            path.rename(folder / path.name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
