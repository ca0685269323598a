"""`distill explain` knows every word that a plan may contain, and what each key means."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from raydistill.errors import PlanError
from raydistill.explanation import description, explain, keys, topics
from raydistill.plan.load import read_source

CONFIGS = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))
NAMES_OF_THE_USERS = ("stages", "space", "set")
NAMING_KEYS = ("name", "stage", "method")


def words(values: Any, above: str = "") -> Iterator[str]:
    """The words of a plan that are not the user's own."""
    if isinstance(values, list):
        for item in values:
            yield from words(item, above)
    elif isinstance(values, Mapping):
        for key, value in values.items():
            if above not in NAMES_OF_THE_USERS:
                yield key
            if key in NAMING_KEYS and isinstance(value, str) and above:
                yield value
            yield from words(value, key)


def test_every_key_of_everything_that_a_plan_can_name_has_a_description() -> None:
    found = {
        (name, key): description(topic.kind, key)
        for group in topics().values()
        for name, topic in group.items()
        for key in topic.fields
    }
    assert len(found) > 300
    assert [place for place, text in found.items() if not text.strip()] == []


def test_every_word_of_every_shipped_plan_is_explained() -> None:
    groups = topics()
    known = {word for group in groups.values() for word in group} | set(keys(groups)) | {"name", "stage"}
    written = {word for file in CONFIGS for word in words(read_source(file).values)}
    assert {"temperature", "cosine", "searcher", "pbt", "teachers"} <= written
    assert {word for word in written if ":" not in word} <= known


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("search", "scheduler: one of none, asha, median, pbt; default {name: none}"),
        ("tracking", "register_student_as: text; default none"),
        ("pbt", "every: a whole number; ≥ 1; required\n      epochs between two decisions"),
        ("step", "Multiply the learning rate by `factor`"),
        ("teachers", "a list, each the name of a stage that makes a model; default []"),
        ("soft_weight", "In hinton, ae_kd"),
        ("early_stopping", "patience: a whole number; ≥ 1; required"),
        ("net2net", "noise: a number; ≥ 0; default 0.01"),
        ("resnet20", "Decided by the name: depth 20"),
        ("split_seed", "Chooses which samples are set aside."),
    ],
)
def test_a_word_is_explained_with_what_may_be_written(word: str, told: str) -> None:
    assert told in explain(word)


def test_a_key_that_means_several_things_is_explained_in_each_place() -> None:
    text = explain("batch_size")
    assert text.startswith("batch_size\n\nIn train, distill")
    assert "Samples per step, over all workers." in text
    assert "In synthesize\n\n" in text


def test_a_description_is_inherited_unless_there_is_an_own_one() -> None:
    stages = topics()["stages"]
    assert description(stages["train"].kind, "epochs") == "How often the transfer set is seen."
    assert (
        description(stages["distill_with_generator"].kind, "epochs") != "How often the transfer set is seen."
    )


def test_a_word_that_nothing_is_called_is_answered_with_the_closest_key() -> None:
    with pytest.raises(PlanError, match=r"nothing is called `temprature`; did you mean `temperature`\?"):
        explain("temprature")
