"""Every error a user can meet.

    DistillError            anything we say on purpose: one message, shown without a traceback
    ├── PlanError           what the user wrote cannot be run              (exit code 2)
    ├── StageError          something went wrong while a stage was running (exit code 1)
    │   ├── StageStopped    the run was asked to stop; the checkpoint is written
    │   └── ClusterLost     the Ray cluster is gone; the same command goes on when it is back
    └── StoreError          a file in the storage root is missing, damaged or of something else

Each carries exactly one string, so it travels between processes unchanged.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class DistillError(Exception):
    """An error with a message made for the person who runs the command."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class PlanError(DistillError):
    """The plan or the arguments are wrong; the message names the place and the way out."""


class StageError(DistillError):
    """A stage could not finish."""


class StageStopped(StageError):  # noqa: N818 - an outcome, not a fault
    """A stage stopped because it was asked to, after writing its checkpoint."""


class ClusterLost(StageError):  # noqa: N818 - no stage is to blame
    """The Ray cluster is gone from under the command."""


class StoreError(DistillError):
    """A stored file is missing, damaged, or belongs to something else."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A suggestion to append to a message about an unknown name: the closest one, or all of them."""
    words = sorted(known)
    close = get_close_matches(word, words, n=1, cutoff=0.55)
    if close:
        return f"; did you mean `{close[0]}`?"
    return f"; known: {', '.join(f'`{name}`' for name in words)}" if words else ""
