"""Optuna's tree-structured Parzen estimator behind our own record: told what every trial became, asked for the next.

Optuna is used itself, not through Ray Tune's `OptunaSearch`, so that a search draws the same with and without Ray, and
so that choices may be lists and sections: it sees their places, not their values.
"""

import json
import math
import warnings
from collections.abc import Iterable
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

from raydistill.kinds.searches import TpeConfig
from raydistill.plan.search import Domain
from raydistill.runs.search_run import TrialRecord, trial_id
from raydistill.search.points import Space, Values
from raydistill.tasks.hashing import fold_key


class Tpe:
    """A `Sampler`. Its random numbers depend on the seed and on how many trials there were when it began.

    `has_cost`: the logarithm of a trial's cost is a second number to make small. Costs of models lie decades apart, and
    Optuna weighs trials by the area that they add to the front: by the costs as they are, the largest model would.
    """

    def __init__(
        self,
        space: Space,
        config: TpeConfig,
        mode: str,
        records: Iterable[TrialRecord],
        *,
        has_cost: bool = False,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        over = [record for record in records if record.is_over]
        self._space = space
        self._distributions = {path: _distribution(domain) for path, domain in space.items()}
        seed = fold_key(config.seed, len(over)) % 2**32
        with warnings.catch_warnings():
            # What runs already is taken for bad: an experiment of Optuna 4.0, and none since.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=config.startup, multivariate=False, constant_liar=True
            )
        directions = ["maximize" if mode == "max" else "minimize", *(["minimize"] if has_cost else [])]
        self._study = optuna.create_study(directions=directions, sampler=sampler)
        self._has_cost = has_cost
        self._asked: dict[str, optuna.Trial] = {}
        self._drawn: dict[str, optuna.Trial] = {}
        for record in over:
            self.begin(record.values)
            self.tell(record)

    def draw(self) -> Values:
        """What Optuna would try next; values that are not begun are forgotten."""
        self._forget()
        trial = self._study.ask(self._distributions)
        values = {path: _value(self._space[path], trial.params[path]) for path in self._space}
        self._drawn = {trial_id(values): trial}
        return values

    def begin(self, values: Values) -> None:
        """Values that Optuna did not draw are told to it as if it had."""
        name = trial_id(values)
        if name in self._drawn:
            self._asked[name] = self._drawn.pop(name)
            return
        self._forget()
        self._study.enqueue_trial(
            {path: _parameter(self._space[path], value) for path, value in values.items()}
        )
        self._asked[name] = self._study.ask(self._distributions)

    def tell(self, record: TrialRecord) -> None:
        """The metric of a finished trial; the epochs of one that was stopped early; nothing of one that failed."""
        trial = self._asked.pop(record.id)
        if record.status == "done":
            self._study.tell(trial, self._values(record))
            return
        if record.status == "stopped_early":
            for epoch, value in record.epochs.items():
                trial.report(value, epoch)
        state = TrialState.PRUNED if record.status == "stopped_early" else TrialState.FAIL
        self._study.tell(trial, state=state)

    def _values(self, record: TrialRecord) -> list[float]:
        """What a finished trial is judged by."""
        assert record.metric is not None
        if not self._has_cost:
            return [record.metric]
        assert record.cost is not None
        return [record.metric, math.log(max(record.cost, 1.0))]

    def _forget(self) -> None:
        for trial in self._drawn.values():
            self._study.tell(trial, state=TrialState.FAIL)
        self._drawn = {}


def _distribution(domain: Domain) -> BaseDistribution:
    if domain.choice is not None:
        return CategoricalDistribution(range(len(domain.choice)))
    if domain.is_whole:
        return IntDistribution(int(domain.low), int(domain.high), log=domain.is_logarithmic)
    return FloatDistribution(domain.low, domain.high, log=domain.is_logarithmic)


def _value(domain: Domain, parameter: Any) -> Any:
    return domain.choice[parameter] if domain.choice is not None else domain.tidy(parameter)


def _parameter(domain: Domain, value: Any) -> Any:
    if domain.choice is None:
        return value
    texts = [json.dumps(option, sort_keys=True) for option in domain.choice]
    return texts.index(json.dumps(value, sort_keys=True))
