"""Output of commands: control characters are escaped, and a closed output does not end a command."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging import INFO, StreamHandler
from typing import Any, TextIO, final

import typer

from fedpisa.components import LOG, escaped


def say(text: str, *, err: bool = False) -> None:
    """Write a line to standard output or standard error; see `escaped`."""
    typer.echo(escaped(text), err=err)


@final
class Steady:
    """A stream that ignores further output after a failed write.

    Parameters
    ----------
    stream
        Standard output or standard error.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, or drop it if the stream has failed."""
        with self._without_harm():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream unless it has failed."""
        with self._without_harm():
            self._stream.flush()

    @contextmanager
    def _without_harm(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error
            # The buffer is flushed when the process ends, which must not fail.
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)


def _nowhere() -> TextIO:
    """Return a stream that replaces one that the shell has closed."""
    return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


@contextmanager
def steady_output() -> Iterator[None]:
    """Keep a command running after a full disk, a closed pipe or terminal, and show the log on standard error."""
    before = sys.stdout, sys.stderr
    out, err = (Steady(stream or _nowhere()) for stream in before)
    sys.stdout, sys.stderr = out, err
    handler, level = StreamHandler(), LOG.level
    LOG.addHandler(handler)
    LOG.setLevel(INFO)
    try:
        yield
    finally:
        out.flush()
        if out.error is not None and out.error.errno != errno.EPIPE:
            say(f"standard output cannot be written: {out.error.strerror}", err=True)
        err.flush()
        LOG.removeHandler(handler)
        LOG.setLevel(level)
        sys.stdout, sys.stderr = before
