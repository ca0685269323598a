"""Checks that a model is fit for its stage, before anything trains.

`check_features` looks at the features that methods compare, on models without memory, when a plan is read.
`probe_model` builds a model where it will train and tries it on two samples: outputs, gradients, a batch of one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raydistill.errors import StageError
from raydistill.kinds.compare import CompareModelsConfig
from raydistill.kinds.distill import DistillConfig
from raydistill.kinds.external import ExternalTargetsConfig
from raydistill.kinds.online import SelfDistillConfig
from raydistill.kinds.reuse import ReuseClassifierConfig
from raydistill.kinds.survey import ProbedModel
from raydistill.kinds.targets import LOGITS, PredictTargetsConfig
from raydistill.models.exits import add_exits
from raydistill.models.outputs import are_probabilities, described, likely_output
from raydistill.models.reused_head import reuse_head
from raydistill.plan.model import ModelConfig
from raydistill.plan.order import Graph, Node
from raydistill.plan.schema import Plan
from raydistill.runs.record import summary_of
from raydistill.stages.compare_models import chosen_layers
from raydistill.stages.distill import build_method, setting_of
from raydistill.stages.reuse_classifier import plain_teacher
from raydistill.targets import dense
from raydistill.targets.top_k import TopK
from raydistill.tasks.normalisation import Normalisation
from raydistill.tasks.splits import TaskData, TensorSplit
from raydistill.tasks.task import Task
from raydistill.training import model_files
from raydistill.training.data import TransferSet, transfer_positions
from raydistill.training.freezing import freeze, hold
from raydistill.training.method import Features, MethodContext
from raydistill.training.parameter_groups import rules_of

NAMED = 3  # of many parameters
ROW = 12  # bytes of a stored row's id and view, in each column


def check_features(graph: Graph, plan: Plan) -> None:
    """`PlanError` for a method whose features are not there, or whose shapes do not suit."""
    for node in graph.nodes.values():
        if isinstance(node.config, PredictTargetsConfig) and not node.inserted:
            _check_outputs(node, graph, plan)
        elif isinstance(node.config, CompareModelsConfig) and node.config.layers is not None:
            _check_compared(node, graph, plan)
        elif isinstance(node.config, SelfDistillConfig | ReuseClassifierConfig):
            _check_parts(node, graph, plan)
        elif isinstance(node.config, DistillConfig) and node.config.compares_features:
            for index, options in enumerate(node.config.all_methods):
                heard = node.config.heard_by(options)
                alone = node.config.replace(method=options.replace(teachers=None), methods=(), teachers=heard)
                try:
                    build_method(alone, _method_context(alone, graph, plan.task))
                except (NotImplementedError, RuntimeError):
                    continue  # it needs the numbers of a model, which only the stage has
                except StageError as error:
                    key = ("methods", index) if node.config.methods else ("method",)
                    raise plan.error(("stages", node.stage, *key), error.message) from None


def _check_outputs(node: Node, graph: Graph, plan: Plan) -> None:
    try:
        _stored_shapes(node.config, graph, plan.task)
    except (ValueError, StageError) as error:
        raise plan.error(("stages", node.stage, "outputs"), str(error)) from None


def _check_compared(node: Node, graph: Graph, plan: Plan) -> None:
    """Every model has one of the layers, every layer is in one of the models, as far as these are the plan's own."""
    models = {ref: graph.model_of(ref) for ref in node.config.models}
    found: set[str] = set()
    for ref, model in models.items():
        try:
            if model is not None:
                features = Features(_shaped(model, plan.task), plan.task.input_shape)
                found.update(chosen_layers(features, node.config.layers))
        except (NotImplementedError, RuntimeError):
            return  # it needs the numbers of a model, which only the stage has
        except (ValueError, StageError) as error:
            raise plan.error(("stages", node.stage, "layers"), f"`{ref}`: {error}") from None
    if None in models.values():
        return
    for place, name in enumerate(node.config.layers):
        if name not in found and name != LOGITS:
            raise plan.error(
                ("stages", node.stage, "layers", place), f"no model of the stage has the layer `{name}`"
            )


def _check_parts(node: Node, graph: Graph, plan: Plan) -> None:
    """The network has stages for exits; those of student and teacher fit together."""
    config, shape = node.config, plan.task.input_shape
    key = "model" if isinstance(config, SelfDistillConfig) else "teacher"
    try:
        if isinstance(config, SelfDistillConfig):
            add_exits(_shaped(config.model, plan.task), shape)
        elif (teacher := graph.model_of(config.teacher)) is not None:
            own, other = (_shaped(model, plan.task) for model in (config.student, plain_teacher(teacher)))
            reuse_head(own, other, shape, config.factor)
    except (NotImplementedError, RuntimeError):
        return  # it needs the numbers of a model, which only the stage has
    except (ValueError, StageError) as error:
        raise plan.error(("stages", node.stage, key), str(error)) from None


