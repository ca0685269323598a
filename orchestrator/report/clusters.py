"""The clusters of classes that a stage found or was given, and the similarity matrix in their order."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, model_validator

from raydistill.errors import StoreError
from raydistill.report.predictions import read_in_role
from raydistill.runs.files import read_as
from raydistill.runs.view import RunView, StageView

CLUSTERS, SIMILARITY = "clusters.json", "similarity.safetensors"
LOPSIDED = 4  # times the mean size
TWINS = 0.8
MATRIX_CELLS = 500

Cells = NDArray[np.float64]


class _Written(BaseModel):
    """What `clusters.json` holds."""

    clusters: tuple[tuple[int, ...], ...]
    names: tuple[tuple[str, ...], ...]

    @model_validator(mode="after")
    def _every_class_has_a_name(self) -> "_Written":
        if not self.clusters or [*map(len, self.clusters)] != [*map(len, self.names)]:
            raise ValueError("clusters and names do not match")
        if min(chain.from_iterable(self.clusters), default=-1) < 0 or not all(self.clusters):
            raise ValueError("a cluster is empty, or a class is below 0")
        return self


@dataclass(frozen=True)
class Clustering:
    """The clusters of one stage. `cells` is the similarity of the classes in the order of the clusters, in which a
    class comes as often as there are clusters that hold it; above 500 of them neighbours share a cell."""

    stage: StageView
    clusters: tuple[tuple[int, ...], ...]
    names: tuple[tuple[str, ...], ...]
    num_classes: int
    cells: Cells | None = None
    step: int = 1
    gap: str = ""

    @property
    def sizes(self) -> list[int]:
        """Classes in each cluster."""
        return [len(cluster) for cluster in self.clusters]

    @property
    def mean_size(self) -> float:
        """Classes in a cluster on average."""
        return sum(self.sizes) / len(self.sizes)

    @cached_property
    def uncovered(self) -> list[int]:
        """Classes that are in no cluster."""
        return sorted(set(range(self.num_classes)).difference(*self.clusters))

    @property
    def shared(self) -> int:
        """How many classes are in more than one cluster."""
        tally = Counter(chain.from_iterable(self.clusters))
        return sum(times > 1 for times in tally.values())

    @property
    def lopsided(self) -> list[int]:
        """The clusters with more than four times as many classes as the mean."""
        sizes = self.sizes
        return [index for index, size in enumerate(sizes) if size > LOPSIDED * self.mean_size]

    @property
    def twins(self) -> tuple[int, int, int] | None:
        """The two clusters that share most, and how many classes; None if that is less than four in five."""
        holds = np.zeros((len(self.clusters), self.num_classes), dtype=np.float32)
        for index, cluster in enumerate(self.clusters):
            holds[index, list(cluster)] = 1
        both = holds @ holds.T
        share = both / np.minimum.outer(self.sizes, self.sizes)
        np.fill_diagonal(share, 0)
        first, second = divmod(int(share.argmax()), len(share))
        return (first, second, int(both[first, second])) if share[first, second] >= TWINS else None

    @property
    def order(self) -> list[int]:
        """Classes by cluster, those without one last."""
        return [*chain.from_iterable(self.clusters), *self.uncovered]


def read_clusterings(run: RunView) -> tuple[list[Clustering], list[str]]:
    """The clusters of all finished stages that make some, and why others cannot be read."""
    return read_in_role(run, "clusters", lambda stage: _read(stage, run.results.task.num_classes))


def _read(stage: StageView, num_classes: Any) -> Clustering:
    written = read_as(_Written, stage.folder.payload(CLUSTERS))
    highest = max(chain.from_iterable(written.clusters)) + 1
    classes = max(highest, num_classes if isinstance(num_classes, int) else 0)
    clustering = Clustering(stage, written.clusters, written.names, classes)
    if stage.record is None or SIMILARITY not in stage.record.payload:
        return replace(clustering, gap="The plan gives these clusters: no similarities were measured.")
    try:
        return _with_matrix(clustering)
    except StoreError as error:
        return replace(clustering, gap=error.message)


def _with_matrix(clustering: Clustering) -> Clustering:
    from safetensors import SafetensorError, safe_open

    path = clustering.stage.folder.payload(SIMILARITY)
    step = math.ceil(len(clustering.order) / MATRIX_CELLS)
    try:
        with safe_open(path, framework="numpy") as tensors:
            similarity = tensors.get_slice("similarity")
            if similarity.get_shape() != [clustering.num_classes] * 2:
                raise StoreError(f"`{path}` is of {similarity.get_shape()[0]} classes")
            cells = ordered_cells(similarity, clustering.order, step)
    except SafetensorError as error:
        raise StoreError(f"`{path}` is damaged: {error}") from None
    return replace(clustering, cells=cells, step=step)


def ordered_cells(similarity: Any, order: Sequence[int], step: int) -> Cells:
    """Rows and columns in this order, the mean of `step` neighbours in one cell, (ceil(N / step),) * 2.

    A class beside itself, of which the matrix says nothing, is NaN where it has a cell of its own.
    `similarity` is anything whose rows can be sliced: of a matrix of 15,000 classes one cell's rows are in memory.
    """
    columns = np.asarray(order)
    starts = range(0, len(order), step)
    widths = np.array([len(order[start : start + step]) for start in starts])
    cells = np.empty((len(starts), len(starts)))
    for cell, start in enumerate(starts):
        labels = order[start : start + step]
        rows = np.stack([similarity[label : label + 1][0] for label in labels]).sum(axis=0, dtype=np.float64)
        cells[cell] = np.add.reduceat(rows[columns], starts) / (len(labels) * widths)
    if step == 1:
        cells[columns[:, None] == columns] = np.nan
    return cells
