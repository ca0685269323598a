"""Which architecture, with which options: checked against the tables of `models` without importing torch."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, model_validator

from raydistill.errors import did_you_mean
from raydistill.models import MODELS, Architecture
from raydistill.models.weight_files import is_registered, weights_digest, why_no_weights
from raydistill.plan.address import ADDRESS, missing_module
from raydistill.plan.classes import ClassesConfig
from raydistill.plan.config import Config, Integer, read_options
from raydistill.plan.config_errors import Path, located_error, relocated, shown
from raydistill.plan.model_input import InputConfig
from raydistill.plan.sources import by_content, source_identity, unreadable_file
from raydistill.tasks.digests import digest_file

if TYPE_CHECKING:
    from raydistill.plan.order import Site


class ModelConfig(Config):
    """A model: `{name: resnet20}`, `{name: mlp, widths: [800, 800]}` or `{name: my_package.my_model:build}`.

    All keys but those listed here are options of the architecture. A name with a colon is a function of the user's,
    called with `num_classes` and the options; what its options are called like one of these keys is written below
    `options`. It is given the `weights` itself if it has a parameter of that name.

    `weights` is a file of `torch.save` or safetensors (an index of several, too) with a state dict, as it is or below
    a key, with whatever prefix. Nothing in it is executed. All of it must fit, but for what a pattern of `ignore`
    names: that stays as it was drawn. `output` and `gives` are for models that do not return logits alone.
    """

    plain_word: ClassVar[str | None] = "name"

    name: str
    """One of `distill explain`'s models, or a function of your own: `package.module:function`."""
    num_classes: Integer | None = Field(None, ge=2, description="outputs; the task's classes when left out")
    weights: str | None = Field(
        None, min_length=1, description="file of the first weights; drawn when left out"
    )
    ignore: tuple[str, ...] = Field((), description="tensors that stay as drawn, such as `fc.*`")
    output: Integer | str | None = Field(
        None, description="of several that it returns: a key, or a number from 0"
    )
    gives: Literal["logits", "probabilities"] | None = Field(
        None, description="of probabilities the logarithm is taken; logits when left out"
    )
    classes: ClassesConfig | None = Field(
        None, description="names of its own classes; the task's when left out"
    )
    input: InputConfig | None = Field(
        None, description="how it wants its pictures; as the task's when left out"
    )
    options: dict[str, Any] = Field({}, description="of the architecture")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, raw: Any) -> Any:
        if isinstance(raw, cls):
            return raw
        if not isinstance(raw, Mapping) or not isinstance(raw.get("name"), str):
            raise located_error("a model is written `mlp` or `{name: mlp}`, with its options beside the name")
        own = {key: value for key, value in raw.items() if key in cls.model_fields and key != "options"}
        options = {key: value for key, value in raw.items() if key not in cls.model_fields}
        nested = raw.get("options", {})
        if not isinstance(nested, Mapping):
            raise located_error("options are written beside the model's `name`", "options")
        options |= nested
        if (
            ":" not in raw["name"] and "weights" in options
        ):  # where they were an option of torchvision's networks
            own["weights"] = options.pop("weights")
        return {**own, "options": _checked_options(raw["name"], options)}

    @model_validator(mode="after")
    def _something_is_ignored(self) -> "ModelConfig":
        if self.ignore and self.weights is None:
            raise located_error("`ignore` is about a file of `weights`; name one", "ignore")
        if self.ignore and self.is_exported:
            raise located_error("a program keeps all its weights; leave `ignore` out", "ignore")
        return self

    @model_validator(mode="after")
    def _one_number_of_classes(self) -> "ModelConfig":
        if self.classes is not None and self.num_classes is not None:
            raise located_error(
                "its outputs are as many as its `classes`; leave `num_classes` out", "num_classes"
            )
        return self

    @model_validator(mode="after")
    def _something_is_published(self) -> "ModelConfig":
        if self.input and self.input.like and not self.is_users_own and self.name != "torchvision":
            raise located_error(
                f"nothing is published about a `{self.name}`; say `size`, `mean`, `std`", "input"
            )
        return self

    @property
    def blank(self) -> Self:
        """The same model without a file that it begins from."""
        return self.replace(weights=None, ignore=())

    @property
    def is_exported(self) -> bool:
        """Whether it is a program of a file, which answers but is not trained."""
        return self.name == "exported"

    @property
    def own_modules(self) -> tuple[str, ...]:
        """The module of the function that builds it, where that is the user's."""
        return (self.name.partition(":")[0],) if self.is_users_own else ()

    @property
    def free_options(self) -> Mapping[str, Any]:
        """Values of which only the model knows what they mean."""
        return self.options

    @property
    def is_users_own(self) -> bool:
        """Whether a function of the user's builds it."""
        return ":" in self.name

    def identity(self) -> dict[str, Any]:
        """What it is: what options name by its content, the user's code by its syntax."""
        values = self.model_dump(mode="json", include={"name", "num_classes", "options"})
        options = by_content(values["options"])
        if self.weights is not None or self.name == "torchvision":  # where they were an option of the network
            options["weights"] = self._weights_identity()
        chosen: dict[str, Any] = {
            "ignore": list(self.ignore),
            "output": self.output,
            "gives": self.gives,
            "classes": self.classes and self.classes.identified(self.classes.model_dump(mode="json")),
            "input": self.input and self.input.model_dump(mode="json", exclude_none=True),
        }
        source = source_identity(self.own_modules)
        return {
            **values,
            "options": options,
            **{key: value for key, value in chosen.items() if value is not None and value != []},
            **({"source": source} if source else {}),
        }

    def _weights_identity(self) -> str | None:
        if self.weights is None:
            return None
        file = FilePath(self.weights).expanduser()
        return weights_digest(file, digest_file) if file.exists() else self.weights

    def identified(self, values: dict[str, Any]) -> dict[str, Any]:
        """Options that are not set are part of it, unlike those of a stage."""
        return self.identity()

    def missing_source(self) -> str | None:
        """Why it cannot be built here: its module or a file it names is not there. None when all is well."""
        problem = next((missing for name in self.own_modules if (missing := missing_module(name))), None)
        problem = problem or self._missing_weights() or unreadable_file(self.options)
        return None if problem is None else f"model `{self.name}`: {problem}"

    def _missing_weights(self) -> str | None:
        if self.weights is None:
            return "name its file as `weights`" if self.is_exported else None
        if self.is_exported and FilePath(self.weights).suffix not in (".pt2", ".onnx"):
            return f"`{self.weights}` is no program: its name ends in `.pt2` (`torch.export`) or `.onnx`"
        try:
            return why_no_weights(FilePath(self.weights).expanduser())
        except OSError as error:
            return f"the file `{self.weights}` cannot be read: {error.strerror}"

    def check(self, site: "Site") -> None:
        """What it is made from must be there."""
        if missing := self.missing_source():
            raise site.error(missing)
        if self.classes is not None:
            try:
                self.classes.members(site.task.class_names)
                if self.classes.matrix is not None:
                    self.classes.read_matrix(site.task.class_names)
            except ValueError as error:
                raise site.error(str(error), "classes") from None


