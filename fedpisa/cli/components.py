"""``fedpisa list``: components and their keys."""

from __future__ import annotations

import re
import shutil
import textwrap
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from fedpisa.cli.app import app

if TYPE_CHECKING:
    from fedpisa.components import Component, Key


class Family(StrEnum):
    """Arguments of ``fedpisa list``."""

    KEYS = "keys"
    ALGORITHMS = "algorithms"
    DATASETS = "datasets"
    PARTITIONERS = "partitioners"
    MODELS = "models"
    TASKS = "tasks"
    PRECONDITIONERS = "preconditioners"
    OPTIMIZERS = "optimizers"
    SCHEDULES = "schedules"
    SERVER_STRATEGIES = "server-strategies"
    DIFFERENTIAL_PRIVACY = "differential-privacy"
    PACES = "paces"
    AVAILABILITY = "availability"


@app.command("list")
def list_(
    family: Annotated[Family | None, typer.Argument(help="What to list.", show_default="all")] = None,
) -> None:
    """List the keys of a run, and all algorithms, data sets, partitioners, models, ... with their keys."""
    from fedpisa.config.run import run_keys
    from fedpisa.families import available

    for kind in Family if family is None else [family]:
        typer.echo(typer.style(f"{kind.value}:", bold=True))
        if kind is Family.KEYS:
            for key in run_keys().values():
                _wrapped(f"  {_show_key(key):<19} ", _plain_text(key.doc))
        else:
            for component in available(re.sub(r"ies$", "y", kind.value).removesuffix("s")).values():
                _describe(component)
        typer.echo()


def _describe(component: Component) -> None:
    """Print a component's name and summary, and below them its keys with their defaults."""
    from fedpisa.families import keys_of

    table = f"{component.family}-options."
    keys = (table * key.option + _show_key(key) for key in keys_of(component).values())
    _wrapped(f"  {component.name:<19} ", _plain_text(component.summary))
    _wrapped(" " * 22, "  ".join(keys))


def _plain_text(summary: str) -> str:
    """Return a docstring's first line without its markup."""
    return re.sub(r":math:|`| \[\d+\]_", "", summary)


def _show_key(key: Key) -> str:
    from fedpisa.components import REQUIRED, plain

    if key.default is REQUIRED:
        return f"{key.name}=(needed)"
    if key.default is None:
        return f"{key.name}=(none)"
    value = plain(key.default)
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)
    return f"{key.name}={text}".replace(" ", "")


def _wrapped(first: str, text: str) -> None:
    width = max(60, shutil.get_terminal_size((110, 24)).columns)
    for line in textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=" " * 22, break_on_hyphens=False
    ):
        typer.echo(line)
