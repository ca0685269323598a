"""What a search would do: the stages that its trials share, and how many trials are left."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydistill.execution.preview import Preview, look_ahead
from raydistill.runs.search_run import SearchRun
from raydistill.search.problem import SearchProblem


@dataclass(frozen=True)
class SearchPreview:
    """Before a search, or in its midst: `shared` are the stages of all trials, `finished` counts trials."""

    problem: SearchProblem
    shared: list[Preview]
    finished: int

    @property
    def left(self) -> int:
        """How many trials are to run."""
        return max(self.problem.trials - self.finished, 0)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "plan": self.problem.plan.name,
            "metric": str(self.problem.metric),
            "mode": self.problem.metric.mode,
            "trials": self.problem.trials,
            "finished": self.finished,
            "left": self.left,
            "shared": [stage.to_dict() for stage in self.shared],
        }


def look_ahead_of_search(problem: SearchProblem, root: Path, only: tuple[str, ...] = ()) -> SearchPreview:
    """Judge what is there of a search without starting anything."""
    shared = {
        stage.node.folder: stage
        for plan, graph in problem.shared_parts(only)
        for stage in look_ahead(graph, root, plan.name)
    }
    trials = SearchRun(root, problem.plan.name, problem.fingerprint).trials()
    return SearchPreview(problem, list(shared.values()), sum(trial.is_over for trial in trials))
