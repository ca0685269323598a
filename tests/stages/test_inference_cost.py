"""What a model costs whoever uses it: exact where it is counted, plausible where it is measured."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import raydistill
from raydistill import inference_cost, timing
from raydistill.cli import main
from raydistill.export import export_model
from raydistill.inference_cost import measure_costs
from raydistill.plan.load import build_plan
from raydistill.training.trust import Trust

MLP = {"stage": "train", "epochs": 1, "model": {"name": "mlp", "widths": [16]}}
COUNTED = 64 * 16 + 16 * 3
PARAMETERS = COUNTED + 16 + 3


def train(stages: Any) -> None:
    stages.run({"one": MLP | {"replicas": 2}, "both": {"stage": "evaluate", "models": ["one"]}})


@pytest.fixture(autouse=True)
def is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SECONDS", 0.01)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that measures starts in some seconds: one test waits for it, the others do its work here."""
    functions = {
        "raydistill.timing": timing.time_onnx,
        "raydistill.inference_cost": inference_cost.time_torch,
    }

    def run(module: str, request: dict[str, Any]) -> Any:
        return json.loads(json.dumps(functions[module](**json.loads(json.dumps(request)))))

    monkeypatch.setattr(inference_cost, "_in_process", run)


def test_times_are_quantiles_of_what_was_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = iter([9.0] * timing.WARM_UP + [0.001 * (1 + index % 20) for index in range(1000)])
    now = [0.0]

    def run() -> None:
        now[0] += next(waits)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    found = timing.time_runs(run, seconds=0.0)
    assert found["runs"] == timing.FEWEST
    assert found["p50"] == pytest.approx(0.0105)  # of 1, 2, ..., 20 ms
    assert found["p95"] == pytest.approx(0.01905)


def test_slow_runs_end_after_some_and_fast_ones_after_some_time() -> None:
    assert timing.time_runs(lambda: time.sleep(0.002), seconds=0.0)["runs"] == timing.FEWEST
    assert timing.FEWEST < timing.time_runs(lambda: None, seconds=0.001)["runs"] <= timing.MOST


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("has_runtime", [True, False])
def test_a_model_and_an_ensemble_are_measured(
    has_runtime: bool, stages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_runtime:
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    else:
        monkeypatch.setattr("raydistill.lookup.find_spec", lambda name: None)
    train(stages)
    for name, times in (("both", 2), ("one.0", 1)):
        (found,) = measure_costs(stages.folder(name).path, Trust(root=stages.root))
        assert (found.parameters, found.multiply_adds) == (times * PARAMETERS, times * COUNTED)
        assert found.bytes == 4 * times * PARAMETERS
        runtimes = {"torch", "onnxruntime"} if has_runtime else {"torch"}
        assert {latency.runtime for latency in found.latencies} == runtimes
        assert {latency.batch for latency in found.latencies} == {1, 32}
        assert min(latency.threads for latency in found.latencies) == 1
        assert all(0 < latency.p50 <= latency.p95 for latency in found.latencies)
        assert bool(found.remarks) != has_runtime
        if not has_runtime:
            assert "pip install 'raydistill[deploy]'" in found.remarks[0]


@pytest.mark.usefixtures("in_this_process")
def test_a_committee_is_measured_in_torch_alone(stages: Any) -> None:
    stages.run(
        {
            "generalist": MLP,
            "clusters": {"stage": "confusion_clusters", "given": [[2, 0], [1, 2]]},
            "specialists": {
                "stage": "train_specialists",
                "generalist": "generalist",
                "clusters": "clusters",
                "epochs": 1,
            },
            "committee": {
                "stage": "evaluate",
                "models": ["generalist"],
                "committee": {"specialists": ["specialists"], "active": 1},
            },
        }
    )
    (found,) = measure_costs(stages.folder("committee").path, Trust(root=stages.root))
    assert {latency.runtime for latency in found.latencies} == {"torch"}
    assert found.multiply_adds is None
    assert found.parameters == stages.record("committee").parameters
    assert found.remarks


def test_the_command_measures_in_processes_of_their_own(stages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydistill.lookup.find_spec", lambda name: None)
    train(stages)
    folder = str(stages.folder("one.0").path)
    (found,) = json.loads(CliRunner().invoke(main, ["cost", folder, "--json"]).stdout)
    assert found["multiply_adds"] == COUNTED
    assert found["latencies"][0]["batch"] == 1
    assert 50e6 < found["peak_bytes"]["torch"] < 4e9


@pytest.mark.usefixtures("in_this_process")
def test_the_command_prints_a_table(stages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydistill.lookup.find_spec", lambda name: None)
    train(stages)
    shown = CliRunner().invoke(main, ["cost", str(stages.folder("one.0").path)])
    assert shown.exit_code == 0, shown.output
    assert f"{COUNTED:,}" in shown.output
    assert "not with onnxruntime" in shown.output


@pytest.mark.usefixtures("in_this_process")
def test_a_page_has_what_was_measured(stages: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydistill.lookup.find_spec", lambda name: None)
    train(stages)
    export_model(stages.folder("one.0").path, tmp_path / "out", format="safetensors", measure=True)
    page = (tmp_path / "out" / "README.md").read_text()
    assert f"{PARAMETERS:,} parameters, {COUNTED:,} multiply-adds for one input" in page
    assert (
        next(line for line in page.splitlines() if line.startswith("| torch |")).split("|")[2].strip() == "1"
    )


@pytest.mark.usefixtures("in_this_process")
def test_a_run_is_all_its_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydistill.lookup.find_spec", lambda name: None)
    stages = {"small": MLP, "none": MLP | {"model": {"name": "mlp", "widths": []}}}
    plan = build_plan({"name": "tiny", "task": {"name": "mnist"}, "tracking": "none", "stages": stages})
    run = raydistill.run(plan, runs=tmp_path, local=True)
    found = measure_costs(run.folder, Trust(root=tmp_path))
    assert {cost.name: cost.multiply_adds for cost in found} == {"small": 794 * 16, "none": 7840}
