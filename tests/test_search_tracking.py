"""What MLflow shows of a search, from the records that one leaves."""

import http.server
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from built_runs import START, BuiltSearch
from mlflow import MlflowClient

from raydistill.errors import DistillError
from raydistill.tracking import Mirror, mirror, store, sync
from raydistill.tracking import background as background_module
from raydistill.tracking.server import version_conflict

# MLflow 3.17 still uses a loader strategy that SQLAlchemy 2.1 wants to drop; both are theirs.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
)

NOWHERE = "http://127.0.0.1:9"
PATH = "student.method.temperature"


class Search(BuiltSearch):
    """A search's folder, and words to read the store."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, {PATH: {"loguniform": [1, 20]}}, plan="p", status="running", samples=4)
        self.root, self.uri = root, f"sqlite:///{root}/mlflow.db"

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)

    def end(self, status: str = "done", best: int | None = None, **more: Any) -> Path:
        """Write how it ended; `best` is the number of the winner."""
        judged = {"validation/accuracy": 0.9, "test/accuracy": 0.8, "test/errors": 200.0}
        won = {"trial": f"t{best}", "number": best, "values": {PATH: 2.0}, "metric": 0.9, "metrics": judged}
        return self.write(status, best=None if best is None else {**won, "plan_run": "plans/p/r"}, **more)

    def add(self, number: int, status: str = "done", epochs: int = 3, **more: Any) -> None:
        """The metric after epoch e is (number + e) / 10."""
        told = {
            "id": f"t{number}",
            "number": number,
            "metric": (number + epochs) / 10 if epochs else None,
            "epochs": {epoch: (number + epoch) / 10 for epoch in range(1, epochs + 1)},
            "metrics": {"validation/loss": 0.5} if status == "done" else {},
            "seconds": 7.0,
            "started": START + number,
            "finished": None if status == "running" else START + number + 8,
            "stages": {"student": f"stages/distill-{number}"},
            **more,
        }
        self.trial({PATH: 1.5 * number}, told.pop("metric"), status, **told)

    def runs(self) -> dict[str, Any]:
        """MLflow's runs by name; a name that comes twice fails the test."""
        ids = [experiment.experiment_id for experiment in self.client.search_experiments()]
        found = list(self.client.search_runs(ids))
        names = [run.info.run_name for run in found]
        assert len(names) == len(set(names))
        return dict(zip(names, found, strict=True))

    def curve(self, name: str, key: str = "validation/accuracy") -> list[tuple[int, float]]:
        """(step, value) of every point, doubles included."""
        run_id = self.runs()[name].info.run_id
        return sorted((point.step, point.value) for point in self.client.get_metric_history(run_id, key))


@pytest.fixture
def search(tmp_path: Path, tracking_database: Path, monkeypatch: pytest.MonkeyPatch) -> Search:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    made = Search(tmp_path / "runs")
    shutil.copy(tracking_database, made.root / "mlflow.db")
    return made


def write_all(search: Search) -> Path:
    """A search that is over: one trial of each outcome, and a best one."""
    search.add(1)
    search.add(2)
    search.add(3, "stopped_early", epochs=1)
    search.add(4, "failed", epochs=0, error="the loss is NaN", seconds=0.0)
    (search.folder / "best.yaml").write_text("name: p-best\n")
    (search.folder / "report.html").write_text("report")
    (search.folder / "plots").mkdir()
    (search.folder / "plots" / "over-time.png").write_bytes(b"picture")
    return search.end("done", best=2)


def test_trials_are_nested_below_their_search_with_the_searched_values_as_params(search: Search) -> None:
    result = mirror(write_all(search), search.root)
    assert (result.is_complete, result.problem) == (True, None)
    found = search.runs()
    assert sorted(found) == ["p", "trial 01", "trial 02", "trial 03", "trial 04"]
    parent = found.pop("p")
    assert {run.data.tags["mlflow.parentRunId"] for run in found.values()} == {parent.info.run_id}
    assert found["trial 02"].data.params == {"temperature": "3.0"}
    assert found["trial 02"].data.tags["stage.student"] == "stages/distill-2"
    assert parent.data.params == {
        f"space/{PATH}": "loguniform [1.0, 20.0]",
        "searcher.name": "tpe",
        "searcher.seed": "0",
    }
    tags = {
        key: parent.data.tags[key] for key in ("kind", "plan", "fingerprint", "metric", "mode", "scheduler")
    }
    assert tags == {
        "kind": "search",
        "plan": "p",
        "fingerprint": "0123456789ab",
        "metric": "student.validation/accuracy",
        "mode": "max",
        "scheduler": "asha",
    }
    assert parent.info.start_time == START * 1000


