"""Optimizers and schedules by torch's own implementations, and the max-norm constraint."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
)

from raydistill.kinds.training import (
    AdamConfig,
    AdamWConfig,
    ConstantSchedule,
    CosineSchedule,
    OneCycleSchedule,
    OptimizerOptions,
    ScheduleOptions,
    SgdConfig,
    StepSchedule,
)
from raydistill.lookup import load_object
from raydistill.training.parameter_groups import SCALE, Rule, divide

SCHEDULE_STATE = ("last_epoch", "_step_count", "_last_lr")
RATES = frozenset({"lr", "initial_lr", "max_lr", "min_lr"})


def build_optimizer(
    config: OptimizerOptions, parameters: Iterable[nn.Parameter], *, fused: bool = False
) -> Optimizer:
    """The optimizer over all parameters that train, `fused` if it can be."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    # Otherwise as torch chooses: one by one on a CPU. Fused kernels round otherwise, so that a training would not go on
    # as it began.
    options = {"fused": True} if fused and config.fuses else {}
    optimizer: Optimizer = load_object(config.implementation)(config, trained, **options)
    return optimizer


def sgd(config: SgdConfig, parameters: Sequence[nn.Parameter], fused: bool | None = None) -> Optimizer:
    return SGD(
        decayed_or_not(config, parameters),
        config.learning_rate,
        config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
        fused=fused,
    )


def adamw(config: AdamWConfig, parameters: Sequence[nn.Parameter], fused: bool | None = None) -> Optimizer:
    groups = decayed_or_not(config, parameters)
    return AdamW(groups, config.learning_rate, config.betas, weight_decay=config.weight_decay, fused=fused)


def adam(config: AdamConfig, parameters: Sequence[nn.Parameter], fused: bool | None = None) -> Optimizer:
    groups = decayed_or_not(config, parameters)
    return Adam(groups, config.learning_rate, config.betas, weight_decay=config.weight_decay, fused=fused)


def decayed_or_not(
    config: SgdConfig | AdamWConfig, parameters: Sequence[nn.Parameter]
) -> list[dict[str, Any]]:
    """Torch's parameter groups: all in one, or apart those of one dimension (biases, scales and shifts of norms),
    whose decay is 0 and stays so."""
    if config.undecayed is None:
        return [{"params": list(parameters)}]
    decayed = {"params": [parameter for parameter in parameters if parameter.ndim > 1]}
    others = {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0}
    return [group for group in (decayed, others | {"undecayed": True}) if group["params"]]


def begin_momentum(optimizer: Optimizer) -> None:
    """The momentum of fused SGD, from 0 on where there is none. Torch 2.15 takes memory as it is for that of a first
    step that is left out, and stumbles over parameters whose first gradient comes later than others'."""
    for group in optimizer.param_groups:
        if group.get("fused") and group.get("momentum"):
            for parameter in group["params"]:
                slots = optimizer.state[parameter]
                if slots.get("momentum_buffer") is None:
                    slots["momentum_buffer"] = torch.zeros_like(parameter)


class OptimizerPair(Optimizer):
    """Two optimizers of different parameters that step together; a schedule moves the first. Saved as one."""

    def __init__(self, first: Optimizer, second: Optimizer) -> None:
        super().__init__([*first.param_groups, *second.param_groups], {})
        self.first, self.second = first, second
        self._share()

    def _share(self) -> None:
        """One state and one list of groups, of which each optimizer sees its part."""
        count = len(self.first.param_groups)
        self.first.param_groups, self.second.param_groups = (
            self.param_groups[:count],
            self.param_groups[count:],
        )
        self.first.state = self.second.state = self.state

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.first.step()
        self.second.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()


def build_optimizers(
    config: OptimizerOptions,
    parameters: Sequence[nn.Parameter],
    own: tuple[OptimizerOptions, nn.Module] | None,
    rules: Mapping[int, Rule] = MappingProxyType({}),
    *,
    fused: bool = False,
) -> Optimizer:
    """The optimizer over all parameters, by their `rules`; those of a module that has an optimizer of its `own` get
    that one."""
    apart = set() if own is None else {id(parameter) for parameter in own[1].parameters()}
    rest = [each for each in parameters if id(each) not in apart]
    # Of two optimizers the host has to say which steps are left out: that is asked of both at once.
    optimizer = build_optimizer(config, rest, fused=fused and own is None)
    if rules:
        divide(optimizer, rules)
    return (
        optimizer if own is None else OptimizerPair(optimizer, build_optimizer(own[0], own[1].parameters()))
    )


def build_schedule(
    config: ScheduleOptions, optimizer: Optimizer, epochs: int, steps_per_epoch: int
) -> LRScheduler:
    """The learning-rate schedule, advanced once per step."""
    optimizer = optimizer.first if isinstance(optimizer, OptimizerPair) else optimizer
    schedule: LRScheduler = load_object(config.implementation)(config, optimizer, epochs, steps_per_epoch)
    return schedule


def constant(
    config: ConstantSchedule, optimizer: Optimizer, epochs: int, steps_per_epoch: int
) -> LRScheduler:
    if config.warmup is not None:
        return WarmedUp(optimizer, config.warmup, epochs * steps_per_epoch, lambda step, start: 1.0)
    return ConstantLR(optimizer, factor=1.0, total_iters=0)


def step(config: StepSchedule, optimizer: Optimizer, epochs: int, steps_per_epoch: int) -> LRScheduler:
    milestones = [epoch * steps_per_epoch for epoch in config.milestones]
    if config.warmup is not None:
        total = epochs * steps_per_epoch
        return WarmedUp(
            optimizer,
            config.warmup,
            total,
            lambda step, start: config.factor ** bisect_right(milestones, step),
        )
    return MultiStepLR(optimizer, milestones, config.factor)


