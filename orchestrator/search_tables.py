"""What `distill tune` prints: what a search would try, and in the end its best trials."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from raydistill.kinds.searches import PopulationConfig
from raydistill.metrics import Accuracy
from raydistill.plain import escape
from raydistill.plan.search import Domain
from raydistill.runs.run_files import REPORT
from raydistill.runs.search_formatting import called, short, short_names, shown_cost
from raydistill.runs.search_run import FRONT, TrialRecord, best_first
from raydistill.runs.search_view import SearchView
from raydistill.search.preview import SearchPreview
from raydistill.search.problem import SearchProblem
from raydistill.terminal import console, new_table, prospects_table, shown_path

SHOWN = 10
STYLES = {
    "done": "green",
    "stopped_early": "yellow",
    "failed": "bold red",
    "interrupted": "yellow",
    "running": "bold blue",
}


def print_preview(preview: SearchPreview) -> None:
    """What would be tried, and what all trials share."""
    out, problem = console(), preview.problem
    config = problem.config
    out.print(space_table(config.space))
    out.print(
        f"\n{told_trials(problem)}, scheduler `{config.scheduler.name}`, {problem.metric.mode} of `{problem.metric}`"
        f"{f' against {config.cost}' if config.cost else ''}\n"
    )
    out.print(prospects_table(preview.shared))
    new = sum(not stage.is_cached for stage in preview.shared)
    out.print(
        f"\nshared by all trials: {len(preview.shared)} stages, {new} to run;"
        f" trials: {preview.finished} finished, {preview.left} to run"
    )


def print_results(search: SearchView) -> None:
    """The best trials, where the best plan is, and how the search ended."""
    out, records, about = console(), search.trials(), search.about
    out.print(trials_table(search, records))
    for line in filter(None, (left_out(records), told_exchanges(records), told_front(search))):
        out.print(line, soft_wrap=True)
    if about.best is not None:
        test = about.best.metrics.get(Accuracy.on("test"))
        judged = "" if test is None else f", {Accuracy.text(test)} on the test split"
        name = next(called(record) for record in records if record.id == about.best.trial)
        out.print(f"\nbest: {name}{judged}; plan: {shown_path(search.best_plan)}")
    if search.status == "interrupted":
        out.print("\ninterrupted: checkpoints are written, and the same command goes on from here")
    over = sum(record.is_over for record in records)
    report = search.folder / REPORT
    where = f"; report: {shown_path(report)}" if report.exists() else ""
    out.print(
        f"\n{search.status} in {took(about.seconds, about.session_seconds)}: {over} trials finished{where}"
    )


def told_trials(problem: SearchProblem) -> str:
    """How many trials there are, and where their values come from."""
    config = problem.config
    if isinstance(config.scheduler, PopulationConfig):
        rounds = config.scheduler.rounds(problem.trained.epochs)
        return (
            f"{config.scheduler.population:,} members in {rounds:,} rounds of {config.scheduler.every:,} epochs:"
            f" {problem.trials:,} trials"
        )
    points = "" if config.size is None else f" of {config.size:,} points"
    seeds = f", {problem.replicas} replicas each" if problem.replicas > 1 else ""
    return f"{config.trials:,} trials{points} by `{config.searcher.name}`{seeds}"


def trials_table(search: SearchView, records: Sequence[TrialRecord]) -> Table:
    """The best trials, the best first; with a cost those before the others that nobody beats in both."""
    names, cost = short_names(list(search.about.space)), search.about.cost
    judged = [search.metric, *([cost] if cost else [])]
    table = new_table("trial", "outcome", *names.values(), *judged, "epochs", "seconds", "note")
    front = {record.id for record in search.front()}
    ranked = best_first(records, search.about.mode)
    for record in sorted(ranked, key=lambda record: record.id not in front)[:SHOWN]:
        table.add_row(
            str(record.number) if record.segment is None else record.segment.shown,
            f"[{STYLES[record.status]}]{record.status.replace('_', ' ')}[/]",
            *(escape(short(record.values[path])) for path in names),
            "" if record.metric is None else f"{record.metric:.5g}",
            *([shown_cost(cost, record.cost)] if cost else []),
            str(max(record.epochs, default="")),
            f"{record.seconds:.1f}",
            "front" if record.id in front else escape(record.error or ""),
        )
    return table


def left_out(records: Sequence[TrialRecord]) -> str:
    """What follows the table where it does not hold all trials."""
    count = len(records) - SHOWN
    return f"and {count} more, all of them in the report" if count > 0 else ""


def told_front(search: SearchView) -> str:
    """Of a search with a cost: who is not beaten, that all of them are kept, and where their plans are."""
    front, about = search.front(), search.about
    if about.cost is None or not front:
        return ""
    named = ", ".join(f"{called(trial)} ({shown_cost(about.cost, trial.cost)})" for trial in front)
    plans = f"; plans: {shown_path(search.folder / FRONT)}" if about.front else ""
    return f"\nfront: no other trial beats these in {search.metric} and {about.cost}: {named}{plans}"


def told_exchanges(records: Sequence[TrialRecord]) -> str:
    """Of a population in which nobody took another's place, that and why; else nothing.

    Whoever ends a round goes on with what is known by then. With a worker for each member all end it at about the same
    time, and the first ones find nobody to compare with.
    """
    segments = [record.segment for record in records if record.segment is not None]
    has_later = any(segment.round > 0 for segment in segments)
    if not has_later or any(segment.donor is not None for segment in segments):
        return ""
    return (
        "no member took another's place: those that ended a round went on before enough others had ended it, as happens"
        " with as many workers as members; set `search.concurrency` to half of the population, or more rounds"
    )


def took(seconds: float, session_seconds: float) -> str:
    """`12.1 s`, and of a search that went on, how long it has taken in all."""
    before = seconds - session_seconds
    return f"{session_seconds:.1f} s" + (
        f" ({seconds:.1f} s with earlier sessions)" if before >= 0.05 else ""
    )


def space_table(space: Mapping[str, Domain]) -> Table:
    """What `--dry-run` prints about the space."""
    table = new_table("path", "domain", "values")
    for path, domain in space.items():
        written = ", ".join(short(value) for value in domain.choice or domain.ends)
        kind = domain.kind if domain.choice else f"{domain.kind} [{written}]"
        count = "" if domain.size is None else f"{domain.size:,}"
        table.add_row(path, escape(kind), escape(written) if domain.choice else count)
    return table