def test_curves_and_the_final_judgement_are_metrics_of_a_trial(search: Search) -> None:
    mirror(write_all(search), search.root)
    assert search.curve("trial 01") == [(1, 0.2), (2, 0.3), (3, 0.4)]
    assert search.curve("trial 01", "validation/loss") == [(3, 0.5)]
    assert search.curve("trial 01", "seconds") == [(3, 7.0)]


def test_a_trial_judged_by_another_epoch_than_its_last_shows_that_value(search: Search) -> None:
    search.add(1, metric=0.7)
    mirror(search.end("done"), search.root)
    assert search.runs()["trial 01"].data.metrics["validation/accuracy"] == 0.7


def test_how_trials_ended_shows_in_their_tags(search: Search) -> None:
    mirror(write_all(search), search.root)
    found = search.runs()
    seen = {name: (run.info.status, run.data.tags["status"]) for name, run in found.items()}
    assert seen == {
        "p": ("FINISHED", "done"),
        "trial 01": ("FINISHED", "done"),
        "trial 02": ("FINISHED", "done"),
        "trial 03": ("FINISHED", "stopped_early"),
        "trial 04": ("FAILED", "failed"),
    }
    assert found["trial 04"].data.tags["error"] == "the loss is NaN"
    assert found["trial 01"].info.end_time == (START + 9) * 1000


def test_the_winner_and_the_search_have_the_test_metrics_and_nobody_else(search: Search) -> None:
    mirror(write_all(search), search.root)
    found = search.runs()
    assert {name for name, run in found.items() if "test/accuracy" in run.data.metrics} == {"p", "trial 02"}
    assert {name for name, run in found.items() if run.data.tags.get("best") == "true"} == {"trial 02"}
    assert found["p"].data.tags["best"] == "trial 02"
    assert found["p"].data.metrics == {"validation/accuracy": 0.9, "test/accuracy": 0.8, "test/errors": 200.0}


def test_the_front_is_tagged_its_costs_are_metrics_and_both_follow_the_search(search: Search) -> None:
    search.write(cost="parameters")
    for number, cost in ((1, 30.0), (2, 20.0), (3, 40.0)):
        search.add(number, cost=cost)
    assert mirror(search.end("interrupted"), search.root).is_complete
    found = search.runs()
    tagged = {name for name, run in found.items() if run.data.tags.get("front") == "true"}
    assert (tagged, found["p"].data.tags["front"]) == ({"trial 02", "trial 03"}, "trial 02, trial 03")
    assert found["p"].data.tags["cost"] == "parameters"
    assert search.curve("trial 01", "cost/parameters") == [(3, 30.0)]
    search.add(4, cost=15.0)
    assert mirror(search.end("done", best=4), search.root).is_complete
    found = search.runs()
    assert {name for name, run in found.items() if run.data.tags.get("front") == "true"} == {"trial 04"}
    assert found["p"].data.tags["front"] == "trial 04"
    assert (
        "No other beats, by validation/accuracy and parameters: trial 04"
        in found["p"].data.tags["mlflow.note.content"]
    )
    assert search.curve("trial 01", "cost/parameters") == [(3, 30.0)]


def test_a_search_without_a_cost_has_no_front(search: Search) -> None:
    search.add(1)
    mirror(search.end("done", best=1), search.root)
    tags = search.runs()["p"].data.tags
    assert not {"front", "cost"} & tags.keys()


def test_the_description_names_the_best_and_links_to_trials(search: Search) -> None:
    mirror(write_all(search), search.root)
    found = search.runs()
    note = found["p"].data.tags["mlflow.note.content"]
    assert "**Best: trial 02** (temperature 2.0)" in note
    assert "80.00 % on the test split" in note
    assert f"/runs/{found['trial 01'].info.run_id}?" in note
    assert "4 trials: 2 done, 1 stopped early, 1 failed" in note


