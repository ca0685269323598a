"""Commands that give a plan to begin with: one of those that come with raydistill, or one for the user's own things."""

from pathlib import Path

import click

from raydistill.cli.options import find_own_modules
from raydistill.errors import PlanError, did_you_mean


@click.command()
@click.argument("name", required=False)
def plans(name: str | None) -> None:
    """List the plans that come with raydistill, or print one, to be run by its name or copied and changed.

    \b
    distill plans
    distill plans mnist_hinton > my-plan.yaml
    """
    from raydistill import headline, shipped_plans
    from raydistill.plain import escape
    from raydistill.terminal import console, new_table

    if name is not None:
        if name not in shipped_plans():
            raise PlanError(f"no shipped plan is called `{name}`{did_you_mean(name, shipped_plans())}")
        click.echo(shipped_plans()[name].read_text(encoding="utf-8"), nl=False)
        return
    table = new_table("plan", "what it shows")
    for known, file in shipped_plans().items():
        table.add_row(known, escape(headline(file)))
    console().print(table)
    click.echo("\n`distill run PLAN` runs one, `distill plans PLAN` prints it.")


@click.command()
@click.argument("name")
@click.option("--teacher", metavar="FILE", help="Weights of a trained network, or a program: .onnx, .pt2.")
@click.option(
    "--architecture", metavar="NAME", help="Its network: ours, torchvision's, or package.module:function."
)
@click.option(
    "--data", metavar="PATH|TASK", help="Pictures in folders, a table, or shards of them; or a known task."
)
@click.option("--model", metavar="NAME", help="The student, named as an architecture is.")
def new(name: str, **choices: str | None) -> None:
    """Write a short, commented plan: a teacher, a student, and the student without a teacher.

    Without a --teacher, one is trained; without --data, it is the digits that come along.

    \b
    distill new my-plan
    distill new birds --teacher resnet18.pth --architecture resnet18 --data birds/
    """
    from raydistill import write_plan
    from raydistill.terminal import shown_path

    find_own_modules()
    file = shown_path(write_plan(Path(name), **choices))
    click.echo(f"wrote {file}\n  distill run {file} --dry-run\n  distill run {file}")
