"""What a search may vary, how it chooses, and when it ends: the `search` section of a plan."""

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raydistill.errors import did_you_mean
from raydistill.kinds.training import ResourcesConfig
from raydistill.plan.config import ChosenBy, Config, Duration, Integer, Number, Positive, Seed, seconds_of
from raydistill.plan.mistakes import located_error, shown

DIGITS = 4  # significant digits of a drawn number: more say nothing, and nobody reads them


class Domain(Config):
    """The values that one option may take: numbers of a range, evenly or by their logarithm, or a `choice` of any
    values (numbers, names, lists of teachers, whole sections).

    Exactly one of the keys is written: `{loguniform: [1, 20]}`.
    """

    uniform: tuple[Number, Number] | None = None
    """From the one number to the other, evenly."""
    loguniform: tuple[Number, Number] | None = None
    """From the one number to the other, evenly by their logarithm."""
    integer: tuple[Integer, Integer] | None = None
    """Whole numbers from the one to the other, both included, evenly."""
    log_integer: tuple[Integer, Integer] | None = None
    """Whole numbers from the one to the other, evenly by their logarithm."""
    choice: tuple[Any, ...] | None = None
    """One of these values."""

    @model_validator(mode="after")
    def _one_kind(self) -> "Domain":
        kinds = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(kinds) != 1:
            found = " and ".join(f"`{name}`" for name in kinds) or "nothing"
            raise located_error(f"write one of `uniform`, `loguniform`, `integer`, `choice`, not {found}")
        return self

    @model_validator(mode="after")
    def _not_empty(self) -> "Domain":
        if self.choice is not None:
            _check_choice(self.choice)
        elif not self.low < self.high:
            raise located_error(
                f"the range from {self.low:g} to {self.high:g} is empty; write the smaller number first",
                self.kind,
            )
        elif self.is_logarithmic and self.low <= 0:
            raise located_error(
                f"a logarithmic range begins above 0, not at {self.low:g}; raise it, or take"
                f" `{self.kind.removeprefix('log').removeprefix('_').replace('log', '')}`",
                self.kind,
            )
        return self

    @property
    def kind(self) -> str:
        """The key that is written."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def low(self) -> float:
        """The lower end of a range."""
        return float(getattr(self, self.kind)[0])

    @property
    def high(self) -> float:
        """The upper end of a range, which belongs to it."""
        return float(getattr(self, self.kind)[1])

    @property
    def is_logarithmic(self) -> bool:
        """Whether numbers are drawn evenly by their logarithm."""
        return self.kind.startswith("log")

    @property
    def is_whole(self) -> bool:
        """Whether the numbers are integers."""
        return self.kind in ("integer", "log_integer")

    @property
    def size(self) -> int | None:
        """How many values there are; None for a continuous range."""
        if self.choice is not None:
            return len(self.choice)
        return int(self.high) - int(self.low) + 1 if self.is_whole else None

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that stand for all when the plan is checked: every choice, or both ends of a range."""
        return (
            self.choice if self.choice is not None else tuple(self.tidy(end) for end in (self.low, self.high))
        )

    def nth(self, index: int) -> Any:
        """The value number `index` of a finite domain."""
        return self.choice[index] if self.choice is not None else int(self.low) + index

    def at(self, fraction: float) -> Any:
        """The value at a fraction in [0, 1) of the domain."""
        if self.choice is not None:
            return self.choice[int(fraction * len(self.choice))]
        # An integer owns the half-open stretch of one around it, also on the logarithmic scale.
        low, high = (self.low - 0.5, self.high + 0.5) if self.is_whole else (self.low, self.high)
        if not self.is_logarithmic:
            return self.tidy(low + fraction * (high - low))
        return self.tidy(math.exp(math.log(low) + fraction * (math.log(high) - math.log(low))))

    def tidy(self, number: float) -> float | int:
        """A number of the range as it is written into a plan."""
        bounded = min(max(number, self.low), self.high)
        if self.is_whole:
            return round(bounded)
        return min(max(float(f"{bounded:.{DIGITS}g}"), self.low), self.high)


def _check_choice(choice: tuple[Any, ...]) -> None:
    if not choice:
        raise located_error("an empty choice; write its values", "choice")
    seen: set[str] = set()
    for index, option in enumerate(choice):
        try:
            text = json.dumps(option, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError):
            raise located_error(f"{shown(option)} is no plain value; quote text", "choice", index) from None
        if text in seen:
            raise located_error(f"{shown(option)} is listed twice; keep one", "choice", index)
        seen.add(text)


class NoSchedulerConfig(Config):
    """Every trial trains to its end."""

    name: Literal["none"] = "none"


class AshaConfig(Config):
    """Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934): after `grace` epochs, and then whenever a
    trial has trained `reduction` times as long, only the best 1 of `reduction` go on."""

    name: Literal["asha"]
    grace: Annotated[Integer, Field(ge=1)] = 1
    """Epochs before anything is stopped."""
    reduction: Annotated[Integer, Field(ge=2, le=10)] = 3
    """One of so many goes on at each look."""


class MedianConfig(Config):
    """Stop a trial whose best epoch is worse than the median of the others' running means (Golovin et al. 2017, Google
    Vizier, section 3.2.2), from epoch `grace` on and once `others` trials have come as far."""

    name: Literal["median"]
    grace: Annotated[Integer, Field(ge=1)] = 1
    """Epochs before anything is stopped."""
    others: Annotated[Integer, Field(ge=1)] = 3
    """Trials that must have come as far."""


