"""``fedpisa demo`` and ``fedpisa run``."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fedpisa.cli.app import app
from fedpisa.cli.options import Allow, File, Keys, keeping, read_config, read_keys, refuse_diverged
from fedpisa.cli.terminal import say
from fedpisa.runs.tracking import Listener, Tracker, TrackerName, fan_out, make_tracker


@app.command()
def demo(
    out: Annotated[
        Path | None,
        typer.Option(help="A new directory.", show_default="fedpisa-demo, or the next free number"),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Number of seeds: 0, 1, ...")] = 1,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time; the results do not depend on it.")] = 2,
) -> None:
    """Compare FedAvg, LocalSGD, SCAFFOLD, SISA and PISA on one non-IID split of real data, in half a minute."""
    from rich.console import Console

    from fedpisa.runs.places import free_directory
    from fedpisa.studies import demo as demonstration
    from fedpisa.studies.console import StudyConsole

    directory = out or free_directory("fedpisa-demo")
    study = demonstration.demo_study(seeds)
    with keeping(directory), StudyConsole(study.runs()) as console:
        results = demonstration.run_demo(directory, seeds, jobs=jobs, on_progress=console)
    terminal = Console(highlight=False, soft_wrap=True)
    terminal.print()
    terminal.print(demonstration.table(results))
    terminal.print()
    for line in textwrap.wrap(demonstration.STORY, 100):
        terminal.print(line, markup=False)
    terminal.print()
    say(f"picture: {directory / 'convergence.png'}")
    say(f"study: {directory}; fedpisa report {directory} compares the runs")
    for one in results:
        refuse_diverged(one.result)


@app.command()
def run(
    file: File = None,
    config: Keys = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A new directory for the result.", show_default="runs/<algorithm>-<dataset>-<seed>"
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Continue an interrupted run from its last checkpoint; -c num-server-rounds=... extends it.",
            show_default=False,
        ),
    ] = None,
    track: Annotated[
        list[TrackerName] | None,
        typer.Option(help="Also log the run to this tracker; may be repeated.", show_default=False),
    ] = None,
    allow: Allow = None,
) -> None:
    """Train, with live progress; without arguments, SISA on the digits data."""
    if resume is not None and (file is not None or out is not None):
        raise ValueError("--resume continues a run in its directory: give neither a file nor --out with it")
    given = read_config(file, config, allow) if resume is None else read_keys(config)
    from fedpisa.runs.places import directory_for, require_free
    from fedpisa.runs.runner import run as train

    if isinstance(given, dict):
        assert resume is not None
        directory, start = resume, partial(train, given, resume=resume, allow=allow or ())
    else:
        directory = require_free(out) if out else directory_for(given)
        start = partial(train, given, directory)
    words = ["fedpisa", "run", "--resume", str(directory), *(f"--allow={module}" for module in allow or ())]
    with keeping(directory, shlex.join(words)), _following(directory, track or ()) as tell:
        result = start(on_event=tell)
    refuse_diverged(result)
    say(f"result: {directory}")


@contextmanager
def _following(directory: Path, track: Sequence[TrackerName]) -> Iterator[Listener]:
    """Show a run's events on the terminal, and send them to the trackers."""
    from fedpisa.runs.console import RunConsole

    trackers: list[Tracker] = [make_tracker(name, directory) for name in track]
    with ExitStack() as stack:
        console = stack.enter_context(RunConsole())
        yield fan_out([*(stack.enter_context(tracker) for tracker in trackers), console])
