"""The table of methods in docs/methods.md says what the kinds say of themselves; `python tests/test_method_table.py`
writes it anew. `distill explain` tells of each one all that a reader asks for."""

import inspect
import re
from pathlib import Path

import pytest

from raydistill.explanation import explain
from raydistill.kinds.capabilities import capabilities
from raydistill.kinds.method_options import MethodOptions
from raydistill.kinds.stage_bases import TrainingConfig
from raydistill.plan.kind import Kind
from raydistill.plan.stage import StageConfig

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
BEGIN, END = "<!-- written by tests/test_method_table.py -->\n", "<!-- end -->\n"

METHODS: dict[str, type[Kind]] = dict(MethodOptions.choices())
# Where a plan says `stage:`, and what teaches is not named by `method:`.
STAGES: dict[str, type[Kind]] = {
    word: kind
    for word, kind in StageConfig.choices().items()
    if issubclass(kind, TrainingConfig)
    and (kind.has_teacher or kind.makes_students)
    and "method" not in kind.model_fields
}


def idea(kind: type[Kind]) -> str:
    """The first sentence of what a kind says of itself, on one line."""
    text = " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=[^l])(?<!et al)\. (?=[A-Z])", text)[0].removesuffix(".")


def row(word: str, kind: type[Kind]) -> str:
    written = f"`{word}`" if issubclass(kind, MethodOptions) else f"`stage: {word}`"
    return f"| {written} | {idea(kind)} | {'; '.join(capabilities(kind))} |"


def table() -> str:
    head = ["| `method:` | what is compared | what comes with it |", "|---|---|---|"]
    return "\n".join([*head, *(row(word, kind) for word, kind in (METHODS | STAGES).items()), ""])


def test_the_page_has_the_table_that_the_kinds_declare() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.partition(BEGIN)[2].partition(END)[0] == table(), (
        "python tests/test_method_table.py writes it"
    )


def test_stages_without_a_method_are_in_the_table() -> None:
    assert {"reuse_classifier", "train_branches", "train_peers", "codistill", "self_distill"} <= set(STAGES)
    assert not {"train", "distill"} & set(STAGES)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("hinton", "With it: stored logits; several teachers; any number of workers; exact resume."),
        (
            "relational",
            "With it: stored embeddings; several workers, each with its part of a batch; exact resume.",
        ),
        ("fsp", "With it: live teacher alone; any number of workers; exact resume."),
        ("ebkd", "several teachers, each heard by itself"),
        ("codistill", "With it: several workers."),
    ],
)
def test_what_a_method_can_do_is_explained(word: str, told: str) -> None:
    assert told in " ".join(explain(word).split())


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("hinton", "Needs: labels and the teachers' logits, stored or live."),
        ("teacher_labels", "Needs: the teachers' logits, stored or live."),
        ("embedding", "Needs: an embedding of one teacher, stored or live."),
        ("review", "Needs: the features of one live teacher."),
        ("labels", "Needs: labels."),
        ("reuse_classifier", "Needs: a teacher, no labels."),
        ("train_branches", "Needs: labels, no teacher."),
    ],
)
def test_what_a_method_needs_is_explained(word: str, told: str) -> None:
    assert told in explain(word)


@pytest.mark.parametrize("word", METHODS | STAGES)
def test_no_part_of_a_methods_explanation_is_missing(word: str) -> None:
    about = explain(word).partition("\n\n  ")[0]  # the keys stand below, with a test of their own
    assert re.search(r"loss.* = |loss\(z\) = ", about), "the equation"
    assert word == "labels" or re.search(r"\b20\d\d\b", about), "where it is from"
    for part in ("Settings", "Published", "Pitfalls", "Releases", "Needs", "With it"):
        told = re.search(rf"^{part}: (.+(?:\n(?![A-Z][a-z ]+: )\S.*)*)", about, flags=re.MULTILINE)
        assert told is not None, part
        assert len(told[1]) > (5 if part in ("Needs", "With it") else 20), part


def test_a_stage_that_trains_nothing_promises_nothing() -> None:
    assert "With it:" not in explain("evaluate")


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.partition(END)[2], encoding="utf-8")
