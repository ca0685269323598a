"""Imports point one way, wherever in a module they stand; and what a plan needs stays light."""

import ast
import graphlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
ROWS = (
    ("cli",),
    ("__init__",),
    ("api", "search_tables"),
    ("search",),
    ("run_plan",),
    ("storage_tables",),
    ("terminal", "ui", "doctor", "serving"),
    ("tracking",),
    ("export",),
    ("model_card",),
    ("inference_cost",),
    ("onnx_file",),
    ("inference",),
    ("report", "prediction", "raw_model", "explanation", "new_plan"),
    ("execution",),
    ("stages",),
    ("methods",),
    ("training",),
    ("targets",),
    ("runs",),
    ("kinds",),
    ("plan",),
    ("metrics",),
    ("lookup", "plain", "timing"),
    ("models", "tasks"),
    ("errors", "masking"),
)
RANK = {name: rank for rank, names in enumerate(ROWS) for name in names}
MODULES = sorted(
    path.relative_to(ROOT)
    for top in ("orchestrator", "models", "tasks")
    for path in (ROOT / top).rglob("*.py")
)
RAY = {"execution/ray_backend", "execution/submit", "search"}
MLFLOW = {"tracking", "ui"}


def unit(parts: tuple[str, ...]) -> str:
    """The row's name for a module: `plan` for raydistill.plan.load and for the path orchestrator/plan/load.py."""
    if parts[0] == "raydistill":  # which offers names of others
        return parts[1] if len(parts) > 1 and parts[1] in RANK else "__init__"
    return parts[1] if parts[0] == "orchestrator" else parts[0]


@cache
def imports(path: Path) -> list[tuple[int, tuple[str, ...]]]:
    """Line and dotted name of everything that a module imports, also inside of functions."""
    return list(_imports(path))


def _imports(path: Path) -> Iterator[tuple[int, tuple[str, ...]]]:
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, tuple(alias.name.split("."))) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.parent.parts[: len(path.parent.parts) - node.level + 1] if node.level else ()
            module = (*package, *(node.module.split(".") if node.module else ()))
            yield from ((node.lineno, (*module, alias.name)) for alias in node.names)


def dotted(path: Path) -> tuple[str, ...]:
    """A file's name as others import it: ("raydistill", "tasks", "mnist") for tasks/mnist.py."""
    parts = path.with_suffix("").parts
    parts = parts[1:] if parts[0] == "orchestrator" else parts
    return ("raydistill", *(parts[:-1] if parts[-1] == "__init__" else parts))


def files_loaded(path: Path) -> set[Path]:
    """Our files that a module imports while it runs, also inside of functions; types alone load nothing."""
    files = {dotted(other): other for other in MODULES}
    for_types = {
        line
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for line in range(node.lineno, max(statement.end_lineno or 0 for statement in node.body) + 1)
    }
    loaded = [
        files.get(name) or files.get(name[:-1]) for line, name in imports(path) if line not in for_types
    ]
    return {file for file in loaded if file and file != path}


def importers(package: str) -> Iterator[str]:
    """The modules below `orchestrator` that import a package, without `.py`."""
    for path in MODULES:
        if any(name[0] == package for _, name in imports(path)):
            yield path.with_suffix("").relative_to("orchestrator").as_posix()


def test_every_module_has_its_row() -> None:
    assert {unit(path.with_suffix("").parts) for path in MODULES} - set(RANK) == set()


def test_a_module_imports_only_from_rows_below_its_own() -> None:
    wrong = [
        f"{path}:{line} imports {'.'.join(name)}"
        for path in MODULES
        for line, name in imports(path)
        if name[0] in ("raydistill", "orchestrator", "models", "tasks", "tests")
        and unit(name) != (own := unit(path.with_suffix("").parts))
        and RANK.get(unit(name), -1) <= RANK[own]
    ]
    assert wrong == []


def test_no_file_needs_itself_by_way_of_others() -> None:
    # A branched network's options hold those of another network, whose class the table of all networks knows; that
    # table is made of option classes, the branched one's too.
    stated = (Path("models/options.py"), Path("models/__init__.py"))
    needed = {path: files_loaded(path) for path in MODULES}
    assert stated[1] in needed[stated[0]], "the exception is no longer one: take it out"
    needed[stated[0]] = needed[stated[0]] - {stated[1]}
    try:
        graphlib.TopologicalSorter(needed).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a circle of files: {' <- '.join(map(str, error.args[1]))}")


