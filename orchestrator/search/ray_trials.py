"""Trials on Ray Tune: as many at a time as fit, in actors that are reused, stopped early by its schedulers.

Tune decides when a trial starts and whether it goes on. What is tried is decided by our `Suggestions`, and what became
of it is kept in our records: Tune's own files are thrown away.
"""

import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydistill.errors import StageError
from raydistill.execution.gpu_share import settled
from raydistill.execution.ray_backend.resources import (
    GIB,
    NO_LIMIT,
    Limit,
    Resources,
    capacity,
    largest,
    resources_of_worker,
)
from raydistill.kinds.searches import AshaConfig, MedianConfig
from raydistill.kinds.stage_bases import TrainingConfig
from raydistill.lookup import load_object
from raydistill.plan.search import SchedulerOptions
from raydistill.runs.mirror import storage_name
from raydistill.runs.record import summary_of
from raydistill.runs.search_run import SearchRun, TrialRecord
from raydistill.search.ending import Ending
from raydistill.search.problem import SearchProblem
from raydistill.search.trial_log import TrialLog

MAX_RESTARTS = 3  # of a trial whose process died
SCRATCH = ".ray-tune"
SECONDS_BETWEEN = 1.0  # between reports of a trial that no scheduler follows
DRIVER = Resources(
    memory=GIB // 4
)  # of an actor whose trial trains elsewhere: Ray wants it to hold something

ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own tables
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # and its files per trial
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails has no metric
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "100000",  # nobody reads Tune's own record
    "TUNE_WARN_THRESHOLD_S": "60",
}


def import_tune() -> None:
    """Import Ray Tune, which reads its settings meanwhile: two seconds."""
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    import raydistill.search.tune_parts  # noqa: F401


