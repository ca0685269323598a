"""Searches as people write them: every mistake is one line that names the place and the way out."""

from collections.abc import Callable
from pathlib import Path

import pytest

from raydistill.errors import PlanError
from raydistill.plan.load import check_plan, read_source
from raydistill.plan.order import order_stages
from raydistill.plan.search import Domain, SearchConfig
from raydistill.search.problem import SearchProblem, build_problem

PLAN = """
name: searched
task: {name: mnist}
stages:
  teacher: {stage: train, replicas: 2, model: {name: mlp, widths: [8]}, epochs: 1}
  student: {stage: distill, student: {name: mlp, widths: [4]}, teachers: [teacher], epochs: 3}
  tested: {stage: evaluate, models: [teacher]}
  judged: {stage: evaluate, models: [student], split: validation}
search:
"""


@pytest.fixture
def refusal(write_plan: Callable[[str | bytes], Path], tmp_path: Path) -> Callable[[str], str]:
    """The message that refuses a search, without the folder of its file."""

    def problem_of(file: Path) -> SearchProblem:
        source = read_source(file)
        plan = check_plan(source)
        return build_problem(plan, order_stages(plan))

    def refuse(search: str) -> str:
        file = write_plan(PLAN + search)
        with pytest.raises(PlanError) as caught:
            problem_of(file)
        return caught.value.message.replace(f"{tmp_path}/", "")

    return refuse


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        (
            "student.method.temprature: {uniform: [1, 2]}",
            "plan.yaml:11: search.space.student.method.temprature: `student.method` has no `temprature`;"
            " did you mean `temperature`?",
        ),
        (
            "studnt.seed: {integer: [1, 2]}",
            "plan.yaml:11: search.space.studnt.seed: the plan has no stage `studnt`; did you mean `student`?",
        ),
        (
            "student.student.widhts: {choice: [[3]]}",
            "plan.yaml:11: search.space.student.student.widhts: `student.student` has no `widhts`;"
            " did you mean `widths`?",
        ),
        (
            "student.student.input.size: {choice: [8, 16]}",
            "plan.yaml:11: search.space.student.student.input.size: `student.student.input` is not set; write it in the"
            " plan with any value, or search `student.student.input` itself",
        ),
        (
            "student.method.method: {uniform: [1, 2]}",
            "plan.yaml:11: search.space.student.method.method: `student.method.method` is no number in the plan, but"
            " `hinton`; search it by `choice: [...]`",
        ),
        (
            "student.optimizer: {uniform: [1, 2]}",
            "plan.yaml:11: search.space.student.optimizer: `student.optimizer` is no number in the plan, but a section;"
            " search it by `choice: [...]`",
        ),
        (
            "student.epochs: {uniform: [1, 9]}",
            "plan.yaml:11: stages.student.epochs: should be a whole number, not `1.0` (in the search of"
            " `student.epochs`); write `integer: [1, 9]`",
        ),
        (
            "student.method.temperature: {uniform: [-1, 2]}",
            "plan.yaml:11: stages.student.method.temperature: should be at least 0.001, not `-1.0` (in the search of"
            " `student.method.temperature`)",
        ),
        (
            "student.teachers: {choice: [[teacher], [teachr]]}",
            "plan.yaml:11: stages.student.teachers.0: stage `student` reads `teachr`, which the plan does not define;"
            " did you mean `teacher`? (in the search of `student.teachers`)",
        ),
        (
            "student.early_stopping.patience: {integer: [1, 2]}",
            "plan.yaml:11: search.space.student.early_stopping.patience: `student.early_stopping` is not set; write it"
            " in the plan with any value, or search `student.early_stopping` itself",
        ),
        (
            "student.seed.first: {integer: [1, 2]}",
            "plan.yaml:11: search.space.student.seed.first: `student.seed` is a plain value, without a `first` below"
            " it; leave `.first` out",
        ),
        (
            "student.teachers.1: {choice: [teacher]}",
            "plan.yaml:11: search.space.student.teachers.1: `student.teachers` has the places 0 to 0, not `1`",
        ),
        (
            "student: {choice: [1]}",
            "plan.yaml:11: search.space.student: `student` is a whole stage; name an option of it: `student.seed`",
        ),
        (
            "tested.batch_size: {integer: [1, 9]}",
            "plan.yaml:11: search.space.tested.batch_size: `student.validation/accuracy` does not depend on `tested`;"
            " search a stage that it reads, or set `metric`",
        ),
        (
            "student.seed: {integer: [3, 3]}",
            "plan.yaml:11: search.space.student.seed.integer: the range from 3 to 3 is empty; write the smaller number"
            " first",
        ),
        (
            "student.seed: {loguniform: [0, 3]}",
            "plan.yaml:11: search.space.student.seed.loguniform: a logarithmic range begins above 0, not at 0; raise"
            " it, or take `uniform`",
        ),
        (
            "student.seed: {unifrom: [0, 3]}",
            "plan.yaml:11: search.space.student.seed: `unifrom` is no domain; did you mean `uniform`?",
        ),
        (
            "student.seed: {integer: [0, 3], choice: [1]}",
            "plan.yaml:11: search.space.student.seed: write one of `uniform`, `loguniform`, `integer`, `choice`, not"
            " `integer` and `choice`",
        ),
        (
            "student.seed: {choice: []}",
            "plan.yaml:11: search.space.student.seed.choice: an empty choice; write its values",
        ),
        (
            "student.seed: {choice: [1, 2, 1]}",
            "plan.yaml:11: search.space.student.seed.choice.2: `1` is listed twice; keep one",
        ),
    ],
)
def test_a_domain_that_does_not_fit_is_refused(
    refusal: Callable[[str], str], domain: str, message: str
) -> None:
    assert refusal(f"  space:\n    {domain}\n") == message


