"""Confusion statistics against numpy's own; clusters against groups that were planted."""

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from raydistill.targets import confusion
from raydistill.targets.clusters import (
    balanced_sizes,
    confusion_columns,
    find_centres,
    overlapping,
    partition,
    share_held,
    squared_distances,
)
from raydistill.targets.confusion import Moments, pieces_of


def softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def planted(classes: int, groups: int, samples: int, own: float = 0.0) -> NDArray[np.float64]:
    """Predictions (samples, classes) of a generalist that confuses classes of one group (c mod `groups`).

    `own`: how much surer it is of the right class than of its group.
    """
    random = np.random.default_rng(0)
    labels = random.integers(classes, size=samples)
    is_near = (np.arange(classes)[None] % groups) == (labels % groups)[:, None]
    is_right = np.arange(classes)[None] == labels[:, None]
    return softmax(random.normal(size=(samples, classes)) + 3.0 * is_near + own * is_right)


def moments_of(probabilities: NDArray[np.float64]) -> Moments:
    moments = Moments.empty(probabilities.shape[1])
    for part in np.array_split(probabilities, 3):
        moments.add(part)
    return moments


def clusters_of(together: NDArray[np.floating], count: int) -> list[list[int]]:
    columns = confusion_columns(together)
    return partition(squared_distances(columns, find_centres(columns, count, restarts=10, seed=0)), 2, None)


def purity(clusters: list[list[int]], groups: int) -> float:
    """Share of classes that are of the planted group which is most frequent in their cluster."""
    most = [np.bincount(np.array(cluster) % groups).max() for cluster in clusters]
    return float(sum(most) / sum(len(cluster) for cluster in clusters))


@pytest.mark.parametrize("matrix", ["correlation", "covariance"])
def test_similarity_is_that_of_numpy_without_its_diagonal(matrix: str) -> None:
    probabilities = planted(12, 3, 500)
    own = np.corrcoef(probabilities.T) if matrix == "correlation" else np.cov(probabilities.T, bias=True)
    np.fill_diagonal(own, 0)
    np.testing.assert_allclose(moments_of(probabilities).similarity(matrix).values, own, atol=1e-12)


def test_pieces_equal_a_single_pass() -> None:
    probabilities = planted(20, 4, 1000)
    pieces = Moments.empty(20)
    for piece in np.array_split(probabilities, [50, 51, 700]):
        pieces.add(piece)
    assert pieces.count == 1000
    expected = moments_of(probabilities).similarity("covariance").values
    np.testing.assert_allclose(pieces.similarity("covariance").values, expected, atol=1e-10)


def test_sums_of_pieces_that_were_saved_are_those_of_all_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confusion, "ROWS_AT_ONCE", 7)
    probabilities = planted(20, 4, 900)
    places = [tmp_path / str(index) for index in range(3)]
    for place, piece in zip(places, np.array_split(probabilities, 3), strict=True):
        place.mkdir()
        moments_of(piece).save(place)
    added = Moments.added_up(places)
    assert added.count == 900
    np.testing.assert_allclose(added.first, probabilities.sum(axis=0), rtol=1e-12)
    products = np.tril(probabilities.T @ probabilities)
    np.testing.assert_allclose(np.tril(added.second), products, rtol=1e-12)


@pytest.mark.parametrize("classes", [3, 1000, 20_000, 100_000])
@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 100])
def test_pieces_are_all_batches_in_order_and_their_sums_fit_on_a_disk(count: int, classes: int) -> None:
    pieces = pieces_of(list(range(count)), classes)
    assert [batch for piece in pieces for batch in piece] == list(range(count))
    assert all(pieces)
    assert len(pieces) == 1 or len(pieces) * classes**2 * 4 <= 2**32


def test_a_class_that_is_never_predicted_is_like_no_other() -> None:
    probabilities = planted(6, 2, 200)
    probabilities[:, 3] = 0
    similarity = moments_of(probabilities).similarity("correlation")
    assert not similarity.values[3].any()
    assert np.isfinite(similarity.values).all()
    assert sorted(chain(*clusters_of(similarity.together(), 2))) == list(range(6))


def test_before_centring_it_is_the_mean_product_of_two_probabilities() -> None:
    probabilities = planted(12, 3, 500)
    expected = probabilities.T @ probabilities / 500
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(
        moments_of(probabilities).similarity("covariance").together(), expected, atol=1e-12
    )
    deviations = probabilities.std(axis=0)
    expected /= np.outer(deviations, deviations)
    np.testing.assert_allclose(
        moments_of(probabilities).similarity("correlation").together(), expected, atol=1e-12
    )


def test_planted_groups_are_found_again() -> None:
    together = moments_of(planted(60, 6, 6000)).similarity("correlation").together()
    assert purity(clusters_of(together, 6), 6) == 1.0


def test_the_diagonal_would_hide_the_groups() -> None:
    probabilities = planted(60, 6, 6000, own=6.0)
    together = moments_of(probabilities).similarity("covariance").together()
    with_diagonal = np.cov(probabilities.T)
    assert purity(clusters_of(together, 6), 6) > purity(clusters_of(with_diagonal, 6), 6) + 0.2


