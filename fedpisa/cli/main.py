"""The command ``fedpisa``.

``--help`` has to answer at once, so whatever is heavy (torch, flwr, pandas, matplotlib) is imported by the
command that needs it, not here.
"""

from __future__ import annotations

import re
import shutil
import signal
import statistics
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from fedpisa.cli.deploy import app as deployment_commands
from fedpisa.runs.process import own_process
from fedpisa.runs.tracking import Listener, Tracker, TrackerName, fan_out, make_tracker

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.table import Table

    from fedpisa.bench.measure import Figure
    from fedpisa.components import Component, Key
    from fedpisa.config.run import RunConfig
    from fedpisa.datasets import Heterogeneity
    from fedpisa.runs.results import Result

MOST_ROWS = 25
"""Clients that ``fedpisa partition`` lists one by one."""
MOST_LABELS = 12
"""Labels that it counts one by one."""

app = typer.Typer(
    name="fedpisa",
    help="Federated learning under data heterogeneity: PISA, SISA and their competitors on Flower.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class XAxis(StrEnum):
    """What curves can be drawn against."""

    ROUND = "round"
    BYTES = "bytes"
    LOCAL_STEPS = "local-steps"
    SECONDS = "seconds"
    SIMULATED_SECONDS = "simulated-seconds"


class BenchAlgorithm(StrEnum):
    """What ``fedpisa bench`` runs."""

    FEDAVG = "fedavg"
    SISA = "sisa"


class Family(StrEnum):
    """What ``fedpisa list`` can list."""

    ALGORITHMS = "algorithms"
    DATASETS = "datasets"
    PARTITIONERS = "partitioners"
    MODELS = "models"
    PRECONDITIONERS = "preconditioners"
    OPTIMIZERS = "optimizers"
    SCHEDULES = "schedules"
    SERVER_STRATEGIES = "server-strategies"
    DIFFERENTIAL_PRIVACY = "differential-privacy"
    PACES = "paces"
    AVAILABILITY = "availability"


File = Annotated[
    Path | None, typer.Argument(metavar="[FILE.toml]", help="Keys in a TOML file.", show_default=False)
]
Keys = Annotated[
    list[str] | None,
    typer.Option(
        "-c",
        "--config",
        metavar="'key=value ...'",
        help="Keys, in place of the file's; may be repeated.",
        show_default=False,
    ),
]

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


@app.command()
def demo(
    out: Annotated[
        Path | None,
        typer.Option(help="A new directory.", show_default="fedpisa-demo, or the next free number"),
    ] = None,
) -> None:
    """Compare FedAvg, LocalSGD and SISA on one non-IID split of real data, in less than a minute."""
    from rich.console import Console

    from fedpisa.runs.console import RunConsole
    from fedpisa.runs.results import free_directory
    from fedpisa.studies import demo as demonstration

    directory = out or free_directory("fedpisa-demo")
    with _keeping(directory), RunConsole() as console:
        results = demonstration.run_demo(directory, on_event=console)
    terminal = Console(highlight=False, soft_wrap=True)
    terminal.print()
    terminal.print(demonstration.table(results))
    terminal.print(f"\nBudget: {demonstration.BUDGET}.", markup=False)
    terminal.print(f"Picture: {directory / 'convergence.png'}", markup=False)
    terminal.print(f"Runs: {', '.join(str(directory / name) for name in results)}", markup=False)
    for result in results.values():
        _refuse_diverged(result)


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
            help="Go on with a run that was cut short, from its last checkpoint; -c num-server-rounds=... for more.",
            show_default=False,
        ),
    ] = None,
    track: Annotated[
        list[TrackerName] | None,
        typer.Option(help="Also follow the run in one of these; may be repeated.", show_default=False),
    ] = None,
) -> None:
    """Train, with live progress; without arguments SISA on the embedded data."""
    if resume is not None:
        _resume(resume, file, config, out, track or ())
        return
    settings = _config(file, config)
    from fedpisa.runs.results import free_directory, require_free

    name = f"{settings.algorithm}-{settings.dataset}-{settings.seed}"
    directory = require_free(out) if out else free_directory(Path("runs") / re.sub(r"[^\w.-]+", "-", name))
    from fedpisa.runs.runner import run as train

    with _keeping(directory, f"fedpisa run --resume {directory}"), _following(directory, track or ()) as tell:
        result = train(settings, directory, on_event=tell)
    _refuse_diverged(result)
    typer.echo(f"result: {directory}")


