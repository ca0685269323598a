"""A number in a plan is the index of a class; where classes are called by numbers it is never taken for another one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydistill.errors import PlanError
from raydistill.plan.order import Graph, order_stages
from raydistill.plan.schema import Plan
from raydistill.tasks.task import class_index

FOLDERS = sorted(str(number) for number in range(12))  # "0", "1", "10", "11", "2", …
MODEL = {"name": "mlp", "widths": [4]}
USES: dict[str, Any] = {
    "transfer.only_classes.0": lambda label: {"model": {"transfer": {"only_classes": [label]}}},
    "transfer.omit_classes.0": lambda label: {"model": {"transfer": {"omit_classes": [label]}}},
    "classes.0": lambda label: {
        "stage": {"stage": "adjust_class_bias", "model": "model", "classes": [label], "prior": 0.5}
    },
    "given.0.1": lambda label: {"stage": {"stage": "confusion_clusters", "given": [["0", label]]}},
}


@pytest.fixture
def order(tmp_path: Path) -> Any:
    """The graph of a plan whose classes are called as given, with options for its stage `model` and one more stage."""

    def made(names: list[str], *, model: Any = None, stage: Any = None) -> Graph:
        file = tmp_path / "data.npz"
        np.savez(file, inputs=np.zeros((24, 2), np.float32), labels=np.arange(24) % len(names))
        stages = {"model": {"stage": "train", "model": MODEL, "epochs": 1} | (model or {})}
        stages |= {"more": stage} if stage else {}
        task = {"name": "tensors", "file": str(file), "classes": names}
        return order_stages(Plan.model_validate({"name": "p", "task": task, "stages": stages}))

    return made


@pytest.mark.parametrize("place", USES)
def test_a_number_that_names_another_class_is_refused_wherever_classes_are_written(
    order: Any, place: str
) -> None:
    with pytest.raises(PlanError) as caught:
        order(FOLDERS, **USES[place](3))
    assert place in str(caught.value)
    assert (
        'class 3 has the index 5, and the one with index 3 is called `11`; write the name in quotes, `"3"`'
        in str(caught.value)
    )
    order(FOLDERS, **USES[place]("3"))


def test_a_number_is_an_index_where_no_class_is_called_by_another_number() -> None:
    assert class_index(["cat", "dog"], 1) == 1
    assert class_index([str(label) for label in range(10)], 7) == 7
    assert class_index([f"{label:02}" for label in range(12)], 11) == 11
    assert class_index(FOLDERS, "3") == 5


def test_a_number_that_is_no_name_is_no_index_where_all_names_are_numbers() -> None:
    with pytest.raises(ValueError, match="no class is called 0"):
        class_index(["1", "2", "3"], 0)
    with pytest.raises(ValueError, match='class 3 has the index 2; write the name in quotes, `"3"`'):
        class_index(["1", "2", "3"], 3)


def test_a_character_that_is_a_digit_keeps_its_index_from_being_read_as_its_name() -> None:
    with pytest.raises(ValueError, match=r"class 1 has the index 3, and the one with index 1 is called `b`"):
        class_index(["a", "b", "c", "1"], 1)


def test_a_class_listed_by_index_and_by_name_is_listed_twice(order: Any) -> None:
    given = {"stage": "confusion_clusters", "given": [[1, "dog"]]}
    with pytest.raises(PlanError, match="listed twice"):
        order(["cat", "dog", "cow"], stage=given)
