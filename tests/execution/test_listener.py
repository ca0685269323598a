"""What running stages write is passed on: each line once, whole lines only, whatever a restart does to the file."""

from pathlib import Path
from typing import Any

import pytest

from raydistill.execution.ray_backend.listener import Listener
from raydistill.execution.request import StageRequest


@pytest.fixture
def request_of_stage(tmp_path: Path) -> StageRequest:
    (tmp_path / "stages/s").mkdir(parents=True)
    return StageRequest("s", "train", "f", "stages/s", str(tmp_path), {}, {}, {}, {}, "attempt")


def test_lines_are_told_once(request_of_stage: StageRequest, tmp_path: Path) -> None:
    told: list[tuple[str, Any]] = []
    listener = Listener(lambda name, values: told.append((name, values)))
    file = tmp_path / "stages/s/metrics.jsonl"
    file.write_text('{"epoch": 1}\n')
    listener.attend(request_of_stage)  # an earlier attempt's
    listener.listen([request_of_stage])
    assert told == []
    with file.open("a") as stream:
        stream.write('{"epoch": 2}\n{"epo')
    listener.listen([request_of_stage])
    listener.listen([request_of_stage])
    assert told == [("s", {"epoch": 2})]
    with file.open("a") as stream:
        stream.write('ch": 3}\n')
    listener.listen([request_of_stage])
    assert told[1:] == [("s", {"epoch": 3})]


def test_a_rewound_file_is_followed(request_of_stage: StageRequest, tmp_path: Path) -> None:
    told: list[Any] = []
    listener = Listener(lambda name, values: told.append(values["epoch"]))
    file = tmp_path / "stages/s/metrics.jsonl"
    listener.attend(request_of_stage)
    listener.listen([request_of_stage])
    file.write_text('{"epoch": 1}\n{"epoch": 2}\n')
    listener.listen([request_of_stage])
    file.write_text('{"epoch": 1}\n')
    listener.listen([request_of_stage])
    file.write_text('{"epoch": 1}\n{"epoch": 2}\n')
    listener.listen([request_of_stage])
    assert told == [1, 2, 2]
