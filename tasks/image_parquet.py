"""Pictures in Parquet shards as Hugging Face has them: `train-00000-of-00002.parquet` with `image` and `label`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from raydistill.tasks.digests import stamp
from raydistill.tasks.packed_task import PackedTask, Shard, Stretches
from raydistill.tasks.picture_task import PictureCache
from raydistill.tasks.task import UserPath

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class ImageParquet(PackedTask):
    """Encoded pictures of any size, read while training; `many_class` is for very many small ones of one size.

    Names of classes are those of the `ClassLabel` in the schema's metadata, or the labels where those are texts. A
    label is empty, or -1, where there is none. A picture cannot be read from Parquet without those beside it, so the
    bytes of pictures are laid out once under `cache`, which takes as much space as the shards do.
    """

    name: str = "image_parquet"
    image: str | None = None
    """Column with encoded pictures, or with structs of `bytes` and `path`; without it, `image`, or the only one that is
    called pictures in the metadata."""
    label: str | None = None
    """Column with numbers or names of classes; without it, `label`, or the only one that is called a label of classes
    in the metadata."""
    group: str | None = None
    """Column with what a picture is not to be parted from, such as a patient, for `cut: {by: group}`."""
    cache: PictureCache | UserPath | None = None  # type: ignore[assignment]
    """A folder where pictures are laid out; without it, `.pictures` in `folder`. Or `{shorter_side: 256}`: decode them
    once, not in every epoch."""

    ending: ClassVar[str] = ".parquet"

    @property
    def packing(self) -> PictureCache | None:
        return self.cache if isinstance(self.cache, PictureCache) else None

    def keys(self, file: Path) -> NDArray[np.bytes_]:
        from raydistill.tasks.parquet_pictures import read_keys

        return read_keys(file, self.image, stamp(file))

    def shard(self, file: Path) -> Shard:
        from raydistill.tasks.parquet_pictures import read_shard

        return read_shard(file, self.image, self.label, self.group, stamp(file))

    def has_large_picture(self, file: Path) -> bool:
        from raydistill.tasks.parquet_pictures import has_large_picture

        return has_large_picture(file, self.image)

    def stretches(self, file: Path) -> Stretches:
        from raydistill.tasks.parquet_pictures import laid_out

        cache = self.cache if isinstance(self.cache, Path) else self.folder / ".pictures"
        return laid_out(file, self.image, cache)
