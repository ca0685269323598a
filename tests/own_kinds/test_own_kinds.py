"""Stages, methods, augmentations, optimizers, tasks in a package of the user's own, named by their addresses."""

import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from raydistill.errors import PlanError, StageError
from raydistill.execution.submit.needs import find_needs
from raydistill.execution.user_code import checked_code, user_modules
from raydistill.kinds.method_options import MethodOptions
from raydistill.lookup import load_object
from raydistill.plan import kind
from raydistill.plan.load import load_plan, read_source
from raydistill.plan.schema import build_task
from raydistill.runs.plan_run import plan_text
from raydistill.training.trust import NOBODY, Trust, described_task

NODES = ["teacher.0", "teacher.1", "whole", "whole.targets", "student"]
RUN = ("--local", "--no-tracking", "--runs", "runs")


def results(folder: Path) -> dict[str, Any]:
    """Of the last run."""
    last = max((folder / "runs" / "plans" / "my-lab").glob("*/results.json"))
    found: dict[str, Any] = json.loads(last.read_text())
    return found["stages"]


def test_a_plan_of_own_kinds_runs_and_is_not_run_again(lab: Any) -> None:
    assert lab.distill("run", lab.plan, *RUN).exit_code == 0
    stages = results(lab.folder)
    assert {name: stages[name]["status"] for name in NODES} == dict.fromkeys(NODES, "done")
    assert stages["whole"]["stage"] == "soup"
    assert stages["student"]["metrics"]["test/accuracy"] > 0.5  # of four classes
    folders = {name: lab.folder / "runs" / stages[name]["folder"] for name in NODES}
    parts, whole = (
        [load_file(folders[name] / "model.safetensors") for name in names]
        for names in (("teacher.0", "teacher.1"), ("whole",))
    )
    for name, mixed in whole[0].items():
        torch.testing.assert_close(mixed, (parts[0][name] + parts[1][name]) / 2)
    lines = [json.loads(line) for line in (folders["student"] / "metrics.jsonl").read_text().splitlines()]
    assert any("train/loss/cosine/cosine" in line for line in lines)
    assert lab.distill("run", lab.plan, *RUN).exit_code == 0
    assert {name: results(lab.folder)[name]["status"] for name in NODES} == dict.fromkeys(NODES, "cached")
    evaluated = lab.distill("evaluate", folders["student"], "--split", "test", "--runs", "runs")
    assert evaluated.exit_code == 0, evaluated.output
    verified = lab.distill("verify", folders["whole.targets"], "--runs", "runs")
    assert verified.exit_code == 0, verified.output


