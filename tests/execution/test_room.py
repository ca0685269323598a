"""A plan that no machine of the Ray cluster can ever run is refused by whoever looks at it beforehand."""

from pathlib import Path

import pytest
import ray
from click.testing import CliRunner, Result

from raydistill.cli import main

PLAN = """\
name: large
task: {name: mnist}
stages:
  teacher: {stage: train, model: {name: mlp}, epochs: 1}
"""
TOO_LARGE = ("--set", "stages.teacher.resources={workers: 2, cpus: 3}")


@pytest.fixture
def cluster(ray_cluster: None) -> str:
    """Four CPUs."""
    return str(ray.get_runtime_context().gcs_address)


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.yaml").write_text(PLAN)
    return tmp_path / "plan.yaml"


def distill(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.mark.ray
def test_a_dry_run_and_the_doctor_refuse_what_a_run_would_refuse(cluster: str, plan: Path) -> None:
    dry = ("run", plan, "--dry-run", "--address", cluster)
    assert distill(*dry).exit_code == 0
    refused = distill(*dry, *TOO_LARGE)
    assert refused.exit_code == 2
    assert "teacher" in refused.stderr.splitlines()[-1]
    limited = distill(*dry, "--max-cpus", "0.5")
    assert limited.exit_code == 2
    assert "`--max-cpus 0.5`" in limited.stderr.splitlines()[-1]
    examined = distill("doctor", plan, "--address", cluster, *TOO_LARGE)
    assert examined.exit_code == 1
    assert "resources" in examined.output