@contextmanager
def _following(directory: Path, track: Sequence[TrackerName]) -> Iterator[Listener]:
    """Show a run's events on the terminal, and pass them on to the trackers."""
    from fedpisa.runs.console import RunConsole

    trackers: list[Tracker] = [make_tracker(name, directory) for name in track]
    with ExitStack() as stack:
        console = stack.enter_context(RunConsole())
        yield fan_out([*(stack.enter_context(tracker) for tracker in trackers), console])


def _resume(
    directory: Path,
    file: Path | None,
    config: Sequence[str] | None,
    out: Path | None,
    track: Sequence[TrackerName],
) -> None:
    if file is not None or out is not None:
        raise ValueError("--resume goes on with a run where it is: give neither a file nor --out with it")
    from fedpisa.runs.runner import run as train

    changes = _keys(config)
    with _keeping(directory, f"fedpisa run --resume {directory}"), _following(directory, track) as tell:
        result = train(changes, resume=directory, on_event=tell)
    _refuse_diverged(result)
    typer.echo(f"result: {directory}")


@app.command()
def compare(
    study: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="A base, a sweep, variants and seeds.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The study's directory, new or to be completed.", show_default="studies/<file>"),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time; the results do not depend on it.")] = 1,
) -> None:
    """Carry out a study, or what is left of it: every variant at every point of the sweep, with every seed."""
    from rich.console import Console

    from fedpisa.studies.comparison import compare as carry_out
    from fedpisa.studies.console import StudyConsole, table
    from fedpisa.studies.study import load_study, read_study

    directory = out or Path("studies") / study.stem
    runs = read_study(study).runs()
    stands = []
    kept = f"everything so far is kept in {directory}, the same command goes on"
    with _interruptible(lambda: kept), StudyConsole(runs) as console:
        stands = carry_out(study, directory, jobs=jobs, on_progress=console)
    terminal = Console(highlight=False, soft_wrap=True)
    terminal.print(table(load_study(directory)))
    terminal.print(f"\nstudy: {directory}", markup=False)
    bad = [progress for progress in stands if progress.state in ("failed", "diverged")]
    for progress in bad:
        typer.echo(f"{progress.state}: {runs[progress.number]}: {progress.message}", err=True)
    elsewhere = sum(progress.state == "elsewhere" for progress in stands)
    if elsewhere:
        typer.echo(
            f"{elsewhere} runs are being written by another process: repeat the command later", err=True
        )
    if bad or elsewhere:
        raise typer.Exit(1)