SPACE = "  space: {student.seed: {integer: [1, 5]}}\n"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "metric: studnt.validation/accuracy",
            "search.metric: the plan has no stage `studnt`; did you mean `student`?",
        ),
        (
            "metric: student.validation/acuracy",
            "search.metric: no stage reports `validation/acuracy` to a search; did you mean `validation/accuracy`?",
        ),
        (
            "metric: student.validation/top5_accuracy",
            "search.metric: `top5_accuracy` is computed from 21 classes on, and here are 10; choose by another metric",
        ),
        (
            "metric: student.test/accuracy",
            "search.metric: `test/accuracy` is of the test split, which may not choose anything; write"
            " `student.validation/accuracy`",
        ),
        (
            "metric: tested.validation/accuracy",
            "search.metric: `tested` judges on the test split, which may not choose anything; set its"
            " `split: validation`",
        ),
        ("samples: 0", "search.samples: should be at least 1, not `0`"),
        (
            "time_budget: -30",
            "search.time_budget: should be a number with its unit (or of seconds), such as `90s`, `30m` or `2h`, not"
            " `-30s`",
        ),
        (
            "time_budget: 30 min",
            "search.time_budget: should be a number with its unit (or of seconds), such as `90s`, `30m` or `2h`, not"
            " `30 min`",
        ),
        (
            "scheduler: {name: ahsa}",
            "search.scheduler.name: unknown scheduler `ahsa`; did you mean `asha`?",
        ),
        (
            "searcher: {name: optuna}",
            "search.searcher.name: unknown searcher `optuna`; known: `grid`, `random`, `tpe`",
        ),
        (
            "{seeds: 2, scheduler: {name: asha}}",
            "search.scheduler: `asha` stops a trial by its first epochs, but 2 replicas train one after the other; set"
            " `seeds: 1`, or leave `scheduler` out",
        ),
        (
            "{metric: judged.validation/accuracy, scheduler: {name: median}}",
            "search.scheduler: `median` stops a trial by what it reports after every epoch, and"
            " `judged.validation/accuracy` comes once, at the end; leave `scheduler` out",
        ),
        (
            "{metric: judged.validation/accuracy, seeds: 2}",
            "search.seeds: `judged` trains nothing, so it has no seeds; leave `seeds` out",
        ),
        (
            "{cost: parameters, scheduler: {name: asha}}",
            "search.scheduler: `asha` compares trials by the metric alone, and would end the cheap ones; leave it out,"
            " or `cost`",
        ),
        (
            "{cost: bytes, scheduler: {name: pbt, every: 1}}",
            "search.scheduler: `pbt` compares trials by the metric alone, and would end the cheap ones; leave it out,"
            " or `cost`",
        ),
        (
            "cost: latency",
            "search.cost: `tpe` learns from costs while trials run, and a latency is measured after them; take `random`"
            " or `grid`, or `cost: multiply_adds`",
        ),
        (
            "{cost: bytes, metric: judged.validation/accuracy}",
            "search.cost: `judged` judges models of other stages and writes none, so it has no bytes; name the stage of"
            " a model in `metric`, or take `cost: parameters`",
        ),
        (
            "cost: size",
            "search.cost: should be `parameters`, `multiply_adds`, `bytes` or `latency`, not `size`",
        ),
        ("sampels: 3", "search.sampels: unknown key `sampels`; did you mean `samples`?"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(
    refusal: Callable[[str], str], option: str, message: str
) -> None:
    options = option[1:-1].split(", ", 1) if option.startswith("{") else [option]
    text = refusal(SPACE + "".join(f"  {line}\n" for line in options))
    assert text.partition(": ")[2] == message


NUMBERS = (
    "`student.method.hard_weight`, `student.method.soft_weight`, `student.method.temperature`, `student.method.weight`,"
    " `student.optimizer.learning_rate`, `student.optimizer.momentum`, `student.optimizer.weight_decay`"
)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("scheduler: {name: pbt}", "search.scheduler: `every` is missing"),
        (
            "scheduler: {name: pbt, every: 3}",
            "search.scheduler.every: the 3 epochs of `student` end before the first decision; decide more often",
        ),
        (
            "scheduler: {name: pbt, every: 1, population: 3}",
            "search.scheduler.quantile: 0.25 of 3 members is nobody; raise it, or the `population`",
        ),
        (
            "scheduler: {name: pbt, every: 1, quantile: 0.6}",
            "search.scheduler.quantile: should be at most 0.5, not `0.6`",
        ),
        (
            "scheduler: {name: pbt, every: 1, factors: [0, 2]}",
            "search.scheduler.factors.0: should be above 0, not `0`",
        ),
        (
            "samples: 8",
            "search.samples: `pbt` trains the whole `population` of `scheduler` through all rounds; leave `samples`"
            " out",
        ),
        (
            "searcher: {name: tpe}",
            "search.searcher: `pbt` draws values itself, at random; leave `searcher` out, its `seed` is that of"
            " `scheduler`",
        ),
        ("seeds: 2", "search.seeds: a member of `pbt` is one training, not 2; set it to 1"),
        (
            "metric: judged.validation/accuracy",
            "search.scheduler: `pbt` trains the stage that is judged, and `judged` trains nothing; set `metric`",
        ),
        (
            "space: {student.epochs: {integer: [2, 5]}}",
            f"search.space.student.epochs: `student.epochs` cannot change while `student` trains; `pbt` can search"
            f" {NUMBERS}",
        ),
        (
            "space: {teacher.optimizer.learning_rate: {uniform: [0.1, 0.5]}}",
            "search.space.teacher.optimizer.learning_rate: `teacher.optimizer.learning_rate` cannot change while"
            f" `student` trains; `pbt` can search {NUMBERS}",
        ),
        (
            "space: {student.method.hard_weight: {uniform: [0, 1]}}",
            "stages.student.changes.0.set.method.hard_weight: it is 0 until then, and what it weighs is left out from"
            " the start; begin with a small number (in the search of `student.method.hard_weight`)",
        ),
    ],
)
def test_a_population_that_cannot_be_trained_is_refused(
    refusal: Callable[[str], str], written: str, message: str
) -> None:
    lines = {
        "space": "space: {student.method.temperature: {uniform: [1, 5]}}",
        "scheduler": "scheduler: {name: pbt, every: 1}",
        written.partition(":")[0]: written,
    }
    text = refusal("".join(f"  {line}\n" for line in lines.values()))
    assert text.partition(": ")[2] == message


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("until: 2", "until: `pbt` writes the `until` of `student` itself; leave it out"),
        (
            "changes: [{after: 1, set: {method.temperature: 2}}]",
            "changes: `pbt` writes the `changes` of `student` itself; leave it out",
        ),
        ("replicas: 2", "replicas: a member of `pbt` is one training, not 2; set it to 1"),
    ],
)
def test_what_a_population_writes_itself_is_not_in_its_plan(
    refusal: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, option: str, message: str
) -> None:
    monkeypatch.setattr(f"{__name__}.PLAN", PLAN.replace("epochs: 3}", f"epochs: 3, {option}}}"))
    search = "  space: {student.method.temperature: {uniform: [1, 5]}}\n  scheduler: {name: pbt, every: 1}\n"
    text = refusal(search + "  metric: student.validation/accuracy\n")
    assert text == f"plan.yaml:6: stages.student.{message}"