def cosine(config: CosineSchedule, optimizer: Optimizer, epochs: int, steps_per_epoch: int) -> LRScheduler:
    total = epochs * steps_per_epoch
    if config.warmup is not None or any(SCALE in group for group in optimizer.param_groups):
        # Torch's has one lowest rate for all groups.
        def falling(step: int, start: int) -> float:
            done = max(step - start, 0) / (total - start)
            return config.final + (1 - config.final) * (1 + math.cos(math.pi * done)) / 2

        return WarmedUp(optimizer, config.warmup or 0.0, total, falling)
    return Cosine(optimizer, total, eta_min=config.final * optimizer.param_groups[0]["lr"])


class WarmedUp(LRScheduler):
    """Up in a line over a part of all steps, the last of which has the whole rate; times what a schedule says."""

    def __init__(
        self, optimizer: Optimizer, part: float, total: int, factor: Callable[[int, int], float]
    ) -> None:
        """`factor` of (step, the first step with the whole rate), both counted from 0."""
        self.length = max(round(part * total), 1)
        self.factor = factor
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """Of the groups' own base, which a stage's changes may move."""
        step = self.last_epoch
        factor = min((step + 1) / self.length, 1.0) * self.factor(step, self.length - 1)
        return [group["initial_lr"] * factor for group in self.optimizer.param_groups]


class Cosine(CosineAnnealingLR):
    """Torch's, which can go on with another learning rate."""

    def rebase(self, config: CosineSchedule, learning_rate: float) -> None:
        """Both ends of the curve follow from the learning rate."""
        self.eta_min = config.final * learning_rate
        self.base_lrs = [group["initial_lr"] for group in self.optimizer.param_groups]


def one_cycle(
    config: OneCycleSchedule, optimizer: Optimizer, epochs: int, steps_per_epoch: int
) -> LRScheduler:
    total = epochs * steps_per_epoch + 1
    return OneCycleLR(
        optimizer,
        [group["lr"] for group in optimizer.param_groups],
        total_steps=total,
        pct_start=_dividing_warmup(config.warmup, total),
        cycle_momentum=False,
    )


def _dividing_warmup(warmup: float, total: int) -> float:
    """A warm-up that torch can divide by. One that ends with the first step (warmup · total = 1) counts as 0 steps in
    torch, which divides by that number. A hair less, and the first step has the highest rate, as with any shorter
    warm-up."""
    return warmup if warmup * total != 1 else (1 - 1e-9) / total


class DeviceRates:
    """Learning rates in tensors on the device, which an optimizer's kernels read as they are at that moment, so that a
    recorded step takes those of the schedule. The groups have numbers, as schedules and checkpoints need them.

    Only fused kernels read them; for others `are_read` is False, and nothing happens.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device | str) -> None:
        self._optimizer = optimizer
        self.are_read = all(group.get("fused") for group in optimizer.param_groups)
        self._rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self._written: list[float] = []
        # Adam's would warn that it is `capturable` where nothing is captured; to fused kernels that is the same.
        optimizer._warned_capturable_if_run_uncaptured = True

    def write(self) -> None:
        """Bring the schedule's rates to the device, if they have changed."""
        rates = [group["lr"] for group in self._optimizer.param_groups]
        if self.are_read and rates != self._written:
            for place, rate in zip(self._rates, rates, strict=True):
                place.fill_(rate)
            self._written = rates

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the optimizer steps by them."""
        if not self.are_read:
            yield
            return
        groups = self._optimizer.param_groups
        kept: list[dict[str, Any]] = [
            {key: group[key] for key in ("lr", "capturable") if key in group} for group in groups
        ]
        for group, own, rate in zip(groups, kept, self._rates, strict=True):
            group.update({"lr": rate, "capturable": True} if "capturable" in own else {"lr": rate})
        try:
            yield
        finally:
            for group, own in zip(groups, kept, strict=True):
                group.update(own)


def change_numbers(
    optimizer: Optimizer, schedule: LRScheduler, config: OptimizerOptions, written: ScheduleOptions
) -> None:
    """Go on with the learning rate, weight decay and momentum of `config`: the schedule, which is `written` like this,
    multiplies another base from here on. Nothing happens to an optimizer that has these numbers."""
    optimizer = optimizer.first if isinstance(optimizer, OptimizerPair) else optimizer
    for group in optimizer.param_groups:
        base = (
            group["max_lr"] if "max_lr" in group else group["initial_lr"]
        )  # one cycle begins below its base
        wanted = config.learning_rate * group.get(SCALE, 1.0)
        if base != wanted:
            group.update({key: group[key] / base * wanted for key in RATES & group.keys()})
        kept = {"weight_decay"} if {"undecayed", "own_decay"} & group.keys() else set()
        group.update({key: getattr(config, key) for key in config.group_keys if key not in kept})
    if (rebase := getattr(schedule, "rebase", None)) is not None:
        rebase(written, config.learning_rate)


def schedule_state(schedule: LRScheduler) -> dict[str, Any]:
    """What changes while a schedule advances, as JSON values."""
    return {key: getattr(schedule, key) for key in SCHEDULE_STATE}


class MaxNorm:
    """Bound the length of every unit's incoming weight vector (Srivastava et al. 2014, section 5.1)."""

    def __init__(self, model: nn.Module, bound: float) -> None:
        self.bound = bound
        self.weights = [
            module.weight
            for module in model.modules()
            if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)) and module.weight.requires_grad
        ]

    @torch.no_grad()
    def apply(self) -> None:
        """Scale down the rows that are longer than the bound."""
        for weight in self.weights:
            weight.renorm_(2, 0, self.bound)
