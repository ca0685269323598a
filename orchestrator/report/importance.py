"""Which of the searched options mattered: permutation importance of a random forest (Breiman 2001, section 10).

The forest predicts the metric from the values, and is judged on trials it has not seen: it says how much of R² is lost
when one option's values are shuffled among them.
"""

from dataclasses import dataclass

import numpy as np

from raydistill.report.formatting import whole
from raydistill.report.search_summary import SearchSummary

FEWEST = 16  # finished trials
FOLDS, TREES, SHUFFLES = 4, 60, 5
PREDICTABLE = 0.1  # R² on unseen trials below which the forest knows nothing


@dataclass(frozen=True)
class Importance:
    """Loss of R² per axis, mean and standard deviation over parts of the trials; or the `gap`: why there is none."""

    means: tuple[float, ...] = ()
    deviations: tuple[float, ...] = ()
    score: float = 0.0
    trials: int = 0
    gap: str = ""


def measure_importance(summary: SearchSummary) -> Importance:
    """From the finished trials alone: what was stopped early was judged by fewer epochs."""
    done = summary.done
    if len(summary.axes) < 2:
        return Importance(gap="Only one option is searched, so there is nothing to compare it with.")
    if len(done) < FEWEST:
        return Importance(
            gap=f"It takes {FEWEST} finished trials to tell which option mattered; there are {whole(len(done))}."
        )
    points = np.array([[axis.place(trial.values[axis.path]) for axis in summary.axes] for trial in done])
    target = np.array([summary.value(trial) for trial in done])
    if np.ptp(target) == 0:
        return Importance(gap="All finished trials have the same metric.")
    return _judge(points, target)


def _judge(points: np.ndarray, target: np.ndarray) -> Importance:
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance
    from sklearn.model_selection import KFold

    # Ranks: one hopeless trial would otherwise decide everything.
    ranks = np.argsort(np.argsort(target)).astype(float)
    losses, scores = [], []
    for seen, unseen in KFold(FOLDS, shuffle=True, random_state=0).split(points):
        forest = RandomForestRegressor(TREES, min_samples_leaf=2, random_state=0)
        forest.fit(points[seen], ranks[seen])
        scores.append(forest.score(points[unseen], ranks[unseen]))
        shuffled = permutation_importance(
            forest, points[unseen], ranks[unseen], n_repeats=SHUFFLES, random_state=0
        )
        losses.append(shuffled.importances_mean)
    score = float(np.mean(scores))
    if score < PREDICTABLE:
        return Importance(
            gap=f"From the values alone nobody could tell which of the {whole(len(target))} finished trials are better"
            f" (R² of a random forest on unseen trials: {score:.2f}), so no option can be said to have mattered."
        )
    return Importance(
        tuple(np.mean(losses, axis=0).tolist()), tuple(np.std(losses, axis=0).tolist()), score, len(target)
    )
