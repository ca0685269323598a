"""Frames of speech and the HMM states they belong to, from utterances in Parquet files (arXiv 1503.02531, section 4).

A sample is a frame; its input is that frame between its neighbours, spliced when a batch is asked for: no spliced
frame is ever stored. `python -m raydistill.tasks.make.speech_align` writes such files from recordings and transcripts.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from raydistill.tasks.digests import Stamp, digest_below, digest_named, digest_text, stamp
from raydistill.tasks.hashing import cut, fold_key
from raydistill.tasks.seeds import Purpose
from raydistill.tasks.task import Task, UserPath

if TYPE_CHECKING:  # numpy and pyarrow are loaded by what reads the files, not by a dry run's description
    from raydistill.tasks.splits import TaskData
    from raydistill.tasks.utterances import Utterances

PARTS = ("train", "validation", "test")


class SpeechFrames(Task):
    """Frames of speech, spliced with their context, to be told the state of a forced alignment.

    `folder` holds `train*.parquet`, `test*.parquet` and maybe `validation*.parquet`; a row is an utterance with the
    columns `features` (T lists of `coefficients` numbers), `labels` (T integers), `id` (integer or text) and maybe
    `speaker`. All frames lie in memory, 160 bytes each at 40 coefficients.

    Every coefficient is brought to mean 0 and variance 1 over all frames of its speaker in a split's files, of its
    utterance where there is no speaker. Where the context reaches over an utterance's end its first or last
    frame is repeated, as Kaldi's splice-feats does; so an utterance may be shorter than the context. An utterance
    without frames is refused. Without `validation*.parquet`, whole utterances of `train` are set aside.
    """

    name: str = "speech_frames"
    folder: UserPath
    """Holds the recordings and their labels."""
    coefficients: int = Field(default=40, ge=1)
    """Features of one frame."""
    frames_before: int = Field(default=20, ge=0)
    """Frames of context before the one that is told."""
    frames_after: int = Field(default=5, ge=0)
    """Frames of context after it. With the defaults it is the 21st of 26 (arXiv 1503.02531, section 4)."""
    classes: int | None = Field(default=None, ge=1)
    """Number of states; without it, `classes.json` (a list of names) in the folder or the largest label decides."""

    @property
    def class_names(self) -> tuple[str, ...]:
        names = self.folder / "classes.json"
        if names.is_file():
            return self._named_classes(names)
        count = self.classes
        if count is None:
            self.require_files()
            count = 1 + max(_largest_label(file, stamp(file)) for file in self.files().values())
        return tuple(str(label) for label in range(count))

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.frames_before + 1 + self.frames_after, self.coefficients)

    @property
    def input_values(self) -> str:
        return (
            f"{self.coefficients} features of each of {self.input_shape[0]} frames in a row, every feature with mean 0"
            " and variance 1 over its speaker's frames"
        )

    def files(self) -> dict[str, Path]:
        """The Parquet files by name, those of a split in the order of their names."""
        return {path.name: path for part in PARTS for path in self._files_of(part)}

    def missing_files(self) -> str | None:
        for part in ("train", "test"):
            if not self._files_of(part):
                return (
                    f"task `speech_frames` finds no `{part}*.parquet` in `{self.folder}`: write utterances there "
                    "with `python -m raydistill.tasks.make.speech_align`, or name another `folder`; nothing can be "
                    "downloaded"
                )
        return None

    def content(self) -> str:
        learned = [files for split, files in self.digests().items() if split != "test"]
        return digest_text("\n".join([*self.class_names, *map(digest_named, learned)]))

    def test_content(self) -> str:
        return digest_named(self.digests()["test"])

    def digests(self) -> dict[str, dict[str, str]]:
        return {
            part: digest_below(self.folder, [file.name for file in files])
            for part in PARTS
            if (files := self._files_of(part))
        }

    def read_utterances(self) -> dict[str, Utterances]:
        """The three splits as they will be spliced: checked, normalised, validation set aside."""
        from raydistill.tasks.speech_files import read_utterances

        found = {
            part: read_utterances(files, self.coefficients, self.num_classes)
            for part in PARTS
            if (files := self._files_of(part))
        }
        if "validation" not in found:
            train = found["train"]
            chosen = cut(
                train.keys, self.validation_fraction, fold_key(self.split_seed, Purpose.VALIDATION_CUT)
            )
            found |= {"train": train.take(~chosen), "validation": train.take(chosen)}
        _check_apart(found)
        return {part: found[part] for part in PARTS}

    def load(self) -> TaskData:
        from raydistill.tasks.frame_split import build_frame_data

        self.require_files()
        return build_frame_data(self, self.read_utterances())

    def _files_of(self, part: str) -> list[Path]:
        return sorted(self.folder.glob(f"{part}*.parquet"))

    def _named_classes(self, file: Path) -> tuple[str, ...]:
        names = _read_names(file, stamp(file))
        if self.classes is not None and self.classes != len(names):
            raise ValueError(f"`classes` is {self.classes}, but `{file}` names {len(names)}")
        return names


def _check_apart(parts: dict[str, Utterances]) -> None:
    import numpy as np

    keys = np.concatenate([part.keys for part in parts.values()])
    _, places, counts = np.unique(keys, return_index=True, return_counts=True)
    if (counts > 1).any():
        name = np.concatenate([part.names for part in parts.values()])[places[counts > 1][0]]
        raise ValueError(f"task `speech_frames`: utterance `{name}` occurs twice, or in more than one split")


@lru_cache(maxsize=8)
def _read_names(file: Path, changed: Stamp) -> tuple[str, ...]:
    try:
        names: Any = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`{file}` is damaged: {error}") from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"`{file}` should be a list of the states' names, in the order of the labels")
    if len(set(names)) < len(names):
        raise ValueError(f"`{file}` names a state twice")
    return tuple(names)


@lru_cache(maxsize=64)
def _largest_label(file: Path, changed: Stamp) -> int:
    from raydistill.tasks.speech_files import largest_label

    return largest_label(file)
