"""Population based training: who takes whose place, against a slow reading of the rules; and whole searches."""

import json
import math
import os
import random
import signal
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml

from raydistill.kinds.searches import PopulationConfig
from raydistill.plan.search import Domain
from raydistill.runs.search_run import Segment, TrialRecord
from raydistill.search import local_trials
from raydistill.search.population import Population, perturbed, written_values
from raydistill.search.suggestions import Suggestion

HEAT, RATE = "student.method.temperature", "student.optimizer.learning_rate"
SPACE = {HEAT: Domain(loguniform=(1, 20)), RATE: Domain(uniform=(0.001, 0.5))}
WRITTEN = {path: domain.model_dump(exclude_none=True) for path, domain in SPACE.items()}
EPOCHS, EVERY = 11, 3
Outcome = Callable[[Suggestion], float | None]


def population(records: list[TrialRecord] | None = None, mode: str = "max", **options: Any) -> Population:
    config = PopulationConfig.model_validate({"name": "pbt", "every": EVERY, **options})
    return Population(config, SPACE, EPOCHS, records or [], mode)


def record_of(suggestion: Suggestion, metric: float | None = None, status: Any = "done") -> TrialRecord:
    """What a search writes down; without a metric the segment failed."""
    status = "failed" if metric is None and status == "done" else status
    return TrialRecord(**dict(suggestion), metric=metric, status=status)


def segment_of(trial: Suggestion | TrialRecord) -> Segment:
    assert trial.segment is not None
    return trial.segment


def noise(suggestion: Suggestion) -> float | None:
    """A metric by chance, sometimes equal to another's; one of nine fails."""
    chance = random.Random(suggestion.id)
    return None if chance.random() < 1 / 9 else round(chance.random(), 1)


def play(
    members: Population, outcome: Outcome, workers: int = 1, seed: int = 0
) -> Iterator[tuple[Suggestion, list[TrialRecord]]]:
    """Run a search whose segments end in any order; yields each that begins, with the records of that moment."""
    chance, running, over = random.Random(seed), [], list[TrialRecord]()
    while True:
        while len(running) < workers and (suggestion := members.next()) is not None:
            yield suggestion, over + [record_of(other, status="interrupted") for other in running]
            running.append(suggestion)
        if not running:
            return
        ended = running.pop(chance.randrange(len(running)))
        over.append(record_of(ended, outcome(ended)))
        members.tell(over[-1])


def ranking(records: list[TrialRecord], turn: int, sign: int) -> list[int]:
    """Members from the worst to the best of a round, one comparison after another; of equals the later is worse."""
    known = [record for record in records if segment_of(record).round == turn and record.is_over]

    def is_worse(one: TrialRecord, other: TrialRecord) -> bool:
        if (one.metric is None) != (other.metric is None):
            return one.metric is None
        if one.metric is None or other.metric is None or one.metric == other.metric:
            return one.number > other.number
        return sign * one.metric < sign * other.metric

    found = list[int]()
    while known:
        worst = known[0]
        for record in known[1:]:
            worst = record if is_worse(record, worst) else worst
        found.append(segment_of(worst).member)
        known.remove(worst)
    return found


def has_failed(records: list[TrialRecord], member: int, turn: int) -> bool:
    return any(
        record.status == "failed"
        for record in records
        if segment_of(record).member == member and segment_of(record).round == turn
    )


@pytest.mark.parametrize("workers", [1, 3, 8])
@pytest.mark.parametrize(("mode", "sign"), [("max", 1), ("min", -1)])
@pytest.mark.parametrize("quantile", ["0.25", "0.4"])
def test_the_worst_take_the_place_of_some_of_the_best(
    workers: int, mode: str, sign: int, quantile: str
) -> None:
    replaced = 0
    for seed in range(6):
        members = population(mode=mode, quantile=float(quantile), seed=seed)
        for suggestion, records in play(members, noise, workers, seed):
            segment = segment_of(suggestion)
            if segment.round == 0:
                continue
            order = ranking(records, segment.round - 1, sign)
            count = math.floor(Fraction(quantile) * len(order))
            failed = has_failed(records, segment.member, segment.round - 1)
            healthy = [member for member in order if not has_failed(records, member, segment.round - 1)]
            assert (segment.donor is not None) == (failed or segment.member in order[:count])
            if segment.donor is not None:
                replaced += 1
                assert segment.donor in healthy[-max(count, 1) :]
                assert segment.donor != segment.member
    assert replaced > 10