def test_report_plots_and_best_plan_are_artifacts_of_the_search(search: Search) -> None:
    result = mirror(write_all(search), search.root)
    kept = search.root / "mlartifacts" / str(result.run_id) / "artifacts"
    shown = sorted(str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file())
    assert shown == ["best.yaml", "plots/over-time.png", "report.html", "search.json"]


def test_segments_of_a_population_are_named_and_tagged_by_member_and_round(search: Search) -> None:
    places = [(0, 0, None), (1, 0, None), (0, 1, None), (1, 1, 0)]
    for number, (member, turn, donor) in enumerate(places, start=1):
        segment = {
            "member": member,
            "round": turn,
            "donor": donor,
            "rounds": 2,
            "start": turn,
            "until": None,
            "history": {},
        }
        name = f"member-{member + 1:02d}-round-{turn + 1}"
        search.add(number, epochs=1, id=name, segment=segment, metric=(9 - number) / 10)
    folder = search.end("done", best=4, scheduler={"name": "pbt"})
    search.write(best=search.about["best"] | {"trial": "member-02-round-2"})
    mirror(folder, search.root, search.uri)
    runs = search.runs()
    assert set(runs) == {"p", *(f"member-0{member + 1}-round-{turn + 1}" for member, turn, _ in places)}
    tags = runs["member-02-round-2"].data.tags
    assert (tags["member"], tags["round"], tags["donor"], tags["best"]) == ("2", "2", "1", "true")
    assert "donor" not in runs["member-02-round-1"].data.tags
    assert runs["p"].data.tags["best"] == "member-02-round-2"
    note = runs["p"].data.tags["mlflow.note.content"]
    table = [line for line in note.splitlines() if "-round-" in line and line.startswith("|")]
    assert [line.partition("member-")[2][:10] for line in table] == [
        "01-round-2",
        "02-round-2",
        "01-round-1",
        "02-round-1",
    ]


def test_a_search_that_goes_on_continues_its_runs(search: Search) -> None:
    search.add(1)
    search.add(2, "interrupted", epochs=2)
    first = mirror(search.end("interrupted", best=1), search.root)
    assert {name: run.info.status for name, run in search.runs().items()} == {
        "p": "KILLED",
        "trial 01": "FINISHED",
        "trial 02": "KILLED",
    }
    search.add(2, "running", epochs=2)
    again = mirror(search.end("running", samples=5), search.root)
    assert (again.run_id, again.is_complete) == (first.run_id, False)
    found = search.runs()
    assert (found["p"].info.status, found["trial 02"].info.status) == ("RUNNING", "RUNNING")
    assert found["p"].data.tags["samples"] == "5"
    search.add(2)
    search.add(3)
    assert mirror(search.end("done", best=3, samples=5), search.root).is_complete
    found = search.runs()
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert search.curve("trial 02") == [(1, 0.3), (2, 0.4), (3, 0.5)]
    assert {name for name, run in found.items() if run.data.tags.get("best") == "true"} == {"trial 03"}


class Flaky:
    """A client whose every call fails the first time: before it reaches the store, or after, with the answer lost."""

    def __init__(self, client: Any, failed: set[str], *, reaches: bool) -> None:
        self.client, self.failed, self.reaches = client, failed, reaches

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            what = f"{name}{args}{kwargs}"
            if what in self.failed:
                return getattr(self.client, name)(*args, **kwargs)
            self.failed.add(what)
            if self.reaches:
                getattr(self.client, name)(*args, **kwargs)
            raise ConnectionError(name)

        return call