def models_in(config: Config) -> Iterator[tuple[Path, ModelConfig]]:
    """Every model that a stage builds, with its place in the stage's config."""
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, ModelConfig):
            yield (name,), value
        elif isinstance(value, tuple):
            for index, item in enumerate(value):
                if isinstance(item, ModelConfig):
                    yield (name, index), item


def names_registered_models(stages: Iterable[Config]) -> bool:
    """Whether a stage begins from a model that lies in MLflow."""
    return any(is_registered(model.weights) for config in stages for _, model in models_in(config))


def _checked_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    if ":" in name:
        return _user_options(name, options)
    if name not in MODELS:
        raise located_error(f"unknown model {shown(name)}{did_you_mean(name, MODELS)}", "name")
    architecture = MODELS[name]
    known = architecture.options.model_fields
    for key in options:
        if key not in known:
            raise located_error(f"model `{name}` has no option `{key}`{did_you_mean(key, known)}", key)
    try:
        read_options(architecture.options, {**architecture.preset, **options})
    except ValidationError as error:
        raise relocated(error, options) from None
    _refuse_contradictions(architecture, options)
    return architecture.read_options(options).written()


def _user_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Options of a user's function are its own affair, as long as they can be part of an identity."""
    if ADDRESS.fullmatch(name) is None:
        raise located_error(f"a function is written `package.module:function`, not {shown(name)}", "name")
    try:
        json.dumps(options, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise located_error(f"options are numbers, text, lists and mappings: {error}") from None
    return options


def _refuse_contradictions(architecture: Architecture, options: dict[str, Any]) -> None:
    """What the name decides may be repeated, but not changed."""
    free = {key: value for key, value in options.items() if key not in architecture.preset}
    for key in options.keys() & architecture.preset.keys():
        try:
            architecture.read_options({**free, key: options[key]})
        except ValueError as error:
            raise located_error(str(error), key) from None
