"""A metric of the user's own: in records, reports and searches, and what is judged by it, without training, later."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from raydistill.errors import PlanError
from raydistill.execution.submit.needs import find_needs
from raydistill.execution.user_code import user_modules
from raydistill.plan.load import load_plan, read_source
from raydistill.report import write_report
from raydistill.runs.stored_predictions import load_predictions
from raydistill.runs.view import open_run

RUN = ("--local", "--no-tracking", "--runs", "runs")
ADDRESS = "my_lab.scores:Distance"
JUDGED = ("teacher.0", "teacher.1", "whole", "student")


def with_metric(lab: Any) -> None:
    lab.edit("plan.yaml", "stages:\n", f"metrics: [{ADDRESS}]\nstages:\n")


def last_run(lab: Any) -> Any:
    results = max((lab.folder / "runs" / "plans" / "my-lab").glob("*/results.json"))
    return open_run(results.parent, lab.folder / "runs")


def expected(stage: Any, split: str) -> float:
    """By a slow loop over the predictions that the stage stored."""
    stored = load_predictions(stage.folder.payload(f"predictions-{split}.safetensors"))
    pairs = zip(np.argmax(stored.logits, axis=1).tolist(), stored.labels.tolist(), strict=True)
    distances = [abs(predicted - label) for predicted, label in pairs]
    return sum(distances) / len(distances)


def test_every_model_is_judged_by_it_and_reports_compare_by_it(lab: Any, tmp_path: Path) -> None:
    with_metric(lab)
    done = lab.distill("run", lab.plan, *RUN)
    assert done.exit_code == 0, done.output
    run = last_run(lab)
    for name in JUDGED:
        for split in ("validation", "test"):
            assert run[name].metrics[f"{split}/distance"] == pytest.approx(expected(run[name], split))
    assert "validation/distance" in run["student"].history()[0]
    page = write_report(run.folder, run.root).read_text()
    table = page.partition("By other metrics")[2].partition("</table>")[0]
    assert "distance" in table
    assert f"{run['student'].metrics['test/distance']:.3f}" in table


def test_what_is_finished_is_judged_by_a_new_metric_and_nothing_is_trained(lab: Any) -> None:
    assert lab.distill("run", lab.plan, *RUN).exit_code == 0
    before = {name: last_run(lab)[name] for name in JUDGED}
    files = {name: (stage.folder.path / "model.safetensors").stat() for name, stage in before.items()}
    with_metric(lab)
    lab.forget()
    preview = lab.distill("run", lab.plan, *RUN, "--dry-run").output
    assert f"to be judged by `{ADDRESS}`" in preview
    assert lab.distill("run", lab.plan, *RUN).exit_code == 0
    after = last_run(lab)
    for name, old in before.items():
        new = after[name]
        assert (new.folder.path / "model.safetensors").stat() == files[name]
        assert {key: new.metrics[key] for key in old.metrics} == dict(old.metrics)
        assert new.metrics["test/distance"] == pytest.approx(expected(new, "test"))
    assert lab.distill("run", lab.plan, *RUN).exit_code == 0
    assert {last_run(lab)[name].status for name in JUDGED} == {"cached"}


def test_other_code_of_a_metric_judges_again_and_trains_again_only_where_it_chose(lab: Any) -> None:
    with_metric(lab)
    before = lab.fingerprints()
    lab.edit("my_lab/scores.py", ".mean()", ".mean() * 2")
    assert lab.fingerprints() == before
    lab.edit("my_lab/scores.py", ".mean() * 2", ".mean()")
    lab.forget()
    assert lab.distill("run", lab.plan, *RUN).exit_code == 0
    once = last_run(lab)["student"].metrics["test/distance"]
    lab.edit("my_lab/scores.py", ".mean()", ".mean() * 2")
    lab.forget()
    assert lab.distill("run", lab.plan, *RUN).exit_code == 0
    assert last_run(lab)["student"].metrics["test/distance"] == pytest.approx(2 * once)
    stop = ["stages.student.early_stopping={patience: 1, metric: '" + ADDRESS + "'}"]
    stopping = {name: node.fingerprint for name, node in lab.graph(*stop).nodes.items()}
    lab.edit("my_lab/scores.py", ".mean() * 2", ".mean() * 3")
    lab.forget()
    changed = {name: node.fingerprint for name, node in lab.graph(*stop).nodes.items()}
    assert {name for name in changed if changed[name] != stopping[name]} == {"student"}


def test_it_stops_a_training_at_its_best_epoch(lab: Any) -> None:
    with_metric(lab)
    stop = f"stages.student.early_stopping={{patience: 2, metric: '{ADDRESS}'}}"
    done = lab.distill("run", lab.plan, *RUN, "--set", stop, "--set", "stages.student.epochs=6")
    assert done.exit_code == 0, done.output
    student = last_run(lab)["student"]
    curve = [row["validation/distance"] for row in student.history()]
    assert student.metrics["validation/distance"] == pytest.approx(min(curve))


def test_a_search_chooses_by_it(lab: Any) -> None:
    with_metric(lab)
    tuned = lab.distill("tune", lab.plan, *RUN, "--set", "search.metric=student.validation/distance")
    assert tuned.exit_code == 0, tuned.output
    (folder,) = (lab.folder / "runs" / "searches").iterdir()
    about = json.loads((folder / "search.json").read_text())
    trials = [json.loads(path.read_text()) for path in (folder / "trials").glob("*.json")]
    assert about["mode"] == "min"
    assert about["best"]["metric"] == min(trial["metric"] for trial in trials if trial["status"] == "done")
    assert yaml.safe_load((folder / "best.yaml").read_text())["metrics"] == [ADDRESS]


BODY = "    def compute(self, answers):\n        return abs(answers.predicted - answers.labels).mean()\n"
REFUSED = {
    "no such module": ("my_lab.nothing:Distance", None, "no module `my_lab.nothing`"),
    "no such class": ("my_lab.scores:Distant", None, "has no class `Distant`; did you mean `Distance`?"),
    "no metric": ("my_lab.kinds:Cosine", None, "is no metric: it should subclass `Metric`"),
    "no name": (ADDRESS, ('name = "distance"', "pass"), 'write `name = "my_metric"`'),
    "a name of ours": (ADDRESS, ('"distance"', '"accuracy"'), "is called `accuracy`, as one of ours is"),
    "nothing computed": (ADDRESS, (BODY, ""), "has no `compute(self, answers)`"),
    "no direction": (ADDRESS, ('"min"', '"less"'), "`better` is"),
    "no form": (ADDRESS, ('form = "number"', 'form = "miles"'), "`form` is one of"),
}


@pytest.mark.parametrize(("address", "edit", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_metric_is_refused_with_its_place(
    lab: Any, address: str, edit: tuple[str, str] | None, words: str
) -> None:
    with_metric(lab)
    lab.edit("plan.yaml", ADDRESS, address)
    if edit is not None:
        lab.edit("my_lab/scores.py", *edit)
    lab.forget()
    with pytest.raises(PlanError) as refused:
        load_plan(lab.plan)
    assert "metrics.0" in refused.value.message
    assert words in refused.value.message


def test_a_training_is_stopped_only_by_a_metric_of_the_plan_by_its_address(lab: Any) -> None:
    with pytest.raises(PlanError, match="the plan's `metrics` do not have it"):
        lab.graph(f"stages.student.early_stopping={{patience: 1, metric: '{ADDRESS}'}}")
    with_metric(lab)
    with pytest.raises(PlanError, match=f"unknown metric `distance`; write `{ADDRESS}`"):
        lab.graph("stages.student.early_stopping={patience: 1, metric: distance}")


def test_what_fails_on_every_answer_fails_before_anything_trains(lab: Any) -> None:
    with_metric(lab)
    lab.edit("my_lab/scores.py", ".mean()", ".median()")
    lab.forget()
    done = lab.distill("run", lab.plan, *RUN)
    assert done.exit_code != 0
    assert "tried on made-up answers, metric `distance`: AttributeError" in done.output
    assert not list((lab.folder / "runs" / "stages").glob("*/metrics.jsonl"))


def test_what_is_no_number_is_an_error(lab: Any) -> None:
    with_metric(lab)
    lab.edit("my_lab/scores.py", "return abs", "return float('nan') * abs")
    lab.forget()
    done = lab.distill("run", lab.plan, *RUN)
    assert "metric `distance` is nan" in done.output


def test_a_run_is_shown_without_the_code_of_its_metrics(lab: Any) -> None:
    with_metric(lab)
    assert lab.distill("run", lab.plan, *RUN).exit_code == 0
    run = last_run(lab)
    lab.forget()
    (lab.folder / "my_lab" / "scores.py").unlink()
    (distance,) = [metric for metric in run.metrics if metric.name == "distance"]
    assert distance.text(0.25) == "0.250"
    assert "distance" in write_report(run.folder, run.root).read_text()


def test_its_file_travels_with_a_submitted_plan(lab: Any) -> None:
    with_metric(lab)
    needs = find_needs(lab.folder, lab.plan, read_source(lab.plan))
    assert "my_lab/scores.py" in needs.required
    assert "my_lab.scores" in user_modules(load_plan(lab.plan))
