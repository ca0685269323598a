"""Population based training (Jaderberg et al. 2017, arXiv 1711.09846): whose turn it is, and who takes whose place.

A trial is a *segment*: one member's training during one round. Nobody waits for the slowest of a round: workers would
stand idle, and on a shared cluster for long. Instead a decision is made as late as it can be, when the member's next
segment is about to start, from all results of its last round that are known by then. Results are compared after
equally many epochs, however far some members have gone on. Members of the lowest round go first, so that with fewer
workers than members nearly all results are known.

What is drawn is a function of (seed, member, round), and what is decided of that and the records: a search that was
killed goes on with the decisions that were recorded, and makes the others from the same records.
"""

from collections.abc import Iterable, Sequence

from raydistill.kinds.searches import PopulationConfig
from raydistill.plan.search import Domain
from raydistill.runs.search_run import Segment, TrialRecord, best_first
from raydistill.search.points import Space, Values, fraction, random_point
from raydistill.search.suggestions import Suggestion

DRAWS = ("resample", "place", "direction")  # of every value of who takes another's place


class Population:
    """A `TrialSource`: `config.population` members that train for `epochs` epochs each."""

    def __init__(
        self, config: PopulationConfig, space: Space, epochs: int, records: Iterable[TrialRecord], mode: str
    ) -> None:
        self._config, self._space, self._epochs, self._mode = config, space, epochs, mode
        self._rounds = config.rounds(epochs)
        self._over: dict[tuple[int, int], TrialRecord] = {}
        self._open: dict[int, int] = {}  # the round that a member is in
        self._unfinished: list[TrialRecord] = []
        self._last = 0
        for record in records:
            self._last = max(self._last, record.number)
            if record.is_over:
                self.tell(record)
            else:
                self._unfinished.append(record)

    @property
    def left(self) -> int:
        """How many segments are still to begin."""
        return self._config.population * self._rounds - len(self._over) - len(self._open)

    @property
    def is_waiting(self) -> bool:
        """Whether some segment runs, after which there may be another."""
        return bool(self._open)

    def next(self) -> Suggestion | None:
        """A segment that was begun before, or else the next one of a member that is idle, lowest round first."""
        suggestion = self._next()
        if suggestion is not None and suggestion.segment is not None:
            self._open[suggestion.segment.member] = suggestion.segment.round
        return suggestion

    def tell(self, record: TrialRecord) -> None:
        """A segment is over."""
        assert record.segment is not None
        self._over[record.segment.member, record.segment.round] = record
        self._open.pop(record.segment.member, None)

    def _next(self) -> Suggestion | None:
        if self._unfinished:
            return Suggestion.again(self._unfinished.pop(0))
        for member, turn in self._idle():
            if (segment := self._segment(member, turn)) is not None:
                self._last += 1
                values = segment.history[max(segment.history)]
                return Suggestion(id=segment.name, number=self._last, values=values, segment=segment)
        return None

    def _idle(self) -> list[tuple[int, int]]:
        """Members that do nothing, with the round that each comes to; lowest round first, then lowest member."""
        turns = [(member, self._turn(member)) for member in range(self._config.population)]
        idle = [(member, turn) for member, turn in turns if member not in self._open and turn < self._rounds]
        return sorted(idle, key=lambda pair: (pair[1], pair[0]))

    def _turn(self, member: int) -> int:
        """The first round that a member has not ended: of whose record somebody deleted, it is done again."""
        return next((turn for turn in range(self._rounds) if (member, turn) not in self._over), self._rounds)

    def _segment(self, member: int, turn: int) -> Segment | None:
        """What a member does in a round; None while it failed and there is nobody to take over from."""
        start, end = turn * self._config.every, (turn + 1) * self._config.every
        if turn == 0:
            history, donor = {0: random_point(self._space, self._config.seed, member)}, None
        else:
            own = self._over[member, turn - 1]
            donor = self._donor(own, turn)
            if donor is None and own.status == "failed":
                return None
            history = _history(own if donor is None else self._over[donor, turn - 1])
            if donor is not None:
                history[start] = self._explored(history[max(history)], member, turn)
        return Segment(
            member=member,
            round=turn,
            rounds=self._rounds,
            start=start,
            until=end if end < self._epochs else None,
            history=history,
            donor=donor,
        )

    def _donor(self, own: TrialRecord, turn: int) -> int | None:
        """Truncation selection: one of the best for a member that is among the worst of its last round or failed there;
        None for one that goes on by itself."""
        ranked = best_first(
            (record for (_, other), record in self._over.items() if other == turn - 1), self._mode
        )
        healthy = [record for record in ranked if record.status == "done"]
        count = self._config.replaced(len(ranked))
        is_worst = own.status == "failed" or own in ranked[len(ranked) - count :]
        if not is_worst:
            return None
        donors = [member_of(record) for record in healthy[: max(count, 1)] if record is not own]
        chosen = int(self._draw(member_of(own), turn, "donor") * len(donors))
        return donors[chosen] if donors else None

    def _explored(self, values: Values, member: int, turn: int) -> Values:
        """Other values near those of the donor, or anywhere."""
        return {
            path: self._moved(
                domain, values[path], [self._draw(member, turn, f"{kind} {path}") for kind in DRAWS]
            )
            for path, domain in self._space.items()
        }

    def _moved(self, domain: Domain, value: float, draws: Sequence[float]) -> float:
        resample, place, direction = draws
        if resample < self._config.resample:
            moved: float = domain.at(place)
            return moved
        return perturbed(domain, value, self._config.factors[int(direction * 2)])

    def _draw(self, member: int, turn: int, what: str) -> float:
        return fraction(self._config.seed, member, f"round {turn}: {what}")


def perturbed(domain: Domain, value: float, factor: float) -> float:
    """A value times a factor, within its domain; a whole number moves by one at least, a choice to its neighbour."""
    step = 1 if factor > 1 else -1
    if domain.choice is not None:
        ordered: list[float] = sorted(domain.choice)
        place = ordered.index(value) + step
        return ordered[min(max(place, 0), len(ordered) - 1)]
    moved = domain.tidy(value * factor)
    return domain.tidy(value + step) if domain.is_whole and moved == value else moved


def member_of(record: TrialRecord) -> int:
    """Whose segment a trial was."""
    assert record.segment is not None
    return record.segment.member


def _history(record: TrialRecord) -> dict[int, Values]:
    assert record.segment is not None
    return dict(record.segment.history)


def written_values(stage: str, segment: Segment) -> Values:
    """What a member's plan says, by paths below the plan's stages: its first values, its changes, and where it ends."""
    after, *later = sorted(segment.history)
    values, changes = segment.history[after], []
    for epoch in later:
        before, now = segment.history[after], segment.history[epoch]
        new = {path.removeprefix(f"{stage}."): now[path] for path in now if now[path] != before[path]}
        if new:
            changes.append({"after": epoch, "set": new})
        after = epoch
    options = {"changes": changes or None, "until": segment.until}
    return {**values, **{f"{stage}.{key}": value for key, value in options.items() if value is not None}}
