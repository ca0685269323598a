"""What a word of a plan means: one of several configs that may stand in the same place, each saying all about itself.

A base class is the place: `MethodOptions` says that the word stands under `method`, and where the table of ours is. A
field of that type takes any of them. Whoever asks what a stage, a method or an augmentation is asks its class, never
its name.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, Self

from pydantic import GetCoreSchemaHandler, ValidationError, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from raydistill.errors import did_you_mean
from raydistill.lookup import load_object
from raydistill.plan.config import Config
from raydistill.plan.mistakes import located_error, moved, relocated, shown


class Kind(Config):
    """One of several things that may stand in the same place of a plan, chosen by the word under `key`.

    A base sets `key`, `noun`, `group` and `table`, the address of the tuple of ours; one of ours sets its `word`.
    """

    key: ClassVar[str]
    noun: ClassVar[str]
    """What one of them is called in messages."""
    group: ClassVar[str]
    """What all of them are called by `distill explain`."""
    table: ClassVar[str]
    word: ClassVar[str] = ""
    implementation: ClassVar[str] = ""
    """`package.module:name` of what does the work. Imported only where it is done: a config loads no torch."""

    @classmethod
    def is_choice(cls) -> bool:
        """Whether this is the base of several, and not one of them."""
        return "table" in vars(cls)

    @classmethod
    def choices(cls) -> Mapping[str, type[Self]]:
        """Ours by their words; first the usual one."""
        return _by_word(cls.table)

    @classmethod
    def find(cls, word: Any) -> type[Self]:
        """The class that a word means; an error at the key for one that nobody has."""
        choices = cls.choices()
        if not isinstance(word, str) or word not in choices:
            raise located_error(
                f"unknown {cls.noun} {shown(word)}{did_you_mean(str(word), choices)}", cls.key
            )
        return choices[word]

    @classmethod
    def choose(cls, raw: Any) -> Self:
        """The config that a mapping with its word describes."""
        if isinstance(raw, cls):
            return raw
        choices = cls.choices()
        if not isinstance(raw, Mapping):
            raise located_error(
                f"should be a mapping, not {shown(raw)}; write `{{{cls.key}: {next(iter(choices))}}}`"
            )
        if cls.key not in raw:
            names = ", ".join(f"`{name}`" for name in choices)
            raise located_error(f"`{cls.key}` is missing: the {cls.noun}, one of {names}")
        try:
            return cls.find(raw[cls.key]).model_validate(raw)
        except ValidationError as error:
            raise relocated(error, raw) from None

    @classmethod
    def validated(cls, raw: Any, *path: str | int) -> Self:
        """`choose`, with the mistakes at `path` below whoever asks."""
        try:
            return cls.choose(raw)
        except PydanticCustomError as error:
            raise moved(error, *path) from None

    @classmethod
    def usual(cls) -> Self:
        """The first of ours, as it is when nothing is written."""
        return next(iter(cls.choices().values()))()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        if not cls.is_choice():
            return handler(source)
        as_it_is = core_schema.simple_ser_schema("any")
        return core_schema.no_info_plain_validator_function(cls.choose, serialization=as_it_is)

    @classmethod
    def label(cls) -> str:
        """A word for folders and metrics."""
        return cls.word

    @model_validator(mode="before")
    @classmethod
    def _has_its_word(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        written = raw.get(cls.key, cls.word)
        if written != cls.word:
            raise located_error(f"should be `{cls.word}`, not {shown(written)}", cls.key)
        return {cls.key: written, **raw}


@cache
def _by_word(table: str) -> Mapping[str, Any]:
    return {kind.word: kind for kind in load_object(table)}
