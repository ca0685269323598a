"""What all tasks share whose pictures are decoded while training, wherever those lie."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from raydistill.tasks.hashing import fold_key, smallest_hashes
from raydistill.tasks.packed_files import PACKED_FOLDER
from raydistill.tasks.reduced import Box
from raydistill.tasks.seeds import Purpose
from raydistill.tasks.task import Arrays, Task, UserPath, data_root

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from raydistill.tasks.picture_store import Parts, PictureStore
    from raydistill.tasks.picture_survey import Look
    from raydistill.tasks.pictures import Pixels, Wanted
    from raydistill.tasks.splits import TaskData
    from raydistill.tasks.survey import Finding, Survey

    Read = Callable[[Wanted], Image]
    Part = Callable[[int, int], Box]

logger = logging.getLogger(__name__)

LEAST_SEEN = 0.25
"""Of a square picture, the part below which a survey warns that the centre that is cut out is small."""


def usual_resize(image_size: int) -> int:
    """The shorter side before the centre is cut out, in the proportion of ImageNet's 224 of 256."""
    return round(image_size * 256 / 224)


class PictureCache(BaseModel):
    """Pictures are decoded once, scaled, and packed into one file, which takes 3 bytes per pixel.

    The file is shared by all that is trained on a machine. Crops are then taken of the scaled picture.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shorter_side: int = Field(ge=1)
    """Pixels to which the shorter side is scaled where it is longer: the task's `resize`, or more to keep detail for
    small crops."""
    folder: UserPath | None = None
    """Where the file lies, on a disk of the machine if possible; without it, in `packed` below the data root."""

    def wanted(self, width: int, height: int) -> tuple[Box, int, int]:
        """The whole picture, and the height and width that it has in the file."""
        scale = min(1.0, self.shorter_side / min(width, height))
        return (0, 0, width, height), max(round(height * scale), 1), max(round(width * scale), 1)


class PictureTask(Task):
    """A task whose inputs, as it reads them, are places in its `store` of pictures."""

    image_size: int = Field(default=224, ge=1)
    """Height and width of an input in pixels."""
    resize: int = Field(ge=1, default_factory=lambda given: usual_resize(given.get("image_size", 224)))
    """Without a view: the shorter side is scaled to this before the centre is cut out; left out, 8/7 of `image_size`,
    so 256 for 224."""
    smallest_area: float = Field(default=0.08, gt=0, le=1)
    """Smallest part of the picture a random crop takes."""
    workers: int = Field(default=2, ge=0)
    """Processes that decode pictures, per process that trains."""
    on_error: Literal["fail", "skip"] = "fail"
    """A picture that cannot be read ends the run before its first stage, or is left out wherever it would appear."""
    cache: PictureCache | None = None
    """Decode pictures once, not in every epoch: `{shorter_side: 256}`."""

    not_identity: ClassVar[frozenset[str]] = Task.not_identity | {"cache"}

    def identity(self) -> dict[str, Any]:
        found = super().identity()
        return found if self.packing is None else {**found, "shorter_side": self.packing.shorter_side}

    @property
    def packing(self) -> PictureCache | None:
        """What `cache` says, where it asks for packed pictures."""
        return self.cache

    def samples(self) -> dict[str, Arrays]:
        """As `read`, with the pictures that cannot be read."""
        raise NotImplementedError

    def store(self) -> PictureStore:
        """Where the pictures lie."""
        raise NotImplementedError

    def found(self) -> tuple[dict[str, Arrays], PictureStore]:
        """`samples` and `store` for one look at all pictures: what finding them told of a file is not asked again."""
        return self.samples(), self.store()

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
        from raydistill.tasks.picture_survey import look_at

        store = self.store()
        looks = {split: look_at(store, part.inputs.tolist(), self.workers) for split, part in parts.items()}
        return {
            split: self._without_broken(split, part, list(looks[split].values()))
            for split, part in parts.items()
        }

    def listed(self) -> dict[str, Arrays]:
        return self.survey_listed()[0]

    def survey_listed(self) -> tuple[dict[str, Arrays], tuple[Finding, ...]]:
        """Pictures that an earlier look could not read are left out where a run skips them; none is decoded now."""
        if self.on_error == "fail":
            return self.samples(), ()
        from raydistill.tasks.picture_survey import looked_at, unread

        parts, store = self.found()
        looks = {split: looked_at(store, part.inputs.tolist()) for split, part in parts.items()}
        is_good = {
            split: np.array([look is None or look.problem is None for look in found], dtype=bool)
            for split, found in looks.items()
        }
        new = sum(found.count(None) for found in looks.values())
        return {split: part.take(is_good[split]) for split, part in parts.items()}, unread(new)

    def load(self) -> TaskData:
        from raydistill.tasks.folder_split import build_folder_data

        self.require_files()
        return build_folder_data(self, *self._stored())

    def _stored(self) -> tuple[Parts, dict[str, Arrays]]:
        """Where the loop reads pictures, and the splits, whose inputs are places there."""
        store, parts = self.store(), self.read()
        if self.packing is None:
            return store, parts
        from raydistill.tasks.packed_pictures import packed

        # Of all samples, whatever is cut from them: one file serves every seed of a cut.
        places = np.unique(np.concatenate([part.inputs for part in self.samples().values()]))
        folder = self.packing.folder or data_root() / PACKED_FOLDER
        file = packed(
            folder / f"{self.name}-{self.packed_name(places)[:16]}.pixels", store, places, self.packing.wanted,
            threads=self.workers, skip=self.on_error == "skip",
        )  # fmt: skip
        return file, {
            split: replace(part, inputs=np.searchsorted(places, part.inputs)) for split, part in parts.items()
        }

    def picture_input(
        self, source: Path | bytes, shape: tuple[int, ...], *, name: str | None = None
    ) -> Pixels:
        from raydistill.tasks.pictures import read_part

        return self.pixels(partial(read_part, source, shape[0], name=name), self.centre, *shape[1:])

    def pixels(self, read: Read, part: Part, height: int, width: int) -> Pixels:
        """The `part` of a picture, scaled to uint8 (channels, height, width): what a model of this task sees of it,
        whoever asks."""
        from raydistill.tasks.pictures import part_of, pixels_of

        if self.packing is None:
            return pixels_of(read(lambda *size: (part(*size), height, width)))
        image = read(self.packing.wanted)
        return part_of(image, part(*image.size), height, width)

    def packed_name(self, places: NDArray[Any]) -> str:
        """Tells a packed file from all others: by what pictures hold, where they are in it, how they are read."""
        from raydistill.tasks.digests import digest_text

        assert self.packing is not None
        digests = self.digests()
        listed = [f"{file} {digest}" for files in digests.values() for file, digest in files.items()]
        if places.dtype.kind == "U":  # rows follow from paths, however those are split
            listed = sorted(set(listed))
        options = self.model_dump(mode="json", include={"image"})
        about = [
            self.reader(*digests.values()),
            str(self.packing.shorter_side),
            str(options),
            str(len(places)),
        ]
        return digest_text("\n".join([*about, *listed]))

    def centre(self, width: int, height: int) -> Box:
        """The part that is seen without a view: as if the shorter side were scaled to `resize` and the middle square of
        the input's size cut out."""
        from raydistill.tasks.pictures import centre_box

        return centre_box(width, height, self.image_size / self.resize)

    def survey(self) -> Survey:
        """Every picture is decoded once; if a split has more than `picture_survey.MOST`, only so many, chosen by
        hash."""
        from raydistill.tasks.picture_survey import MOST, by_weight, folder_findings, look_at, shared
        from raydistill.tasks.survey import Survey, survey_arrays

        self.require_files()
        found = [*self.left_out(), *self._cut_off()]
        looks: dict[str, dict[str, Look]] = {}
        parts, store = self.found()
        for split, part in parts.items():
            chosen = smallest_hashes(part.ids, MOST, fold_key(Purpose.SURVEYED))
            if self.on_error == "skip":
                everything = look_at(store, part.inputs.tolist(), self.workers)
                names = [store.name(place) for place in part.inputs[chosen].tolist()]
                looks[split] = {name: everything[name] for name in names}
                parts[split] = self._without_broken(split, part, list(everything.values()))
            else:
                looks[split] = look_at(store, part.inputs[chosen].tolist(), self.workers)
            found += folder_findings(
                self.part_name(split), looks[split], len(part.ids), self.on_error, self.image_size
            )
        counts = survey_arrays(self, parts).counts
        return Survey(counts, by_weight([*found, *shared(looks)]))

    def _cut_off(self) -> Iterator[Finding]:
        """That little is seen of a picture, which a `resize` of another `image_size` does without a word."""
        from raydistill.tasks.survey import Finding

        if (share := (self.image_size / self.resize) ** 2) < LEAST_SEEN:
            yield Finding(
                "warning",
                f"validation and test see the middle {share:.1%} of a square picture: `image_size` {self.image_size} is"
                f" cut out after the shorter side was scaled to `resize` {self.resize}; leave `resize` out, which is"
                f" {usual_resize(self.image_size)} then",
            )

    def _without_broken(self, split: str, part: Arrays, looks: Sequence[Look]) -> Arrays:
        is_good = np.array([look.problem is None for look in looks], dtype=bool)
        if not is_good.all():
            logger.info(
                "task `%s`: left out %d of %d pictures of `%s`; the first: %s",
                self.name, (~is_good).sum(), len(is_good), split, looks[int(is_good.argmin())].problem,
            )  # fmt: skip
        return part.take(is_good)
