"""What all tasks share whose pictures are decoded while training, wherever those lie."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from raydistill.tasks.hashing import fold_key, smallest_hashes
from raydistill.tasks.seeds import Purpose
from raydistill.tasks.task import Arrays, Task

if TYPE_CHECKING:
    from PIL.Image import Image

    from raydistill.tasks.picture_store import PictureStore
    from raydistill.tasks.picture_survey import Look
    from raydistill.tasks.pictures import Pixels, Wanted
    from raydistill.tasks.reduced import Box
    from raydistill.tasks.splits import TaskData
    from raydistill.tasks.survey import Finding, Survey

    Read = Callable[[Wanted], Image]
    Part = Callable[[int, int], Box]

logger = logging.getLogger(__name__)


class PictureTask(Task):
    """A task whose inputs, as it reads them, are places in its `store` of pictures."""

    image_size: int = Field(default=224, ge=1)
    """Height and width of an input in pixels."""
    resize: int = Field(default=256, ge=1)
    """Without a view: the shorter side is scaled to this before the centre is cut out."""
    smallest_area: float = Field(default=0.08, gt=0, le=1)
    """Smallest part of the picture a random crop takes."""
    workers: int = Field(default=2, ge=0)
    """Processes that decode pictures, per process that trains."""
    on_error: Literal["fail", "skip"] = "fail"
    """A picture that cannot be read ends the run before its first stage, or is left out wherever it would appear."""

    def samples(self) -> dict[str, Arrays]:
        """As `read`, with the pictures that cannot be read."""
        raise NotImplementedError

    def store(self) -> PictureStore:
        """Where the pictures lie."""
        raise NotImplementedError

    def part_name(self, split: str) -> str:
        """What the user calls a split."""
        return split

    def left_out(self) -> Iterator[Finding]:
        """What lies beside the samples and is none, for the survey."""
        yield from ()

    def has_large(self, files: Iterable[str]) -> bool:
        """Whether there is a picture in these files below the store's folder that may be read at a reduced size."""
        from raydistill.tasks.reduced import is_large_file

        folder = self.store().folder
        return any(is_large_file(folder / file) for file in files)

    def reader(self, *splits: Mapping[str, str]) -> str:
        """What the identity says of how pictures are read; splits are digests by file."""
        from raydistill.tasks.pictures import READER

        return self.read_as([file for split in splits for file in split], READER)

    def read_as(self, files: Iterable[str], content: str) -> str:
        """A name of the content of `files`, another one where a picture may be read at a reduced size."""
        from raydistill.tasks.reduced import REDUCED

        return f"{content} {REDUCED}" if self.has_large(files) else content

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (3, self.image_size, self.image_size)

    @property
    def input_values(self) -> str:
        return (
            f"{super().input_values}; red, green, blue; of a picture the central square, {self.image_size} of"
            f" {max(self.resize, self.image_size)} parts of its shorter side, scaled bilinearly to"
            f" {self.image_size} x {self.image_size}"
        )

    def read(self) -> dict[str, Arrays]:
        parts = self.samples()
        if self.on_error == "fail":
            return parts
        return {split: self._readable(split, part) for split, part in parts.items()}

    def listed(self) -> dict[str, Arrays]:
        return self.samples()

    def load(self) -> TaskData:
        from raydistill.tasks.folder_split import build_folder_data

        self.require_files()
        return build_folder_data(self, self.read())

    def picture_input(
        self, source: Path | bytes, shape: tuple[int, ...], *, name: str | None = None
    ) -> Pixels:
        from raydistill.tasks.pictures import read_part

        return self.pixels(partial(read_part, source, shape[0], name=name), self.centre, *shape[1:])

    def pixels(self, read: Read, part: Part, height: int, width: int) -> Pixels:
        """The `part` of a picture, scaled to uint8 (channels, height, width): what a model of this task sees of it,
        whoever asks."""
        from raydistill.tasks.pictures import pixels_of

        return pixels_of(read(lambda *size: (part(*size), height, width)))

    def centre(self, width: int, height: int) -> Box:
        """The part that is seen without a view: as if the shorter side were scaled to `resize` and the middle square of
        the input's size cut out."""
        from raydistill.tasks.pictures import centre_box

        return centre_box(width, height, self.image_size / self.resize)

    def survey(self) -> Survey:
        """Every picture is decoded once; if a split has more than `picture_survey.MOST`, only so many, chosen by
        hash."""
        from raydistill.tasks.picture_survey import by_weight, folder_findings, shared
        from raydistill.tasks.survey import Survey

        counts = super().survey().counts
        found = list(self.left_out())
        looks: dict[str, dict[str, Look]] = {}
        for split, part in self.samples().items():
            looks[split] = self._look(part)
            found += folder_findings(
                self.part_name(split), looks[split], len(part.ids), self.on_error, self.image_size
            )
        return Survey(counts, by_weight([*found, *shared(looks)]))

    def _look(self, part: Arrays, most: int | None = None) -> dict[str, Look]:
        from raydistill.tasks.picture_survey import MOST, look_at

        chosen = smallest_hashes(part.ids, MOST if most is None else most, fold_key(Purpose.SURVEYED))
        return look_at(self.store(), part.inputs[chosen].tolist(), self.workers)

    def _readable(self, split: str, part: Arrays) -> Arrays:
        looks = list(self._look(part, most=len(part.ids)).values())
        is_good = np.array([look.problem is None for look in looks], dtype=bool)
        if not is_good.all():
            logger.info(
                "task `%s`: left out %d of %d pictures of `%s`; the first: %s",
                self.name, (~is_good).sum(), len(is_good), split, looks[int(is_good.argmin())].problem,
            )  # fmt: skip
        return part.take(is_good)
