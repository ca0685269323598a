"""MLflow shows what the files say: one parent run per plan run, one child run per stage that really ran; a
search is a run of its own beside them, with one child run per trial.

Tracking is a function of files. `mirror` reads the folder of a plan run or a search, and those of its stages, and
pushes whatever was not pushed yet; what was pushed is remembered in `tracking.json` beside them. So it may be killed
at any point and called again, by this run, by the next one, or by `distill sync`, and nothing arrives twice. A server
that is down, slow or wrong delays the mirror and stops nothing.

    curves.py       new lines of a metrics.jsonl that grows, and is cut back when a stage resumes
    state.py        tracking.json; settings.py, what the plan says about tracking
    store.py        the MLflow client: late, silent, quick to give up
    server.py       the first plain question to a server
    session.py      one push: run, state and client
    parent.py       the MLflow run of the plan run
    children.py     the MLflow runs of its stages
    search.py       the MLflow runs of a search and its trials
    students.py     students as logged models, exported where they were trained or by a process of its own
    logged_model.py a network as an MLflow model on disk
    fetched_models.py  models that a plan begins from, fetched before it is ordered
    costs.py        what `distill cost` measured
    background.py   the thread that mirrors while a plan runs, and `sync`
    later.py        starting a process that sends the rest when the command has ended
    send_rest.py    that process
    untracked.py    stands in for it where the plan says `tracking: none`
"""

from raydistill.tracking.background import Mirror, MirrorResult, mirror, sync
from raydistill.tracking.store import resolve_uri
from raydistill.tracking.students import exported_model
from raydistill.tracking.untracked import Untracked

__all__ = ["Mirror", "MirrorResult", "Untracked", "exported_model", "mirror", "resolve_uri", "sync"]
