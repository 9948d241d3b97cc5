"""The root command."""

from __future__ import annotations

from typing import Annotated

import click
import typer
from typer.core import TyperGroup

from fedpisa.cli.deploy import app as deployment_commands

COMMANDS = ("demo", "run", "compare", "tune", "report", "plot", "partition", "list", "bench", "deploy")
"""The commands in the order of ``--help``."""


class _InOrder(TyperGroup):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(super().list_commands(ctx), key=COMMANDS.index)


app = typer.Typer(
    cls=_InOrder,
    name="fedpisa",
    help="Federated learning under data heterogeneity: PISA, SISA and their competitors on Flower.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(deployment_commands, name="deploy")


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
) -> None:
    if version:
        from fedpisa import __version__

        typer.echo(f"fedpisa {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
