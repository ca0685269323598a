"""Targets that keep only some classes of each row (`top_k`): who may read them, and for what."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raydistill.kinds.method_options import SoftTargetOptions
from raydistill.kinds.methods import LabelsConfig
from raydistill.kinds.stages import (
    MOST_TOP_K_CLASSES,
    CombineTargetsConfig,
    DistillConfig,
    PredictTargetsConfig,
)
from raydistill.plan.config import Path

Mistake = tuple[Path, str]


def mistakes_of_top_k(config: Any, num_classes: int, stages: Mapping[str, Any]) -> Iterator[Mistake]:
    """Places in a stage's config and what is wrong there; the references name stages, or replicas of them."""
    if isinstance(config, PredictTargetsConfig) and config.top_k is not None:
        if config.top_k > num_classes:
            yield ("top_k",), f"there are {num_classes} classes; keep fewer, or leave `top_k` out"
        if num_classes > MOST_TOP_K_CLASSES:
            yield ("top_k",), f"{num_classes} classes are more than {MOST_TOP_K_CLASSES}; leave `top_k` out"
    needs = list(_needs_all_classes(config))
    if needs and (keeper := _keeper(_targets_of(config), stages)) is not None:
        for place, reason, way_out in needs:
            yield (
                place,
                f"{reason}, but `{keeper}` stores only some (`top_k`); {way_out}, or leave its `top_k` out",
            )


def _targets_of(config: Any) -> tuple[str, ...]:
    if isinstance(config, DistillConfig):
        return () if config.targets is None else (config.targets,)
    return config.targets if isinstance(config, CombineTargetsConfig) else ()


def _keeper(refs: Sequence[str], stages: Mapping[str, Any]) -> str | None:
    """The first stage that keeps only some classes, among those that make the targets `refs`."""
    wanted, seen = list(reversed(refs)), set(refs)
    while wanted:
        ref = wanted.pop()
        name = ref if ref in stages else ref.rpartition(".")[0]
        if isinstance(stages[name], PredictTargetsConfig) and stages[name].top_k is not None:
            return name
        new = [other for other in reversed(_targets_of(stages[name])) if other not in seen]
        seen.update(new)
        wanted += new
    return None


def _needs_all_classes(config: Any) -> Iterator[tuple[Path, str, str]]:
    """What in a reader of targets looks at every class: its place, the reason, and what to write instead."""
    if isinstance(config, CombineTargetsConfig):
        if config.committee is not None:
            yield ("committee",), "a committee looks at the generalist's logits of all classes", "take it out"
        if config.rule == "geometric":
            yield ("rule",), "a geometric mean looks at the logits of all classes", "write `arithmetic`"
        if config.weights == "entropy":
            yield (
                ("weights",),
                "the entropy is that of the probabilities of all classes",
                "write `uniform`, or numbers",
            )
    for index, method in enumerate(config.all_methods if isinstance(config, DistillConfig) else ()):
        place: Path = ("methods", index) if config.methods else ("method",)
        if isinstance(method, LabelsConfig):
            continue
        if method.weighs_teachers or not isinstance(method, SoftTargetOptions):
            yield (
                (*place, "method"),
                f"`{method.method}` looks at the logits of all classes",
                "take `hinton`",
            )
        elif method.temperature < 1:
            reason = "a tail below T = 1 would be a sum over all classes"
            yield (*place, "temperature"), reason, "set it to 1 or more"
