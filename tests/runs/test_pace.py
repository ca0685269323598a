"""How far a stage is, from lines that are written here as a stage writes them."""

import json
from pathlib import Path

import pytest

from raydistill.runs.pace import Pace, Standing

NOON = 1_795_000_000.0


class Clock:
    """A clock that is set by hand; the stage begins at `NOON`."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


def write(folder: Path, **line: float) -> None:
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({key.replace("__", "/"): value for key, value in line.items()}) + "\n")


def test_two_epochs_tell_how_long_the_others_take(tmp_path: Path) -> None:
    clock = Clock()
    pace = Pace(tmp_path, 10, clock)
    assert pace.standing() == Standing(epochs=10)
    clock.now = NOON + 40
    write(tmp_path, step=100, time=NOON + 30, epoch=1, train__loss=0.5)  # imports were 20 s of it
    write(tmp_path, step=200, time=NOON + 40, epoch=2, train__loss=0.25)
    assert pace.standing() == Standing(epoch=2, epochs=10, loss=0.25, seconds_left=80.0)
    clock.now = NOON + 45
    assert pace.standing().seconds_left == 75.0


def test_losses_within_an_epoch_move_the_end_too(tmp_path: Path) -> None:
    clock = Clock()
    pace = Pace(tmp_path, 4, clock)
    clock.now = NOON + 20
    write(tmp_path, step=100, time=NOON + 10, epoch=1, train__loss=0.5)
    write(tmp_path, step=150, time=NOON + 20, steps__loss=0.4)
    assert pace.standing() == Standing(epoch=1, epochs=4, loss=0.4, seconds_left=50.0)


def test_a_resumed_stage_does_not_count_the_time_when_nobody_trained(tmp_path: Path) -> None:
    write(tmp_path, step=100, time=NOON - 90_000, epoch=1, train__loss=0.9)
    clock = Clock()
    pace = Pace(tmp_path, 4, clock)
    clock.now = NOON + 20
    write(tmp_path, step=200, time=NOON + 10, epoch=2, train__loss=0.5)
    assert pace.standing() == Standing(epoch=2, epochs=4, loss=0.5)
    clock.now = NOON + 30
    write(tmp_path, step=300, time=NOON + 30, epoch=3, train__loss=0.4)
    assert pace.standing().seconds_left == 20.0


def test_lines_that_were_copied_from_a_shorter_training_are_no_pace(tmp_path: Path) -> None:
    clock = Clock()
    pace = Pace(tmp_path, 4, clock)
    clock.now = NOON + 20
    write(tmp_path, step=100, time=NOON - 500, epoch=1, train__loss=0.9)
    write(tmp_path, step=200, time=NOON + 10, epoch=2, train__loss=0.5)
    assert pace.standing() == Standing(epoch=2, epochs=4, loss=0.5)


@pytest.mark.parametrize("epochs", [None, 3])
def test_a_stage_without_epochs_shows_its_loss_alone(tmp_path: Path, epochs: int | None) -> None:
    clock = Clock()
    pace = Pace(tmp_path, epochs, clock)
    clock.now = NOON + 20
    write(tmp_path, step=1, time=NOON + 10, synthesize__loss=2.0)
    write(tmp_path, step=2, time=NOON + 20, synthesize__loss=1.0)
    assert pace.standing() == Standing(epochs=epochs, loss=1.0)
