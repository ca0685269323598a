"""Output on the terminal: tables on stdout, progress on stderr."""

import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table

from raydistill.execution.estimate import Estimate, Estimator
from raydistill.execution.preview import DryRun, Preview
from raydistill.kinds.stage_bases import TrainingConfig
from raydistill.kinds.training import AlsoConfig
from raydistill.metrics import Accuracy, Errors, Metric, Samples
from raydistill.plain import escape, say
from raydistill.plan.config import configs_in
from raydistill.plan.order import Graph
from raydistill.plan.sources import unseen_sources
from raydistill.runs.pace import Pace, Standing, duration
from raydistill.runs.placement import here
from raydistill.runs.plan_run import NodeState
from raydistill.runs.run_files import ResultsFile
from raydistill.tasks.task import Task

if TYPE_CHECKING:  # numpy
    from raydistill.tasks.survey import Finding

TELL_SECONDS = 10.0
NAMED = 5  # stages on one line
MOST_CLASSES = 20  # in a table

STYLES = {
    "done": "green",
    "cached": "cyan",
    "not needed": "dim",
    "failed": "bold red",
    "skipped": "yellow",
    "stopped": "yellow",
    "running": "bold blue",
    "waiting": "dim",
}

AT_REST = ("waiting", "cached", "not needed")


