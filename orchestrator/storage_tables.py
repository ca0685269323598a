"""What `distill list`, `show`, `compare` and `clean` print: rows and values as JSON has them, and tables of those."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.table import Table

from raydistill.plain import escape
from raydistill.runs.cleaning import Removal
from raydistill.runs.contrast import Contrast
from raydistill.runs.flat import flatten, with_names
from raydistill.runs.inventory import Inventory, StoredSearch, ended_at, size_of
from raydistill.runs.lease import is_held
from raydistill.runs.record import Hours
from raydistill.runs.run_files import REPORT
from raydistill.runs.search_formatting import called, short, shown_cost
from raydistill.runs.search_run import TrialRecord, best_first
from raydistill.runs.search_view import SearchView
from raydistill.runs.view import RunView, StageView
from raydistill.terminal import STYLES, console, new_table, results_table, warning_lines

if TYPE_CHECKING:  # it takes torch
    from raydistill.inference_cost import InferenceCost

Rows = list[dict[str, Any]]
STATES = {"stopped": "unfinished"}
TRIALS_SHOWN = 10
UNFOLDED = 1000  # columns where no terminal is: what reads a pipe wants one line per row


def rows_of(what: str, inventory: Inventory) -> Rows:
    """A row per plan, run, search or stage."""
    return {"plans": plan_rows, "runs": run_rows, "searches": search_rows, "stages": stage_rows}[what](
        inventory
    )


def plan_rows(inventory: Inventory) -> Rows:
    """A row per plan, the one that ran last first. Here and below sizes are bytes, and ages seconds."""
    rows = []
    for plan, runs in inventory.plans.items():
        stages = {name for run in runs for name in run.stages.values() if name in inventory.stages}
        searches = [found for found in inventory.searches if found.view and found.view.plan == plan]
        last = {"last run": runs[0].run_id, "status": runs[0].status, "age": time.time() - runs[0].started}
        size = sum(size_of(inventory.stages[name].folder.path) for name in stages)
        counts = {"runs": len(runs), "searches": len(searches)}
        rows.append({"plan": plan, **counts, **last, "stages": len(stages), "size": size})
    return rows


def run_rows(inventory: Inventory) -> Rows:
    """A row per run of a plan, the latest first; `gone` are stages that are no more."""
    return [
        {
            "run": run.key,
            "status": run.status,
            "age": time.time() - run.started,
            "seconds": run.seconds,
            "stages": len(run.stages),
            "gone": sum(name not in inventory.stages for name in set(run.stages.values())),
            "size": size_of(run.folder),
            "note": run.damage or "",
        }
        for run in inventory.runs
    ]


def search_rows(inventory: Inventory) -> Rows:
    """A row per search, the latest first."""
    rows = [_search_row(search) for search in inventory.searches]
    return sorted(rows, key=lambda row: row["age"] or 0.0)


def _search_row(search: StoredSearch) -> dict[str, Any]:
    about = search.view.about if search.view else None
    return {
        "search": search.folder.name,
        "status": about.status if about else "damaged",
        "age": time.time() - about.started if about else None,
        "trials": sum(trial.is_over for trial in search.trials),
        "metric": about.metric if about else None,
        "best": about.best.metric if about and about.best else None,
        "size": size_of(search.folder),
        "note": search.damage or "",
    }


def stage_rows(inventory: Inventory) -> Rows:
    """A row per stage, the latest first; `readers` are stages, runs and searches, `part of` plans and searches."""
    stages = sorted(inventory.stages.items(), key=lambda item: ended_at(item[1]), reverse=True)
    return [
        {
            "stage": name,
            "state": state_of(stage),
            "age": time.time() - ended_at(stage),
            "seconds": stage.record.seconds if stage.record else None,
            "size": size_of(stage.folder.path),
            "readers": len(inventory.readers[name]),
            "part of": inventory.plans_of(name),
        }
        for name, stage in stages
    ]


def state_of(stage: StageView) -> str:
    """How a stage ended, that somebody works on it, or that it was left unfinished."""
    if is_held(stage.folder.path):
        return "in use"
    return "damaged" if stage.error and stage.record is None else STATES.get(stage.status, stage.status)


def stage_values(inventory: Inventory, stage: StageView) -> dict[str, Any]:
    """All there is to say about a stage: what it is, what came of it, where it came from, and who reads it."""
    names = {other.fingerprint: name for name, other in inventory.stages.items()}
    record, name = stage.record, stage.folder.path.name
    files = {path.name: size_of(path) for path in sorted(stage.folder.path.iterdir()) if path.name[0] != "."}
    parts = [
        (run.key, [node for node, folder in run.stages.items() if folder == name]) for run in inventory.runs
    ]
    return {
        "stage": name,
        "kind": stage.kind,
        "state": state_of(stage),
        "error": stage.error,
        "folder": str(stage.folder.path),
        "fingerprint": stage.fingerprint,
        "task": flatten(stage.identity.get("task", {})),
        "options": flatten(with_names(stage.config, names)),
        "finished": record.finished if record else None,
        "seconds": record.seconds if record else None,
        "hours": asdict(record.hours) if record else None,
        "parameters": record.parameters if record else None,
        "metrics": dict(record.metrics) if record else {},
        "costs": dict(record.costs) if record else {},
        "warnings": list(record.warnings) if record else [],
        "git commit": record.git_commit if record else None,
        "versions": dict(record.versions) if record else {},
        "files": files,
        "made from": inventory.inputs.get(name, []),
        "part of": [f"{run}: {', '.join(nodes)}" for run, nodes in parts if nodes],
        "readers": [reader for reader in inventory.readers.get(name, []) if reader in inventory.stages],
        "searches": [found for found in inventory.plans_of(name) if found not in inventory.plans]
        if name in inventory.stages
        else [],
    }


def run_values(run: RunView) -> dict[str, Any]:
    """All there is to say about a run."""
    report, results = run.folder / REPORT, run.results.model_dump(mode="json")
    for name, stage in run.stages.items():
        results["stages"].setdefault(name, {})["hours"] = asdict(stage.hours)
    return {
        "run": run.key,
        "folder": str(run.folder),
        "report": str(report) if report.exists() else None,
        "started": run.started,
        "saved_seconds": run.saved_seconds,
        "hours": asdict(run.hours),
        "saved_hours": asdict(run.saved_hours),
        **results,
        "graph": run.graph.model_dump(mode="json"),
    }


def search_values(search: SearchView) -> dict[str, Any]:
    """All there is to say about a search, its best trials first."""
    trials = [trial.model_dump(mode="json") for trial in best_first(search.trials(), search.about.mode)]
    place = {"search": search.folder.name, "folder": str(search.folder)}
    return {**place, **search.about.model_dump(mode="json"), "trials": trials}


def contrast_values(contrast: Contrast) -> dict[str, Any]:
    """What differs, as JSON values."""
    return asdict(contrast)


def removal_rows(removals: Sequence[Removal], inventory: Inventory) -> Rows:
    """A row per thing that can go."""
    return [
        {
            "what": removal.what,
            "path": str(
                removal.path.relative_to(inventory.root)
                if removal.path.is_relative_to(inventory.root)
                else removal.path
            ),
            "size": removal.size,
            "age": removal.age,
            "why": removal.why,
        }
        for removal in removals
    ]


def shown(*parts: RenderableType) -> None:
    """Print to stdout: as wide as the terminal, in a pipe as wide as the longest row."""
    out = console()
    if out.is_terminal:
        for part in parts:
            out.print(part, soft_wrap=isinstance(part, str))
        return
    out.width = UNFOLDED
    with out.capture() as captured:
        for part in parts:
            out.print(part, soft_wrap=isinstance(part, str))
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def rows_table(rows: Rows) -> Table:
    """Rows of equal keys as a table; columns in which nobody says anything are left out."""
    columns = (
        [key for key in rows[0] if any(row[key] not in ("", None, [], 0) for row in rows)] if rows else []
    )
    table = new_table(*columns)
    for column, key in zip(table.columns, columns, strict=True):
        column.justify = "right" if any(isinstance(row[key], int | float) for row in rows) else "left"
    for row in rows:
        table.add_row(*(_styled(key, row[key]) for key in columns))
    return table


def values_table(values: Mapping[str, Any]) -> Table:
    """Names and values below one another."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in values.items():
        table.add_row(escape(name), _styled(name, value))
    return table


