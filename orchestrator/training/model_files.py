"""A trained model on disk: weights as safetensors, and the JSON that is needed to build and use it anywhere."""

import io
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from raydistill.errors import StageError, StoreError
from raydistill.models.build import build_model, load_function
from raydistill.models.checkpoints import load_weights
from raydistill.models.exported import Exported
from raydistill.models.outputs import MATRIX, map_classes, match_classes, take_logits
from raydistill.models.own_input import OwnInput, see_for_itself, see_raw
from raydistill.models.programs import open_program
from raydistill.models.published_input import published_input
from raydistill.models.weight_files import companions
from raydistill.plan.fingerprint import differences
from raydistill.plan.model import ModelConfig
from raydistill.plan.model_input import InputConfig
from raydistill.runs.context import StageContext
from raydistill.runs.fetched_files import see_fetched
from raydistill.runs.files import atomic_write, write_json
from raydistill.runs.folder import StageFolder
from raydistill.runs.record import summary_of
from raydistill.tasks.normalisation import Normalisation
from raydistill.tasks.splits import TaskData
from raydistill.tasks.task import Task
from raydistill.training.model_description import DESCRIPTION, read_description, statistics
from raydistill.training.model_size import check_size
from raydistill.training.pieces import logits_by_pieces
from raydistill.training.trust import admitted

WEIGHTS = "model.safetensors"
PROGRAM = "program"  # the folder of the files of a network that exists as a program

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedModel:
    """A model in eval mode, frozen, with the normalisation of its inputs."""

    model: nn.Module
    normalisation: Normalisation
    class_names: tuple[str, ...]
    input_shape: tuple[int, ...]
    description: dict[str, Any]

    @property
    def input_dtype(self) -> torch.dtype:
        """The type of raw inputs: float32, or int64 for a model of integers that stand for things, such as tokens."""
        return torch.int64 if self.description.get("input_dtype") == "int64" else torch.float32

    @property
    def plain(self) -> nn.Module:
        """The network itself, without a shift of its logits. Other networks take their weights from this."""
        return self.model.model if isinstance(self.model, OffsetLogits) else self.model

    @torch.no_grad()
    def logits(self, inputs: Tensor) -> Tensor:
        """Logits (B, C) float32 of raw inputs (B, ...), images scaled to [0, 1]. `StageError` for integers that the
        model cannot look up."""
        try:
            return logits_by_pieces(lambda piece: self.model(self.prepared(piece)).float(), inputs)
        except IndexError as error:
            if self.input_dtype != torch.int64:
                raise
            low, high = int(inputs.min()), int(inputs.max())
            raise StageError(
                f"the inputs hold numbers from {low} to {high}, and the model cannot look all of them up: {error}"
            ) from error

    def prepared(self, inputs: Tensor) -> Tensor:
        """Raw inputs (B, ...) as the network takes them."""
        prepared: Tensor = self.normalisation(inputs.to(self.input_dtype))
        return prepared


def classifier_keys(config: ModelConfig, task: Task) -> list[str]:
    """The entries of a model's state that have a row per class: those whose shape follows the number of classes."""

    def shapes(num_classes: int) -> dict[str, torch.Size]:
        with without_memory():
            model = build_blank(config.replace(num_classes=num_classes), task)
        return {key: value.shape for key, value in model.state_dict().items()}

    few, many = shapes(2), shapes(3)
    return [key for key, shape in few.items() if many[key] != shape]


def build(
    config: ModelConfig, task: Task, normalisation: Normalisation, tell: Callable[[str], None] = log.info
) -> nn.Module:
    """A fresh model for a task, to be trained on inputs of that normalisation: its weights are those of its file, or
    drawn from torch's current random state, as is a classifier for another number of classes. `tell` hears what there
    is to say about the file.
    """
    return _build(config, task, normalisation, tell, lambda: classifier_keys(config, task))


def build_whole(
    config: ModelConfig, task: Task, normalisation: Normalisation, tell: Callable[[str], None] = log.info
) -> nn.Module:
    """A model for a task as it came, with all weights of its file."""
    return _build(config, task, normalisation, tell, tuple)


