"""Train one specialist for a cluster of classes."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from raydistill.kinds.specialists import TrainSpecialistsConfig
from raydistill.methods.full_head import FullHead
from raydistill.methods.supervised import Supervised
from raydistill.plan.model import ModelConfig
from raydistill.runs.context import StageContext
from raydistill.stages.confusion_clusters import read_clusters
from raydistill.stages.teachers import frozen_teacher
from raydistill.stages.training_stage import build_seeded_model, load_data, train_model
from raydistill.stages.transfer_data import load_transfer_set
from raydistill.tasks.splits import Split, TaskData
from raydistill.training import model_files
from raydistill.training.data import Views
from raydistill.training.model_files import TrainedModel
from raydistill.training.specialist import (
    Relabelled,
    as_trained_on,
    dustbin_correction,
    local_labels,
    logit_offset,
    special_transfer_set,
    specialist_state,
)

OTHER_CLASSES = "other classes"


def train_specialists(config: TrainSpecialistsConfig, context: StageContext) -> dict[str, float]:
    """Train the specialist of `config.cluster`, and judge it on its classes and others in the proportion of training.

    Its stored logits are corrected for the true prior of its classes. It is judged without the correction, so that
    validation says something about its classes, however few of all they are.
    """
    data = load_data(context)
    generalist = model_files.load(context.input(config.generalist), context.device)
    cluster = _cluster(config, context)
    is_full = config.head == "full"
    views = Views(config.augment, config.seed)
    whole = load_transfer_set(config.transfer, views, context, data, channels_last=config.channels_last)
    special = special_transfer_set(whole, cluster, config.special_fraction, data.class_names)
    table = _new_labels(cluster, data.num_classes, config)
    transfer = special.of(Relabelled(special.split, table.to(context.device)))
    model_config = ModelConfig.model_validate(generalist.description["model"])
    if not is_full:
        model_config = model_config.replace(num_classes=len(cluster) + 1)
    model = _initial_model(model_config, generalist, cluster, data, config, context)
    method = FullHead(config, cluster) if is_full else Supervised(config.label_smoothing)
    teacher = frozen_teacher(generalist) if is_full else None
    names = [data.class_names[label] for label in cluster]
    prior = len(special.special) / len(whole)
    correction = dustbin_correction(prior, special.drawn_fraction)
    metrics = train_model(
        model,
        model_config,
        method,
        transfer,
        replace(
            data,
            validation=shown_to_specialist(data.validation, cluster, data.num_classes, config),
            test=shown_to_specialist(data.test, cluster, data.num_classes, config),
        ),
        config,
        context,
        teacher,
        class_names=list(data.class_names) if is_full else [*names, OTHER_CLASSES],
        specialist={"classes": cluster, "head": config.head},
        logit_offset=logit_offset(cluster, data.num_classes, correction, is_full=is_full),
    )
    return metrics | {"specialist/classes": float(len(cluster)), "specialist/prior": prior}


def judged_samples(
    split: Split, trained: TrainedModel, num_classes: int, config: TrainSpecialistsConfig
) -> Split:
    """The part of a split, labelled anew, that a finished specialist is judged on."""
    return shown_to_specialist(split, trained.description["specialist"]["classes"], num_classes, config)


def shown_to_specialist(
    split: Split, cluster: Sequence[int], num_classes: int, config: TrainSpecialistsConfig
) -> Split:
    """The part of a split, labelled anew, that a specialist is judged on."""
    part = as_trained_on(split, cluster, config.special_fraction)
    return Relabelled(part, _new_labels(cluster, num_classes, config))


def _new_labels(cluster: Sequence[int], num_classes: int, config: TrainSpecialistsConfig) -> torch.Tensor:
    return torch.arange(num_classes) if config.head == "full" else local_labels(cluster, num_classes)


def _cluster(config: TrainSpecialistsConfig, context: StageContext) -> list[int]:
    assert config.cluster is not None, "the graph gives every specialist its cluster"
    return read_clusters(context.input(config.clusters))[config.cluster]


def _initial_model(
    model_config: ModelConfig,
    generalist: TrainedModel,
    cluster: Sequence[int],
    data: TaskData,
    config: TrainSpecialistsConfig,
    context: StageContext,
) -> nn.Module:
    """The generalist's weights, with a classifier for the cluster; a full head starts as the generalist itself."""
    model = build_seeded_model(model_config, data, config, context)
    state = generalist.plain.state_dict()
    if config.head == "dustbin":
        classifier = model_files.classifier_keys(model_config, context.task)
        keep = config.initial_dustbin == "random"
        state = specialist_state(model.state_dict(), state, classifier, cluster, keep_dustbin=keep)
    model.load_state_dict(state)
    return model
