"""Models in MLflow as teachers: they are known by content, nothing of them runs, and what cannot be had is said."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_pictures import as_folders, some_pictures
from predicted import trained
from safetensors.torch import load_file

import raydistill
from raydistill.errors import PlanError
from raydistill.models.torch_program import read_program
from raydistill.runs.folder import StageFolder
from raydistill.tracking import store
from raydistill.tracking.logged_model import export_student
from raydistill.training import model_files

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings(
        "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
    ),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]


class Registered:
    """A tracking store with models of ours in MLflow's form."""

    def __init__(self, folder: Path, task: dict[str, Any], exported: Path, stage: Path) -> None:
        self.folder, self.task, self.exported, self.stage = folder, task, exported, stage
        self.uri = f"sqlite:///{folder}/mlflow.db"
        self.client = store.open_client(self.uri, folder)
        self.client.create_registered_model("birds")

    def register(self, files: Path) -> str:
        """A version of `birds` whose files are those of a folder."""
        return str(self.client.create_model_version("birds", source=files.as_uri()).version)

    def plan(self, weights: str, **teacher: Any) -> raydistill.Plan:
        stages = {"teacher": {"stage": "pretrained", "weights": weights, **teacher}}
        return raydistill.build_plan(
            {"name": "from-mlflow", "task": self.task, "tracking": "none", "stages": stages}
        )

    def fetched(self, weights: str, **teacher: Any) -> raydistill.Plan:
        return raydistill.with_fetched_models(
            self.plan(weights, **teacher), runs=self.folder / "runs", tracking_uri=self.uri
        )

    def fingerprint(self, weights: str) -> str:
        return raydistill.order(self.fetched(weights)).nodes["teacher"].fingerprint

    def refused(self, weights: str, **teacher: Any) -> str:
        with pytest.raises(PlanError) as error:
            self.fetched(weights, **teacher)
        assert "\n" not in error.value.message
        return error.value.message


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, Path]:
    """A task, a stage that learned it, and its model as MLflow keeps it."""
    folder = tmp_path_factory.mktemp("student")
    task = as_folders(folder / "data", some_pictures()).model_dump(mode="json")
    stage = trained(task, folder / "runs")
    export_student(stage, folder / "logged")
    return task, stage, folder / "logged"


@pytest.fixture
def registered(
    tmp_path: Path, tracking_database: Path, student: tuple[dict[str, Any], Path, Path]
) -> Registered:
    shutil.copy(tracking_database, tmp_path / "mlflow.db")
    task, stage, logged = student
    return Registered(tmp_path, task, shutil.copytree(logged, tmp_path / "logged"), stage)


def test_a_registered_student_teaches_with_the_very_answers_that_it_had(
    registered: Registered, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered.register(registered.exported)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registered.uri)
    run = raydistill.run(registered.plan("models:/birds/1"), runs=registered.folder / "runs", local=True)
    assert run.status == "done", run["teacher"].error
    own = load_file(registered.stage / "predictions-test.safetensors")["logits"].float()
    taught = load_file(run["teacher"].folder.path / "predictions-test.safetensors")["logits"].float()
    assert torch.allclose(torch.softmax(taught, 1), torch.softmax(own, 1), atol=2e-3)  # stored in 16 bits
    inputs = torch.rand(4, 3, 8, 8)
    logits = model_files.load(StageFolder(registered.stage)).logits(inputs)
    again = model_files.load(run["teacher"].folder).logits(inputs)
    assert torch.allclose(torch.softmax(again, 1), torch.softmax(logits, 1), atol=1e-6)


def test_what_an_alias_leads_to_is_the_identity_and_not_its_name(registered: Registered) -> None:
    other = shutil.copytree(registered.exported, registered.folder / "other")
    meta = (other / "MLmodel").read_text()
    assert "std:" in meta
    registered.register(registered.exported)
    registered.register(registered.exported)
    _rewrite(other / "data/model.pt2")
    registered.register(other)
    registered.client.set_registered_model_alias("birds", "champion", "1")
    first = registered.fingerprint("models:/birds@champion")
    assert registered.fingerprint("models:/birds/1") == first
    assert registered.fingerprint("models:/birds/2") == first, "the same bytes under another number"
    registered.client.set_registered_model_alias("birds", "champion", "3")
    moved = registered.fingerprint("models:/birds@champion")
    assert moved != first
    assert registered.fingerprint("models:/birds/latest") == moved


def test_files_that_were_overwritten_under_one_version_are_others(registered: Registered) -> None:
    registered.register(registered.exported)
    before = registered.fingerprint("models:/birds/1")
    _rewrite(registered.exported / "data/model.pt2")
    assert registered.fingerprint("models:/birds/1") != before


