"""What all configs share: frozen, unknown keys refused with a suggestion, edges found by type."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    Strict,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from raydistill.plan.config_errors import Mistake, Path, located_error, shown, unknown_key

if TYPE_CHECKING:
    from raydistill.plan.order import Site

Integer = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
Boolean = Annotated[bool, Strict()]
Seed = Annotated[Integer, Field(ge=0, lt=2**63)]
NonNegative = Annotated[Number, Field(ge=0)]
Positive = Annotated[Number, Field(gt=0)]
Temperature = Annotated[Number, Field(ge=1e-3, le=1e4)]
"""Below, only the largest logit is left of a distribution; above, only the differences of logits."""
FINE_TEMPERATURE = 100.0
"""Above, divergences are computed in float64: times T² float32's rounding would be 5 % of them at T = 1,000."""

PLAIN = frozenset({str, int, float, bool, type(None)})  # not their subclasses, such as `StageRef`

Options = TypeVar("Options", bound=BaseModel)


class Config(BaseModel):
    """A frozen piece of a plan. An unknown key is an error that names the closest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    plain_word: ClassVar[str | None] = None
    """The key of a mapping for which a plain word may stand."""
    came_later: ClassVar[frozenset[str]] = frozenset()
    """Options without which there are results: at their default they are no part of an identity."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, raw: Any) -> Any:
        if isinstance(raw, cls):
            return raw
        if not isinstance(raw, Mapping):
            keys = ", ".join(f"`{key}`" for key in cls.model_fields)
            raise located_error(f"should be a mapping, not {shown(raw)}; its keys: {keys}")
        for key in raw:
            if key not in cls.model_fields:
                raise unknown_key(str(key), cls.model_fields)
        return raw

    @property
    def revision(self) -> int:
        """Raised by hand where other code makes another result of the same words; above 1 it is part of the identity.

        As finely as can be said: a result that the change cannot have touched keeps its fingerprint.
        """
        return 1

    @property
    def own_modules(self) -> tuple[str, ...]:
        """The user's own modules that this part of a plan runs."""
        return ()

    @property
    def free_options(self) -> Mapping[str, Any]:
        """Values that mean nothing to us, and may name files."""
        return {}

    def identified(self, values: dict[str, Any]) -> dict[str, Any]:
        """This part's JSON values as they are in a stage's identity."""
        fields, revision = type(self).model_fields, {"revision": self.revision}
        late = {key for key in self.came_later if getattr(self, key) == fields[key].default}
        kept = {key: value for key, value in values.items() if key not in late}
        return kept | revision if self.revision > 1 else kept

    def check(self, site: "Site") -> None:
        """Raise `site.error` for what does not fit where this part of a plan stands, beyond its own values."""

    def advice(self, site: "Site") -> Iterator[Mistake]:
        """What may be said where this part of a plan stands, but is hardly meant."""
        return iter(())

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, without validating again."""
        return self.model_copy(update=changes)


def text_like(pattern: str, meaning: str) -> AfterValidator:
    """Text must match `pattern` as a whole; `meaning` says in words what that is."""

    def check(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise located_error(f"should be {meaning}, not {shown(text)}")
        return text

    return AfterValidator(check)


def _with_unit(raw: Any) -> Any:
    """A bare number is of seconds."""
    return f"{raw}s" if isinstance(raw, (int, float)) and not isinstance(raw, bool) else raw


Duration = Annotated[
    str,
    text_like(
        r"[0-9]{1,6}(\.[0-9]+)?[smh]", "a number with its unit (or of seconds), such as `90s`, `30m` or `2h`"
    ),
    BeforeValidator(_with_unit),
]


def seconds_of(duration: str) -> float:
    """A `Duration` in seconds."""
    return float(duration[:-1]) * {"s": 1, "m": 60, "h": 3600}[duration[-1]]


def read_options(kind: type[Options], values: Mapping[str, Any]) -> Options:
    """Options that are declared outside of the plan, read as strictly as configs: no `true` for 1, no '1' for 1.

    Through JSON, since only there a strict validation lets a list stand for a tuple.
    """
    return kind.model_validate_json(json.dumps(values, default=str), strict=True)


class StageRef(str):
    """The name of another stage: an edge of the graph. Being a type, it cannot hide in a string."""

    makes: ClassVar[str]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(
            cls, core_schema.str_schema(strict=True), serialization=core_schema.to_string_ser_schema()
        )


class ModelRef(StageRef):
    """A stage that makes a model."""

    makes = "model"


class TargetsRef(StageRef):
    """A stage that makes soft targets."""

    makes = "targets"


class ClustersRef(StageRef):
    """A stage that makes clusters of classes."""

    makes = "clusters"


class SpecialistRef(StageRef):
    """A stage that makes specialists, models of a cluster's classes."""

    makes = "specialist"


class StatisticsRef(StageRef):
    """A stage that makes statistics of a teacher's activations."""

    makes = "statistics"


class SynthesizedRef(StageRef):
    """A stage that makes samples."""

    makes = "samples"


def configs_in(value: Any, path: Path = ()) -> Iterator[tuple[Path, Config]]:
    """A config and every other one inside of it, with the path of keys that leads there."""
    if isinstance(value, Config):
        yield path, value
    for key, item in _parts_of(value):
        yield from configs_in(item, (*path, key))


def stage_refs(value: Any, path: Path = ()) -> Iterator[tuple[Path, StageRef]]:
    """Every `StageRef` inside a config, with the path of keys that leads to it."""
    if isinstance(value, StageRef):
        yield path, value
    for key, item in _parts_of(value):
        yield from stage_refs(item, (*path, key))


def _parts_of(value: Any) -> Iterator[tuple[str | int, Any]]:
    """What a value consists of, by its key. Plain values, nine of ten, hold nothing and are left out."""
    parts: Iterable[tuple[str | int, Any]] = ()
    if isinstance(value, BaseModel):
        parts = ((name, getattr(value, name)) for name in type(value).model_fields)
    elif isinstance(value, (dict, Mapping)):
        parts = value.items()
    elif isinstance(value, (tuple, list)):
        parts = enumerate(value)
    return ((key, item) for key, item in parts if type(item) not in PLAIN)