def test_a_segment_is_a_part_of_its_donors_history_or_of_its_own() -> None:
    begun = dict[tuple[int, int], Segment]()
    for suggestion, _ in play(population(), noise, workers=3):
        segment = segment_of(suggestion)
        begun[segment.member, segment.round] = segment
        assert segment.start == segment.round * EVERY
        assert segment.until == (None if segment.round == 3 else segment.start + EVERY)
        assert suggestion.values == segment.history[max(segment.history)]
        if segment.round and segment.donor is None:
            assert segment.history == begun[segment.member, segment.round - 1].history
        elif segment.donor is not None:
            before = begun[segment.donor, segment.round - 1].history
            assert segment.history == before | {segment.start: suggestion.values}
    assert set(begun) == {(member, turn) for member in range(8) for turn in range(4)}


@pytest.mark.parametrize("resample", [0, 1, 0.25])
def test_values_of_a_new_place_are_near_the_donors_or_drawn_anew(resample: float) -> None:
    near, anew = list[float](), 0
    for seed in range(15):
        known = dict[tuple[int, int], dict[str, float]]()
        members = population(resample=resample, seed=seed)
        for suggestion, _ in play(members, noise, workers=4, seed=seed):
            segment = segment_of(suggestion)
            known[segment.member, segment.round] = suggestion.values
            for path, domain in SPACE.items() if segment.donor is not None else ():
                value, before = suggestion.values[path], known[segment.donor or 0, segment.round - 1][path]
                assert domain.low <= value <= domain.high
                bounds = {factor: min(max(factor * before, domain.low), domain.high) for factor in (0.8, 1.2)}
                found = [factor for factor, aim in bounds.items() if value == pytest.approx(aim, rel=1e-3)]
                near += found[:1]
                anew += not found
    share = anew / (anew + len(near))
    assert share == pytest.approx(resample, abs=0.08)
    if resample < 1:
        assert near.count(0.8) / len(near) == pytest.approx(0.5, abs=0.1)


def test_a_whole_number_moves_and_a_choice_goes_to_its_neighbour() -> None:
    whole, choice = Domain(integer=(1, 9)), Domain(choice=(5, 1, 3))
    assert [perturbed(whole, value, 1.2) for value in (1, 2, 8, 9)] == [2, 3, 9, 9]
    assert [perturbed(whole, value, 0.8) for value in (1, 2, 8)] == [1, 1, 6]
    assert [perturbed(choice, value, 1.2) for value in (1, 3, 5)] == [3, 5, 5]
    assert [perturbed(choice, value, 0.8) for value in (1, 3, 5)] == [1, 1, 3]


@pytest.mark.parametrize("workers", [1, 3])
def test_a_search_that_was_killed_decides_as_it_would_have(workers: int) -> None:
    for suggestion, records in play(population(), noise, workers):
        again = population([record for record in records if record.is_over])
        unfinished = [record for record in records if not record.is_over]
        resumed = population(records)
        assert [resumed.next() for _ in unfinished] == [Suggestion.again(record) for record in unfinished]
        for record in unfinished:  # the same segments are taken up first, whatever was decided then
            again.tell(record)
        assert resumed.next() == suggestion


def test_who_failed_waits_for_somebody_who_did_not() -> None:
    members = population(population=2, quantile=0.5)
    first, second = members.next(), members.next()
    assert first is not None
    assert second is not None
    members.tell(record_of(first, None))
    assert members.next() is None
    assert members.is_waiting
    members.tell(record_of(second, 0.5))
    found = members.next()
    assert found is not None
    assert (segment_of(found).member, segment_of(found).donor) == (0, 1)


def test_a_segment_of_which_the_record_was_deleted_is_done_again() -> None:
    *_, (_, records) = play(population(), lambda suggestion: 0.5)
    members = population([record for record in records if record.id != "member-03-round-2"])
    again = members.next()
    assert again is not None
    assert again.id == "member-03-round-2"


def test_nothing_is_left_to_wait_for_when_all_have_failed() -> None:
    members = population()
    assert len(list(play(members, lambda suggestion: None))) == 8
    assert members.next() is None
    assert not members.is_waiting


