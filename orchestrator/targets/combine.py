"""Combining the targets of several teachers into one store (Hinton et al. 2015, arXiv 1503.02531).

The arithmetic mean becomes a mixture, formed when it is read because it depends on the temperature. The geometric
mean has logits of its own, the mean of the members' logits, so it becomes a dense store. Either way the members are
read once, block by block, to measure how far each of them is from the mean.

Members of the top-k form, whose tails are known by their mass only, have an arithmetic mean: equal parts of each tail
add up. Logarithms of tails whose shape is unknown have no mean, and no entropy.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from raydistill.errors import StageError
from raydistill.kinds.targets import LEAST_LOG_PROBABILITY, AnyRule
from raydistill.runs.files import make_folder
from raydistill.targets.fusion import fuse_partial
from raydistill.targets.mixing import (
    TeacherTargets,
    divergence_from,
    entropy_weights,
    geometric_log_probabilities,
    mean_logits,
    tempered_log_probabilities,
)
from raydistill.targets.reader import Member, Targets, open_members, path_in_stages
from raydistill.targets.shards import ShardWriter
from raydistill.targets.store import (
    MANIFEST,
    ROWS_PER_SHARD,
    Description,
    Manifest,
    TargetWriter,
    write_manifest,
)

BLOCK_ELEMENTS = 1 << 19
PERFECT_ACCURACY = 1 - 1e-4


@dataclass(frozen=True)
class EntropyWeights:
    """Weights per sample, w_m ∝ exp(-H_m / tau): the teacher that is surer counts more."""

    tau: float = 1.0


Weights = Sequence[float] | EntropyWeights | None


def combine(
    folder: Path,
    members: Sequence[Path],
    *,
    root: Path,
    rule: AnyRule = "arithmetic",
    weights: Weights = None,
    known: Sequence[Sequence[int] | None] = (),
    rows_per_shard: int = ROWS_PER_SHARD,
) -> dict[str, float]:
    """Write the combined targets of several stores to `folder`; None means equal weights, numbers are normalised.
    The rule `kl_fusion` takes what the teacher of each member knows, see `fuse_partial`.

    Returns, for each member m, `targets/kl/m` (mean KL(p^m ‖ p̄) at T = 1, in nats; tails of the top-k form count as
    uniform) and `targets/weight/m` (mean weight): a broken teacher is far from the mean. Raises `StoreError` when the
    members do not agree, `StageError` when top-k members shall have a geometric mean or weights from their entropy.
    """
    if not members:
        raise StageError("there are no targets to combine")
    fixed = None if isinstance(weights, EntropyWeights) else normalised_weights(weights, len(members))
    opened = open_members(members, root=root)
    if rule != "arithmetic" or fixed is None:
        _check_dense([manifest for manifest, _ in opened])
    first = opened[0][0]
    teachers = tuple(teacher for manifest, _ in opened for teacher in manifest.teachers)
    description = first.description().model_copy(update={"teachers": teachers, "rule": rule})
    stores = [member for _, member in opened]
    names = tuple(path_in_stages(member, root) for member in members)
    blocks = _read_blocks(description, stores, fixed if fixed else weights)
    if rule == "geometric":
        return _write_geometric(folder, description, blocks, rows_per_shard)
    if rule == "kl_fusion":
        return _write_fused(folder, description, blocks, known, fixed, rows_per_shard)
    if fixed:
        return _write_mixture(folder, description, names, fixed, blocks)
    return _write_weighted_mixture(folder, description, names, blocks, rows_per_shard)


def _check_dense(manifests: Sequence[Manifest]) -> None:
    for manifest in manifests:
        if manifest.top_k is not None:
            raise StageError(
                f"the targets of {', '.join(manifest.teachers)} keep {manifest.top_k.kept} of {manifest.num_classes}"
                " classes: means of logits, fusions, entropies look at all; leave `top_k` out where they are predicted"
            )


def normalised_weights(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """`count` weights that sum to 1; None gives equal ones. Raises `StageError` for impossible weights."""
    if weights is None:
        return (1 / count,) * count
    if len(weights) != count:
        raise StageError(f"{len(weights)} weights were given for {count} targets; give one for each")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not sum(weights) > 0:
        raise StageError(f"weights must be numbers from 0 up, and not all 0: {list(weights)}")
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)


def accuracy_weights(
    accuracies: Sequence[float],
    mode: Literal["proportional", "softmax", "logodds"],
    *,
    num_classes: int,
    tau: float = 1.0,
) -> tuple[float, ...]:
    """Weights from validation accuracies between 0 and 1.

    proportional: w ∝ a. softmax: w ∝ exp(a / tau), a and tau in percentage points. logodds: w ∝ log((C - 1) a /
    (1 - a)), the best vote of independent, equally confused classifiers; 0 at chance and below, and an accuracy
    of 1 counts as 0.9999, as its log odds are infinite.
    """
    if not all(0 <= accuracy <= 1 for accuracy in accuracies):
        raise StageError(f"accuracies must lie between 0 and 1: {list(accuracies)}")
    if mode == "proportional":
        raw = list(accuracies)
    elif mode == "softmax":
        best = max(accuracies)
        raw = [math.exp(100 * (accuracy - best) / tau) for accuracy in accuracies]
    else:
        raw = [_log_odds(accuracy, num_classes) for accuracy in accuracies]
    if not any(raw):
        raise StageError(
            f"no teacher is better than chance, so accuracy gives no weights: {list(accuracies)}"
        )
    return normalised_weights(raw, len(accuracies))


def _log_odds(accuracy: float, num_classes: int) -> float:
    if accuracy * num_classes <= 1:
        return 0.0
    accuracy = min(accuracy, PERFECT_ACCURACY)
    return math.log((num_classes - 1) * accuracy / (1 - accuracy))


class _Block(NamedTuple):
    """Consecutive rows: position of the first, sample ids (B,), what the members say about them."""

    start: int
    ids: Tensor
    targets: TeacherTargets


def _read_blocks(description: Description, members: Sequence[Member], weights: Weights) -> Iterator[_Block]:
    """Ids and targets of all rows, view after view, in blocks of bounded size."""
    is_per_sample = isinstance(weights, EntropyWeights)
    fixed = torch.full((len(members),), 1 / len(members)) if is_per_sample else torch.tensor(weights)
    targets = Targets(description, members, fixed)
    size = max(1, BLOCK_ELEMENTS // (len(members) * description.num_classes))
    for view in range(description.views_stored):
        for rows in torch.arange(description.rows).split(size):
            block = targets.read(rows, view)
            if isinstance(weights, EntropyWeights):
                block = TeacherTargets(block.logits, entropy_weights(block.logits, weights.tau))
            yield _Block(view * description.rows + int(rows[0]), targets.ids[rows], block)


def _write_geometric(
    folder: Path, description: Description, blocks: Iterator[_Block], rows_per_shard: int
) -> dict[str, float]:
    writer = TargetWriter(folder, description, rows_per_shard=rows_per_shard)
    means = _RunningMeans()
    for start, ids, targets in blocks:
        means.add(targets, geometric_log_probabilities(targets, 1.0))
        known = writer.rows_done - start
        writer.append(ids[known:], mean_logits(targets)[known:])
    writer.close()
    return means.metrics()


def _write_fused(
    folder: Path,
    description: Description,
    blocks: Iterator[_Block],
    known: Sequence[Sequence[int] | None],
    weights: Sequence[float] | None,
    rows_per_shard: int,
) -> dict[str, float]:
    writer = TargetWriter(folder, description, rows_per_shard=rows_per_shard)
    means = _RunningMeans()
    for start, ids, targets in blocks:
        fused = fuse_partial(targets.logits, known, weights).float()
        means.add(_seen_by_each(targets, known, fused), fused)
        done = writer.rows_done - start
        writer.append(ids[done:], fused[done:].clamp(min=LEAST_LOG_PROBABILITY))
    writer.close()
    return means.metrics()


def _seen_by_each(
    targets: TeacherTargets, known: Sequence[Sequence[int] | None], fused: Tensor
) -> TeacherTargets:
    """What is in a dustbin spread as q has it: KL(p^m ‖ q) is then KL(p^m ‖ A_m q)."""
    logs = torch.log_softmax(targets.logits.float(), dim=-1)
    for teacher, classes in enumerate(known):
        if classes is not None:
            outside = torch.ones_like(fused[0], dtype=torch.bool)
            outside[list(classes)] = False
            mass = logs[:, teacher, outside].logsumexp(dim=-1, keepdim=True)
            logs[:, teacher, outside] = mass + torch.log_softmax(fused[:, outside], dim=-1)
    return targets._replace(logits=logs)


def _write_mixture(
    folder: Path,
    description: Description,
    names: tuple[str, ...],
    weights: tuple[float, ...],
    blocks: Iterator[_Block],
) -> dict[str, float]:
    means = _RunningMeans()
    for _, _, targets in blocks:
        means.add(targets, tempered_log_probabilities(targets, 1.0))
    manifest = Manifest(**description.model_dump(), form="mixture", members=names, weights=weights)
    write_manifest(make_folder(folder), manifest)
    return means.metrics()


def _write_weighted_mixture(
    folder: Path,
    description: Description,
    names: tuple[str, ...],
    blocks: Iterator[_Block],
    rows_per_shard: int,
) -> dict[str, float]:
    layout = description.layout("weights", "float32", len(names))
    writer = ShardWriter(folder, layout, rows_per_shard=rows_per_shard)
    (folder / MANIFEST).unlink(missing_ok=True)
    means = _RunningMeans()
    for start, ids, targets in blocks:
        means.add(targets, tempered_log_probabilities(targets, 1.0))
        known = writer.rows_done - start
        writer.append(ids[known:], targets.weights[known:])
    manifest = Manifest(
        **description.model_dump(), form="mixture", members=names, weight_shards=writer.close()
    )
    write_manifest(folder, manifest)
    return means.metrics()


class _RunningMeans:
    """Mean divergence and mean weight of every member, summed in float64."""

    def __init__(self) -> None:
        self.rows = 0
        self._divergence = torch.zeros((), dtype=torch.float64)
        self._weight = torch.zeros((), dtype=torch.float64)

    def add(self, targets: TeacherTargets, log_mean: Tensor) -> None:
        self.rows += len(log_mean)
        divergence = divergence_from(targets.logits, log_mean)
        self._divergence = self._divergence + divergence.double().sum(dim=0)
        self._weight = self._weight + targets.weights.double().sum(dim=0)

    def metrics(self) -> dict[str, float]:
        sums = {"targets/kl": self._divergence, "targets/weight": self._weight}
        return {
            f"{name}/{member}": value / self.rows
            for name, total in sums.items()
            for member, value in enumerate(total.tolist())
        }
