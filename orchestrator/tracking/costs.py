"""What `distill cost` measured of a run's models, in MLflow beside what their stages counted."""

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raydistill.tracking import store
from raydistill.tracking.own_store import uri_of
from raydistill.tracking.server import problem_of
from raydistill.tracking.state import read_state

if TYPE_CHECKING:  # torch, which nothing here needs
    from raydistill.inference_cost import InferenceCost

log = logging.getLogger(__name__)


def track_costs(folder: Path, costs: "Sequence[InferenceCost]", *, runs: Path | None = None) -> int:
    """Log the costs of models of the run in `folder`, below the storage root `runs`, to their runs in MLflow; returns
    to how many. Of a folder that is no run, none.

    Nothing is made anew: a run that was not tracked stays so, and a stage that an earlier run trained has its numbers
    there. Of a store that cannot be reached a warning says so.
    """
    state = read_state(folder)
    if state is None:
        return 0
    root = (runs or folder.absolute().parents[2]).absolute()
    known = {name: child.run_id for name, child in state.stages.items()} | state.cached
    todo = [(run_id, cost) for cost in costs if (run_id := known.get(cost.name))]
    uri = uri_of(state.tracking_uri, root)
    try:
        if not todo or store.is_missing(uri):
            return 0
        if problem := problem_of(uri):
            raise OSError(problem)
        client = store.open_client(uri, root)
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for run_id, cost in todo:
            client.log_batch(run_id, metrics=[Metric(key, value, now, 0) for key, value in metrics_of(cost)])
    except (
        Exception
    ) as error:  # of MLflow, of a database, of a network: measured and shown it is all the same
        log.warning("tracking: the costs are not logged: %s", store.reason(error))
        return 0
    return len(todo)


def metrics_of(cost: "InferenceCost") -> Iterator[tuple[str, float]]:
    """A cost as metrics: seconds by runtime, batch and threads, bytes, counts."""
    counted = {
        "parameters": cost.parameters,
        "cost/multiply_adds": cost.multiply_adds,
        "cost/bytes": cost.bytes,
    }
    yield from ((key, float(value)) for key, value in counted.items() if value is not None)
    for latency in cost.latencies:
        place = f"cost/latency/{latency.runtime}/batch_{latency.batch}/threads_{latency.threads}"
        yield f"{place}/p50", latency.p50
        yield f"{place}/p95", latency.p95
    yield from (
        (f"cost/latency/{runtime}/peak_bytes", float(peak)) for runtime, peak in cost.peak_bytes.items()
    )
