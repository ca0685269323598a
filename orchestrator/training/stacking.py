"""Several trainings that are alike but for their seeds, as one batched model: n small networks take n times the
launches and the Python of one, and together hardly more than those of one.

What a training has stays its own: order, schedule, averages, validation, checkpoints. The weights, buffers and moments
of all lie in tensors (n, ...), of which every training's own are views, and a step of all of them is one forward pass
by `torch.func`, one backward pass and one step of an optimizer that works element by element. No gradient crosses from
one training to another. Numbers differ from those of plain steps by rounding: a product of stacked matrices adds up in
another order.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import SGD, Adam, AdamW, Optimizer

from raydistill.targets.mixing import TeacherTargets
from raydistill.tasks.splits import is_resident
from raydistill.training.captured_step import records
from raydistill.training.data import Batch, TransferSet
from raydistill.training.loop import Training, Turn
from raydistill.training.method import Method
from raydistill.training.running_losses import Told
from raydistill.training.step_state import State, StepState

SETTLING = 5  # plain steps until memory is allocated and algorithms are chosen
RECORDING = 35  # more of them where steps may be captured: by then it is settled
MEASURED = 5  # steps of which the fastest says how long one takes
WORTH = 0.9  # of the time of plain steps, at most: all results come at the end
LONGEST = 0.05  # seconds of a plain step, beyond which launches are a small part of it
FEWEST = 100  # steps of a training; to try takes as long as some of them
NEAR = 1e-3  # of a gradient's length, where rounding is a millionth: whatever else differs is no rounding

EPSILON = 1e-6  # of a gradient's length, as `clip_grad_norm_` has it

Fields = dict[str, Any]
Tensors = tuple[Tensor, ...]


class RefusedError(Exception):
    """Why trainings are not stacked, in words for the log."""


def hindrance(method: Method, network: nn.Module, transfer: TransferSet) -> str | None:
    """Why trainings of such students are not stacked, as far as that is known before they begin."""
    reasons = (
        (not method.stacks, "their method is about one student at a time"),
        (bool(method.student_features or method.teacher_features), "their losses look at features"),
        (method.own_optimizer is not None, "their method has an optimizer of its own"),
        (not is_resident(transfer.split), "their samples do not lie in memory"),
        (_draws(network), "their network draws numbers (dropout), each of its own seed"),
    )
    return next((reason for holds, reason in reasons if holds), None)


def is_elementwise(optimizer: Optimizer) -> bool:
    """Whether an optimizer does with each weight what its own gradients say."""
    return type(optimizer) in (SGD, AdamW, Adam)


def _draws(model: nn.Module) -> bool:
    return any(
        (isinstance(module, _DropoutNd) and module.p > 0) or isinstance(module, nn.RReLU)
        for module in model.modules()
    )


def plain_steps(device: torch.device) -> int:
    """How many steps tell how long a plain one takes: the last `MEASURED` of these."""
    return SETTLING + MEASURED + (RECORDING if records(device) else 0)


def timed(device: torch.device, make: Callable[[], Any]) -> float:
    """Seconds until something is made, on the device too. On a CPU those of this thread, which takes part in all that
    is computed: a step must not seem longer for what else the machine does."""
    if device.type == "cpu":
        began = time.thread_time()
        make()
        return time.thread_time() - began
    module = torch.get_device_module(device)
    module.synchronize(device)
    began = time.perf_counter()
    make()
    module.synchronize(device)
    return time.perf_counter() - began


class Stack:
    """Trainings that make their steps together, all at the same step of the same number of steps. From here on their
    tensors are views; `dissolve` gives every training its own memory back."""

    def __init__(self, trainings: Sequence[Training]) -> None:
        """`RefusedError` where their states differ in form."""
        self.trainings = tuple(trainings)
        self._learner = self.trainings[0].learner
        self._layers = [module for module in self._learner.modules() if type(module) is nn.Linear]
        self._shared: list[_Shared] = []
        learners = [training.learner for training in self.trainings]
        try:
            self._parameters = self._joined([dict(learner.named_parameters()) for learner in learners])
            for name, parameter in self._learner.named_parameters():
                self._parameters[name].requires_grad_(parameter.requires_grad)
            self._buffers = self._joined([dict(learner.named_buffers()) for learner in learners])
            self._optimizer = self._joined_optimizer()
            self._state = self._by_all_names()
        except BaseException:
            self.dissolve()
            raise

    def step(self, turns: Sequence[Turn]) -> None:
        """Make the step that is due of every training, in their order."""
        for parameter in self._parameters.values():
            parameter.grad = None
        told = self._go_backward(turns)
        self._clip()
        self._optimizer_step()
        for training in self.trainings:
            if training.max_norm is not None:
                training.max_norm.apply()
        for turn, own in zip(turns, told.values.unbind(1), strict=True):
            turn.told = Told(told.names, own, told.constant)

    def gradients(self) -> list[State]:
        """Those of the last step, by name, for each training."""
        made = {name: value.grad for name, value in self._parameters.items() if value.grad is not None}
        return [{name: grad[number] for name, grad in made.items()} for number in range(len(self.trainings))]

    def dissolve(self) -> None:
        """Give every training its own tensors back, with what they have become."""
        for shared in self._shared:
            shared.take_back()
        self._shared.clear()

    def _go_backward(self, turns: Sequence[Turn]) -> Told:
        batch, tensors = self._batch(turns)
        targets = self._targets(batch, tensors)

        # In plain tuples: to take dicts apart and put them together is a tenth of a small step.
        def one(values: Tensors, own: Tensors, said: Tensors) -> Any:
            fields: Fields = dict(zip(tensors, own, strict=True))
            given = (replace(batch, **fields), TeacherTargets(said[0], said[1]) if said else None)
            state = dict(zip(self._state, values, strict=True))
            return functional_call(self._learner, state, given, tie_weights=False)

        values = (tuple(self._state.values()), tuple(tensors.values()), targets)
        with _by_columns(self._layers):
            losses, seen = vmap(one, randomness="error")(*values)
        torch.stack(list(losses.values())).sum().backward()
        return Told.of(losses, seen)

    def _batch(self, turns: Sequence[Turn]) -> tuple[Batch, Fields]:
        """A batch for all that is the same in every training, and the tensors (n, B, ...) that are not."""
        transfer, epoch = self.trainings[0].transfer, turns[0].epoch
        if not transfer.views.steps and transfer.labelled == 1:  # nothing is drawn: one batch of all samples
            rows = torch.cat([turn.rows for turn in turns])
            (whole,) = transfer.batches([rows], 0, epoch=epoch)
            return whole, {
                name: value.unflatten(0, (len(turns), -1)) for name, value in _tensors_of(whole).items()
            }
        batches = [
            next(training.transfer.batches([turn.rows], training.transfer.views.of_epoch(epoch), epoch=epoch))
            for training, turn in zip(self.trainings, turns, strict=True)
        ]
        each = [_tensors_of(batch) for batch in batches]
        return batches[0], {name: torch.stack([own[name] for own in each]) for name in each[0]}

    def _targets(self, batch: Batch, tensors: Fields) -> Tensors:
        """What the teachers say of every training's batch: logits (n, B, M, C), weights (n, B, M); nothing without."""
        if self.trainings[0].teacher is None:
            return ()
        said = []
        for number, training in enumerate(self.trainings):
            assert training.teacher is not None
            own: Fields = {name: value[number] for name, value in tensors.items()}
            said.append(training.teacher(replace(batch, **own)))
        return torch.stack([one.logits for one in said]), torch.stack([one.weights for one in said])

    @torch.no_grad()
    def _clip(self) -> None:
        """As `clip_grad_norm_` does it for every training by itself."""
        if not (bound := self.trainings[0].config.clip_norm):
            return
        gradients = [value.grad for value in self._parameters.values() if value.grad is not None]
        norms = torch.stack([torch.linalg.vector_norm(grad.flatten(1), dim=1) for grad in gradients])
        factors = (bound / (torch.linalg.vector_norm(norms, dim=0) + EPSILON)).clamp(max=1.0)
        for grad in gradients:
            grad.mul_(factors.view(-1, *[1] * (grad.dim() - 1)))

    def _optimizer_step(self) -> None:
        # Schedules and changes speak to each training's own optimizer, and say the same to all.
        groups = self.trainings[0].optimizer.param_groups
        for own, group in zip(self._optimizer.param_groups, groups, strict=True):
            own.update({key: value for key, value in group.items() if key not in ("params", "fused")})
        self._optimizer.step()

    def _joined(self, states: Sequence[Mapping[str, Tensor]]) -> State:
        if any(state.keys() != states[0].keys() for state in states):
            raise RefusedError("their networks have other parts")
        return {name: self._share([state[name] for state in states]) for name in states[0]}

    def _share(self, parts: Sequence[Tensor]) -> Tensor:
        if any(part.shape != parts[0].shape for part in parts):
            raise RefusedError("their tensors have other shapes")
        self._shared.append(shared := _Shared(parts))
        return shared.whole

    def _by_all_names(self) -> State:
        """Weights and buffers, those with several names under each of them."""
        learner = self._learner
        kinds = (
            (self._parameters, learner.named_parameters(), learner.named_parameters(remove_duplicate=False)),
            (self._buffers, learner.named_buffers(), learner.named_buffers(remove_duplicate=False)),
        )
        state: State = {}
        for stacked, once, every in kinds:
            whole = {id(value): stacked[name] for name, value in once}
            state |= {name: whole[id(value)] for name, value in every}
        return state

    def _joined_optimizer(self) -> Optimizer:
        """One like theirs, of the stacked parameters, in the same groups."""
        first = self.trainings[0].optimizer
        names: list[dict[Tensor, str]] = [
            {p: name for name, p in each.learner.named_parameters()} for each in self.trainings
        ]
        groups = [
            group | {"params": [self._parameters[names[0][p]] for p in group["params"]]}
            for group in first.param_groups
        ]
        optimizer: Optimizer = type(first)(groups, lr=first.param_groups[0]["lr"])  # type: ignore[call-arg]
        slots = [
            {own[p]: state for p, state in training.optimizer.state.items()}
            for training, own in zip(self.trainings, names, strict=True)
        ]
        if any(other.keys() != slots[0].keys() for other in slots):
            raise RefusedError("their optimizers have met other weights")
        for name in slots[0]:
            optimizer.state[self._parameters[name]] = self._joined_slots([each[name] for each in slots])
        if isinstance(optimizer, Adam):  # in one pass over the memory of all in place of ten
            for group in optimizer.param_groups:
                group["fused"] = True
        return optimizer

    def _joined_slots(self, slots: Sequence[dict[str, Any]]) -> dict[str, Any]:
        joined: dict[str, Any] = {}
        for key, value in slots[0].items():
            parts = [slot[key] for slot in slots]
            if not isinstance(value, Tensor):
                joined[key] = value
            elif key == "step":  # the count of steps, which is one for all
                if any(not torch.equal(part, value) for part in parts):
                    raise RefusedError("their optimizers have made other numbers of steps")
                self._shared.append(shared := _Shared(parts, is_one=True))
                joined[key] = shared.whole
            else:
                joined[key] = self._share(parts)
        return joined


