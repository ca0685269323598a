"""What a search may vary, how it chooses, and when it ends: the `search` section of a plan."""

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from raydistill.errors import did_you_mean
from raydistill.plan.config import Config, Duration, Integer, Number, seconds_of
from raydistill.plan.config_errors import located_error, shown
from raydistill.plan.kind import Choice, Kind
from raydistill.plan.resources import ResourcesConfig

Cost = Literal["parameters", "multiply_adds", "bytes", "latency"]
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

    def may_be(self, value: Any) -> bool:
        """Whether `value` is one of the choices, or a number; a population's may have left the range."""
        if self.choice is not None:
            text = json.dumps(value, sort_keys=True)
            return any(json.dumps(option, sort_keys=True) == text for option in self.choice)
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

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


class SchedulerOptions(Kind):
    """What decides which trials go on.

    `implementation` is called as `function(config, **told)` and returns a scheduler of Ray Tune; `told` are its
    `time_attr`, `metric` and `mode`, and `longest`, the most epochs that a trial trains.
    """

    chosen_by = Choice("name", "scheduler", "schedulers", "raydistill.kinds.searches:SCHEDULERS")

    name: str = ""
    """Which one; its options stand beside it."""

    stops_trials: ClassVar[bool] = True
    """Whether it ends trials by what they report after every epoch: trials that run side by side."""
    decides_by_metric: ClassVar[bool] = True
    """Whether it compares trials by one number, so that a `cost` beside it would not be heard."""
    own_searcher: ClassVar[str | None] = None
    """The word of the searcher that goes with it, where it draws the values itself."""

    def check_search(self, search: "SearchConfig") -> None:
        """`located_error` below `search` for what does not go with it."""


class SearcherOptions(Kind):
    """What chooses the values of trials.

    `implementation` is a class, built as `Sampler(space, config, mode, records)`: see `search.suggestions.Sampler`. One
    that `weighs_cost` is also given `has_cost=True` where the search has a `cost`, which the records hold. Or, where
    all points are known in advance, a function from the `SearchConfig` to them.
    """

    chosen_by = Choice("name", "searcher", "searchers", "raydistill.kinds.searches:SEARCHERS")

    name: str = ""
    """Which one; its options stand beside it."""

    knows_points: ClassVar[bool] = False
    """Whether it knows all points in advance, whatever trials show."""
    weighs_cost: ClassVar[bool] = False
    """Whether it learns from the costs of trials as well as from their metric."""
    tries_all: ClassVar[bool] = False
    """Whether it has as many points as the space."""

    def check_search(self, search: "SearchConfig") -> None:
        """`located_error` below `search` for what does not go with it."""


class SearchConfig(Config):
    """Which options of which stages a search varies, what it looks at, and for how long.

    A path in `space` begins with a stage's name: `student.method.temperature`. `metric` is
    `STAGE.validation/accuracy`, or any other metric in its place (`student.validation/macro_f1`); accuracy of the
    student when left out. The test split is never looked at. With a `cost`, the result is the front: all trials that no
    other beats in both; of those the one with the best metric is the winner. `samples` counts trials, those of earlier
    runs of the search included (all points of a grid when left out, else 20). `seeds` trains that many replicas of the
    metric's stage per trial and judges their mean; left out, as many as the stage has. `resources` are those of a
    trial's trainings; left out, a trial runs in one process with those of the metric's stage, or, where a stage of it
    asks for `workers` or trains peers side by side, on workers of its own with what its stages ask for.
    """

    space: dict[str, Domain] = Field(min_length=1)
    """What is varied: paths that begin with a stage's name, each with a domain."""
    metric: str | None = None
    """What a trial is judged by; validation accuracy of the student when left out."""
    mode: Literal["max", "min"] | None = None
    """Whether more or less of it is better; known for our own metrics when left out."""
    cost: Cost | None = None
    """What the model of the metric's stage costs, less is better: its `parameters`, `multiply_adds` for one input,
    `bytes` on disk, or `latency`, the seconds of one input on one processor, measured when no trial runs."""
    samples: Annotated[Integer, Field(ge=1)] | None = None
    """How many trials, earlier ones included."""
    time_budget: Duration | None = None
    """No trial starts after this, and those that run stop."""
    scheduler: SchedulerOptions = Field(default_factory=SchedulerOptions.usual)
    """Which trials are stopped early."""
    searcher: SearcherOptions = Field(default_factory=SearcherOptions.usual)
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
    def _some_draw_values_themselves(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping) or raw.get("scheduler") is None:
            return raw
        scheduler = SchedulerOptions.validated(raw["scheduler"], "scheduler")
        own = {} if scheduler.own_searcher is None else {"searcher": {"name": scheduler.own_searcher}}
        return {**own, **raw, "scheduler": scheduler}

    @model_validator(mode="after")
    def _all_goes_together(self) -> "SearchConfig":
        self.scheduler.check_search(self)
        self.searcher.check_search(self)
        if self.cost is not None:
            self._check_cost()
        return self

    def _check_cost(self) -> None:
        if self.scheduler.decides_by_metric:
            raise located_error(
                f"`{self.scheduler.name}` compares trials by the metric alone, and would end the cheap ones; leave it"
                " out, or `cost`",
                "scheduler",
            )
        if self.searcher.knows_points:
            return
        if not self.searcher.weighs_cost:
            raise located_error(
                f"`{self.searcher.name}` learns from the metric alone; take `tpe`, `random` or `grid` with a `cost`",
                "searcher",
            )
        if self.cost == "latency":
            raise located_error(
                f"`{self.searcher.name}` learns from costs while trials run, and a latency is measured after them;"
                " take `random` or `grid`, or `cost: multiply_adds`",
                "cost",
            )

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
            wanted = self.size if self.searcher.tries_all and self.size else 20
        return wanted if self.size is None else min(wanted, self.size)

    @property
    def budget_seconds(self) -> float | None:
        """The time budget in seconds."""
        return None if self.time_budget is None else seconds_of(self.time_budget)