@pytest.mark.parametrize("package", ["models", "tasks"])
def test_models_and_tasks_know_nothing_of_the_orchestrator_nor_of_each_other(package: str) -> None:
    own = [path for path in MODULES if path.parts[0] == package]
    assert {unit(name) for path in own for _, name in imports(path) if name[0] == "raydistill"} == {package}


def test_no_task_needs_what_made_its_data() -> None:
    makers = ("raydistill", "tasks", "make")
    readers = [path for path in MODULES if path.parts[0] == "tasks" and dotted(path)[:3] != makers]
    assert readers
    assert not [path for path in readers if any(name[:3] == makers for _, name in imports(path))]


@pytest.mark.parametrize(("package", "places"), [("ray", RAY), ("mlflow", MLFLOW)])
def test_a_platform_is_imported_in_few_places(package: str, places: set[str]) -> None:
    strangers = [
        module
        for module in importers(package)
        if not any(module == place or module.startswith(f"{place}/") for place in places)
    ]
    assert strangers == []


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        (
            "raydistill.plan.order, raydistill.plan.load",
            "torch ray mlflow matplotlib pandas sklearn rich",
        ),
        ("raydistill.cli", "torch ray mlflow matplotlib numpy yaml pydantic rich"),
        ("raydistill.execution.preview, raydistill.terminal", "torch ray mlflow matplotlib"),
        ("raydistill.models, raydistill.models.options, raydistill.tasks", "torch ray mlflow numpy"),
    ],
)
def test_what_answers_at_once_loads_nothing_heavy(module: str, banned: str) -> None:
    probe = f"import sys, {module}; print(*sorted(set(sys.argv[1:]) & set(sys.modules)))"
    ended = subprocess.run(
        [sys.executable, "-c", probe, *banned.split()], capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == ""


def test_there_is_no_drawer_for_everything() -> None:
    assert not [path for path in MODULES if path.stem in ("utils", "helpers", "common", "misc")]


def installed() -> dict[str, Any]:
    """What is said about installation."""
    settings: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    return settings


def test_every_package_is_installed() -> None:
    settings = installed()
    folders = settings["package-dir"]
    ours = {
        ".".join((name, *path.parent.relative_to(ROOT / folder).parts))
        for name, folder in folders.items()
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert set(settings["packages"]) == ours | {"raydistill.configs"}


def _folder(settings: dict[str, Any], package: str) -> Path:
    """Where the modules of a package lie here."""
    folders = settings["package-dir"]
    name = next(
        name for name in sorted(folders, key=len, reverse=True) if f"{package}.".startswith(f"{name}.")
    )
    return ROOT / folders[name] / package.removeprefix(name).strip(".").replace(".", "/")


def test_the_command_line_does_nothing_that_python_cannot() -> None:
    # Sending a job is a conversation with a person from beginning to end; tables are for terminals alone.
    talks = {"submit", "jobs", "doctor", "watching"}
    shows = {
        "cli",
        "__init__",
        "errors",
        "masking",
        "plain",
        "search_tables",
        "storage_tables",
        "terminal",
        "tasks",
    }
    others = {
        f"{path.stem}:{line} {'.'.join(name)}"
        for path in MODULES
        if path.parts[:2] == ("orchestrator", "cli") and path.stem not in talks
        for line, name in imports(path)
        if name[0] == "raydistill" and unit(name) not in shows
    }
    assert {found.partition(" ")[2] for found in others} == {
        "raydistill.runs.files.json_text",
    }, others


def test_every_file_that_is_no_module_is_installed_beside_those_that_need_it() -> None:
    settings = installed()
    data = {
        path
        for package, patterns in settings["package-data"].items()
        for pattern in patterns
        for path in _folder(settings, package).glob(pattern)
    }
    files = {
        path
        for folder in settings["package-dir"].values()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".py"
    }
    notes = {path for path in files if path.suffix == ".md" or path.parent == ROOT / "configs/smoke"}
    assert files - notes == data
    assert files
