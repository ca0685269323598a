"""What a search leaves on disk, and what of it a damaged or foreign file can spoil: nothing."""

from pathlib import Path

import pytest

from raydistill.runs.search_run import SearchRun, Segment, TrialRecord, TrialStatus, best_first
from raydistill.runs.search_view import searches
from raydistill.search_tables import left_out, told_exchanges, took


def record_of(number: int, status: TrialStatus = "done", metric: float | None = None) -> TrialRecord:
    return TrialRecord(
        id=f"{number:08x}", number=number, values={"student.seed": number}, status=status, metric=metric
    )


@pytest.fixture
def run(tmp_path: Path) -> SearchRun:
    run = SearchRun(tmp_path, "p", "0123456789ab")
    run.begin()
    return run


def test_a_record_comes_back_as_it_was_written(run: SearchRun) -> None:
    record = record_of(1, metric=0.1 + 0.2).model_copy(
        update={"epochs": {1: 0.1, 20: 0.3}, "values": {"a": [1, {"b": None}], "c": 2.5, "d": 3}}
    )
    run.write_trial(record)
    assert run.trials() == [record]


def test_what_a_dead_driver_left_as_running_is_interrupted(run: SearchRun) -> None:
    for number, status in enumerate(("running", "done", "failed", "stopped_early"), start=1):
        run.write_trial(record_of(number, status))  # type: ignore[arg-type]
    run.interrupt_running()
    assert [record.status for record in run.trials()] == ["interrupted", "done", "failed", "stopped_early"]


def test_a_damaged_record_is_no_record(run: SearchRun) -> None:
    run.write_trial(record_of(1))
    (run.folder / "trials" / "ffffffff.json").write_text('{"id": "ffffffff", "number"')
    (run.folder / "trials" / "eeeeeeee.json").write_text('{"id": "eeeeeeee"}')
    assert [record.number for record in run.trials()] == [1]


def test_the_best_is_the_first_finished_one_that_nobody_beats() -> None:
    records = [
        record_of(1, metric=0.5),
        record_of(2, "stopped_early", 0.9),
        record_of(3, metric=0.7),
        record_of(4, "failed"),
        record_of(5, metric=0.7),
    ]
    assert [record.number for record in best_first(records, "max")] == [3, 5, 1, 2, 4]
    assert [record.number for record in best_first(records, "min")] == [1, 3, 5, 2, 4]


def test_searches_of_a_plan_are_found(run: SearchRun) -> None:
    assert searches(run.root, "p") == []
    run.write({"plan": "p"})
    other = SearchRun(run.root, "p-large", "0123456789ab")
    other.begin()
    other.write({"plan": "p-large"})
    assert searches(run.root, "p") == [run.folder]


def test_trials_that_the_table_leaves_out_are_counted() -> None:
    assert left_out([record_of(number) for number in range(10)]) == ""
    assert left_out([record_of(number) for number in range(14)]).startswith("and 4 more")


def test_a_population_that_made_no_exchange_says_so_and_why() -> None:
    def segment(member: int, turn: int, donor: int | None = None) -> TrialRecord:
        part = Segment(
            member=member, round=turn, rounds=2, start=turn, until=None, history={0: {}}, donor=donor
        )
        return record_of(2 * turn + member).model_copy(update={"segment": part})

    first = [segment(member, 0) for member in range(2)]
    assert told_exchanges([record_of(1)]) == ""
    assert told_exchanges(first) == "", "nobody could have"
    assert told_exchanges([*first, segment(0, 1), segment(1, 1, donor=0)]) == ""
    assert "as many workers as members" in told_exchanges([*first, segment(0, 1), segment(1, 1)])


def test_seconds_of_earlier_sessions_are_told_apart() -> None:
    assert took(12.0, 12.0) == "12.0 s"
    assert took(100.0, 12.0) == "12.0 s (100.0 s with earlier sessions)"