def _stored_shapes(config: PredictTargetsConfig, graph: Graph, task: Task) -> dict[str, torch.Size]:
    """The shapes of the features that are stored, as far as the teacher's architecture tells."""
    if (model := graph.model_of(config.teacher)) is None or not config.stored_features:
        return {}
    try:
        known = Features(_shaped(model, task), task.input_shape, task.input_dtype == "int64")
        return dict(zip(config.stored_features, known.shapes(config.stored_features), strict=True))
    except (NotImplementedError, RuntimeError):  # it needs the numbers of a model, which only the stage has
        return {}


def store_sizes(graph: Graph, task: Task) -> Iterator[str]:
    """What a sample takes in every store of features, a line for each."""
    for node in graph.nodes.values():
        config = node.config
        if not isinstance(config, PredictTargetsConfig) or not (
            shapes := _stored_shapes(config, graph, task)
        ):
            continue
        parts = {name: 2 * shape.numel() for name, shape in shapes.items()}
        if config.has_logits:
            model = graph.model_of(config.teacher)
            count = (model and model.num_classes) or task.num_classes
            width = dense.width(count) if config.top_k is None else TopK(kept=config.top_k).width
            parts = {LOGITS: 2 * width, **parts}
        told = ", ".join(f"`{name}` {size:,}" for name, size in parts.items())
        views = f" in each of {config.views} views" if config.views else ""
        total = sum(parts.values()) + ROW * len(parts)
        yield f"`{node.name}` stores {total:,} bytes per sample{views}: {told}, and {ROW} each for its id"


def _method_context(config: DistillConfig, graph: Graph, task: Task) -> MethodContext:
    models = [graph.model_of(name) for name in _teachers_of(config, graph)]
    student = _shaped(config.student, task)
    teachers = [_shaped(model, task) for model in models if model is not None]
    stored = None if config.targets is None else graph.nodes[config.targets].config
    if isinstance(stored, ExternalTargetsConfig):  # whatever its size
        return setting_of(config, task, student, [], stored=dict.fromkeys(stored.stored_features, (1,)))
    return setting_of(config, task, student, teachers)


def _shaped(model: ModelConfig, task: Task) -> nn.Module:
    """A model of the right shapes; without memory, but for a program, which is what its file holds."""
    if model.is_exported:
        return model_files.build_whole(model, task, Normalisation(torch.zeros(()), torch.ones(())))
    with model_files.without_memory():
        return model_files.build_blank(model, task)


def _teachers_of(config: DistillConfig, graph: Graph) -> Sequence[str]:
    """The stages of the models that teach, or whose features are stored."""
    stored = None if config.targets is None else graph.nodes[config.targets].config
    return (stored.teacher,) if isinstance(stored, PredictTargetsConfig) else config.teachers


@dataclass(frozen=True)
class Probe:
    """What was found: the number of weights, frozen ones included, and why the model cannot be used."""

    parameters: int | None
    error: str | None = None


def two_samples(data: TaskData, device: str) -> Tensor:
    """The first two training samples as models get them; of integers, which are looked up, those with the largest and
    the smallest number of all splits."""
    splits = (data.train, data.validation, data.test)
    tokens = [split.inputs for split in splits if isinstance(split, TensorSplit) and len(split)]
    if tokens and tokens[0].dtype == torch.int64:
        by_sample = torch.cat([torch.stack(part.flatten(1).aminmax(dim=1), dim=1) for part in tokens])
        extremes = torch.stack([by_sample[:, 1].argmax(), by_sample[:, 0].argmin()])
        return torch.cat(tokens).index_select(0, extremes).to(device)
    rows = torch.arange(2)
    transfer = TransferSet(data.train.select(rows).to(device), data.normalisation.on(device))
    (batch,) = transfer.batches([rows], 0)
    return batch.inputs


def probe_model(probed: ProbedModel, task: Task, data: TaskData, samples: Tensor) -> Probe:
    """Build a model and try it on samples (2, ...); the random state of the process stays as it was."""
    parameters = None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            model = _build(probed, task, data.normalisation).to(samples.device)
            with torch.no_grad():
                logits = _logits(model.eval(), samples, probed.num_classes)
                parameters = sum(parameter.numel() for parameter in model.parameters())
                _logits(model, samples[:1], probed.num_classes)
            if not probed.is_trained:
                _check_logits(logits, probed.model)
                return Probe(parameters)
            norms = freeze(model, probed.freeze) if probed.freeze else []
            rules_of(model, probed.parameter_groups, None)
            model.train()
            hold(norms)
            _check_gradients(model, samples, probed)
            _check_batch_of_one(model, samples[:1], probed, data)
            _check_initial(probed, task)
        except StageError as error:
            return Probe(parameters, f"model `{probed.model.name}` {error.message}")
    return Probe(parameters)


def _build(probed: ProbedModel, task: Task, normalisation: Normalisation) -> nn.Module:
    build = model_files.build if probed.is_trained else model_files.build_whole
    try:
        return build(probed.model.replace(num_classes=probed.num_classes), task, normalisation)
    except Exception as error:  # whatever a user's function does
        raise StageError(f"cannot be built: {summary_of(error)}") from error


