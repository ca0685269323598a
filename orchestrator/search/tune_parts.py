"""What Ray Tune calls while it runs trials: where they come from, who hears of them, when it is over."""

import json
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from raydistill.execution.ray_backend.failures import describe_loss
from raydistill.search.actor import EPOCHS, METRIC, RESULT
from raydistill.search.ending import Ending
from raydistill.search.suggestions import Suggestion
from raydistill.search.trial import TrialResult
from raydistill.search.trial_log import TrialLog


class NotPickled:
    """Tune pickles and copies whatever it is given, and reads none of it: what is ours stays here, as it is."""

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "NotPickled":
        return self


class SuggestionSource(NotPickled, Searcher):
    """Hands out our suggestions. Tune's ids mean nothing to us: a trial is named by its values."""

    def __init__(self, trial_log: TrialLog, ending: Ending) -> None:
        super().__init__(metric=METRIC, mode=trial_log.problem.metric.mode)
        self._trial_log, self._ending = trial_log, ending

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The config of the next trial, of JSON text so that Tune finds nothing to resolve in it; None: not yet."""
        found = None if self._ending.is_asked else self._trial_log.next()
        if found is None:
            finished: str = Searcher.FINISHED
            return None if self._trial_log.is_waiting and not self._ending.is_asked else finished
        suggestion, request = found
        return {
            "id": suggestion.id,
            "suggestion": suggestion.model_dump_json(),
            "request": json.dumps(request.to_dict()),
        }

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """The log of trials has told the sampler already."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing of ours is in Tune's own record."""

    def restore(self, checkpoint_path: str) -> None:
        """Searches are resumed from our records."""


class Recorder(NotPickled, tune.Callback):
    """Tells the log of trials what happens to trials."""

    def __init__(self, trial_log: TrialLog, ending: Ending) -> None:
        self._trial_log, self._ending = trial_log, ending
        self._running: set[str] = set()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial starts, or starts again after its process died."""
        if trial.config["id"] not in self._running:
            self._running.add(trial.config["id"])
            stages = json.loads(trial.config["request"])["stages"]
            self._trial_log.begin(Suggestion.model_validate_json(trial.config["suggestion"]), stages)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Epochs, and perhaps the result."""
        name = trial.config["id"]
        if RESULT not in result:
            self._trial_log.note_epochs(name, result[EPOCHS])
        elif name in self._running:
            self._running.discard(name)
            self._trial_log.end(name, TrialResult(**result[RESULT]))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial that Tune ended: its scheduler gave it up, or the search was ended with force."""
        name = trial.config["id"]
        if name in self._running:
            self._running.discard(name)
            if self._ending.is_overdue:
                self._trial_log.interrupt(name)
            else:
                self._trial_log.stop_early(name)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial whose process died again and again."""
        name = trial.config["id"]
        if name in self._running:
            self._running.discard(name)
            cause = trial.get_pickled_error() or RuntimeError("its process died")
            stage = self._trial_log.problem.metric.stage
            self._trial_log.end(name, TrialResult("failed", error=describe_loss(stage, cause)))


class Stopper(NotPickled, tune.Stopper):
    """Ends everything when trials that were asked to end do not."""

    def __init__(self, ending: Ending) -> None:
        self._ending = ending

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No single trial is stopped here."""
        return False

    def stop_all(self) -> bool:
        """Asked by Tune about ten times a second."""
        return self._ending.is_overdue