def test_equal_seeds_give_equal_clusters() -> None:
    columns = confusion_columns(moments_of(planted(60, 6, 300)).similarity("correlation").together())
    first, again = (find_centres(columns, 5, restarts=2, seed=4) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_distances_are_those_of_a_loop() -> None:
    random = np.random.default_rng(0)
    columns, centres = random.normal(size=(7, 4)), random.normal(size=(3, 4))
    expected = [[((one - other) ** 2).sum() for other in centres] for one in columns]
    np.testing.assert_allclose(squared_distances(columns, centres), expected, atol=1e-12)


def test_a_partition_without_bounds_takes_the_nearest_centre() -> None:
    distances = np.random.default_rng(1).random((50, 4))
    clusters = partition(distances, 2, None)
    assert [distances[label].argmin() for cluster in clusters for label in cluster] == [
        index for index, cluster in enumerate(clusters) for _ in cluster
    ]


@pytest.mark.parametrize(("minimum", "maximum"), [(2, 13), (10, None), (12, 13)])
def test_a_partition_keeps_to_its_bounds_and_loses_no_class(minimum: int, maximum: int | None) -> None:
    distances = np.random.default_rng(2).random((50, 4)) * [1, 5, 5, 50]
    clusters = partition(distances, minimum, maximum)
    assert sorted(chain(*clusters)) == list(range(50))
    assert all(minimum <= len(cluster) <= (maximum or 50) for cluster in clusters)


def test_classes_with_most_to_lose_choose_first() -> None:
    distances = np.array([[0.0, 1.0], [0.1, 9.0], [0.0, 0.2], [0.0, 0.1]])
    assert partition(distances, 2, 2) == [[0, 1], [2, 3]]


def test_overlapping_clusters_are_equal_parts_and_what_these_are_most_confused_with() -> None:
    distances = np.array([[0.1, 0.9], [0.2, 0.8], [0.8, 0.2], [0.9, 0.1]])  # parts: 0 and 1, 2 and 3
    together = np.array([[0, 9, 3, 2], [9, 0, 0, 0], [3, 0, 0, 0], [2, 0, 0, 0]])
    # 0 meets 2, and then, by way of 3, again.
    assert overlapping(distances, together, 3) == [[0, 1, 2], [0, 2, 3]]
    together[0, 3] = together[3, 0] = 0
    # 0 and 2 have met: the distance decides.
    assert overlapping(distances, together, 3) == [[0, 1, 2], [1, 2, 3]]


def test_overlapping_clusters_leave_no_class_out_where_centres_lie_together() -> None:
    random = np.random.default_rng(0)
    distances = np.sort(random.random((60, 1)), axis=0) + 0.01 * random.random((60, 4))
    clusters = overlapping(distances, random.random((60, 60)), 20)
    assert [len(set(cluster)) for cluster in clusters] == [20] * 4
    assert set(chain(*clusters)) == set(range(60))


def pairs_beside_easy_classes() -> NDArray[np.float64]:
    """Predictions (20,000, 200): classes 0 to 79 are confused in pairs (2k, 2k + 1), the others hardly ever."""
    random = np.random.default_rng(0)
    labels = random.integers(200, size=20_000)
    twins = np.where(labels < 80, labels ^ 1, labels)
    values = 0.3 * random.normal(size=(len(labels), 200))
    values[np.arange(len(labels)), labels] += 12
    values[np.arange(len(labels)), twins] += 11 * (labels < 80)
    return softmax(values)


@pytest.mark.parametrize("mode", ["partition", "overlap"])
def test_what_is_confused_comes_together_where_most_classes_are_easy(mode: str) -> None:
    together = moments_of(pairs_beside_easy_classes()).similarity("correlation").together()
    columns = confusion_columns(together)
    best = 0
    for seed in range(
        4
    ):  # K-means may end badly from one seed: 20 to 40 pairs meet, by seed and by release of scikit-learn
        distances = squared_distances(columns, find_centres(columns, 10, restarts=5, seed=seed))
        if mode == "overlap":
            clusters = overlapping(distances, together, 30)
        else:
            clusters = partition(distances, *balanced_sizes(200, 10))
        met = [any({label, label + 1} <= set(cluster) for cluster in clusters) for label in range(0, 80, 2)]
        best = max(best, sum(met))
    assert best >= (40 if mode == "overlap" else 36)
    covered = np.bincount(list(chain(*clusters)), minlength=200)
    assert covered.min() == 1
    assert covered.max() < 10  # nobody belongs everywhere


def test_the_share_held_is_that_of_a_loop() -> None:
    together = np.random.default_rng(0).random((7, 7))
    np.fill_diagonal(together, 0)
    clusters = [[0, 1, 2], [2, 3], [5, 6]]
    pairs = [
        (a, b) for a in range(7) for b in range(7) if any({a, b} <= set(cluster) for cluster in clusters)
    ]
    assert share_held(together, clusters) == pytest.approx(
        sum(together[pair] for pair in pairs) / together.sum()
    )
    assert share_held(np.zeros((7, 7)), clusters) == 1.0


def test_the_default_bounds_hold_all_classes() -> None:
    for classes, count in [(10, 3), (10, 5), (200, 10), (1000, 61)]:
        least, most = balanced_sizes(classes, count)
        assert 2 <= least <= classes / count <= most
        assert least * count <= classes <= most * count