def shown(search: Search) -> dict[str, Any]:
    """All that MLflow shows but for ids."""
    seen = {}
    for name, run in search.runs().items():
        told = {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")}
        curves = {key: search.curve(name, key) for key in run.data.metrics}
        seen[name] = (run.info.status, run.info.end_time, run.data.params, told, curves)
    return seen


@pytest.mark.parametrize("reaches", [False, True])
def test_a_push_that_dies_at_every_single_call_delivers_everything_once(
    search: Search, monkeypatch: pytest.MonkeyPatch, reaches: bool
) -> None:
    folder = write_all(search)
    assert mirror(folder, search.root).is_complete
    undisturbed = shown(search)
    flaky = f"sqlite:///{search.root}/flaky.db"
    shutil.copy(search.root / "mlflow.db", search.root / "flaky.db")
    for run in MlflowClient(flaky).search_runs(["1"]):
        MlflowClient(flaky).delete_run(run.info.run_id)
    failed: set[str] = set()
    real = store.open_client
    monkeypatch.setattr(
        store, "open_client", lambda uri, root: Flaky(real(uri, root), failed, reaches=reaches)
    )
    pushes = 1
    while not mirror(folder, search.root, flaky).is_complete:
        pushes += 1
        assert pushes < 100
    assert pushes > 15
    search.uri = flaky
    assert shown(search) == undisturbed


def test_a_finished_search_is_not_sent_again(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_all(search)
    first = mirror(folder, search.root)
    monkeypatch.setattr(store, "open_client", lambda uri, root: pytest.fail("the store was asked"))
    assert mirror(folder, search.root) == first
    assert list(sync(search.root)) == []


def test_sync_sends_what_a_server_that_was_down_did_not_get(search: Search) -> None:
    folder = write_all(search)
    assert mirror(folder, search.root, NOWHERE).problem is not None
    with pytest.raises(DistillError, match="could not be sent"):
        list(sync(search.root))
    assert list(sync(search.root, search.uri)) == [f"searches/p-0123456789ab → {search.uri}"]
    assert len(search.runs()) == 5


def test_sync_closes_the_runs_of_a_dead_driver(search: Search) -> None:
    search.add(1, "running", epochs=2)
    search.end("running")
    assert len(list(sync(search.root))) == 1
    found = search.runs()
    assert {run.info.status for run in found.values()} == {"KILLED"}
    assert {run.data.tags["status"] for run in found.values()} == {"interrupted"}


def test_a_trial_deleted_in_mlflow_does_not_hold_up_the_others(search: Search) -> None:
    search.add(1, "running", epochs=1)
    search.add(2, "running", epochs=1)
    mirror(search.end("running"), search.root)
    search.client.delete_run(search.runs()["trial 01"].info.run_id)
    search.add(1)
    search.add(2)
    result = mirror(search.end("done", best=1), search.root)
    assert (result.is_complete, result.problem) == (True, None)
    assert search.curve("trial 02") == [(1, 0.3), (2, 0.4), (3, 0.5)]


def test_a_record_that_cannot_be_read_is_left_out(search: Search) -> None:
    search.add(1)
    (search.folder / "trials" / "t2.json").write_text("{ torn")
    assert mirror(search.end("done"), search.root).is_complete
    assert sorted(search.runs()) == ["p", "trial 01"]


# --- servers of other versions --------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[Callable[[str], str]]:
    """Starts a server that only tells its version; returns its address."""
    started: list[http.server.HTTPServer] = []

    def start(version: str) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = self.path == "/version"
                self.send_response(200 if found else 404)
                self.end_headers()
                self.wfile.write(version.encode() if found else b"{}")

            def log_message(self, *_: Any) -> None:
                return

        started.append(http.server.HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=started[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{started[-1].server_port}"

    yield start
    for one in started:
        one.shutdown()
        one.server_close()


@pytest.mark.parametrize("version", ["2.9.2", "4.0.0rc1"])
def test_a_server_of_another_major_version_is_told_of_once_with_the_way_out(
    search: Search,
    server: Callable[[str], str],
    version: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(background_module, "PERIOD", 0.05)
    uri = server(version)
    for _ in range(2):
        mirroring = Mirror(search.end("done"), search.root, uri)
        mirroring.start()
        mirroring.finish()
    told = [record.getMessage() for record in caplog.records if "runs MLflow" in record.getMessage()]
    assert len(told) == 1
    assert f"`{uri}` runs MLflow {version}" in told[0]
    assert "`mlflow==3.*`" in told[0]


@pytest.mark.parametrize("version", ["3.1.0", "<html>not a version</html>"])
def test_a_server_of_our_major_version_or_of_none_is_no_matter(
    server: Callable[[str], str], version: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    assert version_conflict(server(version)) is None
    assert version_conflict(NOWHERE) is None