def run_trials(
    trial_log: TrialLog, run: SearchRun, ending: Ending, *, is_own: bool, limit: Limit = NO_LIMIT
) -> None:
    """Run all trials that are left on the Ray cluster that this process has joined, or started (`is_own`), as many at a
    time as the `limit` allows."""
    import_tune()
    from ray import tune
    from ray.exceptions import RayError
    from ray.tune.error import TuneError

    from raydistill.execution.ray_backend.cluster_health import GuardedCalls, health_of
    from raydistill.execution.ray_backend.running import machines_alive
    from raydistill.search.actor import TrialActor
    from raydistill.search.tune_parts import Recorder, Stopper, SuggestionSource

    # A trial whose process fails is one line of ours, with its values: Tune would add pages of Ray's own.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    problem, scratch = trial_log.problem, run.folder / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    resources = trial_resources(problem, machines_alive(), run.root, limit)
    is_followed = problem.config.scheduler.stops_trials
    parameters = {
        "working_folder": str(Path.cwd()),
        "stop_file": (storage_name(run.root), run.stop_file.relative_to(run.root).as_posix()),
        "share": resources.share,
        "seconds_between": 0.0 if is_followed else SECONDS_BETWEEN,
    }
    try:
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(TrialActor, **parameters), _as_tune_takes_it(resources.actor)
            ),
            tune_config=tune.TuneConfig(
                search_alg=SuggestionSource(trial_log, ending),
                scheduler=build_scheduler(problem, trial_log.records.values()),
                num_samples=-1,
                max_concurrent_trials=resources.trials,
                reuse_actors=True,
                trial_name_creator=lambda trial: trial.config["id"],
                trial_dirname_creator=lambda trial: trial.config["id"],
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=str(scratch),
                stop=Stopper(ending),
                callbacks=[Recorder(trial_log, ending)],
                failure_config=tune.FailureConfig(max_failures=MAX_RESTARTS),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # stages keep their own
                verbose=0,
            ),
        )
        # Tune asks the head ten times a second: when it dies, Tune is in the middle of a call that does not return.
        guarded = GuardedCalls(health_of(is_own))
        guarded(tuner.fit)
        guarded.end()
    except (RayError, TuneError) as error:
        raise StageError(
            f"Ray Tune gave up: {summary_of(error)}; the same command goes on with the trials that are left"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _as_tune_takes_it(actor: Resources) -> Any:
    """What a trial's one actor holds, on nodes with its labels."""
    from ray import tune

    if not actor.labels:
        return actor.to_ray()
    return tune.PlacementGroupFactory([actor.to_ray()], bundle_label_selector=[actor.labels])


@dataclass(frozen=True)
class TrialResources:
    """What a trial's actor holds, the `share` of the Ray cluster for the workers that it starts, if it does not train
    itself, and how many trials may run at a time (None: as many as fit)."""

    actor: Resources
    share: Resources | None
    trials: int | None


def trial_resources(
    problem: SearchProblem, machines: Sequence[Resources], root: Path, limit: Limit = NO_LIMIT
) -> TrialResources:
    """Room for trials on a Ray cluster of these machines, within the `limit`; of a GPU as much as their like needed, by
    the records below a storage root.

    Tune sees the actors, not the workers that they start: here those trials are counted that fit.
    """
    nodes = problem.trial_nodes(problem.graph)
    known = settled(nodes, problem.graph, root)
    nodes = [known.get(node.name, node) for node in nodes]
    allowed = [limit.of(machine) for machine in machines]
    workers = [resources_of_worker(node.config.resources, allowed) for node in nodes]
    if not problem.takes_several_workers:
        own = largest(workers)  # one after another
        return TrialResources(own, None, _fewer(problem.config.concurrency, limit.times(own)))
    counts = [node.config.resources.workers * (1 + len(node.peers)) for node in nodes]
    fitting = min(
        sum(capacity(machine, worker) for machine in machines) // count
        for worker, count in zip(workers, counts, strict=True)
    )
    share = largest(worker * count for worker, count in zip(workers, counts, strict=True))
    # What holds no workers of its own is too little to be counted against the limit.
    return TrialResources(
        DRIVER, share, _fewer(_fewer(fitting, problem.config.concurrency), limit.times(share))
    )


def _fewer(one: int | None, other: int | None) -> int | None:
    given = [count for count in (one, other) if count is not None]
    return min(given) if given else None


def build_scheduler(problem: SearchProblem, records: Iterable[TrialRecord]) -> Any:
    """Tune's scheduler, told of the trials of earlier runs of the search: it keeps nothing itself."""
    from raydistill.search.actor import EPOCH, METRIC

    config = problem.config.scheduler
    told = {"time_attr": EPOCH, "metric": METRIC, "mode": problem.metric.mode}
    build = load_object(config.implementation)
    if not config.stops_trials:
        return build(config)
    scheduler = build(config, longest=longest_training(problem), **told)
    for record in records:
        if record.is_over:
            trial = EarlierTrial(record.id)
            scheduler.on_trial_add(None, trial)
            for epoch, value in sorted(record.epochs.items()):
                scheduler.on_trial_result(None, trial, {EPOCH: epoch, METRIC: value})
    return scheduler


def no_scheduler(config: SchedulerOptions) -> Any:
    """Tune starts trials one after another, and ends none."""
    from ray.tune.schedulers import FIFOScheduler

    return FIFOScheduler()


def asha_scheduler(config: AshaConfig, longest: int, **told: str) -> Any:
    """Tune's own. Its last rung lies before the last epoch: nobody is stopped on the finishing line."""
    from ray.tune.schedulers import AsyncHyperBandScheduler

    return AsyncHyperBandScheduler(
        max_t=max(longest - 1, config.grace),
        grace_period=config.grace,
        reduction_factor=config.reduction,
        stop_last_trials=False,
        **told,
    )


def median_scheduler(config: MedianConfig, longest: int, **told: str) -> Any:
    """Tune's own."""
    from ray.tune.schedulers import MedianStoppingRule

    return MedianStoppingRule(grace_period=config.grace, min_samples_required=config.others, **told)


class EarlierTrial:
    """As much of a trial as a scheduler looks at."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id
        self.status = "TERMINATED"


def longest_training(problem: SearchProblem) -> int:
    """The most epochs that a trial's judged stage may train."""
    domain = problem.config.space.get(f"{problem.metric.stage}.epochs")
    if domain is not None:
        return int(max(domain.choice or domain.ends))
    config = problem.plan.stages[problem.metric.stage]
    assert isinstance(config, TrainingConfig), "only a training can be stopped early"
    return config.epochs
