"""What people write short, written out: a plain word for a mapping with only a name, an item for a list of one.

Values are written out before anything looks at them, so that every reader of a plan, its overrides and its searched
paths meet one form. What is no short form is left as it is: to judge it is the schema's business.
"""

from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from raydistill.plan.kind import Kind


def written_out(raw: Any, kind: type[BaseModel]) -> Any:
    """The values of a config of this kind, with everything below it written out."""
    if not isinstance(raw, Mapping):
        return raw
    fields = kind.model_fields
    return {key: _field(value, fields[key]) if key in fields else value for key, value in raw.items()}


def _field(raw: Any, field: FieldInfo) -> Any:
    annotation: Any = field.annotation
    for item in field.metadata:
        annotation = Annotated[annotation, item]
    return _value(raw, annotation, field)


def _value(raw: Any, annotation: Any, field: FieldInfo | None = None) -> Any:
    """A value where the schema has `annotation`; `field` knows what it is when nothing is written."""
    annotation = _bare(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Kind) and annotation.is_choice():
        return _chosen(raw, annotation, field)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        word = getattr(annotation, "plain_word", None)
        return {word: raw} if word is not None and isinstance(raw, str) else written_out(raw, annotation)
    arguments = get_args(annotation)
    if get_origin(annotation) in (Union, UnionType):
        inner = [argument for argument in arguments if _holds_configs(argument)]
        return _value(raw, inner[0], field) if len(inner) == 1 else raw
    if get_origin(annotation) is tuple and _holds_configs(arguments[0]):
        items = raw if isinstance(raw, list) else [raw] if isinstance(raw, str | Mapping) else None
        return raw if items is None else [_value(item, arguments[0]) for item in items]
    if get_origin(annotation) is dict and isinstance(raw, Mapping):
        return {key: _value(item, arguments[1]) for key, item in raw.items()}
    return raw


def _chosen(raw: Any, base: type[Kind], field: FieldInfo | None) -> Any:
    """One of several kinds: its word alone, or no word where all that is written belongs to the usual kind."""
    if isinstance(raw, str):
        raw = {base.chosen_by.key: raw}
    if not isinstance(raw, Mapping):
        return raw
    usual = _usual(base, field)
    if usual is not None and raw and base.chosen_by.key not in raw and set(raw) <= set(usual.model_fields):
        raw = {base.chosen_by.key: usual.word, **raw}
    try:
        return written_out(raw, base.find(raw.get(base.chosen_by.key)))
    except PydanticCustomError:  # the schema says so, with the place
        return raw


def _usual(base: type[Kind], field: FieldInfo | None) -> type[Kind] | None:
    """The kind that is meant when no word is written: the default's, or the only one."""
    choices = base.choices()
    if len(choices) == 1:
        return next(iter(choices.values()))
    default = None if field is None else field.get_default(call_default_factory=True, validated_data={})
    return type(default) if isinstance(default, Kind) else None


def _holds_configs(annotation: Any) -> bool:
    """Whether mappings with names may stand here."""
    bare = _bare(annotation)
    if isinstance(bare, type):
        return issubclass(bare, BaseModel)
    return any(_holds_configs(argument) for argument in get_args(bare))


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
