"""`distill new`: a plan to begin with, for what somebody has."""

import json
import re
from pathlib import Path

from raydistill.errors import PlanError, did_you_mean
from raydistill.models import MODELS
from raydistill.plan.load import check_text
from raydistill.plan.order import order_stages
from raydistill.tasks import TASKS

TEMPLATE = """\
# A teacher, a student, and the same network without a teacher. `distill explain NAME` tells of any word.
#   distill doctor {file}            data and models, looked at
#   distill run {file} --dry-run     what would run
#   distill run {file}
name: {name}
task: {task}
stages:
  # {comment}
  teacher: {teacher}
  baseline: {{stage: train, model: &small {student}, epochs: 30}}
  student: {{stage: distill, student: *small, teachers: [teacher], epochs: 30,
            # `distill explain` lists the other methods
            method: {{method: hinton, temperature: 4, soft_weight: 0.9, hard_weight: 0.1}}}}
"""
PROGRAMS = (".onnx", ".pt2")


def write_plan(
    file: Path,
    *,
    teacher: str | None = None,
    architecture: str | None = None,
    data: str | None = None,
    model: str | None = None,
) -> Path:
    """Write a plan and return its file, which ends in `.yaml`. `PlanError`, and no file, when it could not be run.

    `teacher` is a file of weights of the network `architecture`, or a program; without it, one is trained. `data` is a
    folder of pictures, a table of them, a folder of shards, or a task's name. `model` is the student.
    """
    file = file if file.suffix in (".yaml", ".yml") else file.with_name(f"{file.name}.yaml")
    if file.exists():
        raise PlanError(f"`{file}` exists; choose another name")
    task, is_large = _task(data)
    small = "{size: 64}" if is_large else None
    comment, stage = _teacher(teacher, architecture)
    text = TEMPLATE.format(
        file=file,
        name=re.sub(r"[^\w-]+", "-", file.stem),
        task=task,
        comment=comment,
        teacher=stage,
        student=_model(model or "resnet20", small, small or "{channels: rgb}"),
    )
    order_stages(check_text(text, str(file)))
    with file.open("x", encoding="utf-8") as stream:
        stream.write(text)
    return file


def _task(data: str | None) -> tuple[str, bool]:
    """The task, and whether its pictures are larger than a small network takes."""
    if data is None:
        return (
            "mnist                # 5,000 digits that come along; `--data` names pictures of your own",
            False,
        )
    if data in TASKS:
        return _quoted(data), False
    path = Path(data).expanduser()
    if path.suffix == ".csv":
        return (
            f"{{name: image_manifest, file: {_quoted(data)}, image_size: 224}}  # columns path, label",
            True,
        )
    for name, pattern in (("webdataset", "*.tar"), ("image_parquet", "*.parquet")):
        if next(path.rglob(pattern), None) is not None:
            return f"{{name: {name}, folder: {_quoted(data)}, image_size: 224}}", True
    where = "train/<class>/ and val/<class>/, or <class>/ alone"
    return f"{{name: image_folder, folder: {_quoted(data)}, image_size: 224}}  # {where}", True


def _teacher(weights: str | None, architecture: str | None) -> tuple[str, str]:
    """A comment, and the stage."""
    if weights is None:
        comment = (
            "From scratch; `weights: FILE` begins with published ones, `pretrained` takes a trained network."
        )
        model = _model(architecture or "resnet18", of_torchvision="{channels: rgb}")
        return comment, f"{{stage: train, model: {model}, epochs: 10}}"
    if Path(weights).suffix in PROGRAMS:
        comment = (
            "A program, run as it is. Does it take other pixels than the task's? `distill explain input`."
        )
        return comment, f"{{stage: pretrained, model: {{name: exported}}, weights: {_quoted(weights)}}}"
    if architecture is None:
        raise PlanError(
            f"--teacher {weights}: of which network are these weights? Say it as `--architecture resnet18`"
        )
    model = _model(architecture, of_torchvision="published")
    comment = "As it is in its file. For other pixels or classes: `distill explain input`, `distill explain classes`."
    return comment, f"{{stage: pretrained, model: {model}, weights: {_quoted(weights)}}}"


def _model(word: str, of_ours: str | None = None, of_torchvision: str | None = None) -> str:
    """A network of ours or the user's, or else torchvision's, with the `input` for either."""
    is_ours = word in MODELS or ":" in word
    shown = of_ours if is_ours else of_torchvision
    if not is_ours and word != "resnet18":
        _check_torchvision(word)
    kind = f"name: {_quoted(word)}" if is_ours else f"name: torchvision, architecture: {_quoted(word)}"
    return f"{{{kind}, input: {shown}}}" if shown else f"{{{kind}}}"


def _check_torchvision(architecture: str) -> None:
    from torchvision import models  # takes seconds, so only for a name that nothing else knows

    theirs = models.list_models(module=models)
    if architecture not in theirs:
        known = [*MODELS, *theirs]
        raise PlanError(f"no network is called `{architecture}`{did_you_mean(architecture, known)}")


def _quoted(text: str) -> str:
    """As YAML reads it back in a mapping on one line."""
    return text if re.fullmatch(r"[A-Za-z_/~][\w/.~-]*", text) else json.dumps(text, ensure_ascii=False)
