"""Options of several commands, and their messages on interruptions and errors."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpisa.cli.terminal import say

if TYPE_CHECKING:
    from fedpisa.config.run import RunConfig
    from fedpisa.runs.results import Result


File = Annotated[
    Path | None, typer.Argument(metavar="[FILE.toml]", help="Keys in a TOML file.", show_default=False)
]

Keys = Annotated[
    list[str] | None,
    typer.Option(
        "-c",
        "--config",
        metavar="'key=value ...'",
        help="Keys that override the file's; may be repeated.",
        show_default=False,
    ),
]


Allow = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MODULE",
        help="A module that the file may name though it is in neither the file's folder nor this one; may be repeated.",
        show_default=False,
    ),
]


@contextmanager
def interruptible(kept: Callable[[], str]) -> Iterator[None]:
    """After Ctrl-C, SIGTERM or SIGHUP, report what was kept, and exit with 128 plus the signal's number."""
    try:
        yield
    except KeyboardInterrupt as error:
        say(f"interrupted: {kept()}", err=True)
        raise typer.Exit(128 + getattr(error, "signum", signal.SIGINT)) from None


@contextmanager
def keeping(directory: Path, go_on: str = "") -> Iterator[None]:
    """After Ctrl-C, SIGTERM, SIGHUP or a failed write, report what was kept and how to continue."""
    hint = f", go on with: {go_on}" if go_on else ""
    try:
        with interruptible(
            lambda: (
                f"the rounds so far are kept in {directory}{hint}"
                if directory.exists()
                else "nothing was written"
            )
        ):
            yield
    except OSError as error:
        if not (directory / "run.json").exists():
            raise
        raise ValueError(f"{reason_of(error)}; the rounds so far are kept{hint}") from error


def refuse_diverged(result: Result) -> None:
    """Exit with 1 if a run diverged."""
    if result.status == "diverged":
        say(
            f"error: {result.config.algorithm} diverged, its rounds so far are kept in {result.directory}: "
            "take smaller steps (a lower learning-rate, or a higher sigma or rho)",
            err=True,
        )
        raise typer.Exit(1)


def read_config(
    file: Path | None, assignments: Sequence[str] | None, allow: Sequence[str] | None = None
) -> RunConfig:
    """Return the configuration of a file, overridden by the keys of ``-c`` options."""
    from fedpisa.config.run import load_config

    return load_config(file, read_keys(assignments), allow=allow or ())


def read_keys(assignments: Sequence[str] | None) -> dict[str, object]:
    """Return the keys of all ``-c`` options; later ones override earlier ones, and of a table option by option."""
    from fedpisa.config.overrides import parse_overrides
    from fedpisa.config.run import flatten

    changes: dict[str, object] = {}
    for text in assignments or ():
        changes |= flatten(parse_overrides(text))
    return changes


def reason_of(error: OSError) -> str:
    """Return the file and the reason of the error."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)
