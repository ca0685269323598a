"""Features that do not suit are found before anything runs."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from raydistill.cli import main

PLAN = """\
name: probe
task: {name: mnist}
stages:
  teacher: {stage: train, model: {name: cnn, widths: [16, 32]}, epochs: 3}
  student:
    stage: distill
    student: {name: cnn, widths: [16, 32]}
    teachers: [teacher]
    mode: live
    methods:
      - {method: hinton}
      - {method: fsp}
    epochs: 2
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "student: {name: cnn, widths: [16",
            "student: {name: cnn, widths: [8",
            "12: stages.student.methods.1: FSP needs",
        ),
        (
            "{method: fsp}",
            "{method: hints, student_feature: stag1}",
            "no feature `stag1`; did you mean `stage1`?",
        ),
        ("name: cnn, widths: [16, 32]}\n    teachers", "name: mlp}\n    teachers", "fewer than two stages"),
        ("    mode: live\n", "", "which are not stored; set `mode: live`"),
        ("teachers: [teacher]", "teachers: [teacher, other]", "the features of one teacher; name one"),
        (
            "{method: fsp}",
            "{method: ca_mkd, feature_weight: 50, teacher_feature: stage3}",
            "no feature `stage3`",
        ),
        (
            "    mode: live\n    methods:\n      - {method: hinton}\n      - {method: fsp}\n",
            "    method: {method: ca_mkd, feature_weight: 50}\n",
            "which are not stored; set `mode: live`",
        ),
        ("- {method: fsp}", "- {method: hinton}", "a method is listed twice"),
        ("    methods:\n", "    method: {method: hinton}\n    methods:\n", "write one `method`, or several"),
    ],
)
def test_what_does_not_suit_is_one_line_and_exit_code_2(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    assert old in PLAN
    text = PLAN.replace(old, new, 1)
    if "other" in new:
        text += "  other: {stage: train, model: {name: cnn, widths: [16, 32]}, epochs: 3, seed: 5}\n"
    file = tmp_path / "plan.yaml"
    file.write_text(text)
    result = CliRunner().invoke(main, ["run", str(file), "--dry-run"])
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert words in line


def test_what_suits_passes(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(PLAN)
    result = CliRunner().invoke(main, ["run", str(file), "--dry-run", "--runs", str(tmp_path)])
    assert result.exit_code == 0, result.output
