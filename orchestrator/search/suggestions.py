"""Which values are tried next, given what was tried: the same decisions for a new search and for one that goes on."""

from collections.abc import Iterable
from itertools import islice
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from raydistill.lookup import load_object
from raydistill.plan.search import SearchConfig
from raydistill.runs.search_run import Segment, TrialRecord, trial_id
from raydistill.search.points import Values, known_points

REPEATS = 20  # draws of values that were tried before, until a random point is taken instead


class Suggestion(BaseModel):
    """Values to try. A trial that was interrupted keeps its number."""

    model_config = ConfigDict(frozen=True)

    id: str
    number: int
    values: Values
    segment: Segment | None = None

    @classmethod
    def again(cls, record: TrialRecord) -> "Suggestion":
        """What a trial that is not over was about."""
        return cls(id=record.id, number=record.number, values=record.values, segment=record.segment)


class TrialSource(Protocol):
    """Where trials come from."""

    @property
    def left(self) -> int:
        """How many trials are still to begin."""
        ...

    @property
    def is_waiting(self) -> bool:
        """Whether there may be another trial once one that runs is over, though there is none now."""
        ...

    def next(self) -> Suggestion | None:
        """What to try now."""
        ...

    def tell(self, record: TrialRecord) -> None:
        """A trial is over."""
        ...


class Sampler(Protocol):
    """What draws points from what it was told about others."""

    def draw(self) -> Values:
        """A point; perhaps one that was drawn before."""
        ...

    def begin(self, values: Values) -> None:
        """These values are tried now, whoever chose them."""
        ...

    def tell(self, record: TrialRecord) -> None:
        """A trial is over."""
        ...


class Suggestions:
    """Unfinished trials first, then new points, never the same values twice, `config.trials` in all."""

    is_waiting = False

    def __init__(self, config: SearchConfig, records: Iterable[TrialRecord], mode: str) -> None:
        records = list(records)
        self._limit = config.trials
        self._unfinished = [record for record in records if not record.is_over]
        self._begun = {record.id for record in records if record.is_over}
        self._seen = {record.id for record in records}
        self._last = max((record.number for record in records), default=0)
        self._points = known_points(config)
        self._sampler: Sampler | None = None
        if not config.searcher.knows_points:
            build = load_object(config.searcher.implementation)
            told = {} if config.cost is None else {"has_cost": True}
            self._sampler = build(config.space, config.searcher, mode, records, **told)

    @property
    def left(self) -> int:
        """How many trials are still to begin."""
        return max(self._limit - len(self._begun), 0)

    def next(self) -> Suggestion | None:
        """What to try now; None when there have been enough."""
        if not self.left:
            return None
        suggestion = self._next()
        if suggestion is not None:
            self._begun.add(suggestion.id)
            self._seen.add(suggestion.id)
            if self._sampler is not None:
                self._sampler.begin(suggestion.values)
        return suggestion

    def tell(self, record: TrialRecord) -> None:
        """A trial is over."""
        if self._sampler is not None:
            self._sampler.tell(record)

    def _next(self) -> Suggestion | None:
        if self._unfinished:
            return Suggestion.again(self._unfinished.pop(0))
        values = self._new_values()
        if values is None:
            return None
        self._last += 1
        return Suggestion(id=trial_id(values), number=self._last, values=values)

    def _new_values(self) -> Values | None:
        for _ in range(REPEATS if self._sampler is not None else 0):
            assert self._sampler is not None
            values = self._sampler.draw()
            if trial_id(values) not in self._seen:
                return values
        # A space of few points in a continuous shell, such as 4 digits of a narrow range, may be used up as well.
        fresh = (values for values in islice(self._points, 100_000) if trial_id(values) not in self._seen)
        return next(fresh, None)
