"""What running stages write is passed on: each line once, whole lines only, whatever a restart does to the file."""

from pathlib import Path

from raydistill.runs.metrics_tail import MetricsTail


def test_lines_are_told_once_and_only_when_they_are_whole(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"epoch": 1}\n')
    tail = MetricsTail(tmp_path)
    assert list(tail.added()) == [], "an earlier attempt's"
    with file.open("a") as stream:
        stream.write('{"epoch": 2}\n{"epo')
    assert list(tail.added()) == [{"epoch": 2}]
    assert list(tail.added()) == []
    with file.open("a") as stream:
        stream.write('ch": 3}\n')
    assert list(tail.added()) == [{"epoch": 3}]


def test_a_rewound_file_is_followed(tmp_path: Path) -> None:
    file, tail = tmp_path / "metrics.jsonl", MetricsTail(tmp_path)
    assert list(tail.added()) == []
    file.write_text('{"epoch": 1}\n{"epoch": 2}\n')
    assert list(tail.added()) == [{"epoch": 1}, {"epoch": 2}]
    file.write_text('{"epoch": 1}\n')
    assert list(tail.added()) == []
    file.write_text('{"epoch": 1}\n{"epoch": 2}\n')
    assert list(tail.added()) == [{"epoch": 2}]
