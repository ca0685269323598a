"""Several methods whose losses are summed, each with a weight that may change over the epochs."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import cast

from torch import Tensor, nn

from raydistill.kinds.distill import DistillConfig
from raydistill.kinds.method_options import MethodOptions, RampConfig
from raydistill.kinds.stage_bases import TrainingConfig
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch
from raydistill.training.method import LayersByMethod, Method


class Combined(Method):
    """The sum of methods. With more than one, a loss is called `method/loss`.

    `heard` are the numbers of the teachers that a method hears, where these are not all.
    """

    def __init__(
        self,
        methods: Sequence[Method],
        options: Sequence[MethodOptions],
        names: Sequence[str],
        heard: Sequence[Sequence[int] | None] = (),
    ) -> None:
        super().__init__()
        self.heard = dict(zip(methods, heard, strict=False))
        self.methods = nn.ModuleList(methods)
        self.options, self.names = tuple(options), tuple(names)
        self.student_features = _distinct(method.student_features for method in methods)
        self.teacher_features = _distinct(method.teacher_features for method in methods)
        self.stacks = all(method.stacks for _, _, method in self._used())
        self.waits_for_device = any(method.waits_for_device for _, _, method in self._used())
        self.host_work = next((method.host_work for _, _, method in self._used() if method.host_work), "")
        self.teacher_in_training_mode = any(method.teacher_in_training_mode for _, _, method in self._used())

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        for prefix, options, method in self._used():
            # A ramp at 0 still computes its losses: what training reaches may not depend on the epoch.
            weight = options.weight * (1.0 if options.ramp is None else ramp(options.ramp, batch.epoch))
            members = self.heard.get(method)
            said = teacher if teacher is None or members is None else teacher.of(members)
            own = method.losses(student, said, batch)
            terms |= {prefix + term: loss if weight == 1 else weight * loss for term, loss in own.items()}
        return terms

    def asked(self, batch: Batch, count: int) -> Sequence[int]:
        if any(self.heard.values()):  # each knows its teachers by their place among all
            return range(count)
        return sorted({number for _, _, method in self._used() for number in method.asked(batch, count)})

    def features_of(self, number: int) -> tuple[str, ...]:
        hearing = (
            method for method in self.methods if number in (self.heard.get(cast(Method, method)) or (number,))
        )
        return _distinct(cast(Method, method).teacher_features for method in hearing)

    def undecayed(self) -> Iterable[nn.Parameter]:
        return chain.from_iterable(method.undecayed() for _, _, method in self._used())

    def change(self, config: TrainingConfig) -> None:
        assert isinstance(config, DistillConfig)
        self.options = config.all_methods
        for method, options in zip(self.methods, self.options, strict=True):
            cast(Method, method).config = options

    def at_step(self, step: int) -> None:
        for _, _, method in self._used():
            method.at_step(step)

    def observations(self) -> dict[str, Tensor]:
        return {
            prefix + name: value
            for prefix, _, method in self._used()
            for name, value in method.observations().items()
        }

    def layers_by_method(self) -> LayersByMethod:
        """`compared_layers` of the methods that have any, by their words."""
        used = ((options.method, method.compared_layers) for _, options, method in self._used())
        return {word: pairs for word, pairs in used if pairs}

    def _used(self) -> Iterator[tuple[str, MethodOptions, Method]]:
        """The methods whose weight is not 0, each with the prefix of its losses' names."""
        for name, options, method in zip(self.names, self.options, self.methods, strict=True):
            if options.weight > 0:
                yield f"{name}/" if len(self.names) > 1 else "", options, cast(Method, method)


def ramp(config: RampConfig, epoch: int) -> float:
    """The factor of a weight in an epoch, counted from 0."""
    part = min(epoch / config.epochs, 1.0)
    risen = {
        "linear": part,
        "cosine": (1 - math.cos(math.pi * part)) / 2,
        "exponential": math.exp(-5 * (1 - part) ** 2),
        "step": math.floor(part),
    }[config.shape]
    return config.start + (config.end - config.start) * risen


def _distinct(groups: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(chain.from_iterable(groups)))