def _logits(model: nn.Module, inputs: Tensor, num_classes: int) -> Tensor:
    """What a model answers, if that is logits (batch, classes)."""
    mode = "train" if model.training else "eval"
    try:
        output = model(inputs)
    except Exception as error:  # whatever a user's layers do
        count = f"{len(inputs)} samples" if len(inputs) > 1 else "one sample"
        numbers = (
            "" if inputs.is_floating_point() else f" of numbers {int(inputs.min())} to {int(inputs.max())}"
        )
        raise StageError(
            f"cannot take a batch of {count} of shape {tuple(inputs.shape[1:])}{numbers} in {mode} mode:"
            f" {summary_of(error)}"
        ) from error
    if not isinstance(output, Tensor):
        raise StageError(
            f"returns {described(output)} in {mode} mode; return the logits alone, one tensor (batch, classes)"
            + (
                f", or write `output: {likely}` beside it"
                if (likely := likely_output(output)) is not None
                else ""
            )
        )
    expected = (len(inputs), num_classes)
    if output.shape == expected:
        return output
    if output.dim() == 2 and len(output) == len(inputs):
        raise StageError(
            f"gives {output.shape[1]} outputs for each sample, but the stage needs {num_classes}, one per class; take"
            " the size of the last layer from the argument `num_classes`"
        )
    raise StageError(
        f"gives outputs of shape {tuple(output.shape)} for a batch of {len(inputs)}, not {expected}; mind that a"
        " `squeeze` takes a batch of one away"
    )


def _check_logits(logits: Tensor, config: ModelConfig) -> None:
    """What a model that is taken as it is answers, are logits."""
    if not bool(logits.isfinite().all()):
        raise StageError("answers with numbers that are not finite; are its weights whole?")
    if config.gives is None and are_probabilities(logits):
        raise StageError(
            "gives probabilities, as rows that add up to 1 show; write `gives: probabilities` beside it, and their"
            " logarithm is taken, or `gives: logits` if they are logits all the same"
        )


def _check_gradients(model: nn.Module, inputs: Tensor, probed: ProbedModel) -> None:
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if not trained:
        frozen = sum(1 for _ in model.parameters())
        what = f"all {frozen} of its parameters are frozen" if frozen else "it has no parameters"
        raise StageError(f"has nothing to train: {what}; set `requires_grad` on those that are to learn")
    logits = _logits(model, inputs, probed.num_classes)
    # Some that none reaches do no harm, on several workers neither.
    if not logits.requires_grad or not any(
        gradient is not None for gradient in _gradients(logits, list(trained.values()))
    ):
        raise StageError(
            "learns nothing: no gradient reaches any of its weights; is its output detached, or made under `no_grad`?"
        )


def _gradients(logits: Tensor, weights: Sequence[Tensor]) -> Sequence[Tensor | None]:
    try:
        return torch.autograd.grad(logits.float().logsumexp(dim=1).sum(), weights, allow_unused=True)
    except RuntimeError as error:
        raise StageError(f"has no gradient: {summary_of(error)}") from error


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(f"`{name}`" for name in names[:NAMED]) + more


def _check_batch_of_one(model: nn.Module, inputs: Tensor, probed: ProbedModel, data: TaskData) -> None:
    """Try a batch of one in train mode, if an epoch ends with one; on several workers batch norms see the samples of
    all."""
    if probed.workers > 1 or probed.transfer is None or probed.transfer.synthesized is not None:
        return
    try:
        _logits(model, inputs, probed.num_classes)
    except StageError as error:
        positions = transfer_positions(data, probed.transfer, with_unlabelled=probed.with_unlabelled)
        pool = 0 if probed.transfer.also is None else len(probed.transfer.also.pool)
        samples = (len(positions) + pool) // probed.shards
        if probed.batch_size == 1 or samples % probed.batch_size == 1:
            raise StageError(
                f"{error.message}; and the last batch of an epoch is one: {samples:,} samples in batches of"
                f" {probed.batch_size}; set another `batch_size`"
            ) from error


def _check_initial(probed: ProbedModel, task: Task) -> None:
    """The weights of another stage fit, but for the classifier of another number of classes."""
    if probed.initial is None:
        return
    own_config = probed.model.replace(num_classes=probed.num_classes)
    try:
        with model_files.without_memory():
            own = _shapes(model_files.build_blank(own_config, task))
            other = _shapes(model_files.build_blank(probed.initial, task))
        if (probed.initial.num_classes or task.num_classes) != probed.num_classes:
            other |= {key: own[key] for key in model_files.classifier_keys(own_config, task)}
    except Exception:  # some models cannot be built without memory: the stage finds out
        return
    if own != other:
        different = [name for name in {**own, **other} if own.get(name) != other.get(name)]
        raise StageError(
            f"cannot start with the weights of `{probed.initial.name}` (`initial`): {_listed(different)} do not fit"
        )


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.state_dict().items()}
