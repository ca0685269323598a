"""Which architecture, with which options: checked against the tables of `models` without importing torch."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError, model_validator

from models import MODELS
from orchestrator.errors import did_you_mean
from orchestrator.plan.config import Config, Integer, located_error, relocated


class ModelConfig(Config):
    """A model: `{name: resnet20}`, `{name: mlp, widths: [800, 800]}` or `{name: my_package.my_model:build}`.

    All keys but `name` and `num_classes` are options of the architecture. A name with a colon is a
    function of the user's, called with `num_classes` and the options.
    """

    name: str
    num_classes: Integer | None = Field(None, ge=2, description="outputs; the task's classes when left out")
    options: dict[str, Any] = Field({}, description="of the architecture")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping) or not isinstance(raw.get("name"), str):
            return raw
        own = {key: raw[key] for key in ("name", "num_classes") if key in raw}
        options = {key: value for key, value in raw.items() if key not in cls.model_fields}
        options.update(raw.get("options", {}))
        return {**own, "options": _checked_options(raw["name"], options)}


def _checked_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    if ":" in name:
        return options
    if name not in MODELS:
        raise located_error(f"unknown model `{name}`{did_you_mean(name, MODELS)}", "name")
    architecture = MODELS[name]
    known = architecture.options.model_fields
    for key in options:
        if key not in known:
            raise located_error(f"model `{name}` has no option `{key}`{did_you_mean(key, known)}", key)
    try:
        architecture.options.model_validate({**architecture.preset, **options})
        return architecture.read_options(options).model_dump(mode="json")
    except ValidationError as error:
        raise relocated(error) from None
    except ValueError as error:
        raise located_error(str(error)) from None