@pytest.mark.ray
def test_own_kinds_work_in_stage_workers_and_in_a_group_under_ray_train(lab: Any) -> None:
    command = [sys.executable, "-P", "-m", "raydistill.cli", "run", "plan.yaml", "--no-tracking"]
    command += ["--set", "stages.student.resources.workers=2", "--set", "metrics=[my_lab.scores:Distance]"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    done = subprocess.run(command, cwd=lab.folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert {name: results(lab.folder)[name]["status"] for name in NODES} == dict.fromkeys(NODES, "done")
    assert {"validation/distance", "test/distance"} <= results(lab.folder)["student"]["metrics"].keys()


def test_a_dry_run_loads_neither_torch_nor_ray(lab: Any) -> None:
    probe = (
        "import sys; from raydistill.cli import main; main(['run', 'plan.yaml', '--dry-run'], standalone_mode=False);"
        "print('loaded:', *{'torch', 'ray', 'numpy', 'my_lab.training', 'my_lab.cosine'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=lab.folder, capture_output=True, text=True)
    assert "5 stages: 5 to run" in done.stdout
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_the_option_of_an_own_method_is_searched(lab: Any) -> None:
    tuned = lab.distill("tune", lab.plan, *RUN)
    assert tuned.exit_code == 0, tuned.output
    (best,) = (lab.folder / "runs").glob("searches/*/best.yaml")
    method = yaml.safe_load(best.read_text())["stages"]["student"]["methods"][1]
    assert method["method"] == "my_lab.kinds:Cosine"
    assert 1 <= method["power"] <= 3
    assert method["power"] != 2.0


def test_what_an_own_class_can_be_told_is_explained_as_ours_is(lab: Any) -> None:
    explained = lab.distill("explain", "my_lab.kinds:Cosine").stdout
    assert "Match the direction of the teacher's logits" in explained
    assert "power: a number; > 0; default 1.0" in explained
    assert "what is nearly right counts less" in explained
    assert "ramp:" in explained  # what every method can be told
    assert "samples: a whole number; default 400" in lab.distill("explain", "my_lab.data:Stripes").stdout
    wrong = lab.distill("explain", "my_lab.cosine:CosineLoss")
    assert wrong.exit_code == 2
    assert "is no kind" in wrong.output


def test_a_plan_is_written_out_with_its_addresses_and_read_again(lab: Any) -> None:
    before = lab.fingerprints()
    lab.write("plan.yaml", plan_text(load_plan(lab.plan)))
    assert "smoothing: 0.99" in lab.plan.read_text()
    assert lab.fingerprints() == before


@pytest.mark.parametrize(
    ("file", "old", "new", "changed"),
    [
        ("my_lab/cosine.py", "(1 - near)", "(2 - near)", {"student"}),
        ("my_lab/geometry.py", "keepdim=True)", "keepdim=True) * 2", {"student"}),
        ("my_lab/pictures.py", "2 * draws", "3 * draws", {"whole.targets", "student"}),
        ("my_lab/data.py", "0.6 * waves", "0.7 * waves", set(NODES)),
        (
            "my_lab/training.py",
            "dim=0",
            "dim=-1",
            set(NODES),
        ),  # all are trained by its optimizer, or read who is
        ("my_lab/geometry.py", "A constant added", "Who adds a constant", set[str]()),
        ("my_lab/__init__.py", "", "", set[str]()),
    ],
)
def test_code_that_changes_is_another_stage_and_so_is_whatever_reads_it(
    lab: Any, file: str, old: str, new: str, changed: set[str]
) -> None:
    before = lab.fingerprints()
    lab.edit(file, old, new)
    after = lab.fingerprints()
    assert {name for name in before if before[name] != after[name]} == changed


def test_a_file_that_an_option_names_counts_by_its_content(lab: Any) -> None:
    lab.edit("my_lab/kinds.py", "power: Positive = 1.0", "table: str\n    power: Positive = 1.0")
    lab.edit("plan.yaml", "power: 2.0", "power: 2.0, table: ./table.txt")
    lab.write("table.txt", "1 2 3")
    before = lab.fingerprints()
    lab.write("table.txt", "1 2 4")
    after = lab.fingerprints()
    assert {name for name in before if before[name] != after[name]} == {"student"}
    (lab.folder / "table.txt").rename(lab.folder / "other.txt")
    lab.edit("plan.yaml", "table.txt", "other.txt")
    assert lab.fingerprints() == after


def test_a_process_that_goes_on_after_an_edit_is_told_so(lab: Any) -> None:
    lab.graph()
    lab.edit("my_lab/kinds.py", "power: Positive = 1.0", "power: Positive = 3.0")
    with pytest.raises(
        PlanError, match=r"imported before it changed: module `my_lab.kinds` changed; start a new"
    ):
        lab.graph()


def test_a_worker_refuses_other_code_than_that_of_the_plan(lab: Any) -> None:
    node = lab.graph().nodes["student"]
    task = load_plan(lab.plan).task
    assert checked_code(node.config, node.identity, task) == ()
    lab.edit("my_lab/geometry.py", "keepdim=True)", "keepdim=True) * 2")
    with pytest.raises(
        StageError, match=r"method `my_lab.kinds:Cosine` is not here what .* `my_lab.geometry`"
    ):
        checked_code(node.config, node.identity, task)
    lab.edit("my_lab/data.py", "0.6 * waves", "0.7 * waves")
    with pytest.raises(StageError, match=r"task `my_lab.data:Stripes` is not here what"):
        checked_code(node.config, node.identity, task)


def test_the_modules_of_config_and_implementation_travel_and_are_asked_for(lab: Any) -> None:
    source = read_source(lab.plan)
    plan = load_plan(lab.plan)
    wanted = {"__init__", "kinds", "cosine", "geometry", "pictures", "training", "data"}
    needs = find_needs(lab.folder, lab.plan, source)
    assert {f"my_lab/{name}.py" for name in wanted} <= set(needs.required)
    assert user_modules(plan) == [
        f"my_lab.{name}" for name in ("cosine", "data", "kinds", "pictures", "training")
    ]


def test_an_implementation_outside_the_configs_package_travels_too(lab: Any) -> None:
    (lab.folder / "my_lab/cosine.py").rename(lab.folder / "elsewhere.py")
    lab.edit("my_lab/kinds.py", "my_lab.cosine:", "elsewhere:")
    source = read_source(lab.plan)
    load_plan(lab.plan)
    assert "elsewhere.py" in find_needs(lab.folder, lab.plan, source).required


def test_an_implementation_that_cannot_be_imported_is_told_before_anything_trains(lab: Any) -> None:
    lab.edit("my_lab/cosine.py", "import torch.nn.functional as F", "import torch_of_tomorrow as F")
    run = lab.distill("run", lab.plan, *RUN)
    assert run.exit_code != 0
    assert "implementation `my_lab.cosine:CosineLoss` of method `my_lab.kinds:Cosine` cannot be" in run.output
    assert not list((lab.folder / "runs").glob("stages/train-*/record.json"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "self.config = config",
            "self.config = config.nothing",
            "method `my_lab.kinds:Cosine` cannot be built: ",
        ),
        ("class CosineLoss(Method):", "class CosineLoss(dict):", "is no `training.method.Method`"),
    ],
)
def test_a_method_that_compares_features_is_built_before_anything_starts(
    lab: Any, old: str, new: str, message: str
) -> None:
    lab.edit("my_lab/kinds.py", "power: Positive", "needs_features = True\n\n    power: Positive")
    lab.edit("plan.yaml", "    views: 2\n", "    mode: live\n")
    assert lab.distill("run", lab.plan, "--dry-run").exit_code == 0
    lab.edit("my_lab/cosine.py", old, new)
    lab.forget()
    run = lab.distill("run", lab.plan, "--dry-run")
    assert run.exit_code == 2
    (line,) = run.output.strip().splitlines()
    assert message in line
    assert "stages.student.methods.1" in line


KINDS = """\
from raydistill.kinds.method_options import MethodOptions
from raydistill.kinds.methods import HintonConfig
class NoAddress(MethodOptions): pass
class NoModule(MethodOptions): implementation = "my_lab.nowhere:Loss"
class BadOption(MethodOptions):
    implementation = "my_lab.cosine:CosineLoss"
    @property
    def needs_labels(self): return False
class Hotter(HintonConfig):
    '''Soft targets at a temperature of its own.'''
    implementation = "raydistill.methods.hinton:Hinton"
    temperature: float = 7.0
class Function: pass
def function(): pass
"""


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nowhere.kd:Soft", "method `nowhere.kd:Soft`: no module `nowhere.kd` on the import path"),
        ("my_lab.kd:Sof", "no module `my_lab.kd`"),
        ("my_lab.wrong:Hoter", "`my_lab.wrong` has no class `Hoter`; did you mean `Hotter`?"),
        (
            "my_lab.wrong:Function",
            "`my_lab.wrong:Function` is no method: it should subclass `MethodOptions`",
        ),
        (
            "my_lab.wrong:function",
            "`my_lab.wrong:function` is no method: it should subclass `MethodOptions`",
        ),
        ("my_lab.kinds:Soup", "`my_lab.kinds:Soup` is no method: it should subclass `MethodOptions`"),
        ("my_lab.wrong:NoAddress", "`my_lab.wrong:NoAddress` has no implementation: write `implementation ="),
        ("my_lab.wrong:NoModule", "`my_lab.wrong:NoModule` has no implementation: "),
        ("my_lab.broken:Soft", "`my_lab.broken` cannot be imported: SyntaxError"),
        ("my_lab.kinds:", "a method of your own is written `package.module:Class`"),
        ("my_lab.wrong:HintonConfig", "`my_lab.wrong:HintonConfig` is ours; write `hinton`"),
    ],
)
def test_an_address_that_leads_nowhere_is_one_line_with_its_place(
    lab: Any, address: str, message: str
) -> None:
    lab.write("my_lab/wrong.py", KINDS)
    lab.write("my_lab/broken.py", "class Soft(")
    lab.edit("plan.yaml", '"my_lab.kinds:Cosine", power: 2.0', f'"{address}"')
    run = lab.distill("run", lab.plan, "--dry-run")
    assert run.exit_code == 2
    (line,) = run.output.strip().splitlines()
    assert message in line
    assert "plan.yaml:22: stages.student.methods.1.method: " in line


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.student.methods.1.powr=2", "unknown key `powr`; did you mean `power`?"),
        ("stages.student.methods.1.power=-1", "should be above 0"),
        ("stages.whole.stage=my_lab.kinds:Cosine", "is no stage kind: it should subclass `StageConfig`"),
        ("stages.whole.models=[whole]", "`whole` reads itself"),
        ("task.name=my_lab.kinds:Cosine", "`my_lab.kinds:Cosine` is no task: it should subclass `Task`"),
        ("task.smples=3", "task `my_lab.data:Stripes` has no option `smples`; did you mean `samples`?"),
        ("stages.student.augment.0.name=my_lab.kinds:Soup", "should subclass `AugmentationOptions`"),
        ("stages.teacher.optimizer.name=my_lab.kinds:Soup", "should subclass `OptimizerOptions`"),
        ("search.searcher.name=my_lab.kinds:Soup", "should subclass `SearcherOptions`"),
        ("search.scheduler.name=my_lab.kinds:Soup", "should subclass `SchedulerOptions`"),
    ],
)
def test_options_of_own_kinds_are_checked_with_their_places(lab: Any, override: str, message: str) -> None:
    run = lab.distill("run", lab.plan, "--dry-run", "--set", override)
    assert run.exit_code == 2
    (line,) = run.output.strip().splitlines()
    assert message in line


