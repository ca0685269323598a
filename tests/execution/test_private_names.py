"""What Ray calls private and we use is there, does what we think, and stands in one file."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from raydistill.execution.ray_backend import private
from raydistill.execution.ray_backend.autoscaler import starts_machines

ROOT = Path(__file__).parents[2]


def test_private_names_of_ray_stand_in_one_file() -> None:
    mentions = re.compile(r"ray\._private|from ray import _|_raylet\b|ray\.train\.v2")
    found = [
        path.relative_to(ROOT).as_posix()
        for top in ("orchestrator", "models", "tasks")
        for path in sorted((ROOT / top).rglob("*.py"))
        if mentions.search(path.read_text())
    ]
    assert found == ["orchestrator/execution/ray_backend/private.py"]


def test_the_version_of_ray_is_bounded_above_and_the_installed_one_is_within() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (ray,) = [line for line in wanted if line.startswith("ray[")]
    bound = re.search(r"<(\d+)\.(\d+)", ray)
    assert bound is not None
    assert tuple(map(int, version("ray").split(".")[:2])) < tuple(map(int, bound.groups()))


@pytest.mark.parametrize(("named", "meant"), [("10.0.0.7:6379", "10.0.0.7:6379"), ("local", None)])
def test_the_environment_says_what_auto_stands_for(
    monkeypatch: pytest.MonkeyPatch, named: str, meant: str | None
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", named)
    assert private.address_of_auto() == meant


@pytest.mark.ray
@pytest.mark.parametrize("is_second", [False, True])
def test_a_ray_cluster_that_starts_no_machines_names_no_types_of_nodes(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch, is_second: bool
) -> None:
    monkeypatch.setattr("ray.autoscaler.v2.utils.is_autoscaler_v2", lambda: is_second)
    types = private.node_types()
    assert is_second <= bool(types), "it names each node, if by nothing"
    assert not starts_machines(types)


@pytest.mark.ray
def test_no_node_of_a_ray_cluster_at_rest_is_about_to_go(ray_cluster: None) -> None:
    assert private.draining_nodes() == set()


def test_a_placement_group_is_known_by_its_id() -> None:
    name = "0123456789abcdef01234567890102000000"
    assert private.placement_group(name).id.hex() == name


def test_ray_reads_its_authentication_again() -> None:
    code = (
        "import os, ray; from raydistill.execution.ray_backend import private as p\n"
        "from ray._private.authentication.authentication_token_setup import get_authentication_mode as mode\n"
        "os.environ['RAY_AUTH_MODE'] = 'token'; p.read_authentication_again(); print(mode())\n"
        "os.environ['RAY_AUTH_MODE'] = 'disabled'; p.read_authentication_again(); print(mode())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(set(done.stdout.split())) == 2


def test_ray_train_calls_back_when_a_worker_raised() -> None:
    code = (
        "from raydistill.execution.ray_backend.private import train_callback; import inspect\n"
        "print(*inspect.signature(train_callback().after_exception).parameters)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["self", "run_context", "worker_exceptions"]


def test_the_loggers_that_are_silenced_are_modules_of_ray() -> None:
    assert all(importlib.util.find_spec(name) is not None for name in private.PACKAGING_LOGGERS)
