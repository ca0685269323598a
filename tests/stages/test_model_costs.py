"""Every stage that makes or judges a model writes down how large it is."""

from contextlib import nullcontext
from typing import Any

from raydistill.models import multiply_adds
from raydistill.tracking.description import last_lines

SHARE = 64 * 16 + 16 * 3  # of an MLP with 16 hidden units on 8 x 8 pixels and 3 classes


def test_models_and_ensembles_say_how_much_they_compute(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any]
) -> None:
    stages.run(
        {
            "teacher": teacher | {"replicas": 2},
            "both": {"stage": "evaluate", "models": ["teacher"]},
            "student": student | {"teachers": ["teacher"]},
            "adjusted": {
                "stage": "adjust_class_bias",
                "model": "teacher.0",
                "classes": [0],
                "by": "validation",
            },
        }
    )
    expected = {"teacher.0": SHARE, "both": 2 * SHARE, "student": 64 * 6 + 6 * 3, "adjusted": SHARE}
    found = {name: stages.record(name).costs["multiply_adds"] for name in expected}
    assert found == expected
    (line,) = last_lines(stages.record("student"), step=1)
    assert line["cost/multiply_adds"] == 64 * 6 + 6 * 3


def test_a_model_that_bears_no_watching_is_kept(
    stages: Any, teacher: dict[str, Any], monkeypatch: Any
) -> None:
    monkeypatch.setattr(multiply_adds, "FlopCounterMode", _Refusing)
    stages.run({"teacher": teacher})
    assert "multiply_adds" not in stages.record("teacher").costs
    assert stages.record("teacher").parameters == 64 * 16 + 16 + 16 * 3 + 3


class _Refusing(nullcontext[None]):
    def __init__(self, display: bool) -> None:
        super().__init__()

    def __enter__(self) -> None:
        raise NotImplementedError("this network does not like to be watched")
