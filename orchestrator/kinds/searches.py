"""How a search chooses values, and which of its trials it stops early."""

import math
from typing import Annotated

from pydantic import Field, model_validator

from raydistill.plan.config import Integer, Number, Positive, Seed
from raydistill.plan.config_errors import located_error
from raydistill.plan.search import SchedulerOptions, SearchConfig, SearcherOptions


class NoSchedulerConfig(SchedulerOptions):
    """Every trial trains to its end."""

    word = "none"
    implementation = "raydistill.search.ray_trials:no_scheduler"
    stops_trials = False
    decides_by_metric = False


class AshaConfig(SchedulerOptions):
    """Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934): after `grace` epochs, and then whenever a
    trial has trained `reduction` times as long, only the best 1 of `reduction` go on."""

    word = "asha"
    implementation = "raydistill.search.ray_trials:asha_scheduler"

    grace: Annotated[Integer, Field(ge=1)] = 1
    """Epochs before anything is stopped."""
    reduction: Annotated[Integer, Field(ge=2, le=10)] = 3
    """One of so many goes on at each look."""


class MedianConfig(SchedulerOptions):
    """Stop a trial whose best epoch is worse than the median of the others' running means (Golovin et al. 2017, Google
    Vizier, section 3.2.2), from epoch `grace` on and once `others` trials have come as far."""

    word = "median"
    implementation = "raydistill.search.ray_trials:median_scheduler"

    grace: Annotated[Integer, Field(ge=1)] = 1
    """Epochs before anything is stopped."""
    others: Annotated[Integer, Field(ge=1)] = 3
    """Trials that must have come as far."""


class PopulationConfig(SchedulerOptions):
    """Population based training (Jaderberg et al. 2017, arXiv 1711.09846): `population` members train side by side;
    `every` so many epochs the worst `quantile` take the place of some of the best, with their weights, and go on with
    other values.

    Values begin at random points of the space. A member that takes another's place has each of its values drawn anew
    with probability `resample`, else multiplied by one of the two `factors` (a `choice` moves to a neighbour). Only
    what may change while a stage trains can be searched, all of it of the metric's stage. What a member went through is
    written as `changes` of that stage: the best plan is an ordinary one.
    """

    word = "pbt"
    implementation = "raydistill.search.ray_trials:no_scheduler"
    stops_trials = False
    own_searcher = "random"

    every: Annotated[Integer, Field(ge=1)] = Field(description="epochs between two decisions")
    population: Annotated[Integer, Field(ge=2, le=1000)] = 8
    """Members that train side by side."""
    quantile: Annotated[Number, Field(gt=0, le=0.5)] = 0.25
    """Which part of them is replaced at each decision."""
    resample: Annotated[Number, Field(ge=0, le=1)] = 0.25
    """How often a value is drawn anew rather than multiplied."""
    factors: tuple[Positive, Positive] = (0.8, 1.2)
    """What a value is multiplied by: one of the two."""
    seed: Seed = 0
    """Chooses the values, and whom a member goes on from."""

    @model_validator(mode="after")
    def _someone_is_replaced(self) -> "PopulationConfig":
        if self.replaced(self.population) < 1:
            raise located_error(
                f"{self.quantile:g} of {self.population} members is nobody; raise it, or the `population`",
                "quantile",
            )
        return self

    def check_search(self, search: SearchConfig) -> None:
        if search.searcher != RandomConfig():
            raise located_error(
                "`pbt` draws values itself, at random; leave `searcher` out, its `seed` is that of `scheduler`",
                "searcher",
            )
        if search.samples is not None:
            raise located_error(
                "`pbt` trains the whole `population` of `scheduler` through all rounds; leave `samples` out",
                "samples",
            )

    def replaced(self, members: int) -> int:
        """How many of so many members are the worst, and how many the best."""
        return math.floor(self.quantile * members + 1e-9)  # 0.29 · 100 is 28.999…

    def rounds(self, epochs: int) -> int:
        """Into how many parts a training is divided; the last one may be shorter."""
        return -(-epochs // self.every)


class TpeConfig(SearcherOptions):
    """Tree-structured Parzen estimator (Optuna): draws near what was good, after `startup` random trials.

    With a `cost`, near what few others beat in both (Ozaki et al. 2022, "Multiobjective tree-structured Parzen
    estimator"); the cost counts by its logarithm.
    """

    word = "tpe"
    implementation = "raydistill.search.tpe:Tpe"
    weighs_cost = True

    seed: Seed = 0
    """Chooses the values."""
    startup: Annotated[Integer, Field(ge=1)] = 10
    """Random trials before the first that looks at others."""


class RandomConfig(SearcherOptions):
    """Random points, known in advance: a larger `samples` only adds to them."""

    word = "random"
    implementation = "raydistill.search.points:random_points"
    knows_points = True

    seed: Seed = 0
    """Chooses the values."""


class GridConfig(SearcherOptions):
    """Every combination of the values; the first path changes slowest."""

    word = "grid"
    implementation = "raydistill.search.points:grid_points"
    knows_points = True
    tries_all = True

    def check_search(self, search: SearchConfig) -> None:
        for path, domain in search.space.items():
            if domain.size is None:
                raise located_error(
                    f"a grid has no points in a continuous range; write a `choice`, not `{domain.kind}`",
                    "space",
                    path,
                )


SCHEDULERS = (NoSchedulerConfig, AshaConfig, MedianConfig, PopulationConfig)
SEARCHERS = (TpeConfig, RandomConfig, GridConfig)