def test_a_grid_needs_points(refusal: Callable[[str], str]) -> None:
    message = refusal("  searcher: {name: grid}\n  space: {student.method.temperature: {uniform: [1, 5]}}\n")
    assert message.endswith("a grid has no points in a continuous range; write a `choice`, not `uniform`")


def test_two_paths_of_which_one_holds_the_other_are_refused(refusal: Callable[[str], str]) -> None:
    optimizer = "student.optimizer: {choice: [{name: sgd}, {name: adamw}]}"
    rate = "student.optimizer.learning_rate: {uniform: [0.1, 0.2]}"
    message = refusal(f"  space:\n    {rate}\n    {optimizer}\n")
    assert message.endswith("lies within `student.optimizer`, which is searched too; keep one of them")


def test_a_plan_that_searches_nothing_is_refused(refusal: Callable[[str], str]) -> None:
    assert refusal("  null\n").startswith("plan.yaml: the plan searches nothing; add `search:")


@pytest.mark.parametrize("cost", ["parameters", "multiply_adds"])
def test_what_is_not_counted_of_a_program_is_no_cost(
    write_plan: Callable[[str | bytes], Path], cost: str
) -> None:
    small = "  small: {stage: quantize, model: student}\nsearch:\n"
    search = f"{SPACE}  metric: small.validation/accuracy\n  cost: {cost}\n"
    source = read_source(write_plan(PLAN.replace("search:\n", small) + search))
    plan = check_plan(source)
    with pytest.raises(
        PlanError, match=f"`small` makes a program, whose {cost} are not counted; take `cost: bytes`"
    ):
        build_problem(plan, order_stages(plan))


