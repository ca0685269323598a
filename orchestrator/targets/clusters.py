"""Groups of classes that are confused with the same classes: mini-batch K-means on columns of unit length.

On 1,000 classes, plain columns put 978 of them into one cluster: their lengths differ more than their directions.
"""

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

COLUMNS_AT_ONCE = 1024


def find_centres(
    columns: NDArray[np.floating], count: int, *, restarts: int, seed: int
) -> NDArray[np.floating]:
    """The `count` centres (K, C) of the best of several runs on normalised columns (C, C), started by k-means++."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    means = MiniBatchKMeans(
        count,
        init="k-means++",
        n_init=restarts,
        batch_size=COLUMNS_AT_ONCE,
        random_state=seed % 2**32,
        reassignment_ratio=0.01,
    )
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # fewer distinct columns than clusters: still clusters
        means.fit(columns)
    return means.cluster_centers_


def confusion_columns(together: NDArray[np.floating]) -> NDArray[np.floating]:
    """The classes that each class is predicted together with, as rows of length 1, from a symmetric matrix (C, C)
    without diagonal.

    A class that is never predicted keeps its zeros. A class counts as confused with itself as much as with its likest:
    or else the columns of two classes that are only confused with one another would be orthogonal.
    """
    columns = together.copy()
    np.fill_diagonal(columns, columns.max(axis=1))
    lengths = np.linalg.norm(columns, axis=1, keepdims=True)
    columns /= np.where(lengths > 0, lengths, 1)
    return columns


def squared_distances(columns: NDArray[np.floating], centres: NDArray[np.floating]) -> NDArray[np.floating]:
    """Of every class to every centre, (C, K)."""
    lengths = (columns**2).sum(axis=1)[:, None] + (centres**2).sum(axis=1)[None]
    return np.maximum(lengths - 2 * columns @ centres.T, 0)


def partition(
    distances: NDArray[np.floating], minimum_size: int, maximum_size: int | None
) -> list[list[int]]:
    """Every class in the nearest cluster that has room: K lists of classes, from distances (C, K).

    Classes with most to lose choose first: those whose second-best cluster is much farther than their best. Clusters
    below the minimum then take, one after the other, the class for which that costs least.
    """
    num_classes, count = distances.shape
    room = np.full(count, maximum_size or num_classes)
    nearest = np.sort(distances, axis=1)
    regret = nearest[:, min(1, count - 1)] - nearest[:, 0]
    owner = np.empty(num_classes, dtype=np.int64)
    for label in np.argsort(-regret, kind="stable"):
        owner[label] = np.where(room > 0, distances[label], np.inf).argmin()
        room[owner[label]] -= 1
    _fill_up(owner, distances, minimum_size)
    return [np.flatnonzero(owner == cluster).tolist() for cluster in range(count)]


def _fill_up(owner: NDArray[np.int64], distances: NDArray[np.floating], minimum_size: int) -> None:
    """Move classes from clusters that can spare them, in place, until every cluster has the minimum."""
    classes = np.arange(len(owner))
    while True:
        sizes = np.bincount(owner, minlength=distances.shape[1])
        poor = int(sizes.argmin())
        if sizes[poor] >= minimum_size:
            return
        loss = distances[:, poor] - distances[classes, owner]
        owner[np.where(sizes[owner] > minimum_size, loss, np.inf).argmin()] = poor


def overlapping(
    distances: NDArray[np.floating], together: NDArray[np.floating], size: int
) -> list[list[int]]:
    """K lists of `size` classes each: equal parts of all classes, each filled up with what it is most confused with.

    Distances (C, K) to the centres make the parts, and decide between classes that are as often predicted together, (C,
    C), with a part. A pair of classes that shares one cluster does not count for the clusters after it. Without the
    parts, centres that lie close together would take the same classes, and other classes would be in no cluster. If
    clusters were filled up with the classes nearest to their centres, all would take the few in the middle.
    """
    num_classes, count = distances.shape
    clusters = partition(distances, 0, -(-num_classes // count))
    left = together.copy()
    for cluster in clusters:
        left[np.ix_(cluster, cluster)] = 0
    for cluster, distance in zip(clusters, distances.T, strict=True):
        confused = left[:, cluster].sum(axis=1)
        confused[cluster] = -1
        cluster.extend(np.lexsort((distance, -confused))[: size - len(cluster)].tolist())
        left[np.ix_(cluster, cluster)] = 0
    return [sorted(cluster) for cluster in clusters]


def balanced_sizes(num_classes: int, count: int) -> tuple[int, int]:
    """The default bounds of a partition: half and twice the mean size, and never below 2."""
    return max(2, num_classes // (2 * count)), max(2, -(-2 * num_classes // count))


def share_held(together: NDArray[np.floating], clusters: Sequence[Sequence[int]]) -> float:
    """The share of joint predictions (C, C) that falls between two classes of one cluster; 1 if there are none."""
    is_held = np.zeros(together.shape, bool)
    for cluster in clusters:
        is_held[np.ix_(cluster, cluster)] = True
    whole = float(together.sum(dtype=np.float64))
    return float(together.sum(dtype=np.float64, where=is_held)) / whole if whole else 1.0
