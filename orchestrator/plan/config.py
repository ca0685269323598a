"""What all configs share: frozen, unknown keys refused with a suggestion, edges found by type."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, Strict, ValidationError, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from orchestrator.errors import did_you_mean

Integer = Annotated[int, Strict()]
Boolean = Annotated[bool, Strict()]
Path = tuple[str | int, ...]


class Config(BaseModel):
    """A frozen piece of a plan. An unknown key is an error that names the closest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping):
            for key in raw:
                if key not in cls.model_fields:
                    raise unknown_key(str(key), cls.model_fields)
        return raw

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, without validating again."""
        return self.model_copy(update=changes)


class StageRef(str):
    """The name of another stage: an edge of the graph. Being a type, it cannot hide in a string."""

    makes: ClassVar[str]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        name = core_schema.str_schema(pattern=r"^[a-z][a-z0-9_+.-]*$", strict=True)
        return core_schema.no_info_after_validator_function(
            cls, name, serialization=core_schema.to_string_ser_schema()
        )


class ModelRef(StageRef):
    """A stage that makes a model."""

    makes = "model"


class TargetsRef(StageRef):
    """A stage that makes soft targets."""

    makes = "targets"


def stage_refs(value: Any, path: Path = ()) -> Iterator[tuple[Path, StageRef]]:
    """Every `StageRef` inside a config, with the path of keys that leads to it."""
    if isinstance(value, StageRef):
        yield path, value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from stage_refs(getattr(value, name), (*path, name))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from stage_refs(item, (*path, key))
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from stage_refs(item, (*path, index))


def unknown_key(key: str, known: Any) -> PydanticCustomError:
    """The error for a key that the schema does not have; `path` leads the loader to its line."""
    return located_error(f"unknown key `{key}`{did_you_mean(key, known)}", key)


def located_error(message: str, *path: str | int) -> PydanticCustomError:
    """An error whose place is `path` below the config that raises it."""
    return PydanticCustomError("located", "{message}", {"message": message, "path": path})


def relocated(error: ValidationError) -> PydanticCustomError:
    """The first error of a nested validation, as one of the surrounding validation."""
    first = error.errors()[0]
    path, message = describe(first)
    return located_error(message, *path)


def describe(error: Any) -> tuple[Path, str]:
    """Path and one-line message of one pydantic error."""
    path: Path = tuple(error["loc"])
    context = error.get("ctx") or {}
    if error["type"] == "located":
        return (*path, *context["path"]), context["message"]
    if error["type"] == "missing":
        return path[:-1], f"`{path[-1]}` is missing"
    if error["type"] in ("value_error", "assertion_error"):
        return path, str(context["error"])
    message = error["msg"][0].lower() + error["msg"][1:]
    return path, f"{message.replace('input should', 'should')}, not `{_shortened(error['input'])}`"


def _shortened(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