def test_what_a_task_of_the_users_raises_is_one_line(lab: Any) -> None:
    lab.edit("my_lab/data.py", 'return f"stripes of', 'return 1 / 0, f"stripes of')
    run = lab.distill("run", lab.plan, "--dry-run")
    assert run.exit_code == 2
    assert "task `my_lab.data:Stripes`: ZeroDivisionError" in run.output


def test_a_kind_of_ours_can_be_subclassed(lab: Any) -> None:
    lab.write("my_lab/wrong.py", KINDS)
    hotter = MethodOptions.choose({"method": "my_lab.wrong:Hotter"})
    assert (hotter.method, type(hotter).safe_word()) == ("my_lab.wrong:Hotter", "hotter")
    assert load_object(hotter.implementation)(hotter).config.temperature == 7.0


LONGER = """\
from raydistill.kinds.train import TrainConfig
from raydistill.kinds.training import ScheduleOptions
class Longer(TrainConfig):
    implementation = "my_lab.work:longer"
    factor: int = 2
class Halving(ScheduleOptions):
    implementation = "my_lab.work:halving"
"""
WORK = """\
from torch.optim.lr_scheduler import StepLR
from raydistill.stages.train import train
def longer(config, context):
    return {**train(config.replace(epochs=config.epochs * config.factor), context), "factor": config.factor}
def halving(config, optimizer, epochs, steps_per_epoch):
    return StepLR(optimizer, steps_per_epoch, 0.5)
"""