@app.command()
def tune(
    study: Annotated[
        Path, typer.Argument(metavar="STUDY.toml", help="A study with the tables [tune] and [search].")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The trials' directory, new or to be completed.", show_default="tuned/<name>"),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Trials at a time, each in its own process.")] = 1,
) -> None:
    """Search the best values for every variant of a study, with the same number of trials for all."""
    from rich.console import Console

    from fedpisa.tuning.console import TuneConsole, at_the_end, table
    from fedpisa.tuning.plan import read_plan
    from fedpisa.tuning.tune import tune as carry_out

    plan = read_plan(study)
    directory = out or Path("tuned") / plan.study.name
    kept = f"the trials so far are kept in {directory}, the same command goes on"
    with _interruptible(lambda: kept), TuneConsole(plan) as console:
        standings = carry_out(plan, directory, jobs=jobs, on_progress=console)
    terminal = Console(highlight=False, soft_wrap=True)
    terminal.print(table(standings, plan.metric))
    terminal.print(f"\ntrials: {directory / 'trials.csv'}, picture: {directory / 'trials.png'}", markup=False)
    for one in standings:
        for trial in one.trials:
            if trial.state == "failed":
                typer.echo(f"failed: {one.subject}, trial {trial.index}: {trial.error}", err=True)
        for key in at_the_end(one.subject, one.best) if one.best else ():
            typer.echo(f"{one.subject}: the best {key} is at the end of its range: widen it", err=True)
    running = sum(one.counts["running"] for one in standings)
    missing = [str(one.subject) for one in standings if one.best is None]
    if running:
        typer.echo(f"{running} trials are at work in another process, which writes the results", err=True)
    elif missing:
        typer.echo(f"no trial reached the end of {'; '.join(missing)}: there is no best.toml", err=True)
    else:
        terminal.print(f"go on with: fedpisa compare {directory / 'best.toml'} --out DIR", markup=False)
    if running or missing:
        raise typer.Exit(1)


@app.command()
def partition(
    file: File = None,
    config: Keys = None,
    out: Annotated[
        Path | None, typer.Option(help="Draw the split into a .png, .pdf or .svg.", show_default=False)
    ] = None,
) -> None:
    """Show how a configuration splits the data among clients, and how unlike the clients are."""
    settings = _config(file, config)
    from rich.console import Console

    from fedpisa import datasets, plots

    picture = plots.picture_path(out)
    data = settings.load_dataset()
    parts = settings.build_partition(data)
    split = datasets.heterogeneity(data.y_train, parts, data.num_classes)
    terminal = Console(highlight=False, soft_wrap=True)
    terminal.print(
        f"{settings.dataset}: {split.sizes.sum():,} training samples on {settings.num_clients} clients "
        f"by {settings.partitioner}, seed {settings.seed}\n",
        markup=False,
    )
    if settings.num_clients <= MOST_ROWS:
        terminal.print(_clients_table(split))
        terminal.print()
    terminal.print(_indices_table(split))
    if picture is not None:
        plots.plot_partition(data.y_train, parts, data.num_classes, picture)
        terminal.print(f"\npicture: {picture}", markup=False)


def _clients_table(split: Heterogeneity) -> Table:
    """Return a row per client: its size and, where they are few, how many samples of each label it holds."""
    table = _table("client", "samples")
    counts = split.label_counts
    if counts is not None and counts.shape[1] <= MOST_LABELS:
        for label in range(counts.shape[1]):
            table.add_column(f"label {label}" if label == 0 else str(label), justify="right")
    elif counts is not None:
        table.add_column("labels", justify="right")
    for client, size in enumerate(split.sizes):
        cells: list[str] = []
        if counts is not None and counts.shape[1] <= MOST_LABELS:
            cells = [str(number) if number else "." for number in counts[client]]
        elif counts is not None:
            cells = [str((counts[client] > 0).sum())]
        table.add_row(str(client), str(size), *cells)
    return table


def _indices_table(split: Heterogeneity) -> Table:
    """Return the heterogeneity indices, one per row, each with its range."""
    sizes = split.sizes
    table = _table("index", "value", "range")
    table.add_row("samples per client, least / median / most", _three(sizes), "")
    if split.label_counts is not None:
        table.add_row(
            "labels per client, least / median / most", _three((split.label_counts > 0).sum(axis=1)), ""
        )
    table.add_row("effective number of clients", f"{split.effective_clients:.2f}", f"1 to {len(sizes)}")
    for name, value, top in (
        ("Jensen-Shannon distance to all labels, mean", split.jensen_shannon, 1),
        ("Hellinger distance to all labels, mean", split.hellinger, 1),
        ("earth mover's distance to all labels", split.earth_mover, 2),
    ):
        if value is not None:
            table.add_row(name, f"{value:.3f}", f"0 to {top}")
    return table


def _three(numbers: NDArray[np.int64]) -> str:
    return f"{numbers.min()} / {statistics.median(numbers.tolist()):g} / {numbers.max()}"


def _table(first: str, *others: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


@app.command()
def plot(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Directories of runs, or a directory that holds them."),
    ],
    x: Annotated[XAxis, typer.Option(help="What to draw against; sums over the rounds.")] = XAxis.ROUND,
    y: Annotated[
        list[str] | None,
        typer.Option(
            help="A column of metrics.jsonl, one panel each; may be repeated.",
            show_default="test-accuracy (or test-loss) and train-loss",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="A .png, .pdf or .svg; replaced if it exists.")] = Path(
        "curves.png"
    ),
) -> None:
    """Draw convergence curves of one or more runs."""
    from fedpisa import plots
    from fedpisa.runs.results import load_result

    results = [load_result(directory) for directory in _run_directories(runs)]
    targets = {result.config.target_accuracy for result in results}
    plots.plot_curves(
        dict(zip(plots.curve_labels(results), results, strict=True)),
        x=x.value,
        y=[column.replace("-", "_") for column in y] if y else None,
        path=out,
        target_accuracy=targets.pop() if len(targets) == 1 else None,
    )
    typer.echo(f"picture: {out}")


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Directories of runs, or of a study: any that hold runs."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="The page, .html; its tables go beside it, into <name>-tables. Replaced if they exist."
        ),
    ] = Path("report.html"),
    target: Annotated[
        float | None,
        typer.Option(
            help="Test accuracy, in (0, 1], that the costs are to reach.",
            show_default="the runs' target-accuracy, or 95% of the best",
        ),
    ] = None,
    data: Annotated[
        bool, typer.Option("--data/--no-data", help="Load the data, for labels and accuracies by client.")
    ] = True,
    title: Annotated[str | None, typer.Option(help="The page's heading.", show_default=False)] = None,
) -> None:
    """Compare runs in one HTML page that needs nothing else, and in tables as CSV and LaTeX."""
    from fedpisa.report import write_report

    written = write_report(runs, out, target_accuracy=target, load_data=data, title=title)
    typer.echo(f"report: {written.page}")
    typer.echo(f"tables: {written.tables[0].parent}, CSV and LaTeX")