def _rewrite(program: Path) -> None:
    """Another program of the same size and form: a weight has another last bit."""
    content = bytearray(program.read_bytes())
    weight = read_program(program).state_dict()
    largest = max(weight.values(), key=torch.numel).numpy().tobytes()
    place = content.find(largest)
    content[place] ^= 1
    program.write_bytes(content)


def test_a_model_of_a_run_is_found_by_its_name_and_by_its_path(registered: Registered) -> None:
    experiment = registered.client.create_experiment(
        "e", artifact_location=(registered.folder / "a").as_uri()
    )
    run = registered.client.create_run(experiment).info.run_id
    registered.client.log_artifacts(run, str(registered.exported), "by-path")
    registered.register(registered.exported)
    expected = registered.fingerprint("models:/birds/1")
    assert registered.fingerprint(f"runs:/{run}/by-path") == expected


def test_weights_of_a_student_that_could_not_be_exported_begin_a_network(registered: Registered) -> None:
    files = registered.folder / "weights"
    files.mkdir()
    shutil.copy(registered.stage / "model.safetensors", files)
    registered.register(files)
    plan = registered.fetched("models:/birds/1", model={"name": "cnn", "widths": [4]})
    kept = Path(str(plan.stages["teacher"].model.weights))  # type: ignore[attr-defined]
    assert kept.read_bytes() == (registered.stage / "model.safetensors").read_bytes()
    assert "is weights, not a program" in registered.refused("models:/birds/1")


def test_a_pickle_is_refused_and_never_read(registered: Registered, tmp_path: Path) -> None:
    files = tmp_path / "pickled"
    (files / "data").mkdir(parents=True)
    (files / "MLmodel").write_text("flavors: {pytorch: {model_data: data}}\n")
    evil = {"weights": _Evil(str(tmp_path / "ran"))}
    (files / "data/model.pth").write_bytes(pickle.dumps(evil))
    registered.register(files)
    assert "may run code" in registered.refused("models:/birds/1")
    assert not (tmp_path / "ran").exists()


class _Evil:
    def __init__(self, file: str) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.file, "w"))


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("models:/birds/9", "cannot be fetched"),
        ("models:/geese/1", "cannot be fetched"),
        ("models:/birds@nobody", "cannot be fetched"),
        ("models:/geese/latest", "no version"),
        ("runs:/0123456789abcdef0123456789abcdef/model", "cannot be fetched"),
        ("models:/birds", "is no address of a model"),
    ],
)
def test_what_is_not_there_is_one_line_with_its_address(
    registered: Registered, address: str, words: str
) -> None:
    message = registered.refused(address)
    assert words in message
    assert f"`{address}`" in message


def test_a_server_that_does_not_answer_is_one_line(registered: Registered) -> None:
    with pytest.raises(PlanError, match=r"`models:/birds/1` cannot be fetched: nobody answers at"):
        raydistill.with_fetched_models(
            registered.plan("models:/birds/1"),
            runs=registered.folder / "runs",
            tracking_uri="http://127.0.0.1:9",
        )


def test_a_student_of_the_classes_in_another_order_is_refused(registered: Registered) -> None:
    described = registered.exported / "MLmodel"
    text = described.read_text()
    assert "- ant\n" in text
    assert "- bee\n" in text
    described.write_text(
        text.replace("- ant\n", "- x\n").replace("- bee\n", "- ant\n").replace("- x\n", "- bee\n")
    )
    registered.register(registered.exported)
    assert "`bee` is its class 0, and `ant` the task's" in registered.refused("models:/birds/1")


def test_a_place_in_the_plans_file_is_named(registered: Registered, tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    stages = "  teacher:\n    stage: pretrained\n    weights: models:/birds/7\n"
    file.write_text(f"name: p\ntask: {json.dumps(registered.task)}\nstages:\n{stages}")
    with pytest.raises(PlanError, match=r"plan\.yaml:6: stages\.teacher\.weights: `models:/birds/7`"):
        raydistill.with_fetched_models(
            raydistill.load_plan(file), runs=tmp_path / "runs", tracking_uri=registered.uri
        )


def test_another_machine_sees_what_was_fetched_behind_a_url(
    registered: Registered, storage_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from raydistill.runs.fetched_files import see_fetched

    registered.register(registered.exported)
    plan = raydistill.with_fetched_models(
        registered.plan("models:/birds/1"), runs=storage_url, tracking_uri=registered.uri
    )
    kept = Path(str(plan.stages["teacher"].model.weights))  # type: ignore[attr-defined]
    content = kept.read_bytes()
    kept.unlink()
    shutil.rmtree(kept.parents[2] / "../tags", ignore_errors=True)  # as on a machine that never had it
    see_fetched(kept)
    assert kept.read_bytes() == content