def test_a_stage_of_the_users_trains_as_ours_does_and_with_a_schedule_of_his(lab: Any) -> None:
    lab.write("my_lab/longer.py", LONGER)
    lab.write("my_lab/work.py", WORK)
    own = '{name: "my_lab.longer:Halving"}'
    lab.edit("plan.yaml", "stage: train\n", f"stage: my_lab.longer:Longer\n    schedule: {own}\n")
    run = lab.distill("run", lab.plan, *RUN, "--only", "teacher.0")
    assert run.exit_code == 0, run.output
    teacher = results(lab.folder)["teacher.0"]
    assert (teacher["stage"], teacher["metrics"]["factor"]) == ("longer", 2)
    lines = (lab.folder / "runs" / teacher["folder"] / "metrics.jsonl").read_text().splitlines()
    rates = {line["epoch"]: line["train/learning_rate"] for line in map(json.loads, lines) if "epoch" in line}
    assert max(rates) == 12
    assert rates[12] == pytest.approx(0.003 / 2**12)


def test_two_methods_of_one_name_are_refused(lab: Any) -> None:
    lab.write("my_lab/more.py", "from my_lab.kinds import Cosine as One\nclass Cosine(One): pass\n")
    lab.edit("plan.yaml", "{method: labels}", '{method: "my_lab.more:Cosine"}')
    with pytest.raises(PlanError, match="have the same name in metrics; rename one"):
        lab.graph()


