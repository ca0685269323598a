"""Pictures in tars as WebDataset has them, each beside its label: `0001.jpg`, `0001.cls`."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from raydistill.tasks.digests import Stamp, remembered_of, stamp
from raydistill.tasks.labels import UNLABELLED
from raydistill.tasks.packed_task import PackedTask, Shard, Stretches, numbered_groups
from raydistill.tasks.tar_index import VERSION, index_tar


class WebDataset(PackedTask):
    """Tars whose members are read where they lie, in any order; nothing is unpacked.

    Members with one name up to the first dot are a sample: a picture and a label, `cls` with a number or a name, or a
    field of `json`. A sample without a label is unlabelled. Where pictures and labels lie in a shard is found once and
    remembered below the data root.
    """

    name: str = "webdataset"
    image: str | None = None
    """What follows the first dot in a picture's name, such as `input.png`; without it, the one member that is a
    picture."""
    label: str | None = None
    """The member with the label, `cls` or whatever it is called, or a field of one in JSON, such as `json.label`;
    without it, `cls`, or else `json.label`."""
    group: str | None = None
    """The same for what a sample is not to be parted from, such as `json.patient`, for `cut: {by: group}`."""

    ending: ClassVar[str] = ".tar"
    version: ClassVar[str] = VERSION

    def shard(self, file: Path) -> Shard:
        return _index(file, self.image, self.label, self.group, stamp(file))[0]

    def stretches(self, file: Path) -> Stretches:
        return _index(file, self.image, self.label, self.group, stamp(file))[1]


@lru_cache(maxsize=4096)
def _index(
    file: Path, image: str | None, label: str | None, group: str | None, changed: Stamp
) -> tuple[Shard, Stretches]:
    options = (image, label, group)
    index = remembered_of(file, f"{VERSION} {options}", lambda: index_tar(file, *options))
    labels = index["labels"]
    texts = tuple(sorted({text for text in labels if text is not None}))
    position = {text: number for number, text in enumerate(texts)} | {None: UNLABELLED}
    shard = Shard(
        keys=np.array([key.encode("utf-8", "surrogateescape") for key in index["keys"]], dtype=np.bytes_),
        labels=np.array([position[text] for text in labels], dtype=np.int64),
        texts=texts,
        groups=numbered_groups(file, index["keys"], index["groups"]) if group else None,
        without=tuple(index["without"]),
    )
    return shard, Stretches(file, *(np.array(index[name], dtype=np.int64) for name in ("offsets", "sizes")))
