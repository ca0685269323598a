"""What a word of a plan means: one of several configs that may stand in the same place, each saying all about itself.

A base class is the place: `MethodOptions` says that the word stands under `method`, and where the table of ours is. A
field of that type takes any of them, and by its address `package.module:Class` any subclass of the user's. Whoever asks
what a stage, a method or an augmentation is asks its class, never its name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import GetCoreSchemaHandler, ValidationError, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from raydistill.errors import did_you_mean
from raydistill.lookup import load_object
from raydistill.plan.address import ADDRESS, class_at, is_ours, missing_module
from raydistill.plan.config import Config, configs_in, stage_refs
from raydistill.plan.config_errors import located_error, moved, relocated, shown
from raydistill.plan.sources import OWN_CODE, by_content, source_identity, unreadable_file

if TYPE_CHECKING:
    from raydistill.plan.order import Site


@dataclass(frozen=True)
class Choice:
    """A place of a plan where several kinds may stand: the word under `key` decides.

    `noun` is what one of them is called in messages, `group` what all are called by `distill explain`, `table` the
    address of the tuple of ours.
    """

    key: str
    noun: str
    group: str
    table: str


class Kind(Config):
    """One of several things that may stand in the same place of a plan, chosen by its word.

    A base sets `chosen_by`; one of ours sets its `word`. The word of the user's own is its address.
    """

    chosen_by: ClassVar[Choice]
    word: ClassVar[str] = ""
    implementation: ClassVar[str] = ""
    """`package.module:name` of what does the work. Imported only where it is done: a config loads no torch."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not is_ours(cls.__module__):
            cls.word = f"{cls.__module__}:{cls.__qualname__}"

    @classmethod
    def is_choice(cls) -> bool:
        """Whether this is the base of several, and not one of them."""
        return "chosen_by" in vars(cls)

    @classmethod
    def choices(cls) -> Mapping[str, type[Self]]:
        """Ours by their words; first the usual one."""
        return _by_word(cls.chosen_by.table)

    @classmethod
    def find(cls, word: Any) -> type[Self]:
        """The class that a word or an address means; an error at the key for one that is not there."""
        choices = cls.choices()
        if isinstance(word, str) and ":" in word:
            return cls._users_own(word)
        if not isinstance(word, str) or word not in choices:
            raise located_error(
                f"unknown {cls.chosen_by.noun} {shown(word)}{did_you_mean(str(word), choices)}",
                cls.chosen_by.key,
            )
        return choices[word]

    @classmethod
    def _users_own(cls, address: str) -> type[Self]:
        base: type[Kind] = next(
            kind for kind in cls.__mro__ if issubclass(kind, Kind) and "chosen_by" in vars(kind)
        )
        try:
            found: type[Self] = class_at(address, base, cls.chosen_by.noun)
        except ValueError as error:
            raise located_error(str(error), cls.chosen_by.key) from None
        if found in cls.choices().values():
            raise located_error(f"`{address}` is ours; write `{found.word}`", cls.chosen_by.key)
        for option in found.model_fields.keys() - base.model_fields.keys():
            if hasattr(base, option):
                problem = f"its option `{option}` is called as something that every {cls.chosen_by.noun} has; rename it"
                raise located_error(f"`{address}`: {problem}", cls.chosen_by.key)
        module = found.implementation.partition(":")[0]
        if ADDRESS.fullmatch(found.implementation) is None:
            problem = 'write `implementation = "package.module:name"` in its body, the address of what does the work'
        elif missing := missing_module(module):
            problem = f"`implementation = {found.implementation!r}`: {missing}"
        else:
            return found
        raise located_error(f"`{address}` has no implementation: {problem}", cls.chosen_by.key)

    @classmethod
    def choose(cls, raw: Any) -> Self:
        """The config that a mapping with its word describes."""
        if isinstance(raw, cls):
            return raw
        choices = cls.choices()
        if not isinstance(raw, Mapping):
            raise located_error(
                f"should be a mapping, not {shown(raw)}; write `{{{cls.chosen_by.key}: {next(iter(choices))}}}`"
            )
        if cls.chosen_by.key not in raw:
            names = ", ".join(f"`{name}`" for name in choices)
            raise located_error(f"`{cls.chosen_by.key}` is missing: the {cls.chosen_by.noun}, one of {names}")
        found = cls.find(raw[cls.chosen_by.key])
        try:
            return found.model_validate({**raw, cls.chosen_by.key: found.word})
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
    def safe_word(cls) -> str:
        """A word for folders and metrics: `my_loss` for the user's `MyLoss` or `MyLossConfig`."""
        if ":" not in cls.word:
            return cls.word
        name = re.sub(r"(Config|Options)$", "", cls.__name__) or cls.__name__
        return re.sub(r"\W", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)).lower()

    @property
    def own_modules(self) -> tuple[str, ...]:
        modules = (type(self).__module__, self.implementation.partition(":")[0])
        return tuple(dict.fromkeys(name for name in modules if not is_ours(name)))

    @property
    def free_options(self) -> Mapping[str, Any]:
        """Of the user's own: all but names of stages and what is a config itself."""
        if not self.own_modules:
            return {}
        found = {key: getattr(self, key) for key in type(self).model_fields if key != self.chosen_by.key}
        inner = {
            key
            for key, value in found.items()
            if next(configs_in(value), None) or next(stage_refs(value), None)
        }
        values = self.model_dump(mode="json", exclude={*inner, self.chosen_by.key})
        return {key: value for key, value in values.items() if value is not None}

    def identified(self, values: dict[str, Any]) -> dict[str, Any]:
        """With the user's own code, and files that options name by their content."""
        values = super().identified(values)
        if not self.own_modules:
            return values
        options = {key: value for key, value in self.free_options.items() if key in values}
        return {**values, **by_content(options), OWN_CODE: source_identity(self.own_modules)}

    def check(self, site: "Site") -> None:
        """Files that options of the user's own name can be read."""
        if problem := unreadable_file(self.free_options):
            raise site.error(problem)

    @model_validator(mode="before")
    @classmethod
    def _has_its_word(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        written = raw.get(cls.chosen_by.key, cls.word)
        if written != cls.word:
            raise located_error(f"should be `{cls.word}`, not {shown(written)}", cls.chosen_by.key)
        return {cls.chosen_by.key: written, **raw}


@cache
def _by_word(table: str) -> Mapping[str, Any]:
    return {kind.word: kind for kind in load_object(table)}
