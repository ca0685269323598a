"""`distill explain`: the schema as text. What a name can be told, with defaults, bounds and sources."""

import inspect
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from raydistill.errors import PlanError, did_you_mean
from raydistill.lookup import load_object
from raydistill.models import MODELS
from raydistill.plan import augment_configs, training_configs
from raydistill.plan.method_configs import METHODS
from raydistill.plan.schema import Plan
from raydistill.plan.stage_configs import STAGES
from raydistill.tasks import TASKS


def explain(name: str | None) -> str:
    """The text for one name; without a name, all names."""
    topics = _topics()
    if name is None:
        return _overview(topics)
    for group in topics.values():
        if name in group:
            return "\n".join(_lines(name, group[name]))
    known = [word for group in topics.values() for word in group]
    raise PlanError(f"nothing is called `{name}`{did_you_mean(name, known)}")


def _topics() -> dict[str, dict[str, Any]]:
    return {
        "stages": {name: kind.config for name, kind in STAGES.items()},
        "methods": {name: kind.config for name, kind in METHODS.items()},
        "models": dict(MODELS),
        "tasks": dict(TASKS),
        "optimizers": {"sgd": training_configs.SgdConfig, "adamw": training_configs.AdamWConfig},
        "schedules": {
            "constant": training_configs.ConstantSchedule,
            "step": training_configs.StepSchedule,
            "cosine": training_configs.CosineSchedule,
            "one_cycle": training_configs.OneCycleSchedule,
        },
        "augmentations": {
            "shift": augment_configs.ShiftConfig,
            "pad_crop": augment_configs.PadCropConfig,
            "flip": augment_configs.FlipConfig,
            "cutout": augment_configs.CutoutConfig,
            "mixup": augment_configs.MixupConfig,
        },
        "parts": {
            "plan": Plan,
            "transfer": training_configs.TransferConfig,
            "resources": training_configs.ResourcesConfig,
            "early_stopping": training_configs.EarlyStoppingConfig,
            "net2net": training_configs.Net2NetConfig,
        },
    }


def _overview(topics: dict[str, dict[str, Any]]) -> str:
    width = max(len(group) for group in topics)
    lines = [f"{group:<{width}}  {', '.join(names)}" for group, names in topics.items()]
    return "\n".join([*lines, "", "distill explain NAME prints what NAME can be told."])


def _lines(name: str, topic: Any) -> Iterator[str]:
    preset: dict[str, Any] = {}
    if isinstance(topic, str):
        topic = load_object(topic)
    elif not isinstance(topic, type):
        preset, topic = dict(topic.preset), topic.options
    yield name
    yield ""
    yield inspect.getdoc(topic) or ""
    fields = {key: field for key, field in topic.model_fields.items() if key not in preset}
    if preset:
        yield ""
        yield "Decided by the name: " + ", ".join(f"{key} {value}" for key, value in preset.items())
    if fields:
        yield ""
        width = max(len(key) for key in fields)
        for key, field in fields.items():
            yield f"  {key:<{width}}  {_field(field)}"


def _field(field: FieldInfo) -> str:
    default = (
        "required"
        if field.is_required()
        else f"default {_shown(field.get_default(call_default_factory=True))}"
    )
    bounds = "; ".join(bound for item in field.metadata if (bound := _bound(item)))
    text = field.description or ""
    return "; ".join(part for part in (default, bounds, text) if part)


def _bound(item: Any) -> str:
    for name, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤")):
        if getattr(item, name, None) is not None:
            return f"{sign} {getattr(item, name)}"
    return ""


def _shown(value: Any) -> str:
    if isinstance(value, BaseModel):
        values = {key: item for key, item in value.model_dump(mode="json").items() if item is not None}
        return "{" + ", ".join(f"{key}: {item}" for key, item in values.items()) + "}"
    return "none" if value is None else str(value)