def _build(
    config: ModelConfig,
    task: Task,
    normalisation: Normalisation,
    tell: Callable[[str], None],
    head: Callable[[], Sequence[str]],
) -> nn.Module:
    if config.weights is not None:
        see_fetched(Path(config.weights))
    config = _with_own_weights(config)
    if config.is_exported and config.weights is not None:
        return _program(config, Path(config.weights).expanduser(), _Terms.of(task, config, normalisation))
    model = build_blank(config, task, normalisation)
    if config.input is not None and config.input.like is not None:
        _tell_of_published(config, model, task, tell)
    if config.weights is not None:
        try:
            has_matrix = config.classes is not None and config.classes.has_matrix
            ignored = (*config.ignore, MATRIX) if has_matrix else config.ignore
            for remark in load_weights(model, Path(config.weights).expanduser(), ignored, head):
                tell(remark)
        except (ValueError, OSError) as error:
            raise StageError(str(error)) from error
    return model


def _tell_of_published(
    config: ModelConfig, model: nn.Module, task: Task, tell: Callable[[str], None]
) -> None:
    found = _settled_input(config, model)
    assert found is not None
    enlarged = found.enlarges(task)
    tell(
        f"`{config.name}` is shown pictures as its weights were published: {found}"
        + (f"; {enlarged}" if enlarged else "")
    )


@contextmanager
def without_memory() -> Iterator[None]:
    """What is built has shapes and no numbers. A function that loads its weights all the same may print that it did,
    and torch warns of every tensor: neither is news to who asked for shapes."""
    with torch.device("meta"), warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def build_blank(config: ModelConfig, task: Task, normalisation: Normalisation | None = None) -> nn.Module:
    """A fresh model for a task, whatever file it is to begin from; without the task's normalisation, for its shapes."""
    if normalisation is None:
        normalisation = Normalisation(torch.zeros(()), torch.ones(()))
    try:
        return _network(config, _Terms.of(task, config, normalisation))
    except (ValueError, FileNotFoundError) as error:
        raise StageError(str(error)) from error


class _Terms(NamedTuple):
    """What a network has to suit: the task's inputs as they are handed out, and its classes."""

    input_shape: tuple[int, ...]
    num_classes: int
    class_names: Sequence[str]
    normalisation: Normalisation

    @classmethod
    def of(cls, task: Task, config: ModelConfig, normalisation: Normalisation) -> "_Terms":
        return cls(task.input_shape, config.num_classes or task.num_classes, task.class_names, normalisation)


def _network(config: ModelConfig, terms: _Terms) -> nn.Module:
    shape, matrix = _input_shape(config, terms), _matrix(config, terms)
    num_classes = len(config.classes.names) if config.classes else terms.num_classes
    outputs = num_classes if matrix is None else matrix.shape[1]
    return _in_our_terms(build_model(config.name, config.options, shape, outputs), config, terms, matrix)


def _matrix(config: ModelConfig, terms: _Terms) -> Tensor | None:
    """An embedding of each class, (K, d), as it lies in its file, or to be filled from weights."""
    classes = config.classes
    if classes is None or not classes.has_matrix:
        return None
    if classes.matrix is None:
        return torch.zeros(len(classes.names), classes.columns or 0)
    return torch.tensor(classes.read_matrix(terms.class_names))


def _program(config: ModelConfig, file: Path, terms: _Terms) -> nn.Module:
    try:
        _input_shape(config, terms)
        program = open_program(file)
        if program.takes_raw:
            config = _of_raw_inputs(program, config, terms.normalisation)
        return _in_our_terms(program, config, terms, _matrix(config, terms))
    except (ValueError, OSError) as error:
        raise StageError(str(error)) from error


def _of_raw_inputs(program: Exported, config: ModelConfig, normalisation: Normalisation) -> ModelConfig:
    """How a program of `distill export` is used, which normalises by itself; what the task did is undone before."""
    wanted = config.input
    if wanted is None:
        see_raw(program, normalisation.mean, normalisation.std)
    elif wanted.mean is not None or wanted.like is not None:
        raise ValueError("the program normalises its inputs by itself: leave `mean` and `std` of `input` out")
    else:
        wanted = wanted.replace(mean=(0.0,), std=(1.0,))
    return config.replace(input=wanted, gives=config.gives or "probabilities")


