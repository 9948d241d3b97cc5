"""``fedpisa compare``, ``tune`` and ``report``: commands on many runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedpisa.cli.app import app
from fedpisa.cli.options import Allow, interruptible
from fedpisa.cli.terminal import say


@app.command()
def compare(
    study: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="A base, a sweep, variants and seeds.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The study's directory; existing runs are not repeated.", show_default="studies/<file>"
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time; the results do not depend on it.")] = 1,
    allow: Allow = None,
) -> None:
    """Run a study, or the rest of it: each variant at each point of the sweep, with each seed."""
    from rich.console import Console

    from fedpisa.studies.comparison import compare as compare_runs
    from fedpisa.studies.console import StudyConsole, table
    from fedpisa.studies.study import load_study, read_study

    directory = out or Path("studies") / study.stem
    runs = read_study(study).runs()
    stands = []
    kept = f"all rounds so far are kept in {directory}, the same command continues"
    with interruptible(lambda: kept), StudyConsole(runs) as console:
        stands = compare_runs(study, directory, jobs=jobs, on_progress=console, allow=allow or ())
    terminal = Console(highlight=False, soft_wrap=True)
    terminal.print(table(load_study(directory)))
    terminal.print()
    say(f"study: {directory}")
    bad = [progress for progress in stands if progress.state in ("failed", "diverged")]
    for progress in bad:
        say(f"{progress.state}: {runs[progress.number]}: {progress.message}", err=True)
    elsewhere = sum(progress.state == "elsewhere" for progress in stands)
    if elsewhere:
        say(f"{elsewhere} runs are being written by another process: repeat the command later", err=True)
    if bad or elsewhere:
        raise typer.Exit(1)


@app.command()
def tune(
    study: Annotated[
        Path, typer.Argument(metavar="STUDY.toml", help="A study with the tables [tune] and [search].")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The trials' directory; existing trials are not repeated.", show_default="tuned/<name>"
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Trials at a time, each in its own process.")] = 1,
    extend: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="TIMES",
            help="While a best value lies at an edge, widen its space and add as many trials, at most so many times.",
        ),
    ] = 0,
    allow: Allow = None,
) -> None:
    """Search the best values for each variant of a study, with the same number of trials for all."""
    from rich.console import Console

    from fedpisa.tuning.console import TuneConsole, best_values, remarks, table
    from fedpisa.tuning.plan import read_plan
    from fedpisa.tuning.tune import tune as run_tuning

    plan = read_plan(study, allow=allow or ())
    directory = out or Path("tuned") / plan.study.folder
    kept = f"the trials so far are kept in {directory}, the same command continues"
    with interruptible(lambda: kept), TuneConsole(plan) as console:
        standings = run_tuning(plan, directory, jobs=jobs, extend=extend, on_progress=console)
    terminal = Console(highlight=False, soft_wrap=True)
    terminal.print(table(standings, plan.metric))
    terminal.print()
    for line in best_values(standings):
        say(line)
    terminal.print()
    say(f"trials: {directory / 'trials.csv'}, picture: {directory / 'trials.png'}")
    for one in standings:
        for trial in one.trials:
            if trial.state == "failed":
                say(f"failed: {one.subject}, trial {trial.index}: {trial.error}", err=True)
    for text in remarks(plan, standings):
        say(text, err=True)
    running = sum(one.counts["running"] for one in standings)
    missing = [str(one.subject) for one in standings if one.best is None]
    if running:
        say(f"{running} trials are running in another process, which writes the results", err=True)
    elif missing:
        say(f"no trial reached the end of {'; '.join(missing)}: there is no best.toml", err=True)
    else:
        say(f"next: fedpisa compare {directory / 'best.toml'} --out DIR")
    if running or missing:
        raise typer.Exit(1)


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Directories of runs, of a study, or of its tuning."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="The page, .html; its tables are in <name>-tables beside it. Existing ones are replaced."
        ),
    ] = Path("report.html"),
    target: Annotated[
        float | None,
        typer.Option(
            help="Value of the runs' first measure, such as a test accuracy in (0, 1], up to which costs are counted.",
            show_default="the runs' target, or 95% of the best",
        ),
    ] = None,
    title: Annotated[str | None, typer.Option(help="The page's heading.", show_default=False)] = None,
) -> None:
    """Compare runs in one self-contained HTML page, and in tables as CSV and LaTeX."""
    from fedpisa.report import write_report

    written = write_report(runs, out, target=target, title=title)
    say(f"report: {written.page}")
    say(f"tables: {written.tables[0].parent}, CSV and LaTeX")
