"""What is installed from a wheel works without a checkout: shipped plans, templates, types."""

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("orchestrator", "models", "tasks", "configs")
FILES = ("pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has the wheel, and what it needs from the one that runs the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    for part in FOLDERS:
        shutil.copytree(ROOT / part, folder / "source" / part)
    for part in FILES:
        shutil.copy(ROOT / part, folder / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    offline = ["--quiet", "--no-deps", "--no-index"]
    build = [*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", folder, folder / "source"]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (wheel,) = folder.glob("raydistill-*.whl")
    venv.create(folder / "venv")
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    subprocess.run([*pip, "install", *offline, "--target", site, wheel], check=True, capture_output=True)
    (site / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    return folder / "venv/bin/python"


def distill(python: Path, folder: Path, *arguments: str) -> str:
    command = [python, "-P", "-m", "raydistill.cli", *arguments]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_the_quickstart_of_an_installed_wheel_is_found_from_any_folder(
    installed: Path, tmp_path: Path
) -> None:
    where = (
        "import raydistill; print(raydistill.find_plan('mnist_quickstart'), raydistill.__file__, sep='\\n')"
    )
    found = subprocess.run(
        [installed, "-P", "-c", where], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.split()
    assert all(Path(path).is_relative_to(installed.parents[1]) for path in found)
    assert "26 stages: 26 to run" in distill(installed, tmp_path, "run", "mnist_quickstart", "--dry-run")
    assert "search/mnist_pbt" in distill(installed, tmp_path, "plans")
    assert "a whole number" in distill(installed, tmp_path, "explain", "distill")


@pytest.mark.slow
def test_an_installed_wheel_trains_and_reports(installed: Path, tmp_path: Path) -> None:
    distill(installed, tmp_path, "new", "first", "--model", "lenet5")
    short = ["--set", "stages.baseline.epochs=1", "--only", "baseline", "--local", "--no-tracking"]
    assert "done" in distill(installed, tmp_path, "run", "first.yaml", *short)
    assert list(tmp_path.glob("runs/plans/first/*/report.html"))
