"""Trials one after another in the driver's own process, without Ray: for debugging and for tests."""

import threading
from functools import partial

from raydistill.search.ending import Ending
from raydistill.search.trial import run_trial
from raydistill.search.trial_log import TrialLog


class EndingEvent(threading.Event):
    """Set as soon as the search is to end."""

    def __init__(self, ending: Ending) -> None:
        super().__init__()
        self._ending = ending

    def is_set(self) -> bool:
        """Whether a trial is to write its checkpoint and end."""
        return self._ending.is_asked


def run_trials_here(trial_log: TrialLog, ending: Ending) -> None:
    """The twin of `run_trials` without early stopping. Nothing runs when a trial is asked for: none is waited for."""
    stop = EndingEvent(ending)
    while not ending.is_asked and (found := trial_log.next()) is not None:
        suggestion, request = found
        trial_log.begin(suggestion, request.stages)
        result = run_trial(request, stop=stop, report=partial(trial_log.note_epoch, suggestion.id))
        trial_log.end(suggestion.id, result)
