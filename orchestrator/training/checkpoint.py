"""The state of a training in two files without pickle: tensors as safetensors, the rest as JSON written last.

The JSON names the tensor file and its SHA-256, the stage it belongs to, and a digest of itself; a torn pair or a
flipped bit is found before anything is loaded, and the training then starts from the beginning, which costs time but
never a wrong number.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from raydistill.errors import StoreError
from raydistill.plan.fingerprint import digest
from raydistill.runs.files import atomic_write, make_folder, read_json, sha256_file, write_json
from raydistill.training.optimizer import schedule_state

STATE = "checkpoint.json"

log = logging.getLogger(__name__)


def save_checkpoint(
    folder: Path,
    progress: dict[str, Any],
    learner: nn.Module,
    optimizer: Optimizer,
    schedule: LRScheduler,
    best: Mapping[str, Tensor],
    average: Mapping[str, Tensor],
) -> None:
    """Write a checkpoint that replaces the one before. `progress["step"]` names it; `best`: weights kept aside;
    `average`: of the weights, empty where there is none."""
    make_folder(folder)
    tensors = {f"learner.{key}": value.contiguous() for key, value in learner.state_dict().items()}
    tensors |= {f"best.{key}": value.contiguous() for key, value in best.items()}
    tensors |= {f"average.{key}": value.contiguous() for key, value in average.items()}
    state = optimizer.state_dict()
    scalars: dict[str, Any] = {}
    for index, slots in state["state"].items():
        for key, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value.contiguous()
            else:
                scalars[f"{index}.{key}"] = value
    name = f"step-{progress['step']}.safetensors"
    with atomic_write(folder / name) as temporary:
        save_file(without_sharing(tensors), temporary)
    content = {
        "stage": folder.parent.name,
        "tensors": name,
        "sha256": sha256_file(folder / name),
        "progress": progress,
        "groups": state["param_groups"],
        "scalars": scalars,
        "schedule": schedule_state(schedule),
    }
    write_json(folder / STATE, {**content, "digest": digest(content)})
    for old in folder.glob("*.safetensors"):
        if old.name != name:
            old.unlink(missing_ok=True)


def load_checkpoint(
    folder: Path,
    learner: nn.Module,
    optimizer: Optimizer,
    schedule: LRScheduler,
    average: Mapping[str, Tensor],
) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Restore the last checkpoint, an `average` of the weights too, and return its progress and the weights kept aside;
    None when none is whole."""
    if not (folder / STATE).exists():
        return None
    try:
        state = _checked_state(folder)
        tensors = _checked_tensors(folder, state)
        _check_fits(learner.state_dict(), _part(tensors, "learner."))
        _check_fits(average, _part(tensors, "average."))
    except StoreError as error:
        log.warning("the checkpoint in `%s` cannot be used (%s): starting from the beginning", folder, error)
        return None
    _restore(state, tensors, learner, optimizer, schedule)
    for key, value in _part(tensors, "average.").items():
        average[key].copy_(value)
    return dict(state["progress"]), _part(tensors, "best.")


def _checked_state(folder: Path) -> dict[str, Any]:
    path = folder / STATE
    content = read_json(path)
    if not isinstance(content, dict) or content.pop("digest", None) != digest(content):
        raise StoreError(f"`{path}` is damaged: its digest does not fit")
    if content["stage"] != folder.parent.name:
        raise StoreError(f"`{path}` belongs to another stage, `{content['stage']}`")
    return content


def _checked_tensors(folder: Path, state: dict[str, Any]) -> dict[str, Tensor]:
    path = folder / Path(state["tensors"]).name
    if not path.is_file() or sha256_file(path) != state["sha256"]:
        raise StoreError(f"`{path}` is missing or damaged")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise StoreError(f"`{path}` is no safetensors file: {error}") from None


def _restore(
    state: dict[str, Any],
    tensors: dict[str, Tensor],
    learner: nn.Module,
    optimizer: Optimizer,
    schedule: LRScheduler,
) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    slots: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            slots.setdefault(int(index), {})[name] = _laid_out_like(parameters[int(index)], value)
    for key, scalar in state["scalars"].items():
        index, name = key.split(".", 1)
        slots.setdefault(int(index), {})[name] = scalar
    learner.load_state_dict(_part(tensors, "learner."))
    # Which kernels step is this device's to say, not that of the checkpoint's.
    groups = [
        saved | {key: own[key] for key in ("fused", "foreach", "capturable") if key in own}
        for saved, own in zip(state["groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
    schedule.load_state_dict(state["schedule"])


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _laid_out_like(parameter: Tensor, value: Tensor) -> Tensor:
    """Strides as the optimizer makes them (channels_last): with others, a GPU takes a slow path for ever after."""
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _check_fits(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Refuse a foreign checkpoint before a single weight is overwritten."""
    if {key: value.shape for key, value in own.items()} != {key: value.shape for key, value in saved.items()}:
        raise StoreError("it belongs to another model")


def without_sharing(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tied weights lie in one memory, and those of stacked trainings in parts of one, which safetensors refuses: store
    copies."""
    seen: set[int] = set()
    result = {}
    for key, value in tensors.items():
        is_part = value.untyped_storage().nbytes() > value.nbytes
        result[key] = value.clone() if is_part or value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return result


def remove_checkpoint(folder: Path) -> None:
    """Delete a checkpoint that is no longer needed."""
    for path in [folder / STATE, *folder.glob("*.safetensors")]:
        path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