def _input_shape(config: ModelConfig, terms: _Terms) -> tuple[int, ...]:
    """What the network itself takes; `ValueError` where the task's inputs cannot be made into that."""
    wanted = config.input
    if wanted is not None and (mistake := wanted.mistake(terms.input_shape)) is not None:
        raise ValueError(f"`input`: {mistake.message}")
    return terms.input_shape if wanted is None else wanted.shape(terms.input_shape)


def _in_our_terms(model: nn.Module, config: ModelConfig, terms: _Terms, matrix: Tensor | None) -> nn.Module:
    """The same model, which takes the task's inputs and returns logits of the task's classes."""
    if (settled := _settled_input(config, model)) is not None:
        channels, *size = settled.shape(terms.input_shape)
        own = OwnInput(channels, (size[0], size[1]), settled.resize, settled.mean, settled.std)
        if settled.interpolation is not None:
            own = replace(own, interpolation=settled.interpolation)
        see_for_itself(model, own, terms.input_shape, terms.normalisation.mean, terms.normalisation.std)
    model, classes = take_logits(model, config.output, config.gives), config.classes
    if classes is not None and matrix is not None:
        model = match_classes(model, matrix, classes.scale, classes.normalize)
    return map_classes(model, classes.members(terms.class_names), classes.temperature) if classes else model


def _keep_program(context: StageContext, config: ModelConfig) -> str:
    """Copy the files of a program into the stage; returns the name of the first."""
    file = Path(config.weights or "").expanduser()
    for source in (file, *companions(file)):
        _copy(source, context, f"{PROGRAM}/{source.relative_to(file.parent).as_posix()}")
    return file.name


def copy_tensors(source: StageFolder, context: StageContext) -> None:
    """Everything that another stage's model consists of but its description, as payload of the running one."""
    for name in files_of_model(source):
        _copy(source.payload(name), context, name)


def files_of_model(folder: StageFolder) -> list[str]:
    """The payload that a model consists of but its description."""
    return [WEIGHTS, *_program_files(folder)]


def _program_files(folder: StageFolder) -> list[str]:
    return [name for name in folder.done_record().payload if name.startswith(f"{PROGRAM}/")]


def _copy(source: Path, context: StageContext, name: str) -> None:
    copy = context.path(name)
    copy.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(copy) as temporary:
        shutil.copyfile(source, temporary)


def _settled_input(config: ModelConfig, model: nn.Module) -> InputConfig | None:
    """How the model wants its input, with what its library tells of that."""
    if config.input is None or config.input.like is None:
        return config.input
    architecture = config.options["architecture"] if config.name == "torchvision" else None
    return config.input.settled(published_input(model, architecture, config.weights))


def _with_own_weights(config: ModelConfig) -> ModelConfig:
    """The config of a function that reads weights itself with the file among its options."""
    if config.weights is None or not config.is_users_own:
        return config
    try:
        is_its_own = "weights" in signature(load_function(config.name)).parameters
    except ValueError as error:
        raise StageError(str(error)) from error
    options = {**config.options, "weights": config.weights}
    return config.blank.replace(options=options) if is_its_own else config


