"""Group the classes that a generalist confuses."""

import logging
import shutil
from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from raydistill.errors import StageError, StageStopped
from raydistill.kinds.specialists import ConfusionClustersConfig
from raydistill.runs.claims import STOPPED, claimed, is_there
from raydistill.runs.context import StageContext
from raydistill.runs.files import atomic_write, make_folder, read_json, write_json
from raydistill.runs.folder import StageFolder
from raydistill.runs.mirror import remove, send
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
from raydistill.targets.confusion import PRODUCTS, SUMS, Moments, pieces_of
from raydistill.tasks.normalisation import Normalisation
from raydistill.tasks.task import class_index
from raydistill.training import model_files
from raydistill.training.data import TransferSet, Views

CLUSTERS = "clusters.json"
SIMILARITY = "similarity.safetensors"
CLAIMS = "claims"
LOPSIDED = 4  # times the mean size

log = logging.getLogger(__name__)


def confusion_clusters(config: ConfusionClustersConfig, context: StageContext) -> dict[str, float]:
    """Cluster the classes by the generalist's predictions, or take the clusters that the plan gives."""
    names = context.task.class_names
    found = {}
    if config.given is None:
        if (moments := _add_up(config, context)) is None:
            return {}
        clusters, held = _find_clusters(moments, config, context)
        found = {"clusters/confusions_held": held}
    elif not context.is_main:
        return {}
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


def _find_clusters(
    moments: Moments, config: ConfusionClustersConfig, context: StageContext
) -> tuple[list[list[int]], float]:
    """The clusters, and which share of the confusions lies within them. Uses the moments up."""
    assert config.clusters is not None
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


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        remove(folder)


def _distances(together: NDArray[np.floating], config: ConfusionClustersConfig) -> NDArray[np.floating]:
    """Of every class to every centre. The columns, as large as the matrix, end here."""
    assert config.clusters is not None
    columns = confusion_columns(together)
    centres = find_centres(columns, config.clusters, restarts=config.restarts, seed=config.seed)
    return squared_distances(columns, centres)


@torch.no_grad()
def _add_up(config: ConfusionClustersConfig, context: StageContext) -> Moments | None:
    """The moments of the generalist's predictions on the split or its views, as one of the stage's workers: they divide
    the batches among themselves by claims. Only the main one gets them."""
    assert config.generalist is not None
    generalist = model_files.load(context.input(config.generalist), context.device)
    transfer = _samples(config, context, generalist.normalisation)
    order = torch.arange(len(transfer)).split(config.batch_size)
    batches = [(view, batch) for view in range(max(config.views, 1)) for batch in order]
    pieces = pieces_of(batches, context.task.num_classes)
    places = [make_folder(context.folder.path / f"moments-{index:02d}") for index in range(len(pieces))]
    claims = context.folder.path / CLAIMS
    context.when_done.append(lambda: _remove([claims, *places]))

    def is_done(index: int) -> bool:
        # The main one removes what it has read; whoever comes after that finds the clusters.
        is_over = not context.is_main and is_there(context.folder.path / CLUSTERS)
        return is_over or all(is_there(places[index] / name) for name in (SUMS, PRODUCTS))

    for claim in claimed(claims, len(pieces), is_done, context.should_stop):
        moments = Moments.empty(context.task.num_classes)
        for view, own in groupby(pieces[claim.index], itemgetter(0)):
            for samples in transfer.batches([batch for _, batch in own], view):
                if context.should_stop():
                    raise StageStopped(STOPPED)
                logits = generalist.model(samples.inputs).float()
                moments.add(torch.softmax(logits / config.temperature, dim=1).cpu().numpy())
        moments.save(places[claim.index])
        send(places[claim.index])
        del moments  # before the next one
    return Moments.added_up(places) if context.is_main else None


def _samples(
    config: ConfusionClustersConfig, context: StageContext, normalisation: Normalisation
) -> TransferSet:
    data = load_data(context)
    if config.split == "validation":
        if not len(data.validation):
            raise StageError("the validation split is empty; set the task's `validation_fraction` above 0")
        return TransferSet(data.validation.to(context.device), normalisation)
    views = Views(config.augment, config.view_seed, config.views or None)
    if not config.views:
        log.warning(
            "clusters from clean training samples: a generalist that knows them by heart confuses none; better"
            " `split: validation`, or `augment` and `views`"
        )
    return load_transfer_set(config.transfer, views, context, data)


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