def test_members_of_the_lowest_round_go_first_and_nobody_waits_for_a_slow_one() -> None:
    members = population(population=4)
    slow, *others = [members.next() for _ in range(4)]
    for turn in range(1, 4):
        for suggestion in others:
            assert suggestion is not None
            members.tell(record_of(suggestion, 0.5))
        others = [members.next() for _ in others]
        assert [segment_of(each).round for each in others if each is not None] == [turn] * 3
    assert slow is not None
    members.tell(record_of(slow, 0.9))
    found = members.next()
    assert found is not None
    assert (segment_of(found).member, segment_of(found).round) == (0, 1)


def test_a_members_plan_has_its_first_values_and_every_change_that_is_one() -> None:
    first = {HEAT: 4.0, RATE: 0.1}
    history = {0: first, 2: {HEAT: 5.0, RATE: 0.1}, 4: {HEAT: 5.0, RATE: 0.1}, 6: {HEAT: 3.0, RATE: 0.2}}
    segment = Segment(member=0, round=3, rounds=9, start=6, until=8, history=history)
    assert written_values("student", segment) == {
        **first,
        "student.changes": [
            {"after": 2, "set": {"method.temperature": 5.0}},
            {"after": 6, "set": {"method.temperature": 3.0, "optimizer.learning_rate": 0.2}},
        ],
        "student.until": 8,
    }
    last = segment.model_copy(update={"history": {0: first}, "until": None})
    assert written_values("student", last) == first


def pbt(**options: Any) -> dict[str, Any]:
    return {"name": "pbt", "population": 4, "every": 2, **options}


@pytest.fixture
def tune(bench: Any) -> Callable[..., Any]:
    """A search over temperatures, of stages that only answer, in three rounds; the best temperature is 5."""
    bench.plan["stages"]["student"]["epochs"] = 5

    def search(space: Any = None, **options: Any) -> Any:
        bench.write(space or {HEAT: {"loguniform": [1, 20]}}, scheduler=pbt(**options))
        del bench.plan["search"]["searcher"]
        bench.file.write_text(json.dumps(bench.plan))
        return bench.invoke("tune", "--local")

    return search


def test_a_search_ends_with_a_plan_that_is_done(bench: Any, tune: Callable[..., Any]) -> None:
    result = tune()
    assert result.exit_code == 0, result.output
    trials, best = bench.trials(), bench.best
    assert len(trials) == 12
    assert bench.calls.count("teacher") == 1
    assert best.metric == max(trial.metric for trial in trials if segment_of(trial).round == 2)
    assert "member 3, round 2/3" in result.output
    written = yaml.safe_load(bench.run.best_plan.read_text())["stages"]["student"]
    winner = next(trial for trial in trials if trial.id == best.trial)
    assert "until" not in written
    assert len(written.get("changes", [])) == len(segment_of(winner).history) - 1
    calls = bench.calls
    assert bench.invoke("run", "--local", file=bench.run.best_plan).exit_code == 0
    assert tune().exit_code == 0
    assert (bench.calls, bench.trials()) == (calls, trials)


def test_trials_have_the_values_and_the_epochs_of_their_segment(bench: Any, tune: Callable[..., Any]) -> None:
    tune()
    for trial in bench.trials():
        segment = segment_of(trial)
        assert sorted(trial.epochs) == list(range(segment.start + 1, (segment.until or 5) + 1))
        assert trial.metric == pytest.approx(1 - abs(trial.values[HEAT] - 5) / 100)
        assert trial.id == segment.name


def test_a_member_that_fails_takes_anothers_place(bench: Any, tune: Callable[..., Any]) -> None:
    result = tune({HEAT: {"uniform": [0.01, 3]}}, resample=0)
    assert result.exit_code == 0, result.output
    failed = [segment_of(trial) for trial in bench.trials() if trial.status == "failed"]
    assert failed
    replaced = {(segment_of(trial).member, segment_of(trial).round): trial for trial in bench.trials()}
    for segment in failed:
        if segment.round < 2:
            assert segment_of(replaced[segment.member, segment.round + 1]).donor is not None


