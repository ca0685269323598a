"""What a person sees on the terminal: tables on stdout, progress on stderr."""

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from raydistill.execution.outlook import Prospect
from raydistill.runs.plan_run import NodeState

STYLES = {
    "done": "green",
    "cached": "cyan",
    "failed": "bold red",
    "skipped": "yellow",
    "stopped": "yellow",
    "running": "bold blue",
    "waiting": "dim",
}


def console(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal; wide enough for the tables when there is none."""
    plain = Console(stderr=stderr, highlight=False, soft_wrap=False)
    return plain if plain.is_terminal else Console(stderr=stderr, highlight=False, width=140)


def prospects_table(prospects: Sequence[Prospect]) -> Table:
    """What `--dry-run` prints."""
    table = _table("stage", "kind", "reads", "resources", "fingerprint", "state", "why")
    for prospect in prospects:
        node = prospect.node
        table.add_row(
            node.name + (" [dim](inserted)[/]" if node.inserted else ""),
            node.kind,
            ", ".join(gathered(node.reads)),
            _resources(node.config.resources),
            node.fingerprint,
            "[cyan]cached[/]" if prospect.is_cached else "[bold]new[/]",
            escape(prospect.reason),
        )
    return table


def gathered(names: Sequence[str]) -> list[str]:
    """Names of stages in which more than two numbered ones in a row are written as one: `specialists.0–19`."""
    runs: list[list[tuple[str, str, str]]] = []
    for name in names:
        part = name.rpartition(".")
        last = runs[-1][-1] if runs else ("", "", "")
        if (
            part[2].isdigit()
            and last[2].isdigit()
            and part[:2] == last[:2]
            and int(part[2]) == int(last[2]) + 1
        ):
            runs[-1].append(part)
        else:
            runs.append([part])
    written = []
    for run in runs:
        ends = ["".join(part) for part in run]
        written += [f"{ends[0]}–{run[-1][2]}"] if len(run) > 2 else ends
    return written


def results_table(results: Mapping[str, Any]) -> Table:
    """The table that ends a run: one line per stage; replicas also in sum."""
    table = _table("stage", "outcome", "seconds", "parameters", "validation", "test", "errors", "note")
    for column in table.columns[2:7]:
        column.justify = "right"
    for name, entry in results["stages"].items():
        metrics, std = entry.get("metrics", {}), entry.get("std", {})
        status = entry["status"]
        table.add_row(
            f"[bold]{name}[/] ×{entry['replicas']}" if "replicas" in entry else name,
            f"[{STYLES[status]}]{status}[/]",
            f"{entry['seconds']:.1f}",
            f"{entry['parameters']:,}" if "parameters" in entry else "",
            _percent(metrics, std, "validation/accuracy"),
            _percent(metrics, std, "test/accuracy"),
            _errors(metrics, std),
            escape(entry.get("error", "")),
        )
    return table


def warning_lines(results: Mapping[str, Any]) -> list[str]:
    """What is printed below the table: what stages, cached ones included, warn of."""
    return [
        f"[yellow]warning[/]: {name}: {escape(text)}"
        for name, entry in results["stages"].items()
        for text in entry.get("warnings", ())
    ]


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _resources(resources: Any) -> str:
    gpus = "" if resources.gpus is None else f", {resources.gpus:g} GPU"
    memory = f", {resources.memory}" if resources.memory else ""
    return f"{resources.workers} × {resources.cpus:g} CPU{gpus}{memory}"


def _percent(metrics: Mapping[str, float], std: Mapping[str, float], name: str) -> str:
    if name not in metrics:
        return ""
    spread = f" ± {100 * std[name]:.2f}" if name in std else ""
    return f"{100 * metrics[name]:.2f} %{spread}"


def _errors(metrics: Mapping[str, float], std: Mapping[str, float]) -> str:
    if "test/errors" not in metrics:
        return ""
    spread = f" ± {std['test/errors']:.1f}" if "test/errors" in std else ""
    digits = 1 if spread else 0
    return f"{metrics['test/errors']:.{digits}f}{spread} of {metrics['test/samples']:.0f}"


class Progress:
    """Shows the stages while they run: a live table on a terminal, a line per change elsewhere."""

    def __init__(self, states: Mapping[str, NodeState]) -> None:
        self.console = console(stderr=True)
        self.states = dict(states)
        self.shown: dict[str, tuple[str, str]] = {}
        self.started = time.monotonic()
        self.lock = threading.Lock()
        self.live = Live(
            console=self.console, get_renderable=self._render, refresh_per_second=4, transient=True
        )

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.live.is_started:
            self.live.stop()

    def update(self, name: str, state: NodeState) -> None:
        """Take a node's state after a change."""
        with self.lock:
            self.states[name] = state
            now = (state.status, state.note)
            if self.shown.get(name, ("waiting", "")) != now:
                self.shown[name] = now
                self._line(name, state)

    def _line(self, name: str, state: NodeState) -> None:
        text = state.error or state.note
        took = f" in {state.seconds:.1f} s" if state.status == "done" else ""
        if not self.live.is_started:
            stamp = f"{time.monotonic() - self.started:7.1f} s"
            sys.stderr.write(f"{stamp}  {name}: {state.status}{took}{': ' + text if text else ''}\n")
            sys.stderr.flush()

    def _render(self) -> RenderableType:
        table = _table("stage", "state", "seconds", "")
        with self.lock:
            states = dict(self.states)
        active = {name: state for name, state in states.items() if state.status not in ("waiting", "cached")}
        for name, state in active.items():
            running = time.monotonic() - state.started if state.status == "running" and state.started else 0.0
            table.add_row(
                name,
                f"[{STYLES[state.status]}]{state.status}[/]",
                f"{state.seconds + running:.0f}",
                escape(state.error or state.note),
            )
        counts = {status: sum(state.status == status for state in states.values()) for status in STYLES}
        summary = "  ".join(f"{count} {status}" for status, count in counts.items() if count)
        table.add_row(f"[dim]{summary}[/]", "", f"[dim]{time.monotonic() - self.started:.0f}[/]", "")
        return table