class PopulationConfig(Config):
    """Population based training (Jaderberg et al. 2017, arXiv 1711.09846): `population` members train side by side;
    `every` so many epochs the worst `quantile` take the place of some of the best, with their weights, and go on with
    other values.

    Values begin at random points of the space. A member that takes another's place has each of its values drawn anew
    with probability `resample`, else multiplied by one of the two `factors` (a `choice` moves to a neighbour). Only
    what may change while a stage trains can be searched, all of it of the metric's stage. What a member went through is
    written as `changes` of that stage: the best plan is an ordinary one.
    """

    name: Literal["pbt"]
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

    def replaced(self, members: int) -> int:
        """How many of so many members are the worst, and how many the best."""
        return math.floor(self.quantile * members + 1e-9)  # 0.29 · 100 is 28.999…

    def rounds(self, epochs: int) -> int:
        """Into how many parts a training is divided; the last one may be shorter."""
        return -(-epochs // self.every)


class TpeConfig(Config):
    """Tree-structured Parzen estimator (Optuna): draws near what was good, after `startup` random trials."""

    name: Literal["tpe"] = "tpe"
    seed: Seed = 0
    """Chooses the values."""
    startup: Annotated[Integer, Field(ge=1)] = 10
    """Random trials before the first that looks at others."""


class RandomConfig(Config):
    """Random points, known in advance: a larger `samples` only adds to them."""

    name: Literal["random"]
    seed: Seed = 0
    """Chooses the values."""


class GridConfig(Config):
    """Every combination of the values; the first path changes slowest."""

    name: Literal["grid"]


class SearchConfig(Config):
    """Which options of which stages a search varies, what it looks at, and for how long.

    A path in `space` begins with a stage's name: `student.method.temperature`. `metric` is
    `STAGE.validation/accuracy` (or loss, errors, ece), of the student when left out; the test split is never looked
    at. `samples` counts trials, those of earlier runs of the search included (all points of a grid when left out, else
    20). `seeds` trains that many replicas of the metric's stage per trial and judges their mean; left out, as many
    as the stage has. `resources` are those of a trial's trainings; left out, a trial runs in one process with those of
    the metric's stage, or, where a stage of it asks for `workers` or trains peers side by side, on workers of its own
    with what its stages ask for.
    """

    space: dict[str, Domain] = Field(min_length=1)
    """What is varied: paths that begin with a stage's name, each with a domain."""
    metric: str | None = None
    """What a trial is judged by; validation accuracy of the student when left out."""
    mode: Literal["max", "min"] | None = None
    """Whether more or less of it is better; known for our own metrics when left out."""
    samples: Annotated[Integer, Field(ge=1)] | None = None
    """How many trials, earlier ones included."""
    time_budget: Duration | None = None
    """No trial starts after this, and those that run stop."""
    scheduler: Annotated[
        NoSchedulerConfig | AshaConfig | MedianConfig | PopulationConfig, ChosenBy("name", "scheduler")
    ] = NoSchedulerConfig()
    """Which trials are stopped early."""
    searcher: Annotated[TpeConfig | RandomConfig | GridConfig, ChosenBy("name", "searcher")] = TpeConfig()
    """How values are chosen."""
    concurrency: Annotated[Integer, Field(ge=1, le=10_000)] | None = None
    """Trials at the same time; as many as there is room for when left out."""
    seeds: Annotated[Integer, Field(ge=1, le=1000)] | None = None
    """Replicas of the metric's stage per trial, judged by their mean."""
    resources: ResourcesConfig | None = None
    """Of a trial; those of the metric's stage when left out."""

    @model_validator(mode="before")
    @classmethod
    def _paths_are_paths(cls, raw: Any) -> Any:
        space = raw.get("space") if isinstance(raw, Mapping) else None
        for path, domain in space.items() if isinstance(space, Mapping) else ():
            if isinstance(domain, Mapping) and not set(domain) & set(Domain.model_fields):
                first = next(iter(domain), "")
                known = did_you_mean(str(first), Domain.model_fields)
                raise located_error(f"`{first}` is no domain{known}", "space", path)
        return raw

    @model_validator(mode="before")
    @classmethod
    def _a_population_draws_at_random(cls, raw: Any) -> Any:
        scheduler = raw.get("scheduler") if isinstance(raw, Mapping) else None
        name = scheduler.get("name") if isinstance(scheduler, Mapping) else None
        return {"searcher": {"name": "random"}, **raw} if name == "pbt" else raw

    @model_validator(mode="after")
    def _a_population_has_its_own_numbers(self) -> "SearchConfig":
        if not isinstance(self.scheduler, PopulationConfig):
            return self
        if self.searcher != RandomConfig(name="random"):
            raise located_error(
                "`pbt` draws values itself, at random; leave `searcher` out, its `seed` is that of `scheduler`",
                "searcher",
            )
        if self.samples is not None:
            raise located_error(
                "`pbt` trains the whole `population` of `scheduler` through all rounds; leave `samples` out",
                "samples",
            )
        return self

    @model_validator(mode="after")
    def _grid_is_finite(self) -> "SearchConfig":
        for path, domain in self.space.items():
            if isinstance(self.searcher, GridConfig) and domain.size is None:
                raise located_error(
                    f"a grid has no points in a continuous range; write a `choice`, not `{domain.kind}`",
                    "space",
                    path,
                )
        return self

    @property
    def size(self) -> int | None:
        """How many points the space has; None with a continuous range."""
        sizes = [domain.size for domain in self.space.values()]
        return None if None in sizes else math.prod(size for size in sizes if size is not None)

    @property
    def trials(self) -> int:
        """How many trials the search has when nothing ends it before."""
        wanted = self.samples
        if wanted is None:
            wanted = self.size if isinstance(self.searcher, GridConfig) and self.size else 20
        return wanted if self.size is None else min(wanted, self.size)

    @property
    def budget_seconds(self) -> float | None:
        """The time budget in seconds."""
        return None if self.time_budget is None else seconds_of(self.time_budget)
