"""Record what a teacher's activations look like, class by class."""

from collections.abc import Mapping
from shutil import rmtree

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from raydistill.errors import StageError, StageStopped
from raydistill.kinds.data_free import RecordStatisticsConfig
from raydistill.models.taps import Output, Tapped
from raydistill.runs.claims import STOPPED, claimed, is_there
from raydistill.runs.context import StageContext
from raydistill.runs.files import atomic_write, write_json
from raydistill.runs.folder import StageFolder
from raydistill.runs.mirror import send
from raydistill.stages.transfer_data import load_transfer_set
from raydistill.training import model_files
from raydistill.training.activation_statistics import LayerMoments, LayerStatistics, recorded_layers
from raydistill.training.data import TransferSet, Views

STATISTICS = "statistics.json"
TOP = "logits"  # divided by the temperature


def record_statistics(config: RecordStatisticsConfig, context: StageContext) -> dict[str, float]:
    """One pass over the transfer set; a file per class, so that nobody holds more than one class's covariances, and
    several workers divide the classes among themselves."""
    transfer = load_transfer_set(config.transfer, Views(), context)
    teacher = model_files.load(context.input(config.teacher), context.device)
    named: dict[str, str] = getattr(teacher.model, "feature_paths", {})
    layers = recorded_layers(tuple(named), config.layers)
    if config.layers == "all" and not layers:
        raise StageError(
            "the teacher names no features before a ReLU; list its layers by path: `layers: [block1.conv]`"
        )
    model = tapped(teacher.model, layers)
    labels = transfer.split.labels.cpu()
    counts = torch.bincount(labels, minlength=context.task.num_classes)
    there = counts.nonzero()[:, 0].tolist()
    files = [context.path(statistics_file(label)) for label in there]
    claims = context.folder.path / "claims"
    for claim in claimed(claims, len(there), lambda index: is_there(files[index]), context.should_stop):
        if context.should_stop():
            raise StageStopped(STOPPED)
        moments = _moments(model, transfer, (labels == there[claim.index]).nonzero()[:, 0], config)
        statistics = {name: layer.statistics() for name, layer in moments.items()}
        with atomic_write(files[claim.index]) as temporary:
            save_file(_tensors(statistics), temporary)
        send(files[claim.index])
    if not context.is_main:
        return {}
    rmtree(claims, ignore_errors=True)
    write_json(
        context.path(STATISTICS),
        {
            "temperature": config.temperature,
            "layers": [*layers, TOP],
            "samples": counts.tolist(),
            "class_names": list(context.task.class_names),
        },
    )
    return {"statistics/layers": len(layers) + 1.0, "statistics/samples": float(len(transfer))}


def statistics_file(label: int) -> str:
    """The payload file with the statistics of one class."""
    return f"class-{label:05d}.safetensors"


def load_statistics(folder: StageFolder, label: int) -> dict[str, LayerStatistics]:
    """The statistics of a class, by layer, `logits` last."""
    tensors = load_file(folder.payload(statistics_file(label)))
    names = dict.fromkeys(key.rpartition("/")[0] for key in tensors)
    return {
        name: LayerStatistics(
            tensors[f"{name}/mean"], tensors[f"{name}/deviation"], tensors.get(f"{name}/factor")
        )
        for name in names
    }


def tapped(model: torch.nn.Module, layers: tuple[str, ...]) -> Tapped:
    """The model with its recorded layers; `StageError` names one that it does not have."""
    try:
        return Tapped(model, layers)
    except ValueError as error:
        raise StageError(str(error)) from error


def activations(output: Output, temperature: float) -> dict[str, Tensor]:
    """What is recorded of a pass, each (B, D) float32: the features, and the logits divided by the temperature."""
    features = {name: value.flatten(1).float() for name, value in output.features.items()}
    return features | {TOP: output.logits.float() / temperature}


@torch.no_grad()
def _moments(
    model: Tapped, transfer: TransferSet, positions: Tensor, config: RecordStatisticsConfig
) -> dict[str, LayerMoments]:
    moments: dict[str, LayerMoments] = {}
    for batch in transfer.batches(positions.split(config.batch_size), 0):
        for name, values in activations(model(batch.inputs), config.temperature).items():
            if name not in moments:
                is_small = values.shape[1] <= config.largest_covariance
                moments[name] = LayerMoments.empty(
                    values.shape[1], with_covariance=is_small, device=str(values.device)
                )
            moments[name].add(values)
    return moments


def _tensors(statistics: Mapping[str, LayerStatistics]) -> dict[str, Tensor]:
    return {
        f"{name}/{part}": values.cpu().contiguous()
        for name, layer in statistics.items()
        for part, values in layer._asdict().items()
        if values is not None
    }
