"""What is asked of a machine: functions of the standard library alone, sent to it by value.

A node that lacks our packages, or has others, must still be able to answer: ours are imported inside the function
that is about them.
"""

import importlib
import importlib.metadata
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DRIVER = "driver"
SECONDS_UNTIL_SEEN = 5.0  # network file systems show a new file to other machines with a delay


def answer_probe(
    root: str, folder: str, name: str, content: str, patience: float = SECONDS_UNTIL_SEEN
) -> str | None:
    """Find the file that the driver wrote under the storage root and answer with one of this machine's own.

    Returns None, or what is wrong here, as words to put behind "this machine".
    """
    if not Path(root).is_dir():
        return "has no such folder"
    asked, deadline = Path(folder) / DRIVER, time.monotonic() + patience
    while not asked.exists():
        if time.monotonic() > deadline:
            return "has another folder under that name"
        time.sleep(0.1)
    try:
        if asked.read_text(encoding="utf-8") != content:
            return "has another folder under that name"
        (Path(folder) / name).write_text(content, encoding="utf-8")
    except OSError as error:
        return f"cannot use it: {error.strerror or error}"
    return None


def answer_bucket_probe(url: str, folder: str, name: str, content: str) -> str | None:
    """As `answer_probe`, of an object store."""
    from raydistill.errors import DistillError
    from raydistill.runs.bucket import Bucket

    try:
        bucket = Bucket(url)
        found = bucket.read(f"{folder}/{DRIVER}")
        if found is None or found.content != content.encode():
            return "has another store under that name"
        bucket.write(f"{folder}/{name}", content.encode())
    except DistillError as error:
        return error.message
    return None


def read_versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Of Python and of packages; None: not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def list_gpus() -> dict[str, Any]:
    """`names` of the GPUs that torch sees, or the `problem` that it has."""
    try:
        import torch

        return {"names": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]}
    except Exception as error:  # a broken installation breaks in many ways
        return {"problem": _line(error)}


def read_clock() -> float:
    """Seconds since 1970, as this machine has it."""
    return time.time()


def find_modules(names: Sequence[str], folder: str) -> dict[str, str]:
    """The modules that cannot be imported here, and why. `folder` is where the driver works."""
    if folder not in sys.path:
        sys.path.append(folder)
    missing = {}
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a user's module does while it is imported
            missing[name] = _line(error)
    return missing


def find_data(task: dict[str, Any]) -> dict[str, str]:
    """`content`, the digest of the task's data here, or `problem`."""
    try:
        from raydistill.plan.schema import build_task

        found = build_task(task)
        if problem := found.missing_files():
            return {"problem": problem}
        return {"content": " ".join(dict.fromkeys((found.content(), found.test_content())))}
    except Exception as error:  # among others of ours, that this machine has none of our packages
        return {"problem": _line(error)}


def look_at_plan(
    task: dict[str, Any], data: dict[str, Any], models: Sequence[dict[str, Any]], folder: str
) -> dict[str, Any]:
    """What a run would look at before its first stage: `counts` and `findings` of the data, as the survey `data` asks
    for them, and of each of the `models` whether it is fit; or `problem`."""
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        from dataclasses import asdict

        from raydistill.kinds.survey import ProbedModel, SurveyDataConfig
        from raydistill.plan.schema import build_task
        from raydistill.stages.model_probe import probe_model, two_samples
        from raydistill.tasks.survey import survey_task

        found = build_task(task)
        pools = [also.pool for also in SurveyDataConfig.model_validate(data).pools]
        survey = asdict(survey_task(found, pools))
        if any(finding["level"] == "error" for finding in survey["findings"]):
            return {**survey, "models": []}
        loaded = found.load()
        samples = two_samples(loaded, "cpu")
        probed = [ProbedModel.model_validate(model) for model in models]
        return {**survey, "models": [asdict(probe_model(model, found, loaded, samples)) for model in probed]}
    except Exception as error:  # among others of ours, that this machine has none of our packages
        return {"problem": _line(error)}


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def appears(path: Path, content: str) -> bool:
    """Whether a file with this content is there within `SECONDS_UNTIL_SEEN`."""
    deadline = time.monotonic() + SECONDS_UNTIL_SEEN
    while True:
        try:
            if path.read_text(encoding="utf-8") == content:
                return True
        except OSError:
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
