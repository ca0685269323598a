"""Logits from models that return something else: one of several outputs, or probabilities.

A hook on the model itself does it, so that names of weights and paths of features stay what they are.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MATRIX = "class_matrix"
"""The buffer of a model with an embedding of each class."""
SUM = 1e-3  # how near to 1 rows of float16 probabilities add up


def take_logits(model: nn.Module, output: str | int | None, gives: str | None) -> nn.Module:
    """The same model, which returns logits (B, C): the `output` of that name or number, and of `probabilities` the
    logarithm."""
    if output is not None or gives == "probabilities":
        model.register_forward_hook(
            partial(_logits, output=output, are_probabilities=gives == "probabilities")
        )
    return model


def _logits(
    model: nn.Module, inputs: Any, outputs: Any, *, output: str | int | None, are_probabilities: bool
) -> Any:
    chosen = outputs if output is None else _chosen(outputs, output)
    if not are_probabilities or not isinstance(chosen, Tensor):
        return chosen
    chosen = chosen.float()
    return chosen.clamp(
        min=torch.finfo(chosen.dtype).tiny
    ).log()  # a probability of 0 has a finite logit, -87


def _chosen(outputs: Any, output: str | int) -> Any:
    if isinstance(outputs, Mapping) and output in outputs:
        return outputs[output]
    if isinstance(output, int):
        items = list(outputs.values()) if isinstance(outputs, Mapping) else outputs
        if isinstance(items, tuple | list) and -len(items) <= output < len(items):
            return items[output]
    elif not isinstance(outputs, Tensor) and hasattr(outputs, output):
        return getattr(outputs, output)
    raise ValueError(f"has no output `{output}`: it returns {described(outputs)}")


def described(outputs: Any) -> str:
    """What a model returns that is not one tensor, in words."""
    kind = type(outputs).__name__
    if isinstance(outputs, Tensor):
        return "one tensor"
    if isinstance(outputs, Mapping):  # the output objects of some libraries are mappings, too
        return f"a {kind} with the keys {', '.join(f'`{key}`' for key in outputs)}"
    if isinstance(outputs, tuple | list):
        return f"a {kind} of {len(outputs)}"
    return f"a {kind}" + (", whose `logits` are meant" if hasattr(outputs, "logits") else "")


def likely_output(outputs: Any) -> str | int | None:
    """What to call the logits among several outputs: those of that name, or else the first tensor."""
    if isinstance(outputs, Mapping):
        names = [key for key, value in outputs.items() if isinstance(value, Tensor)]
        return "logits" if "logits" in names else next(iter(names), None)
    if isinstance(outputs, tuple | list):
        return next((index for index, item in enumerate(outputs) if isinstance(item, Tensor)), None)
    return "logits" if hasattr(outputs, "logits") else None


def are_probabilities(logits: Tensor) -> bool:
    """Whether rows (B, C) are what a softmax gives: logits do not add up to 1."""
    values = logits.float()
    is_bounded = bool(((values >= 0) & (values <= 1)).all())
    return len(values) > 0 and is_bounded and bool(((values.sum(dim=1) - 1).abs() < SUM).all())


def match_classes(model: nn.Module, matrix: Tensor, scale: float, normalize: bool) -> nn.Module:
    """The same model, whose embedding (B, d) becomes logits (B, K): `scale` times its products with the rows of a
    matrix (K, d), with both of length 1 where they are to be normalised. The matrix is a buffer of the model."""

    def match(model: nn.Module, inputs: Any, outputs: Any) -> Any:
        if not isinstance(outputs, Tensor):
            return outputs
        rows = model.get_buffer(MATRIX)
        if outputs.dim() != 2 or outputs.shape[1] != rows.shape[1]:
            raise ValueError(
                f"gives numbers of the shape {tuple(outputs.shape[1:])} for each sample, and the rows of the matrix of"
                f" classes have {rows.shape[1]}"
            )
        kind = "cpu" if outputs.is_meta else outputs.device.type  # numbers alone have a type to be cast to
        with torch.autocast(kind, enabled=False):
            embedding = F.normalize(outputs.float(), dim=1) if normalize else outputs.float()
            return scale * (embedding @ rows.T)

    model.register_buffer(MATRIX, F.normalize(matrix, dim=1) if normalize else matrix)
    model.register_forward_hook(match)
    return model


class ClassTables(NamedTuple):
    """Groups of classes: all `chosen` classes (M,), the number of the `group` (M,) of each; for each class that they
    become, the `places` (C,) of its group among them, and how many classes share that, `sharing` (C,)."""

    chosen: Tensor
    group: Tensor
    places: Tensor
    sharing: Tensor


def map_classes(model: nn.Module, members: Sequence[Sequence[int]], temperature: float) -> nn.Module:
    """The same model, which returns logits (B, C) of groups of its own classes: `merge_classes` without the rest."""
    own, groups = _tables_of(members)
    names = [f"class_{field}" for field in ClassTables._fields]
    for name, table in zip(names, own, strict=True):
        # Not among the stored weights, but with the model on its device: a step waits for what is sent there in it.
        model.register_buffer(name, table, persistent=False)

    def merge(model: nn.Module, inputs: Any, outputs: Any) -> Any:
        # What is no row of logits yet is left as it is: whoever probes the model says so.
        if not isinstance(outputs, Tensor):
            return outputs
        return _merged(outputs, ClassTables(*map(model.get_buffer, names)), groups, temperature)

    model.register_forward_hook(merge)
    return model


def merge_classes(logits: Tensor, members: Sequence[Sequence[int]], temperature: float) -> Tensor:
    """Logits (B, C) of groups of the classes of logits (B, K): at `temperature` a group's probability is the sum of its
    members', divided by what all groups have. Each group has members, none in two; one that stands several times is
    divided evenly among these classes."""
    tables, groups = _tables_of(members)
    return _merged(logits, ClassTables(*(table.to(logits.device) for table in tables)), groups, temperature)


def _tables_of(members: Sequence[Sequence[int]]) -> tuple[ClassTables, int]:
    """Also how many groups differ."""
    groups = [tuple(group) for group in members]
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    # By Python: where a model is built for its shapes alone, a tensor has no numbers to count.
    sharing = Counter(groups)
    tables = ClassTables(
        chosen=torch.tensor([index for group in numbers for index in group]),
        group=torch.tensor([number for group, number in numbers.items() for _ in group]),
        places=torch.tensor([numbers[group] for group in groups]),
        sharing=torch.tensor([sharing[group] for group in groups]),
    )
    return tables, len(numbers)


def _merged(logits: Tensor, tables: ClassTables, groups: int, temperature: float) -> Tensor:
    merged = logits[:, tables.chosen]  # of one class each exactly as they were, good for every temperature
    if groups < len(tables.chosen):
        merged = _merged_groups(merged, tables.group, groups, temperature)
    if groups == len(tables.places):
        return merged
    return merged[:, tables.places] - temperature * tables.sharing.to(merged.dtype).log()


def _merged_groups(picked: Tensor, group: Tensor, groups: int, temperature: float) -> Tensor:
    numbers = group.expand(len(picked), -1)
    scaled = picked.double() / temperature if picked.dtype == torch.float64 else picked.float() / temperature
    shape = (len(picked), groups)
    largest = scaled.new_full(shape, -torch.inf).scatter_reduce(1, numbers, scaled, "amax")
    powers = (scaled - largest.gather(1, numbers)).exp()
    return temperature * (largest + scaled.new_zeros(shape).scatter_add(1, numbers, powers).log())


def unmapped_mass(logits: Tensor, members: Sequence[Sequence[int]], temperature: float) -> Tensor:
    """The probability (B,) at `temperature` that no group has, of logits (B, K)."""
    is_mapped = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
    is_mapped[[index for group in members for index in group]] = True
    probabilities = (logits.float() / temperature).softmax(dim=1)
    return probabilities[:, ~is_mapped].sum(dim=1)