def test_numbers_stay_in_their_range_and_are_short() -> None:
    domain = Domain(loguniform=(0.012345678, 19.87654321))
    numbers = [domain.at(fraction / 1000) for fraction in range(1000)]
    assert min(numbers) >= 0.012345678
    assert max(numbers) <= 19.87654321
    assert len(str(numbers[500])) <= 6
    assert domain.at(0.5) == pytest.approx((0.012345678 * 19.87654321) ** 0.5, rel=1e-3)


@pytest.mark.parametrize("kind", ["integer", "log_integer"])
def test_both_ends_of_an_integer_range_are_drawn(kind: str) -> None:
    domain = Domain.model_validate({kind: [1, 4]})
    drawn = [domain.at(fraction / 1000) for fraction in range(1000)]
    assert set(drawn) == {1, 2, 3, 4}
    if kind == "integer":
        assert [drawn.count(value) for value in (1, 2, 3, 4)] == pytest.approx([250] * 4, abs=1)


def test_trials_are_no_more_than_points() -> None:
    space = {"a.b": {"choice": [1, 2, 3]}, "a.c": {"integer": [1, 4]}}
    config = SearchConfig.model_validate({"space": space, "samples": 100})
    assert (config.size, config.trials) == (12, 12)
    assert SearchConfig.model_validate({"space": space}).trials == 12
    wide = space | {"a.d": {"uniform": [0, 1]}}
    assert SearchConfig.model_validate({"space": wide}).trials == 20