class OffsetLogits(nn.Module):
    """A model whose logits are shifted by a constant per class (C,): another prior, without other weights."""

    offset: Tensor

    def __init__(self, model: nn.Module, offset: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        named: dict[str, str] = getattr(model, "feature_paths", {})
        self.feature_paths = {name: f"model.{path}" for name, path in named.items()}
        self.register_buffer("offset", torch.tensor(offset))

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(inputs)
        return logits + self.offset


def save(
    context: StageContext, model: nn.Module, config: ModelConfig, data: TaskData, **more: object
) -> None:
    """Write the weights and the description as payload of the stage. `more` is added to the description.

    An entry `logit_offset` (C,) is added to the logits wherever the model is loaded.
    """
    with atomic_write(context.path(WEIGHTS)) as temporary:
        save_model(model, str(temporary))
    task, built = context.task, _with_own_weights(config).blank
    built = built.replace(input=_settled_input(config, model))
    if built.classes is not None and built.classes.has_matrix:
        columns = model.get_buffer(MATRIX).shape[1]
        built = built.replace(classes=built.classes.among_weights(task.class_names, columns))
    write_json(
        context.path(DESCRIPTION),
        {
            "model": built.model_dump(mode="json"),
            **({"program": _keep_program(context, config)} if config.is_exported else {}),
            **({"made_from": _made_from(built, context.made_from(config))} if config.is_users_own else {}),
            "num_classes": config.num_classes or task.num_classes,
            "input_shape": list(task.input_shape),
            "class_names": list(task.class_names),
            "inputs": task.input_values,
            "input_dtype": task.input_dtype,
            "mean": data.normalisation.mean.tolist(),
            "std": data.normalisation.std.tolist(),
            "task": task.model_dump(mode="json"),
            **more,
        },
    )


def _made_from(built: ModelConfig, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of a model without the files that the stored weights replace, and with what its input was found to
    be."""
    own = built.identity()
    identity = {**identity, **{key: own[key] for key in ("input", "classes") if key in own}}
    options = {key: value for key, value in identity["options"].items() if key in built.options}
    return {key: value for key, value in identity.items() if key != "ignore"} | {"options": options}


def _warn_of_other_code(config: ModelConfig, made_from: Any, folder: Path) -> None:
    """The weights may fit another network than the one that was trained: whoever uses it should know."""
    if made_from is None or not config.is_users_own:
        return
    if changed := list(differences(made_from, config.identity())):
        log.warning(
            "the model in `%s` is not built by the code that it was trained with: %s",
            folder,
            ", ".join(changed),
        )


def load(folder: StageFolder, device: str = "cpu") -> TrainedModel:
    """Load a finished stage's model, after checking its files against the record. Whatever its plan named builds it."""
    folder.payload(WEIGHTS)
    for name in _program_files(folder):
        folder.payload(name)
    return _load(folder.payload(DESCRIPTION).parent, device, lambda config: config)


def load_saved(context: StageContext) -> TrainedModel:
    """The model that the running stage has saved, as others will load it."""
    return _load(context.folder.path, context.device, lambda config: config)


def load_received(folder: Path, modules: Sequence[str] = ()) -> TrainedModel:
    """Load `model.json` and `model.safetensors` from a folder of anybody's.

    Networks of ours are built, without the files that options name, and functions of the `modules`. `PlanError` for
    another function, `StoreError` names the file that is damaged.
    """
    model = _load(
        folder, "cpu", lambda config: admitted(config, modules, folder / DESCRIPTION), is_bounded=True
    )
    try:
        logits = model.logits(torch.zeros(1, *model.input_shape))
    except Exception as error:  # whatever a network raises at inputs that it does not take
        raise StoreError(
            f"`{folder / DESCRIPTION}` is damaged: the model does not take its inputs: {summary_of(error)}"
        ) from error
    if logits.shape != (1, model.description["num_classes"]):
        raise StoreError(
            f"`{folder / DESCRIPTION}` is damaged: the model gives {tuple(logits.shape[1:])} values per input"
        )
    return model


def _load(
    folder: Path, device: str, admit: Callable[[ModelConfig], ModelConfig], *, is_bounded: bool = False
) -> TrainedModel:
    values, description = read_description(folder)
    weights, shape = folder / WEIGHTS, description.input_shape
    try:
        config = admit(description.model)
        _warn_of_other_code(config, description.made_from, folder)
        normalisation = Normalisation(
            statistics(description.mean, shape, "mean"), statistics(description.std, shape, "std")
        )
        terms = _Terms(shape, description.num_classes, description.class_names, normalisation)
        network = partial(_network, config, terms)
        if config.is_exported:
            network = partial(_program, config, folder / PROGRAM / Path(str(values["program"])).name, terms)
        if is_bounded and not config.is_users_own:
            check_size(network, weights)
        model = network()
        load_model(model, str(weights))
    except (ValueError, RuntimeError, TypeError, OSError, SafetensorError) as error:
        raise StoreError(f"`{weights}` cannot be loaded: {' '.join(str(error).split())}") from error
    _refuse_nan(model, weights)
    if description.logit_offset:
        model = OffsetLogits(model, description.logit_offset)
    model.to(device).eval().requires_grad_(False)
    return TrainedModel(model, normalisation.on(device), description.class_names, shape, values)


def _refuse_nan(model: nn.Module, weights: Path) -> None:
    for name, tensor in model.state_dict().items():
        if bool(tensor.isnan().any()):  # infinity stands in masks
            raise StoreError(f"`{weights}` is damaged: `{name}` holds NaN")
