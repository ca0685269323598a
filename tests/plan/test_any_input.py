"""Whatever stands in a plan: it loads, or it is refused with a `PlanError` of one line. Nothing else happens."""

from typing import Any

import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raydistill.errors import PlanError
from raydistill.plan.load import check_plan
from raydistill.plan.order import order_stages
from raydistill.plan.written import parse_source

VALUES: dict[str, Any] = {
    "name": "probe",
    "task": {"name": "mnist", "validation_fraction": 0.1},
    "stages": {
        "teacher": {
            "stage": "train",
            "model": {"name": "mlp", "widths": [30]},
            "epochs": 2,
            "replicas": 2,
            "optimizer": {"name": "adamw", "learning_rate": 0.001, "betas": [0.9, 0.99]},
            "schedule": {"name": "step", "milestones": [1]},
            "augment": [{"name": "shift", "pixels": 2}, {"name": "mixup"}],
            "transfer": {"fraction": 0.5, "only_classes": [1, "2"]},
            "resources": {"cpus": 1, "memory": "1GiB"},
        },
        "soft": {"stage": "predict_targets", "teacher": "teacher.0"},
        "both": {"stage": "combine_targets", "targets": ["soft"], "weights": [1]},
        "taught": {"stage": "distill", "student": {"name": "lenet5"}, "targets": "both", "epochs": 1},
        "student": {
            "stage": "distill",
            "student": {"name": "resnet8"},
            "teachers": ["teacher"],
            "epochs": 1,
            "combine": {"weights": [1, 2], "rule": "geometric"},
            "method": {"method": "hinton", "temperature": 4},
        },
        "judge": {"stage": "evaluate", "models": ["student", "teacher"]},
    },
}
WORDS = [
    "teacher",
    "soft",
    "both",
    "student",
    "judge",
    "taught",
    "teacher.1",
    "train",
    "distill",
    "mlp",
    "mnist",
    "name",
]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 12), st.floats(), st.sampled_from(WORDS), st.text(max_size=5)
)
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | st.text(), inner),
    max_leaves=4,
)


def places(values: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of nested values."""
    items = (
        values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    )
    found = []
    for key, value in items:
        found += [(values, key), *places(value)]
    return found


@st.composite
def damaged_plans(draw: st.DrawFn) -> str:
    """The plan above with one to three values replaced, removed or added."""
    values: dict[str, Any] = yaml.safe_load(yaml.safe_dump(VALUES))
    for _ in range(draw(st.integers(1, 3))):
        container, key = draw(st.sampled_from(places(values)))
        change = draw(st.sampled_from(["replace", "remove", "add"]))
        if change == "replace":
            container[key] = draw(JUNK)
        elif change == "remove":
            del container[key]
        elif isinstance(container, dict):
            container[draw(st.sampled_from(WORDS))] = draw(JUNK)
        if not places(values):
            break
    return yaml.safe_dump(values, sort_keys=False)


def refusal(text: str) -> str | None:
    """The message that refuses a plan; None when it could run."""
    try:
        source = parse_source(text, "plan.yaml")
        order_stages(check_plan(source))
    except PlanError as error:
        return error.message
    return None


def is_one_line_with_its_place(message: str) -> bool:
    return message.startswith("plan.yaml:") and message.isprintable()


@settings(max_examples=60, deadline=None)
@given(damaged_plans())
@example(yaml.safe_dump(VALUES))
def test_a_damaged_plan_is_refused_in_one_line_or_runs(text: str) -> None:
    message = refusal(text)
    assert message is None or is_one_line_with_its_place(message)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab:-[]{}&*!|>'\"#%@`,? \n\t\x00é1.", max_size=40) | st.text(max_size=20))
def test_any_text_is_refused_in_one_line(text: str) -> None:
    message = refusal(text)
    assert message is None or is_one_line_with_its_place(message)


def test_the_plan_that_is_damaged_here_is_sound() -> None:
    source = parse_source(yaml.safe_dump(VALUES, sort_keys=False), "plan.yaml")
    inserted = {"teacher.1.targets", "teacher.targets"}
    written = {"teacher.0", "teacher.1", "soft", "both", "taught", "student", "judge"}
    assert set(order_stages(check_plan(source)).nodes) == written | inserted
