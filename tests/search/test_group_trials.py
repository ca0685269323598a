"""Trials that need several workers at once: data-parallel students, and peers that train side by side."""

from collections.abc import Callable
from typing import Any

import pytest

from raydistill.execution.ray_backend.resources import GIB, NO_LIMIT, WHOLE, Limit, Resources
from raydistill.search.ray_trials import TrialResources, trial_resources

HEAT = "student.method.temperature"
SPACE = {HEAT: {"loguniform": [1, 20]}}
MACHINES = [Resources(8 * WHOLE, 4 * WHOLE, 64 * GIB), Resources(8 * WHOLE, 2 * WHOLE, 64 * GIB)]
PEERS = {"stage": "codistill", "model": {"name": "mlp", "widths": [8]}, "epochs": 2, "batch_size": 32}


def room(bench: Any, space: Any = SPACE, limit: Limit = NO_LIMIT, **options: Any) -> TrialResources:
    bench.write(space, **options)
    return trial_resources(bench.problem(), MACHINES, bench.root, limit)


def test_a_trial_on_one_worker_holds_it_itself(bench: Any) -> None:
    assert room(bench) == TrialResources(Resources(WHOLE, WHOLE, 0), None, None)
    assert room(bench, resources={"gpus": 0, "cpus": 2}, concurrency=3) == TrialResources(
        Resources(2 * WHOLE), None, 3
    )


def test_as_many_groups_as_fit_run_at_a_time(bench: Any) -> None:
    group = room(bench, resources={"workers": 2})
    assert (group.share, group.trials) == (Resources(2 * WHOLE, 2 * WHOLE), 3)
    assert group.actor.cpus == group.actor.gpus == 0, "the room is for the workers"
    assert room(bench, resources={"workers": 2}, concurrency=2).trials == 2
    assert room(bench, resources={"workers": 4, "cpus": 3, "gpus": 0}).trials == 1


def test_a_limit_counts_what_all_trials_hold(bench: Any) -> None:
    assert room(bench, limit=Limit(cpus=3)).trials == 3
    assert room(bench, limit=Limit(cpus=3, gpus=2)).trials == 2
    assert room(bench, limit=Limit(cpus=3), concurrency=2).trials == 2
    without = room(bench, limit=Limit(gpus=0))
    assert (without.actor.gpus, without.trials) == (0, None)
    assert room(bench, limit=Limit(cpus=5), resources={"workers": 2}).trials == 2


def test_peers_need_room_for_all_of_them(bench: Any) -> None:
    bench.plan["stages"] = {"peers": {**PEERS, "peers": 3}}
    found = room(bench, {"peers.optimizer.learning_rate": {"loguniform": [1e-4, 1e-2]}})
    assert (found.share, found.trials) == (Resources(3 * WHOLE, 3 * WHOLE), 2)


def test_the_search_s_resources_are_for_trainings(bench: Any) -> None:
    bench.plan["stages"]["judged"] = {"stage": "evaluate", "models": ["student"], "split": "validation"}
    bench.write(SPACE, metric="judged.validation/accuracy", resources={"workers": 2, "gpus": 0})
    problem = bench.problem()
    trial, _ = problem.trial_of({HEAT: 2.0})
    assert {name: trial["stages"][name]["resources"]["workers"] for name in ("student", "judged")} == {
        "student": 2,
        "judged": 1,
    }


def test_peers_cannot_train_one_after_the_other(bench: Any) -> None:
    bench.plan["stages"] = {"peers": PEERS}
    space = {"peers.optimizer.learning_rate": {"loguniform": [1e-4, 1e-2]}}
    refused = bench.tune(space, "--local")
    assert refused.exit_code == 2
    assert "learns from `peers.1` while both train" in refused.stderr
    assert bench.calls == []
    refused = bench.tune(space, scheduler={"name": "asha"})
    assert (
        "`asha` follows one training per trial, but `peers` trains several models side by side"
        in refused.stderr
    )


@pytest.mark.ray
@pytest.mark.slow
def test_trials_on_two_workers_give_the_numbers_of_one(
    ray_cluster: None, real_bench: Callable[..., Any]
) -> None:
    bench = real_bench()
    options = {"searcher": {"name": "grid"}, "resources": {"workers": 2}}
    result = bench.tune({HEAT: {"choice": [2, 8]}}, **options)
    assert result.exit_code == 0, result.output
    trials = bench.trials()
    assert [trial.status for trial in trials] == ["done", "done"], [trial.error for trial in trials]
    for trial in trials:
        assert set(trial.epochs) == {1, 2}
        log = (bench.root / trial.stages["student"] / "log.txt").read_text()
        assert "rank 0 of 2" in log
    bench.root = bench.root.with_name("one")
    assert bench.tune({HEAT: {"choice": [2, 8]}}, "--local", **options).exit_code == 0
    for trial, alone in zip(trials, bench.trials(), strict=True):
        assert trial.metrics == pytest.approx(alone.metrics, rel=1e-5)


@pytest.mark.ray
def test_co_distilled_peers_can_be_searched(ray_cluster: None, real_bench: Callable[..., Any]) -> None:
    bench = real_bench()
    bench.plan["stages"] = {"peers": {**PEERS, "burn_in": 1}}
    rate = "peers.optimizer.learning_rate"
    result = bench.tune({rate: {"choice": [1e-3, 1e-2]}}, searcher={"name": "grid"})
    assert result.exit_code == 0, result.output
    trials = bench.trials()
    assert [trial.status for trial in trials] == ["done", "done"], [trial.error for trial in trials]
    assert all(len(trial.stages) == 2 and trial.metric is not None for trial in trials)
