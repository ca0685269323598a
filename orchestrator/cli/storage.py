"""Commands that look after the storage root: what is there, what it is, what differs, and what can go."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from raydistill.cli.group import FAILED
from raydistill.cli.json_output import echo_json
from raydistill.cli.options import json_option, runs_option

if TYPE_CHECKING:
    from raydistill import Removal


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
    import raydistill
    from raydistill.storage_tables import bytes_text, rows_of, rows_table, shown

    inventory = raydistill.read_inventory(root)
    rows = rows_of(what, inventory)
    if as_json:
        echo_json(rows)
    elif rows:
        shown(rows_table(rows))
        if what == "plans":
            size = sum(row["size"] for row in rows_of("stages", inventory))
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
    import raydistill
    from raydistill.storage_tables import parts_of, shown, values_of

    found = raydistill.find_stored(name, root)
    values = values_of(found, raydistill.read_inventory(root))
    if as_json:
        echo_json(values)
    else:
        shown(*parts_of(found, values))


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
    distill compare mnist-quickstart mnist-hinton --json
    """
    import raydistill
    from raydistill.storage_tables import contrast_parts, contrast_values, shown

    one, other = (raydistill.find_stored(name, root) for name in (left, right))
    if isinstance(one, raydistill.SearchView) or isinstance(other, raydistill.SearchView):
        raise raydistill.PlanError("searches are not compared; `distill show` one, or name runs or stages")
    differing = raydistill.contrast(one, other)
    if as_json:
        echo_json(contrast_values(differing))
    else:
        shown(*contrast_parts(differing))


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
    help="Keep checkpoints, pixels, packed pictures and fetched models that were touched since.",
)
@click.option("--yes", "--delete", "is_meant", is_flag=True, help="Delete; without it nothing is touched.")
@runs_option
def clean(keep_runs: int, days: float, is_meant: bool, root: Path) -> None:
    """Say what nobody needs any more, and with --yes delete it.

    These are stages that are part of none of the last runs of any plan and that no search needs, checkpoints of
    finished stages, what was begun and left, pixels that many-class tasks laid out below the storage root, pictures
    that were packed on this machine, and models that were fetched from MLflow. Reports and results of runs stay.
    Whatever somebody works on stays, too; a plan that is run again makes again what it needs.

    \b
    distill clean
    distill clean --keep-runs 1 --yes
    """
    import raydistill
    from raydistill.storage_tables import bytes_text, removal_rows, rows_table, shown

    inventory = raydistill.read_inventory(root)
    found = raydistill.find_removals(inventory, keep_runs=keep_runs, days=days)
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

    def tell(removal: "Removal", why_not: str | None) -> None:
        if why_not is not None:
            stayed.append(removal.path)
            click.echo(f"left alone: `{removal.path}`: {why_not}", err=True)

    raydistill.remove(inventory, found.removals, tell)
    freed = sum(size for path, size in sizes.items() if path not in stayed)
    click.echo(f"\n{len(sizes) - len(stayed)} deleted, {bytes_text(freed)}")
    if stayed:
        sys.exit(FAILED)