@app.command()
def bench(
    workloads: Annotated[
        list[str] | None,
        typer.Argument(metavar="[A] [B] [C] [D] [M]", help="Which workloads.", show_default="all"),
    ] = None,
    algorithm: Annotated[
        list[BenchAlgorithm] | None, typer.Option(help="May be repeated.", show_default="both")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Processes of each kind.")] = 3,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds that are timed.", show_default="20, 4 for B")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of PyTorch.", show_default="one for each core")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One process of each kind, three rounds.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="A .json for the measurements.", show_default=False)
    ] = None,
) -> None:
    """Measure this machine: seconds per round, memory and start-up of five workloads, each in its own process."""
    from rich.console import Console

    from fedpisa.bench import measure, table
    from fedpisa.bench.workloads import ALGORITHMS

    names = [name for name in ALGORITHMS if not algorithm or name in algorithm]
    jobs = measure.jobs(workloads or (), names, 3 if quick else rounds, 1 if quick else 3)
    terminal = Console(highlight=False, soft_wrap=True)
    progress = Console(stderr=True, highlight=False, soft_wrap=True)
    measurements = []
    for one in measure.alternate([measure.fedpisa(threads)], jobs, 1 if quick else repeats):
        measurements.append(one)
        progress.print(table.line(one), markup=False)
    if out is not None:
        table.write_json(out, measurements)
    terminal.print(_figures_table(measure.summary(measurements)))
    if any(one.error for one in measurements):
        raise typer.Exit(1)


