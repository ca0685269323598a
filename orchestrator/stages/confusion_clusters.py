"""Group the classes that a generalist confuses."""

import logging
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor

from raydistill.errors import StageError, StageStopped
from raydistill.kinds.specialists import ConfusionClustersConfig
from raydistill.runs.context import StageContext
from raydistill.runs.files import atomic_write, read_json, write_json
from raydistill.runs.folder import StageFolder
from raydistill.stages.training_stage import load_data
from raydistill.stages.transfer_data import load_transfer_set
from raydistill.targets.clusters import (
    balanced_sizes,
    confusion_columns,
    find_centres,
    overlapping,
    partition,
    share_held,
    squared_distances,
)
from raydistill.targets.confusion import Moments
from raydistill.tasks.splits import TaskData
from raydistill.tasks.task import class_index
from raydistill.training import model_files
from raydistill.training.data import TransferSet, Views

CLUSTERS = "clusters.json"
SIMILARITY = "similarity.safetensors"
LOPSIDED = 4  # times the mean size

log = logging.getLogger(__name__)


def confusion_clusters(config: ConfusionClustersConfig, context: StageContext) -> dict[str, float]:
    """Cluster the classes by the generalist's predictions, or take the clusters that the plan gives."""
    names = context.task.class_names
    found = {}
    if config.given is None:
        clusters, held = _find_clusters(config, context)
        found = {"clusters/confusions_held": held}
    else:
        clusters = [[class_index(names, label) for label in cluster] for cluster in config.given]
    _warn_of_odd_sizes(clusters, len(names))
    write_json(
        context.path(CLUSTERS),
        {"clusters": clusters, "names": [[names[label] for label in cluster] for cluster in clusters]},
    )
    sizes = [len(cluster) for cluster in clusters]
    covered = len({label for cluster in clusters for label in cluster})
    return {
        "clusters/count": float(len(clusters)),
        "clusters/smallest": float(min(sizes)),
        "clusters/largest": float(max(sizes)),
        "clusters/uncovered": float(len(names) - covered),
        **found,
    }


def read_clusters(folder: StageFolder) -> list[list[int]]:
    """The clusters of a finished stage, as lists of classes."""
    clusters: list[list[int]] = read_json(folder.payload(CLUSTERS))["clusters"]
    return clusters


def _find_clusters(config: ConfusionClustersConfig, context: StageContext) -> tuple[list[list[int]], float]:
    """The clusters, and which share of the confusions lies within them."""
    assert config.clusters is not None
    moments = Moments.empty(context.task.num_classes)
    for probabilities in _predictions(config, context, load_data(context)):
        moments.add(probabilities.cpu().numpy())
    similarity = moments.similarity(config.matrix)
    with atomic_write(context.path(SIMILARITY)) as temporary:
        save_file({"similarity": similarity.values.astype("float32")}, temporary)
    together = similarity.together()
    distances = _distances(together, config)
    if config.mode == "overlap":
        assert config.size is not None
        clusters = overlapping(distances, together, config.size)
    else:
        least, most = balanced_sizes(len(together), config.clusters)
        clusters = partition(distances, config.minimum_size or least, config.maximum_size or most)
    return clusters, share_held(together, clusters)


def _distances(together: NDArray[np.floating], config: ConfusionClustersConfig) -> NDArray[np.floating]:
    """Of every class to every centre. The columns, as large as the matrix, end here."""
    assert config.clusters is not None
    columns = confusion_columns(together)
    centres = find_centres(columns, config.clusters, restarts=config.restarts, seed=config.seed)
    return squared_distances(columns, centres)


@torch.no_grad()
def _predictions(config: ConfusionClustersConfig, context: StageContext, data: TaskData) -> Iterator[Tensor]:
    """The generalist's probabilities (B, C), batch after batch, of the split or of the views."""
    assert config.generalist is not None
    generalist = model_files.load(context.input(config.generalist), context.device)
    if config.split == "validation":
        if not len(data.validation):
            raise StageError("the validation split is empty; set the task's `validation_fraction` above 0")
        transfer = TransferSet(data.validation.to(context.device), generalist.normalisation)
    else:
        views = Views(config.augment, config.view_seed, config.views or None)
        transfer = load_transfer_set(config.transfer, views, context, data)
        if not config.views:
            log.warning(
                "clusters from clean training samples: a generalist that knows them by heart confuses none; better"
                " `split: validation`, or `augment` and `views`"
            )
    order = torch.arange(len(transfer)).split(config.batch_size)
    for view in range(max(config.views, 1)):
        for batch in transfer.batches(order, view):
            if context.should_stop():
                raise StageStopped("stopped before the clusters were found; run the plan again")
            yield torch.softmax(generalist.model(batch.inputs).float() / config.temperature, dim=1)


def _warn_of_odd_sizes(clusters: list[list[int]], num_classes: int) -> None:
    mean = sum(len(cluster) for cluster in clusters) / len(clusters)
    largest = max(len(cluster) for cluster in clusters)
    if len(clusters) > 1 and largest > LOPSIDED * mean:
        log.warning(
            "the largest of %d clusters has %d of %d classes; set `maximum_size`, or `matrix: correlation`",
            len(clusters),
            largest,
            num_classes,
        )
    if uncovered := num_classes - len({label for cluster in clusters for label in cluster}):
        log.warning(
            "%d of %d classes are in no cluster: the generalist alone decides them", uncovered, num_classes
        )
