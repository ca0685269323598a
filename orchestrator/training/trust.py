"""Whose code may build a model.

What tells a stage of one's own from a folder that somebody sent is the place alone: it lies in `stages/` of the storage
root in use, and whoever may write there is trusted. A received folder can imitate everything else, config, record and
checksums. It cannot lie there unless the user put it there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydistill.errors import PlanError
from raydistill.models.build import load_function
from raydistill.plan.model import ModelConfig
from raydistill.plan.schema import build_task
from raydistill.runs.folder import RECORD
from raydistill.tasks.task import Task


@dataclass(frozen=True)
class Trust:
    """Functions that stages in the storage root `root` name may be called, and those of `modules`, packages or not."""

    root: Path | None = None
    modules: tuple[str, ...] = ()

    def covers(self, folder: Path) -> bool:
        """Whether a folder is a stage of the storage root; a link from there to elsewhere is none."""
        if self.root is None or not (folder / RECORD).is_file():
            return False
        return folder.resolve().parent == self.root.resolve() / "stages"


NOBODY = Trust()
"""No function of anybody's is called."""


def admitted(config: ModelConfig, modules: Sequence[str], file: Path) -> ModelConfig:
    """The model as it may be built when `file`, which names it, was received.

    Raises `PlanError` for a function that is not of one of the `modules`.
    """
    if not config.is_users_own:
        if config.is_exported:
            raise PlanError(
                f"`{file}` is of a program, and a program from outside the storage root is not run; name your root with"
                " `--runs`, or take its file as a teacher: `{stage: pretrained, model: exported, weights: …}`"
            )
        return config.blank
    module = config.name.partition(":")[0]
    _refuse_foreign(module, config.name, modules, file)
    function: Callable[..., Any] = load_function(config.name)
    # A module also offers what it imports: `my_package:load` may be `torch.hub.load`.
    _refuse_foreign(str(getattr(function, "__module__", module)), config.name, modules, file)
    return config


def described_task(description: Mapping[str, Any], folder: Path, trust: Trust) -> Task:
    """The task that a model's folder describes. One of the user's own runs code: only where `trust` covers it."""
    name = description.get("name")
    if isinstance(name, str) and ":" in name and not trust.covers(folder):
        _refuse_foreign(name.partition(":")[0], name, trust.modules, folder)
    return build_task(description)


def _refuse_foreign(module: str, name: str, modules: Sequence[str], file: Path) -> None:
    if not any(module == trusted or module.startswith(f"{trusted}.") for trusted in modules):
        raise PlanError(
            f"`{file}` names `{name}` of `{module}`; a folder from outside the storage root builds"
            " only networks of ours and of torchvision: name your root with `--runs`, or that module with `--trust`"
        )
