"""Commands that look after the storage root: what is there, what it is, what differs, and what can go."""

import sys
from pathlib import Path

import click

from raydistill.cli.group import FAILED
from raydistill.cli.options import runs_option
from raydistill.errors import PlanError

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON: sizes in bytes, times in seconds."
)


@click.command(name="list")
@click.argument("what", type=click.Choice(["plans", "runs", "searches", "stages"]), default="plans")
@json_option
@runs_option
def list_stored(what: str, as_json: bool, root: Path) -> None:
    """List the plans that were run, or their runs, searches or stages: size, age, and who reads them.

    \b
    distill list
    distill list stages
    """
    from raydistill.runs.inventory import read_inventory
    from raydistill.storage_tables import (
        bytes_text,
        plan_rows,
        rows_table,
        run_rows,
        search_rows,
        shown,
        stage_rows,
    )

    inventory = read_inventory(root.absolute())
    rows = {"plans": plan_rows, "runs": run_rows, "searches": search_rows, "stages": stage_rows}[what](
        inventory
    )
    if as_json:
        _echo_json(rows)
    elif rows:
        shown(rows_table(rows))
        if what == "plans":
            size = sum(row["size"] for row in stage_rows(inventory))
            click.echo(
                f"\n{len(inventory.stages)} stages, {bytes_text(size)}; `distill list stages` lists them"
            )
    else:
        click.echo(f"there are no {what} below `{root}`")


@click.command()
@click.argument("name", metavar="STAGE|RUN")
@json_option
@runs_option
def show(name: str, as_json: bool, root: Path) -> None:
    """Show a stage, a run or a search: what it is, its options and results, its files, and who reads it.

    It is named by its folder, by a run's id, by a stage's folder or the first digits of its fingerprint; a plan's name
    stands for its last run, and `mnist/student` for the stage of that run.

    \b
    distill show mnist-quickstart
    distill show 1f0c92ab
    """
    from raydistill.runs.inventory import StoredRun, StoredSearch, find, read_inventory
    from raydistill.runs.view import StageView, open_run
    from raydistill.storage_tables import (
        run_parts,
        run_values,
        search_parts,
        search_values,
        shown,
        stage_parts,
        stage_values,
    )

    root = root.absolute()
    found = find(root, name)
    if isinstance(found, StageView):
        values = stage_values(read_inventory(root), found)
        parts = stage_parts(values)
    elif isinstance(found, StoredRun):
        run = open_run(found.folder, found.folder.parents[2])
        values = run_values(run)
        parts = run_parts(run, values)
    elif isinstance(found, StoredSearch) and found.damage is None:
        values = search_values(found)
        parts = search_parts(found)
    else:
        raise PlanError(str(found.damage))
    if as_json:
        _echo_json(values)
    else:
        shown(*parts)


@click.command()
@click.argument("left", metavar="RUN|STAGE")
@click.argument("right", metavar="RUN|STAGE")
@json_option
@runs_option
def compare(left: str, right: str, as_json: bool, root: Path) -> None:
    """Say what differs between two runs, of one plan or of two, or between two stages: in options and in results.

    They are named as for `distill show`.

    \b
    distill compare 20261126-120000-1f0c 20261126-130000-92ab
    """
    from raydistill.runs.contrast import contrast_runs, contrast_stages
    from raydistill.runs.inventory import StoredRun, find
    from raydistill.runs.view import StageView, open_run
    from raydistill.storage_tables import contrast_parts, contrast_values, shown

    one, other = (find(root.absolute(), name) for name in (left, right))
    if isinstance(one, StoredRun) and isinstance(other, StoredRun):
        contrast = contrast_runs(*(open_run(run.folder, run.folder.parents[2]) for run in (one, other)))
    elif isinstance(one, StageView) and isinstance(other, StageView):
        contrast = contrast_stages(one, other)
    else:
        raise PlanError(
            f"`{left}` and `{right}` are not two runs, nor two stages; `distill list` shows what there is"
        )
    if as_json:
        _echo_json(contrast_values(contrast))
    else:
        shown(*contrast_parts(contrast))


@click.command()
@click.option(
    "--keep-runs",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    metavar="N",
    help="Keep what the last N runs of each plan need.",
)
@click.option(
    "--days",
    type=click.FloatRange(min=0),
    default=7,
    show_default=True,
    help="Keep checkpoints and pixels that were touched since.",
)
@click.option("--yes", "--delete", "is_meant", is_flag=True, help="Delete; without it nothing is touched.")
@runs_option
def clean(keep_runs: int, days: float, is_meant: bool, root: Path) -> None:
    """Say what nobody needs any more, and with --yes delete it.

    These are stages that are part of none of the last runs of any plan and that no search needs, checkpoints of
    finished stages, what was begun and left, and pixels that many-class tasks laid out below the storage root. Reports
    and results of runs stay. Whatever somebody works on stays, too; a plan that is run again makes again what it needs.

    \b
    distill clean
    distill clean --keep-runs 1 --yes
    """
    from raydistill.runs.cleaning import Removal, find_removals, remove
    from raydistill.runs.inventory import read_inventory
    from raydistill.storage_tables import bytes_text, removal_rows, rows_table, shown

    inventory = read_inventory(root.absolute())
    found = find_removals(inventory, keep_runs=keep_runs, days=days)
    if found.removals:
        shown(rows_table(removal_rows(found.removals, inventory)))
    for line in found.spared:
        click.echo(f"left alone: {line}")
    sizes = {removal.path: removal.size for removal in found.removals}
    if not is_meant:
        what = f"{len(sizes)} to delete, {bytes_text(sum(sizes.values()))}" if sizes else "nothing to delete"
        click.echo(f"\n{what}{'; `--yes` deletes' if sizes else ''}")
        return
    stayed: list[Path] = []

    def tell(removal: Removal, why_not: str | None) -> None:
        if why_not is not None:
            stayed.append(removal.path)
            click.echo(f"left alone: `{removal.path}`: {why_not}", err=True)

    remove(inventory, found.removals, tell)
    freed = sum(size for path, size in sizes.items() if path not in stayed)
    click.echo(f"\n{len(sizes) - len(stayed)} deleted, {bytes_text(freed)}")
    if stayed:
        sys.exit(FAILED)


def _echo_json(values: object) -> None:
    from raydistill.runs.files import json_text

    click.echo(json_text(values), nl=False)