def test_a_search_of_which_all_members_fail_has_failed(bench: Any, tune: Callable[..., Any]) -> None:
    assert tune({HEAT: {"uniform": [0.1, 0.9]}}).exit_code == 1
    assert [trial.status for trial in bench.trials()] == ["failed"] * 4
    assert bench.search().status == "failed"


def test_an_interrupted_search_goes_on_as_if_it_had_not_been(
    bench: Any, tune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tune()
    whole, bench.root = bench.trials(), tmp_path / "again"
    plain = local_trials.run_trial

    def interrupting(*arguments: Any, **options: Any) -> Any:
        if len(bench.trials()) in (3, 7):
            os.kill(os.getpid(), signal.SIGINT)
        return plain(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(local_trials, "run_trial", interrupting)
        assert tune().exit_code == 130
    assert tune().exit_code == 0
    decided = [
        [(trial.number, trial.segment, trial.metric) for trial in trials]
        for trials in (whole, bench.trials())
    ]
    assert decided[0] == decided[1]


def test_a_time_budget_ends_with_the_best_of_the_round_that_was_reached(
    bench: Any, tune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = local_trials.run_trial

    def last(*arguments: Any, **options: Any) -> Any:
        if len(bench.trials()) == 7:
            options["stop"]._ending._deadline = 0.0
        return plain(*arguments, **options)

    monkeypatch.setattr(local_trials, "run_trial", last)
    bench.plan["stages"]["student"]["epochs"] = 5
    bench.write({HEAT: {"loguniform": [1, 20]}}, scheduler=pbt(), time_budget="1h")
    assert bench.invoke("tune", "--local").exit_code == 0
    second = [trial for trial in bench.trials() if segment_of(trial).round == 1 and trial.status == "done"]
    assert bench.best.metric == max(trial.metric for trial in second)
    assert yaml.safe_load(bench.run.best_plan.read_text())["stages"]["student"]["until"] == 4


def test_more_members_or_other_rules_are_another_search(bench: Any, tune: Callable[..., Any]) -> None:
    fingerprints = set[str]()
    for options in ({}, {"population": 5}, {"every": 3}, {"seed": 1}, {"factors": [0.5, 2]}):
        bench.write({HEAT: {"loguniform": [1, 20]}}, scheduler=pbt(**options))
        fingerprints.add(bench.problem().fingerprint)
    assert len(fingerprints) == 5


def log_of(bench: Any, trial: TrialRecord) -> str:
    (folder,) = trial.stages.values()
    text: str = (bench.root / folder / "log.txt").read_text()
    return text


def check_real_search(bench: Any, tmp_path: Path) -> None:
    """Segments went on from others' checkpoints, and the winner is what training from scratch makes of its plan."""
    trials, metrics = bench.trials(), bench.best.metrics
    assert {trial.status for trial in trials} == {"done"}
    assert any(segment_of(trial).donor is not None for trial in trials)
    assert all(
        ("begins as `distill-" in log_of(bench, trial)) == (segment_of(trial).round > 0) for trial in trials
    )
    again = bench.invoke("run", "--local", file=bench.run.best_plan)
    assert again.exit_code == 0, again.output
    assert {entry["status"] for entry in bench.results("p-best")["stages"].values()} == {"cached"}
    best, bench.root = bench.run.best_plan, tmp_path / "elsewhere"
    assert bench.invoke("run", "--local", file=best).exit_code == 0
    assert bench.results("p-best")["stages"]["student"]["metrics"] == metrics


@pytest.mark.slow
def test_the_winner_is_what_its_plan_makes_from_scratch(
    real_bench: Callable[..., Any], tmp_path: Path
) -> None:
    bench = real_bench(epochs=6)
    result = bench.tune(WRITTEN, "--local", scheduler=pbt())
    assert result.exit_code == 0, result.output
    check_real_search(bench, tmp_path)


@pytest.mark.ray
def test_a_population_trains_on_ray(
    ray_cluster: None, real_bench: Callable[..., Any], tmp_path: Path
) -> None:
    bench = real_bench(epochs=6)
    result = bench.tune(WRITTEN, scheduler=pbt(quantile=0.5), concurrency=2)
    assert result.exit_code == 0, result.output
    assert sorted((segment_of(trial).member, segment_of(trial).round) for trial in bench.trials()) == [
        (member, turn) for member in range(4) for turn in range(3)
    ]
    check_real_search(bench, tmp_path)
