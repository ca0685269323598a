"""Pictures of very many classes in sharded Parquet, read from disk while training.

`shards.py` says what a shard is, `pixel_cache.py` how pixels are read, and `python -m raydistill.tasks.make.glyphs`
makes such shards from the fonts of the machine.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from raydistill.tasks.task import Arrays, Task, UserPath

if TYPE_CHECKING:
    from raydistill.tasks.pictures import Pixels
    from raydistill.tasks.pixel_cache import CachedPixels, PixelSource
    from raydistill.tasks.splits import TaskData
    from raydistill.tasks.survey import Finding, Survey

SPLITS = ("train", "validation", "test")
IDS_PER_SPLIT = 2**40  # where rows are their own ids, those of the splits stay apart

logger = logging.getLogger(__name__)


class ManyClass(Task):
    """`train-*.parquet`, `test-*.parquet` and perhaps `validation-*.parquet`, with `classes.json` beside them.

    Labels and ids are held in memory, pixels are not: they are laid out once in a file under `cache`.
    """

    name: str = "many_class"
    folder: UserPath
    """Holds the shards and `classes.json`."""
    image_size: int | None = Field(default=None, ge=1)
    """Height and width that encoded pictures are scaled to; without it, all must be as large as the first."""
    channels: Literal[1, 3] | None = None
    """1 for grey, 3 for colour; without it, encoded pictures are taken as the first one is."""
    on_error: Literal["fail", "skip"] = "fail"
    """A picture that cannot be decoded ends the run, or is left out, which a warning counts."""
    cache: UserPath | None = None
    """Where the pixels are laid out; without it, in `.pixels` in `folder`."""
    workers: int = Field(default=2, ge=0)
    """Threads that decode pictures on first use."""

    not_identity: ClassVar[frozenset[str]] = Task.not_identity | {"cache"}

    @property
    def class_names(self) -> tuple[str, ...]:
        from raydistill.tasks.shards import read_class_names

        self.require_files()
        return read_class_names(self.folder) or ()

    @property
    def input_shape(self) -> tuple[int, ...]:
        from raydistill.tasks.pixel_cache import picture_shape

        self.require_files()
        return picture_shape(self._files()["train"][0], self.channels, self.image_size)

    @property
    def unlabelled(self) -> int:
        from raydistill.tasks.digests import stamp
        from raydistill.tasks.shards import count_unlabelled

        return sum(count_unlabelled(file, stamp(file)) for file in self._files().get("train", ()))

    def missing_files(self) -> str | None:
        from raydistill.tasks.shards import CLASSES, read_class_names

        files = self._files()
        absent = [f"{split}-*.parquet" for split in ("train", "test") if split not in files]
        if not absent and read_class_names(self.folder) is None:
            absent.append(CLASSES)
        if not absent:
            return None
        return (
            f"task `many_class` finds no `{absent[0]}` in `{self.folder}`: make a data set of characters with "
            f"`python -m raydistill.tasks.make.glyphs --out {self.folder} --classes 200`, put shards of your own "
            "there with the columns `pixels` or `image`, `label` and `id` and the list of class names `classes.json`, "
            "or name another `folder`; nothing can be downloaded"
        )

    def content(self) -> str:
        from raydistill.tasks.digests import digest_text
        from raydistill.tasks.pictures import READER
        from raydistill.tasks.pixel_cache import is_encoded
        from raydistill.tasks.shards import digest_shards

        files = [file for split, part in self._files().items() for file in part if split != "test"]
        reader = [READER] if is_encoded(files[0]) else []
        return digest_text("\n".join([*self.class_names, digest_shards(self.folder, files), *reader]))

    def test_content(self) -> str:
        from raydistill.tasks.shards import digest_shards

        return digest_shards(self.folder, self._files()["test"])

    def digests(self) -> dict[str, dict[str, str]]:
        from raydistill.tasks.digests import digest_below

        return {
            split: digest_below(self.folder, [file.name for file in files])
            for split, files in self._files().items()
        }

    def read(self) -> dict[str, Arrays]:
        """Inputs are row numbers in the pixels of their split; pictures that cannot be decoded are left out."""
        return self._open()[0]

    def load(self) -> TaskData:
        from raydistill.tasks.shards_split import build_shards_data

        self.require_files()
        parts, pixels = self._open()
        return build_shards_data(self, parts, {name: part.pixels for name, part in pixels.items()})

    def picture_input(
        self, source: Path | bytes, shape: tuple[int, ...], *, name: str | None = None
    ) -> Pixels:
        """The whole picture, scaled where the task has an `image_size`; otherwise its size must be that of all."""
        from raydistill.tasks.pictures import exact_picture, scaled_picture

        read = exact_picture if self.image_size is None else scaled_picture
        return read(source, shape, name=name)[0]

    def listed(self) -> dict[str, Arrays]:
        return self._samples()

    def survey_listed(self) -> tuple[dict[str, Arrays], tuple[Finding, ...]]:
        from raydistill.tasks.picture_survey import unread

        listed = self.listed()
        return listed, unread(
            sum(len(part.ids) for part in listed.values()) if self.on_error == "skip" else 0
        )

    def survey(self) -> Survey:
        """Encoded pictures are laid out, as for the first stage. If a split has more than `picture_survey.MOST`, or
        pictures that are arrays, only so many are looked at, from the beginnings of all shards."""
        import numpy as np

        from raydistill.tasks.cuts import three_parts
        from raydistill.tasks.picture_survey import MOST, by_weight, glance_findings
        from raydistill.tasks.pixel_cache import glance_at
        from raydistill.tasks.survey import Survey, class_counts

        self.require_files()
        parts: dict[str, Arrays] = {}
        findings: list[Finding] = []
        for split, part in self._samples().items():
            glance = glance_at(*self._source(split), threads=self.workers, most=MOST)
            findings += glance_findings(split, glance, len(part.ids), self.on_error)
            parts[split] = part.take(~np.isin(part.inputs, list(glance.unreadable)))
        return Survey(class_counts(self, three_parts(self, parts)), by_weight(findings))

    def _open(self) -> tuple[dict[str, Arrays], dict[str, CachedPixels]]:
        # First the small columns: what is wrong there should not wait for the pixels.
        samples = self._samples()
        pixels = self._pixels()
        return {split: self._readable(split, part, pixels[split]) for split, part in samples.items()}, pixels

    def _samples(self) -> dict[str, Arrays]:
        from raydistill.tasks.shards import have_ids, read_samples

        parts = self._files()
        if have_ids(file for files in parts.values() for file in files):
            return {split: read_samples(files) for split, files in parts.items()}
        return {
            split: read_samples(files, SPLITS.index(split) * IDS_PER_SPLIT) for split, files in parts.items()
        }

    def _files(self) -> dict[str, list[Path]]:
        from raydistill.tasks.shards import shard_files

        files = {split: shard_files(self.folder, split) for split in SPLITS}
        return {split: found for split, found in files.items() if found}

    def _pixels(self) -> dict[str, CachedPixels]:
        from raydistill.tasks.pixel_cache import cached_pixels

        return {
            split: cached_pixels(*self._source(split), on_error=self.on_error, threads=self.workers)
            for split in self._files()
        }

    def _source(self, split: str) -> tuple[PixelSource, Path]:
        """The pictures of a split, and where their pixels are laid out."""
        from raydistill.tasks.pixel_cache import PixelSource

        files, scales = self._files()[split], self.image_size is not None
        source = PixelSource(self.folder, tuple(files), self.input_shape, scales)
        return source, self.cache or self.folder / ".pixels"

    def _readable(self, split: str, part: Arrays, pixels: CachedPixels) -> Arrays:
        import numpy as np

        if not pixels.unreadable:
            return part
        logger.info(
            "task `many_class`: left out %d of %d samples of `%s`; the first: %s",
            len(pixels.unreadable), len(part.ids), split, next(iter(pixels.unreadable.values())),
        )  # fmt: skip
        return part.take(~np.isin(part.inputs, list(pixels.unreadable)))
