"""The user's code where it is about to run: that of the plan, or refused."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from raydistill.errors import StageError
from raydistill.execution.user_code import checked_code
from raydistill.kinds.train import TrainConfig
from raydistill.plan import address
from raydistill.plan.fingerprint import stage_identity
from raydistill.tasks.mnist import Mnist

CONFIG = TrainConfig.model_validate({"stage": "train", "model": {"name": "own_net:build"}, "epochs": 1})


TASK = Mnist()


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the module `own_net` imports."""
    (tmp_path / "own_net.py").write_text("import own_helper\ndef build(num_classes): ...\n")
    (tmp_path / "own_helper.py").write_text("WIDTH = 16\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(address, "_met", {})
    for name in ("own_net", "own_helper"):
        monkeypatch.delitem(address.sys.modules, name, raising=False)
    return tmp_path / "own_helper.py"


def planned() -> dict[str, Any]:
    return stage_identity(CONFIG, {"name": "digits"}, {})


def test_code_that_is_that_of_the_plan_is_handed_on(helper: Path) -> None:
    ((model, identity),) = checked_code(CONFIG, planned(), TASK)
    assert model == CONFIG.model
    assert identity == planned()["config"]["model"]


def test_other_code_than_that_of_the_plan_is_refused(helper: Path) -> None:
    identity = planned()
    helper.write_text("WIDTH = 24\n")
    with pytest.raises(StageError, match=r"when the plan was read: module `own_helper` changed"):
        checked_code(CONFIG, identity, TASK)


def test_code_that_changed_after_this_process_imported_it_is_refused(helper: Path) -> None:
    checked_code(CONFIG, planned(), TASK)
    importlib.import_module("own_net")
    helper.write_text("WIDTH = 24\n")
    with pytest.raises(
        StageError, match=r"imported before it changed: module `own_helper` changed; start a new"
    ):
        checked_code(CONFIG, planned(), TASK)


def test_code_that_changed_before_anybody_imported_it_is_welcome(helper: Path) -> None:
    checked_code(CONFIG, planned(), TASK)
    helper.write_text("WIDTH = 24\n")
    assert checked_code(CONFIG, planned(), TASK)


def test_a_file_that_the_model_writes_itself_does_not_stop_it(helper: Path) -> None:
    helper.write_text("LOG = 'build.log'\n")
    model = {"name": "own_net:build", "log": "other.log"}
    config = TrainConfig.model_validate({"stage": "train", "model": model, "epochs": 1})
    identity = stage_identity(config, {"name": "digits"}, {})
    for name in ("build.log", "other.log"):
        (helper.parent / name).write_text("built")
    assert checked_code(config, identity, TASK)