def test_a_received_model_imports_no_task_of_anybodys(lab: Any) -> None:
    folder = lab.folder / "received"
    folder.mkdir()
    description = load_plan(lab.plan).task.model_dump(mode="json")
    with pytest.raises(
        PlanError, match=r"names `my_lab.data:Stripes` of `my_lab.data`; a folder from outside"
    ):
        described_task(description, folder, NOBODY)
    assert described_task(description, folder, Trust(modules=("my_lab",))) == build_task(description)


@pytest.mark.parametrize(
    ("table", "own"),
    [
        ("methods:METHODS", "my_lab.kinds:Cosine"),
        ("stages:STAGES", "my_lab.kinds:Soup"),
        ("augmentations:AUGMENTATIONS", "my_lab.kinds:Brightness"),
        ("training:OPTIMIZERS", "my_lab.kinds:RmsProp"),
    ],
)
def test_one_of_ours_needs_a_class_and_its_place_in_the_table_alone(
    lab: Any, monkeypatch: pytest.MonkeyPatch, table: str, own: str
) -> None:
    own_class = load_object(own)
    monkeypatch.setattr(own_class, "word", "gentle")
    module, name = f"raydistill.kinds.{table}".split(":")
    monkeypatch.setattr(import_module(module), name, (*load_object(f"{module}:{name}"), own_class))
    kind._by_word.cache_clear()
    try:
        lab.write("plan.yaml", re.sub(f'"?{own}"?', "gentle", lab.plan.read_text()))
        run = lab.distill("run", lab.plan, *RUN)
        assert run.exit_code == 0, run.output
        assert results(lab.folder)["student"]["status"] == "done"
        assert own_class.__doc__.splitlines()[0] in lab.distill("explain", "gentle").stdout
        assert re.search(r"\bgentle\b", lab.distill("explain").stdout)
    finally:
        kind._by_word.cache_clear()


SEARCHER = """\
from raydistill.plan.search import SearcherOptions
class Middle(SearcherOptions):
    '''The middle of every range, and what lies a step from it.'''
    implementation = "my_lab.search:Halves"
    step: float = 0.1
class Halves:
    def __init__(self, space, config, mode, records):
        self.space, self.config, self.begun = space, config, len(records)
    def draw(self):
        shift = self.begun * self.config.step
        return {path: domain.tidy((domain.low + domain.high) / 2 + shift) for path, domain in self.space.items()}
    def begin(self, values):
        self.begun += 1
    def tell(self, record): ...
"""


def test_values_are_chosen_by_a_searcher_of_the_users(lab: Any) -> None:
    lab.write("my_lab/search.py", SEARCHER)
    lab.edit("plan.yaml", "samples: 2", 'samples: 2\n  searcher: {name: "my_lab.search:Middle", step: 0.25}')
    tuned = lab.distill("tune", lab.plan, *RUN)
    assert tuned.exit_code == 0, tuned.output
    records = [
        json.loads(file.read_text()) for file in (lab.folder / "runs").glob("searches/*/trials/*.json")
    ]
    assert sorted(record["values"]["student.methods.1.power"] for record in records) == [2.0, 2.25]
    assert "by `my_lab.search:Middle`" in lab.distill("tune", lab.plan, "--dry-run").output
