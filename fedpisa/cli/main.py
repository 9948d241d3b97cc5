"""The command ``fedpisa``.

Each command imports the heavy packages (torch, flwr, pandas, matplotlib) that it needs, so that ``--help`` is fast.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from fedpisa.cli import bench, components, run, show, study  # noqa: F401  each adds its commands to the app
from fedpisa.cli.app import app
from fedpisa.cli.options import reason_of
from fedpisa.cli.terminal import say, steady_output
from fedpisa.components import one_line, printable
from fedpisa.runs.process import own_process


@own_process()
@steady_output()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    It is 0, 1 (a run diverged or failed), 2 (bad input, or a file that cannot be written), 129 (the terminal was
    closed), 130 (Ctrl-C) or 143 (SIGTERM).

    Parameters
    ----------
    arguments
        Arguments after the command's name; ``sys.argv`` by default.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words  # accepted anywhere, also after the command
    words = [word for word in words if word != "--debug"]
    try:
        code: Any = app(words, prog_name="fedpisa", standalone_mode=False)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except (OSError, ValueError) as error:
        if debug:
            raise
        return _fail(reason_of(error) if isinstance(error, OSError) else str(error), 2)
    except RecursionError:
        if debug:
            raise
        return _fail("the input is nested too deeply", 2)
    except (MemoryError, RuntimeError) as error:
        if debug or not _is_lack_of_memory(error):
            raise
        return _fail(
            f"the memory is too small ({printable(one_line(error))}): take fewer clients or local steps, a smaller "
            "model, or a smaller cohort-block",
            2,
        )
    return code if isinstance(code, int) else 0


def _is_lack_of_memory(error: Exception) -> bool:
    """Return whether NumPy or torch found no memory; on a CPU, torch says so in a text only."""
    texts = "out of memory", "can't allocate memory", "calculation overflowed"
    return isinstance(error, MemoryError) or any(text in str(error) for text in texts)


def _fail(message: str, code: int) -> int:
    say(f"error: {one_line(message)}", err=True)
    return code