def values_of(found: RunView | SearchView | StageView, inventory: Inventory) -> dict[str, Any]:
    """All there is to say about something stored, as JSON values."""
    if isinstance(found, RunView):
        return run_values(found)
    return search_values(found) if isinstance(found, SearchView) else stage_values(inventory, found)


def parts_of(found: RunView | SearchView | StageView, values: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Its `values` for a person."""
    if isinstance(found, RunView):
        return run_parts(found, values)
    return search_parts(found) if isinstance(found, SearchView) else stage_parts(values)


def stage_parts(values: Mapping[str, Any]) -> Iterator[RenderableType]:
    """A stage's values for a person."""
    yield f"[bold]{escape(values['stage'])}[/] {_styled('state', values['state'])}"
    facts = ("error", "finished", "seconds", "parameters", "git commit", "folder")
    hours = (
        {"hours": str(Hours(**values["hours"]))} if values["hours"] and any(values["hours"].values()) else {}
    )
    yield values_table({key: values[key] for key in facts if values[key] is not None} | hours)
    for key in ("task", "options", "metrics", "costs", "versions"):
        if values[key]:
            yield f"\n[bold]{key}[/]"
            yield values_table(values[key])
    if values["files"]:
        yield "\n[bold]files[/]"
        yield values_table({name: bytes_text(size) for name, size in values["files"].items()})
    for key in ("warnings", "made from", "readers", "part of", "searches"):
        if values[key]:
            yield f"\n[bold]{key}[/]"
            yield "\n".join(escape(line) for line in values[key])


def run_parts(run: RunView, values: Mapping[str, Any]) -> Iterator[RenderableType]:
    """A run for a person."""
    yield f"[bold]{escape(run.key)}[/] {_styled('status', run.status)}"
    task = run.results.task
    facts = {
        "started": run.started,
        "seconds": run.seconds,
        "hours": str(run.hours),
        "task": f"{task.name}, {task.num_classes} classes",
        "command": run.results.command,
        "versions": ", ".join(f"{name} {version}" for name, version in run.results.versions.items()),
        "tracking": run.results.mlflow.get("tracking_uri"),
        "folder": values["folder"],
        "report": values["report"],
    }
    yield values_table({key: value for key, value in facts.items() if value})
    yield ""
    yield results_table(run.results)
    yield from warning_lines(run.results)


def search_parts(search: SearchView) -> Iterator[RenderableType]:
    """A search for a person."""
    about, front = search.about, search.front()
    ranked = best_first(search.trials(), about.mode)
    yield f"[bold]{escape(search.folder.name)}[/] {_styled('status', about.status)}"
    facts = {
        "started": about.started,
        "seconds": about.seconds,
        "metric": f"{'highest' if about.mode == 'max' else 'lowest'} {about.metric}"
        f"{f' against {about.cost}' if about.cost else ''}",
        "searcher": f"{about.searcher.name}, scheduler {about.scheduler.name}",
        "command": about.command,
        "folder": str(search.folder),
    }
    yield values_table(facts)
    yield ""
    if front:
        yield f"[bold]front[/]: no other trial beats these in {search.metric} and {about.cost}"
        yield rows_table([_front_row(search, trial) for trial in front])
        yield "\n[bold]trials[/]"
    yield rows_table([_trial_row(search, trial) for trial in ranked[:TRIALS_SHOWN]])
    if len(ranked) > TRIALS_SHOWN:
        yield f"and {len(ranked) - TRIALS_SHOWN} more"


def _trial_row(search: SearchView, trial: TrialRecord) -> dict[str, Any]:
    about = search.about
    return {
        "trial": called(trial),
        **{about.names.get(path, path): short(value) for path, value in trial.values.items()},
        "outcome": trial.status.replace("_", " "),
        search.metric: trial.metric,
        **({"cost": shown_cost(about.cost, trial.cost)} if about.cost else {}),
        "epochs": max(trial.epochs, default=0),
    }


def _front_row(search: SearchView, trial: TrialRecord) -> dict[str, Any]:
    row = _trial_row(search, trial)
    plan = search.plan_of(trial.id)
    return {
        **{key: value for key, value in row.items() if key not in ("outcome", "epochs")},
        "best": "judged on test" if search.about.best and search.about.best.trial == trial.id else "",
        "plan": str(plan.relative_to(search.folder)) if plan.exists() else "",
    }


def contrast_parts(contrast: Contrast) -> Iterator[RenderableType]:
    """What differs, for a person."""
    if not (contrast.options or contrast.others or contrast.results):
        yield f"{escape(contrast.left)} and {escape(contrast.right)} differ in nothing"
        return
    if contrast.options:
        table = new_table("option", escape(contrast.left), escape(contrast.right))
        for option in contrast.options:
            sides = ("–" if side is None else escape(side) for side in (option.left, option.right))
            table.add_row(escape(option.option), *sides)
        yield table
        yield ""
    for line in contrast.others:
        yield escape(line)
    if contrast.results:
        yield from [""] if contrast.others else []
        about = ["stage"] if any(result.stage for result in contrast.results) else []
        table = new_table(*about, "result", escape(contrast.left), escape(contrast.right), "change")
        for column in table.columns[-3:]:
            column.justify = "right"
        for result in contrast.results:
            left = _measured(result.left, result.left_deviation)
            right = _measured(result.right, result.right_deviation)
            change = "" if result.change is None else f"{result.change:+.4g}"
            stage = [escape(result.stage)] if about else []
            table.add_row(*stage, escape(result.metric), left, right, change)
        yield table


def _measured(value: float | None, deviation: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.6g}" + ("" if deviation is None else f" ± {deviation:.2g}")


def cost_parts(costs: "Sequence[InferenceCost]") -> list[RenderableType]:
    """What `distill cost` prints: a table, and what could not be measured."""
    remarks = [escape(f"{cost.name}: {text}") for cost in costs for text in cost.remarks]
    return [rows_table(cost_rows(costs)), *remarks]


def cost_rows(costs: "Sequence[InferenceCost]") -> Rows:
    """A row per measurement; what holds for the model stands in its first."""
    rows: Rows = []
    for cost in costs:
        for place, latency in enumerate(cost.latencies):
            peak = cost.peak_bytes.get(latency.runtime)
            own = {
                "model": cost.name,
                "parameters": cost.parameters,
                "multiply-adds": "" if cost.multiply_adds is None else f"{cost.multiply_adds:,}",
                "weights": bytes_text(cost.bytes),
            }
            measured = {
                "runtime": latency.runtime,
                "batch": str(latency.batch),
                "threads": str(latency.threads),
                "p50": f"{1000 * latency.p50:.3g} ms",
                "p95": f"{1000 * latency.p95:.3g} ms",
                "memory": "" if peak is None else bytes_text(peak),
            }
            rows.append((dict.fromkeys(own) if place else own) | measured)
    return rows


def bytes_text(count: int) -> str:
    """Bytes as a person says them: 812 B, 39.8 kB, 1.28 GB."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return f"{count} B"


def age_text(seconds: float) -> str:
    """An age in its largest unit: 40 s, 12 min, 5 h, 3 d."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


FORMATS: dict[str, Callable[[Any], str]] = {
    "size": bytes_text,
    "age": age_text,
    "seconds": lambda seconds: f"{seconds:,.1f}",
    "started": _date,
    "finished": _date,
    "parameters": lambda count: f"{count:,}",
    "part of": ", ".join,
}


def _styled(key: str, value: Any) -> str:
    """A value as a cell of a column, or of a line, called `key`."""
    if value is None:
        return ""
    if key in FORMATS:
        return escape(FORMATS[key](value))
    text = escape(f"{value:.6g}" if isinstance(value, float) else str(value))
    return f"[{STYLES[text]}]{text}[/]" if key in ("status", "state", "outcome") and text in STYLES else text
