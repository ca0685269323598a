"""A task of the user's own made of map-style Datasets of torch, one per split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from raydistill.tasks.task import Arrays, Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from raydistill.tasks.splits import TaskData

SPLITS = ("train", "validation", "test")
IDS_PER_SPLIT = 1 << 40


class Datasets(Task):
    """To be subclassed, with `datasets` and `class_names`; all else has a default.

    An item is (input, label). The input is a tensor, an array, a list of numbers or a PIL picture, the same whenever it
    is asked for: random changes are `augment` in a plan, which stored targets can follow. uint8 is taken for pictures,
    channels first, and divided by 255; other integers stand for things, and reach the model as int64, as they are;
    floats are brought to mean 0 and deviation 1 per channel. The label is an integer from 0, or of a training sample
    that has none -1 or None.
    """

    stream: bool = False
    """Read items while training; otherwise all are in memory, read once by each stage."""
    workers: int = Field(default=2, ge=0)
    """Processes that read a stream, per process that trains."""

    def datasets(self) -> Mapping[str, Any]:
        """`train` and `test`, perhaps `validation`: each a `torch.utils.data.Dataset` with a length."""
        raise NotImplementedError

    def collate(self, inputs: Sequence[Any]) -> Any:
        """Inputs of items as one tensor or array (B, ...), always of the same `input_shape`: where items have different
        lengths, this pads them."""
        from raydistill.tasks.dataset_items import stacked

        return stacked(inputs)

    def sample_id(self, split: str, position: int) -> int:
        """A number that no other sample has, and that stays a sample's own: from its position unless said otherwise."""
        return SPLITS.index(split) * IDS_PER_SPLIT + position

    def labels(self, split: str) -> Sequence[int] | None:
        """The labels of a split, where they are known without reading its items, which a stream is spared then."""
        return None

    def digest(self) -> str | None:
        """What names the samples, such as a version or a checksum: where it changes, everything is trained again."""
        return None

    @property
    def input_shape(self) -> tuple[int, ...]:
        from raydistill.tasks.dataset_items import first_input

        return first_input(self).shape[1:]

    @property
    def input_dtype(self) -> Literal["float32", "int64"]:
        from raydistill.tasks.dataset_items import first_input

        return "int64" if first_input(self).is_integer else "float32"

    @property
    def input_values(self) -> str:
        return f"what the items of `{self.name}` are, collated"

    def picture_input(
        self, source: Path | bytes, shape: tuple[int, ...], *, name: str | None = None
    ) -> NDArray[np.uint8]:
        """The whole picture, scaled, where items are pictures: what the Datasets make of a file, only they know."""
        from raydistill.tasks.dataset_items import first_input

        if (dtype := first_input(self).dtype) != "uint8":
            raise ValueError(
                f"task `{self.name}`: its inputs are {dtype}, not pictures; give them in a .npy file"
            )
        return super().picture_input(source, shape, name=name)

    def missing_files(self) -> str | None:
        return None

    def content(self) -> str:
        return self.digest() or "unseen"

    @property
    def unseen_data(self) -> str | None:
        return None if self.digest() else f"the samples of `{self.name}`; its method `digest` may name them"

    def read(self) -> dict[str, Arrays]:
        """All items, collated; of a stream the inputs are the items' positions."""
        from raydistill.tasks.dataset_items import read_items

        return read_items(self)

    def load(self) -> TaskData:
        if not self.stream:
            return super().load()
        from raydistill.tasks.dataset_split import build_streamed_data

        return build_streamed_data(self, self.read())
