"""How long the models of a search take to answer: measured one after another when no trial runs, as side by side they
would slow each other down."""

import logging
import os
import platform
import re
import threading
from collections.abc import Callable
from pathlib import Path

from raydistill.errors import DistillError
from raydistill.plain import say
from raydistill.runs.search_formatting import called, shown_cost
from raydistill.runs.search_run import TrialRecord
from raydistill.search.trial_log import TrialLog

log = logging.getLogger(__name__)


def this_machine() -> str:
    """What tells machines apart whose latencies are not to be compared."""
    return f"{platform.node()}, {platform.machine()}, {os.cpu_count()} processors"


def measure_latencies(
    trial_log: TrialLog, root: Path, before: str, keep_machine: Callable[[str], None], stop: threading.Event
) -> None:
    """Measure the finished trials that were not; all of them where others were measured `before` on another machine.

    Every latency is on disk as soon as it is known. `keep_machine` is told where they come from before the first.
    """
    done = [record for record in trial_log.records.values() if record.status == "done"]
    if before != this_machine():
        for record in done:
            trial_log.note_cost(record.id, None)
        keep_machine(this_machine())
    missing = sorted(
        (trial_log.records[record.id] for record in done if trial_log.records[record.id].cost is None),
        key=lambda record: record.number,
    )
    for record in missing:
        if stop.is_set():
            return
        try:
            seconds = latency_of(root / folder_of_model(record, trial_log.problem.metric.stage), root)
        except DistillError as error:
            log.warning("warning: the latency of %s is not known: %s", called(record), error.message)
            continue
        trial_log.note_cost(record.id, seconds)
        say(f"latency of {called(record)}: {shown_cost('latency', seconds)}")


def folder_of_model(record: TrialRecord, stage: str) -> str:
    """The judged stage's folder; of several replicas, which are of one size, the first one's."""
    nodes = [name for name in record.stages if re.fullmatch(rf"{re.escape(stage)}(\.\d+)?", name)]
    return record.stages[min(nodes, key=lambda name: (len(name), name))]


def latency_of(folder: Path, root: Path) -> float:
    """Seconds that a model of the storage root takes for one input."""
    from raydistill.inference_cost import measure_latency
    from raydistill.runs.folder import fetched
    from raydistill.training.trust import Trust

    return measure_latency(fetched(folder), Trust(root))