def console(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal; wide enough for the tables when there is none."""
    plain = Console(stderr=stderr, highlight=False, soft_wrap=False)
    return plain if plain.is_terminal else Console(stderr=stderr, highlight=False, width=140)


def shown_path(path: Path) -> Path:
    """A path as a person would type it here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def prospects_table(prospects: Sequence[Preview]) -> Table:
    """What `--dry-run` prints."""
    table = new_table("stage", "kind", "reads", "resources", "fingerprint", "state", "why")
    for prospect in prospects:
        node = prospect.node
        table.add_row(
            node.name + (" [dim](inserted)[/]" if node.inserted else ""),
            node.kind,
            ", ".join(gathered(node.reads)),
            _resources(node.config.resources),
            node.fingerprint,
            f"[cyan]{prospect.state}[/]" if prospect.is_cached else f"[bold]{prospect.state}[/]",
            escape(prospect.reason),
        )
    return table


def estimate_lines(found: DryRun) -> list[str]:
    """What a dry run says below the table: how many stages run side by side, and how long all of it takes."""
    estimate = found.estimate
    if found.misfit:
        return [f"this machine alone cannot run it: {escape(found.misfit)}"]
    if estimate is None or estimate.side_by_side is None or not estimate.stages:
        return []
    many = f"at most {estimate.side_by_side} stages run" if estimate.side_by_side > 1 else "one stage runs"
    return [f"{many} at a time{f'; all of it takes {estimate}' if str(estimate) else ''}"]


def unseen_lines(prospects: Sequence[Preview], task: Task) -> list[str]:
    """What a dry run says below the table: the code, files and data that could change without anybody seeing it."""
    parts = (part for prospect in prospects for _, part in configs_in(prospect.node.config))
    data = [task.unseen_data] if task.unseen_data else []
    return [f"a change is not seen of {escape(text)}" for text in [*unseen_sources(parts), *data]]


def unlabelled_lines(prospects: Sequence[Preview], count: int) -> list[str]:
    """What a dry run says of samples without labels: `count` of the task's own, and those that lie beside them."""
    parts = (part for prospect in prospects for _, part in configs_in(prospect.node.config))
    pools = dict.fromkeys(part.pool for part in parts if isinstance(part, AlsoConfig))
    beside = [f"{len(pool):,} samples in `{escape(str(pool.place))}`" for pool in pools]
    own = [f"{count:,} training samples"] if count else []
    return [f"{text} have no label: students learn what their teachers say" for text in own + beside]


def class_table(counts: Mapping[str, Sequence[int]], names: Sequence[str]) -> Table:
    """What `--dry-run` prints of the data: labelled samples per class and split (split → one count per name), and their
    sums. Of more than `MOST_CLASSES` the first, and those with the fewest and the most samples to train on."""
    table = new_table("class", *counts)
    for column in table.columns[1:]:
        column.justify = "right"
    for label, name in enumerate(names[:MOST_CLASSES]):
        table.add_row(escape(name), *(f"{split[label]:,}" for split in counts.values()))
    if len(names) > MOST_CLASSES:
        train = counts["train"]
        for which, label in (("fewest", train.index(min(train))), ("most", train.index(max(train)))):
            shown = (f"{split[label]:,}" for split in counts.values())
            table.add_row(f"[dim]{which}:[/] {escape(names[label])}", *shown)
    total = f"[dim]all {len(names):,}[/]"
    table.add_row(total, *(f"{sum(split):,}" for split in counts.values()))
    return table


def finding_lines(findings: "Sequence[Finding]") -> list[str]:
    """What a dry run says below the samples: what they show."""
    style = {"error": "bold red", "warning": "yellow", "note": "dim"}
    return [f"[{style[found.level]}]{found.level}[/]: data: {escape(found.text)}" for found in findings]


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


def results_table(results: ResultsFile) -> Table:
    """The table that ends a run: one line per stage; replicas also in sum."""
    table = new_table("stage", "outcome", "seconds", "parameters", "validation", "test", "errors", "note")
    for column in table.columns[2:7]:
        column.justify = "right"
    for name, entry in results.stages.items():
        metrics, std = entry.metrics, entry.std
        table.add_row(
            f"[bold]{escape(name)}[/] ×{entry.replicas}" if entry.replicas else escape(name),
            f"[{STYLES[entry.status]}]{entry.status}[/]",
            f"{entry.seconds:.1f}",
            "" if entry.parameters is None else f"{entry.parameters:,}",
            _metric(metrics, std, Accuracy, "validation"),
            _metric(metrics, std, Accuracy, "test"),
            _errors(metrics, std),
            escape(entry.error or entry.note),
        )
    return table


def warning_lines(results: ResultsFile) -> list[str]:
    """What is printed below the table: what the survey and stages, cached ones included, warn of. Where replicas of a
    stage begin a warning with the same words, before its first name or number, the first one's stands for all."""
    found = [remark for remark in results.survey if remark.level == "warning"]
    lines = [(", ".join(remark.stages) or "data", remark.text) for remark in found]
    alike = defaultdict[tuple[str, str], list[tuple[str, str]]](list)
    for name, entry in results.stages.items():
        stage, _, number = name.rpartition(".")
        for text in entry.warnings:
            words = re.split(r"[`\d]", text, maxsplit=1)[0] or text
            alike[stage if number.isdigit() else name, words].append((name, text))
    for (first, text), *others in alike.values():
        also = f"; likewise {', '.join(gathered([name for name, _ in others]))}" if others else ""
        lines.append((first, text + also))
    return [f"[yellow]warning[/]: {escape(about)}: {escape(text)}" for about, text in lines]


def new_table(*columns: str) -> Table:
    """A table with these columns, and no lines around them."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _resources(resources: Any) -> str:
    given = "" if resources.given_gpus is None else f", {resources.given_gpus:g} GPU"
    gpus = ", a share of a GPU" if resources.gpus == "auto" else given
    memory = f", {resources.memory}" if resources.memory else ""
    accelerator = f", {escape(resources.accelerator)}" if resources.accelerator else ""
    custom = "".join(f", {amount:g} {escape(name)}" for name, amount in resources.custom.items())
    labels = "".join(f", {escape(name)}: {escape(value)}" for name, value in resources.labels.items())
    return f"{resources.workers} × {resources.cpus:g} CPU{gpus}{accelerator}{memory}{custom}{labels}"


def _metric(metrics: Mapping[str, float], std: Mapping[str, float], metric: type[Metric], split: str) -> str:
    name = metric.on(split)
    return metric.text(metrics[name], std.get(name)) if name in metrics else ""


def _errors(metrics: Mapping[str, float], std: Mapping[str, float]) -> str:
    errors = _metric(metrics, std, Errors, "test")
    return f"{errors} of {metrics[Samples.on('test')]:.0f}" if errors else ""


class Progress:
    """Shows the stages while they run: a live table on a terminal; elsewhere a line per change, and one every
    `TELL_SECONDS` that says how far a stage is."""

    def __init__(self, states: Mapping[str, NodeState], graph: Graph, root: Path) -> None:
        self.console = console(stderr=True)
        self.states = dict(states)
        self.graph, self.root = graph, root
        self.shown: dict[str, tuple[str, str]] = {}
        self.paces: dict[str, Pace] = {}
        self.told: dict[str, float] = {}
        self.held_up: dict[str, list[str]] = {}
        self.started = time.monotonic()
        self.estimator: Estimator | None = None
        self.estimate: Estimate | None = None
        self.estimated_until = 0.0
        self.lock = threading.Lock()
        self.over = threading.Event()
        self.teller = threading.Thread(target=self._tell, name="progress", daemon=True)
        self.live = Live(
            console=self.console, get_renderable=self._render, refresh_per_second=4, transient=True
        )

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            self.live.start()
        else:
            self.teller.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.over.set()
        if self.live.is_started:
            self.live.stop()
        else:
            self.teller.join()

    def update(self, name: str, state: NodeState) -> None:
        """Take a node's state after a change."""
        with self.lock:
            self.states[name] = state
            now = (state.phase, state.note)
            if self.shown.get(name, ("waiting", "")) == now:
                return
            self.shown[name] = now
            if (state.status == "running") != (name in self.paces):
                self._follow(name, state)
            # Nearly all that starts runs a moment later: what does not is told by `tell`.
            if state.phase.startswith(("starting", "waiting for room")) and not state.note:
                return
            text = state.error or state.note
            took = f" in {state.seconds:.1f} s" if state.status == "done" else ""
            self._line(name, f"{state.phase}{took}{_on(state)}{': ' + text if text else ''}")

    def expect(self, estimator: Estimator) -> None:
        """Say from now on how long all of it will take; where nothing is known, nothing."""
        self.estimator = estimator
        if text := str(self.left()):
            self._line("all stages", f"take {text}")

    def left(self) -> Estimate | None:
        """What is left of the run. Looked at anew once a second, in a large graph for a tenth of the time at most."""
        now = time.monotonic()
        if self.estimator is not None and now >= self.estimated_until:
            with self.lock:
                states = dict(self.states)
                standings = {name: pace.standing() for name, pace in self.paces.items()}
            self.estimate = self.estimator.left(states, standings)
            self.estimated_until = now + max(1.0, 10 * (time.monotonic() - now))
        return self.estimate

    def _follow(self, name: str, state: NodeState) -> None:
        self.paces.pop(name, None)
        if state.status == "running":
            node = self.graph.nodes[name]
            epochs = node.config.trained_epochs if isinstance(node.config, TrainingConfig) else None
            self.paces[name] = Pace(self.root / node.folder, epochs)

    def tell(self) -> None:
        """A line for each stage that has got further since the last one."""
        with self.lock:
            for name, pace in self.paces.items():
                standing = pace.standing()
                if standing.loss is not None and standing.loss != self.told.get(name):
                    self.told[name] = standing.loss
                    self._line(name, ", ".join(filter(None, _reached(standing))))

            for phase in ("starting", "waiting for room"):
                names = [name for name, state in self.states.items() if state.phase.startswith(phase)]
                if names and names != self.held_up.get(phase):
                    self.held_up[phase] = names
                    self._line(
                        ", ".join(gathered(names)[:NAMED]) + ", …" * (len(gathered(names)) > NAMED), phase
                    )

    def _tell(self) -> None:
        while not self.over.wait(TELL_SECONDS):
            self.tell()

    def _line(self, name: str, text: str) -> None:
        if not self.live.is_started:
            say(f"{time.monotonic() - self.started:7.1f} s  {name}: {text}")

    def _render(self) -> RenderableType:
        table = new_table("stage", "state", "seconds", "epoch", "loss", "left", "")
        for column in table.columns[2:6]:
            column.justify = "right"
        with self.lock:
            states = dict(self.states)
            standings = {name: pace.standing() for name, pace in self.paces.items()}
        active = {name: state for name, state in states.items() if state.status not in AT_REST}
        for name, state in active.items():
            running = time.monotonic() - state.started if state.status == "running" and state.started else 0.0
            standing = standings.get(name, Standing())
            table.add_row(
                name,
                f"[{STYLES[state.status]}]{state.phase}{_on(state)}[/]",
                f"{state.seconds + running:.0f}",
                _epochs(standing),
                "" if standing.loss is None else f"{standing.loss:.3g}",
                duration(standing.seconds_left),
                escape(state.error or state.note),
            )
        counts = Counter(state.phase.partition(",")[0] for state in states.values())
        summary = "  ".join(f"{count} {phase}" for phase, count in counts.items())
        left = self.left()
        about, _, of = str(left or "").partition(", ")
        table.add_row(
            f"[dim]{summary}[/]", "", f"[dim]{time.monotonic() - self.started:.0f}[/]", "", "", about, of
        )
        return table


class Counting:
    """How many inputs are done and how fast that goes, on a terminal, unless results are printed there (`is_shown`)."""

    def __init__(self, *, is_shown: bool) -> None:
        self.console = console(stderr=True)
        self.done = self.failed = 0
        self.first_error = ""
        self.started = time.monotonic()
        self.live = Live(
            console=self.console, get_renderable=self._render, refresh_per_second=4, transient=True
        )
        self.is_shown = is_shown and self.console.is_terminal

    def __enter__(self) -> "Counting":
        if self.is_shown:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.live.is_started:
            self.live.stop()

    def add(self, count: int, errors: Sequence[str]) -> None:
        """So many inputs more are done, some of them with errors."""
        if errors and not self.failed:
            self.first_error = errors[0]
        self.done += count
        self.failed += len(errors)

    def _render(self) -> RenderableType:
        seconds = time.monotonic() - self.started
        failed = f", {self.failed:,} cannot be read" if self.failed else ""
        return f"{self.done:,} inputs in {seconds:.0f} s, {self.done / max(seconds, 1e-3):,.0f} per second{failed}"


def _on(state: NodeState) -> str:
    """Where a stage runs, unless that is here."""
    nodes = state.placement.nodes if state.status == "running" else ()
    return f" on {', '.join(nodes)}" if nodes and nodes != (here(),) else ""


def _reached(standing: Standing) -> tuple[str, ...]:
    """How far a stage is, in words; empty ones for what is not known."""
    epochs, left = _epochs(standing), duration(standing.seconds_left)
    return (
        f"epoch {epochs}" if epochs else "",
        "" if standing.loss is None else f"loss {standing.loss:.3g}",
        f"{left} left" if left else "",
    )


def _epochs(standing: Standing) -> str:
    return "" if standing.epoch is None else f"{standing.epoch} of {standing.epochs}"