class _Shared:
    """Tensors of the same shape that become views of one (n, ...), or, where it `is_one`, the same memory."""

    def __init__(self, parts: Sequence[Tensor], *, is_one: bool = False) -> None:
        self._parts, self._own = parts, [part.data for part in parts]
        self.whole = self._own[0].clone() if is_one else torch.stack(self._own)
        for number, part in enumerate(parts):
            part.data = self.whole if is_one else self.whole[number]

    def take_back(self) -> None:
        for part, own in zip(self._parts, self._own, strict=True):
            part.data = own.copy_(part.data)  # where they were: what was recorded of them still holds


def _tensors_of(batch: Batch) -> Fields:
    """The tensors of a batch that have an entry per sample; what is said of the classes is the same for all."""
    named = {each.name: getattr(batch, each.name) for each in fields(batch)}
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


@contextmanager
def _by_columns(layers: Sequence[nn.Linear]) -> Iterator[None]:
    """Inside, dense layers multiply the weights by the samples, and not the samples by the weights: stacked, the
    gradient of the weights then lies in memory as they do. By torch's own rule it is copied into that order, and the
    step of ten networks of 784-100-100-10 takes twice as long."""
    layers = [layer for layer in layers if "forward" not in layer.__dict__]
    for layer in layers:
        layer.forward = partial(_dense, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _dense(layer: nn.Linear, inputs: Tensor) -> Tensor:
    """Inputs (B, in) → (B, out)."""
    if inputs.dim() != 2:
        return F.linear(inputs, layer.weight, layer.bias)
    columns = torch.mm(layer.weight, inputs.t())
    return (columns if layer.bias is None else columns + layer.bias.unsqueeze(1)).t()


def try_stack(trainings: Sequence[Training], turns: Sequence[Turn]) -> Stack:
    """The trainings stacked, after the step that is due, which was made both ways: `RefusedError` where these differ
    by more than rounding, or the stacked one fails; then it was made plainly."""
    states = [StepState(training.learner, training.optimizer) for training in trainings]
    before = [state.snapshot() for state in states]
    for turn in turns:
        turn.make()
    plain = [_Made.by(*each) for each in zip(trainings, states, turns, strict=True)]
    if any(made.state.keys() != values.keys() for made, values in zip(plain, before, strict=True)):
        raise RefusedError(
            "their optimizers meet weights for the first time"
        )  # and made no step to go back to
    for state, values in zip(states, before, strict=True):
        state.restore(values)
    stack: Stack | None = None
    try:
        stack = Stack(trainings)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "There is a performance drop")  # one by one after all
            stack.step(turns)
        for gradients, state, turn, made in zip(stack.gradients(), states, turns, plain, strict=True):
            made.compare(gradients, state.tensors(), turn)
    # Whatever it is: the plain step was made, and if it is a mistake of the training it comes again there.
    except Exception as error:
        if stack is not None:
            stack.dissolve()
        for turn, state, made in zip(turns, states, plain, strict=True):
            state.restore(made.state)
            turn.told = made.told
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise RefusedError(reason) from error
    return stack


