"""Pictures in folders, one per class, as ImageNet's archives unpack: train/<class>/*.jpg, val/<class>/*.jpg."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from raydistill.tasks.digests import digest_below, digest_named, digest_text
from raydistill.tasks.hashing import fold_key, smallest_hashes
from raydistill.tasks.picture_files import NO_PICTURES, folders_in, has_picture, search
from raydistill.tasks.seeds import Purpose
from raydistill.tasks.task import Arrays, Task, UserPath

if TYPE_CHECKING:
    from raydistill.tasks.picture_survey import Look
    from raydistill.tasks.pictures import Pixels
    from raydistill.tasks.splits import TaskData
    from raydistill.tasks.survey import Finding, Survey

logger = logging.getLogger(__name__)


class ImageFolder(Task):
    """Pictures read from disk while training; for data too big for memory.

    With `test/` beside them, `val/` is the validation split; without it, `val/` is the test split, as is the custom for
    ImageNet, and validation is cut from `train/`. A training view is a crop of random area and shape, resized
    (Szegedy et al., arXiv 1409.4842); otherwise the centre is taken. Deeper folders belong to the class they lie in;
    hidden files, other endings, folders without a picture are left out, and a survey before the first stage says so.
    """

    name: str = "image_folder"
    folder: UserPath
    """Holds `train/` and `val/`, perhaps `test/`, each with one folder per class."""
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

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(_classes(self.folder / "train"))

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

    def missing_files(self) -> str | None:
        for part in ("train", "val"):
            if not any(True for _ in _classes(self.folder / part)):
                return (
                    f"task `image_folder` finds no `{part}/` with one folder per class in `{self.folder}`: "
                    "put pictures there as `train/<class>/*.jpg` and `val/<class>/*.jpg` (optionally `test/`), "
                    "or name another `folder`; nothing can be downloaded"
                )
        return None

    def content(self) -> str:
        from raydistill.tasks.pictures import READER

        # Paths count: class and sample id follow from them.
        learned = [files for split, files in self.digests().items() if split != "test"]
        return digest_text("\n".join([READER, *self.class_names, *map(digest_named, learned)]))

    def test_content(self) -> str:
        return digest_named(self.digests()["test"])

    def digests(self) -> dict[str, dict[str, str]]:
        return {
            split: digest_below(self.folder, [path for path, _ in _images(self.folder, part)])
            for split, part in self._folders().items()
        }

    def read(self) -> dict[str, Arrays]:
        """Inputs are the pictures' paths relative to `folder`; ids are hashes of those paths."""
        parts = {split: self._read_part(part) for split, part in self._folders().items()}
        if self.on_error == "fail":
            return parts
        return {split: self._readable(split, part) for split, part in parts.items()}

    def load(self) -> TaskData:
        from raydistill.tasks.folder_split import build_folder_data

        self.require_files()
        return build_folder_data(self, self.read())

    def picture_input(self, file: Path, shape: tuple[int, ...]) -> Pixels:
        """The centre: the shorter side scaled to `resize`, the middle square of the input's size cut out."""
        from raydistill.tasks.pictures import centre_box, part_of, read_picture

        channels, height, width = shape
        image = read_picture(file, channels).image
        return part_of(image, centre_box(*image.size, self.image_size / self.resize), height, width)

    def survey(self) -> Survey:
        """Every picture is decoded once; if a split has more than `picture_survey.MOST`, only so many, chosen by
        hash."""
        from raydistill.tasks.picture_survey import by_weight, folder_findings, shared
        from raydistill.tasks.survey import Survey

        counts = super().survey().counts
        found = [line for part in self._folders().values() for line in self._left_out(part)]
        looks: dict[str, dict[str, Look]] = {}
        for split, part in self._folders().items():
            everything = self._read_part(part)
            looks[split] = self._look(everything)
            found += folder_findings(part, looks[split], len(everything.ids), self.on_error, self.image_size)
        return Survey(counts, by_weight([*found, *shared(looks)]))

    def _look(self, part: Arrays, most: int | None = None) -> dict[str, Look]:
        from raydistill.tasks.picture_survey import MOST, look_at

        chosen = smallest_hashes(part.ids, MOST if most is None else most, fold_key(Purpose.SURVEYED))
        return look_at(self.folder, part.inputs[chosen].tolist(), self.workers)

    def _readable(self, split: str, part: Arrays) -> Arrays:
        looks = self._look(part, most=len(part.ids))
        is_good = np.array([looks[path].problem is None for path in part.inputs.tolist()], dtype=bool)
        if not is_good.all():
            logger.info(
                "task `image_folder`: left out %d of %d pictures of `%s`; the first: %s",
                (~is_good).sum(), len(is_good), split, looks[str(part.inputs[~is_good][0])].problem,
            )  # fmt: skip
        return part.take(is_good)

    def _left_out(self, part: str) -> Iterator[Finding]:
        from raydistill.tasks.picture_survey import left_out
        from raydistill.tasks.survey import Finding

        everything = list(search(self.folder / part))
        pictures = [found.path for found in everything if found.reason is None]
        reasons = [(found.reason, found.path) for found in everything if found.reason is not None]
        reasons += [("pictures outside of a class's folder", path) for path in pictures if "/" not in path]
        filled = {path.partition("/")[0] for path in pictures}
        reasons += [(NO_PICTURES, name) for name in folders_in(self.folder / part) if name not in filled]
        yield from left_out(f"{part}/", reasons)
        deep = [path for path in pictures if path.count("/") > 1]
        if deep:
            yield Finding("note", f"`{part}/`: pictures in deeper folders: {len(deep)} (`{deep[0]}`, …)")

    def _folders(self) -> dict[str, str]:
        if (self.folder / "test").is_dir():
            return {"train": "train", "validation": "val", "test": "test"}
        return {"train": "train", "test": "val"}

    def _read_part(self, part: str) -> Arrays:
        position = {name: index for index, name in enumerate(self.class_names)}
        unknown = set(_classes(self.folder / part)) - position.keys()
        if unknown:
            raise ValueError(
                f"`{self.folder / part}` has classes that `train/` has not: {', '.join(sorted(unknown)[:5])}"
            )
        paths = [path for path, _ in _images(self.folder, part)]
        return Arrays(
            inputs=np.array(paths, dtype=str),
            labels=np.array([position[path.split("/")[1]] for path in paths], dtype=np.int64),
            ids=np.array([_path_id(path) for path in paths], dtype=np.int64),
        )


def _path_id(path: str) -> int:
    """63 bits of a hash: an id stays when other pictures are added or removed."""
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest()) >> 1


def _classes(part: Path) -> Iterator[str]:
    """Folders of a part with a picture in them, sorted."""
    return (name for name in folders_in(part) if has_picture(part / name))


def _images(folder: Path, part: str) -> Iterator[tuple[str, int]]:
    """Relative path with "/" and size in bytes of every picture of one part, sorted."""
    for name in folders_in(folder / part):
        for found in search(folder / part / name):
            if found.reason is None:
                yield f"{part}/{name}/{found.path}", found.size