def _figures_table(figures: Sequence[Figure]) -> Table:
    """Return a row per workload and algorithm."""
    from fedpisa.bench.table import digits, memory, seconds, startup

    table = _table(
        "workload", "s per round (processes)", "memory, GB", "start to first round, s", "evaluation, s"
    )
    for one in figures:
        evaluation = "" if one.error else digits(one.evaluation)
        table.add_row(f"{one.workload} {one.algorithm}", seconds(one), memory(one), startup(one), evaluation)
    return table


@app.command("list")
def list_(
    family: Annotated[Family | None, typer.Argument(help="What to list.", show_default="all")] = None,
) -> None:
    """List algorithms, data sets, partitioners, models, preconditioners, ... with their keys."""
    from fedpisa.families import available

    for kind in Family if family is None else [family]:
        typer.echo(typer.style(f"{kind.value}:", bold=True))
        for component in available(re.sub(r"ies$", "y", kind.value).removesuffix("s")).values():
            _describe(component)
        typer.echo()


def _describe(component: Component) -> None:
    """Print a component's name and summary, and its keys with their defaults below."""
    from fedpisa.families import keys_of

    keys = "  ".join(_show_key(key) for key in keys_of(component).values())
    width = max(60, shutil.get_terminal_size((110, 24)).columns)
    for first, text in ((f"  {component.name:<19} ", _plain_text(component.summary)), (" " * 22, keys)):
        for line in textwrap.wrap(
            text, width, initial_indent=first, subsequent_indent=" " * 22, break_on_hyphens=False
        ):
            typer.echo(line)


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


def _run_directories(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield each directory, or the runs in it if it is not a run itself."""
    for path in paths:
        inside = [] if (path / "config.toml").exists() else sorted(path.glob("*/config.toml"))
        yield from [file.parent for file in inside] or [path]


@contextmanager
def _interruptible(kept: Callable[[], str]) -> Iterator[None]:
    """Say what is left after Ctrl-C or SIGTERM, and exit as a shell expects: with 128 and the signal's number."""
    try:
        yield
    except KeyboardInterrupt as error:
        typer.echo(f"interrupted: {kept()}", err=True)
        raise typer.Exit(128 + getattr(error, "signum", signal.SIGINT)) from None


@contextmanager
def _keeping(directory: Path, go_on: str = "") -> Iterator[None]:
    """Say what is left, and how to go on, after Ctrl-C, SIGTERM or a file that cannot be written."""
    hint = f", go on with: {go_on}" if go_on else ""
    try:
        with _interruptible(
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
        raise ValueError(f"{_reason(error)}; the rounds so far are kept{hint}") from error


def _refuse_diverged(result: Result) -> None:
    if result.status == "diverged":
        typer.echo(
            f"error: {result.config.algorithm} diverged, its rounds so far are kept in {result.directory}: "
            "take smaller steps (a lower learning-rate, or a higher sigma or rho)",
            err=True,
        )
        raise typer.Exit(1)


def _config(file: Path | None, assignments: Sequence[str] | None) -> RunConfig:
    from fedpisa.config.run import load_config

    return load_config(file, _keys(assignments))


def _keys(assignments: Sequence[str] | None) -> dict[str, object]:
    from fedpisa.config.run import parse_overrides

    changes: dict[str, object] = {}
    for text in assignments or ():
        changes |= parse_overrides(text)
    return changes


@own_process()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    It is 0, 1 (a run diverged or failed), 2 (bad input, or a file that cannot be written), 130 (Ctrl-C) or 143
    (SIGTERM).

    Parameters
    ----------
    arguments
        What follows the command's name; ``sys.argv`` by default.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words  # accepted anywhere, also after the command
    words = [word for word in words if word != "--debug"]
    try:
        code: Any = app(words, prog_name="fedpisa", standalone_mode=False)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except OSError as error:
        if debug:
            raise
        return _fail(_reason(error), 2)
    except ValueError as error:
        if debug:
            raise
        return _fail(str(error), 2)
    return code if isinstance(code, int) else 0


def _reason(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


def _fail(message: str, code: int) -> int:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    return code