@dataclass(frozen=True)
class _Made:
    """What a plain step made of a training."""

    gradients: State
    state: State
    told: Told
    buffers: tuple[str, ...]

    @classmethod
    def by(cls, training: Training, state: StepState, turn: Turn) -> "_Made":
        assert turn.told is not None
        named = training.learner.named_parameters()
        gradients = {name: value.grad.clone() for name, value in named if value.grad is not None}
        return cls(gradients, state.snapshot(), turn.told, tuple(dict(training.learner.named_buffers())))

    def compare(self, gradients: State, state: State, turn: Turn) -> None:
        """Gradients, and not weights: where a gradient is 0 but for rounding, Adam makes a whole step of it."""
        assert turn.told is not None
        if gradients.keys() != self.gradients.keys():
            raise RefusedError("other weights have a gradient in a stacked step")
        _check_near(gradients, self.gradients)
        _check_near({name: state[name] for name in self.buffers}, self.state)
        _check_near({"told": turn.told.values}, {"told": self.told.values})


def _check_near(found: State, expected: State) -> None:
    pairs = [(value.double(), expected[name].double()) for name, value in found.items()]
    length = sum(float(wanted.square().sum()) for _, wanted in pairs) ** 0.5
    distance = sum(float((own - wanted).square().sum()) for own, wanted in pairs) ** 0.5
    if not distance <= NEAR * length:  # nor where one of them is no number
        raise RefusedError("a stacked step differs from a plain one by more than rounding")
