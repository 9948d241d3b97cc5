"""Processes that work for this one: begun anew, told to stop by its signals, and heard over pipes."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar, final

from fedpisa.runs.signals import Stop, ignore_second_signal, postponed

CONTEXT: multiprocessing.context.SpawnContext | multiprocessing.context.ForkContext
CONTEXT = multiprocessing.get_context("spawn")
"""How processes begin: anew, because a copy of one that has used torch's threads may hang."""


class Worker:
    """A process, and this one's end of a pipe to it.

    Parameters
    ----------
    work
        What the process does; it is given the other end of the pipe, and calls `become_worker` first.
    arguments
        What else it is given, before the pipe.
    """

    def __init__(self, work: Callable[..., None], *arguments: object) -> None:
        self.pipe, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=work, args=(*arguments, theirs), daemon=True)
        with _for_children():
            self.process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        self.told = False

    def stop(self) -> None:
        """Have it end its round, or, the second time, end at once."""
        if self.process.is_alive():
            self.process.kill() if self.told else self.process.terminate()
        self.told = True


W = TypeVar("W", bound=Worker)


@final
class Pool(Generic[W]):
    """The workers that are at work, and how they end.

    Parameters
    ----------
    kind
        What the workers are.
    """

    def __init__(self, kind: Callable[..., W]) -> None:
        self._kind = kind
        self._stop = Stop()
        self.workers = list[W]()

    @property
    def signum(self) -> int | None:
        """The signal that came, if one did: no worker is to be added any more."""
        return self._stop.signum

    def begin(self, *arguments: object) -> W:
        """Begin a worker, and return it."""
        self.workers.append(self._kind(*arguments))
        return self.workers[-1]

    def hear(self) -> Iterator[tuple[W, Any]]:
        """Wait, and yield the workers that have something to say with their message, ``None`` from one that ended."""
        if self.signum is not None:  # one that was just being made was not there to be told
            for worker in self.workers:
                if not worker.told:
                    worker.stop()
        pipes = {worker.pipe: worker for worker in self.workers}
        for pipe in wait(list(pipes)):
            assert isinstance(pipe, Connection)
            try:
                message = pipe.recv()
            except (EOFError, ConnectionResetError):
                message = None
                self.release(pipes[pipe])
            yield pipes[pipe], message

    def release(self, worker: W) -> None:
        """Wait for a worker's end."""
        self.workers.remove(worker)
        worker.process.join()

    @contextmanager
    def at_work(self, announce: Callable[[int], None] = lambda signum: None) -> Iterator[None]:
        """Have signals stop the workers until the block ends; those that are left then are stopped.

        Parameters
        ----------
        announce
            Told the first Ctrl-C or SIGTERM when it comes, before all workers are told to stop.
        """

        def stop_all(signum: int) -> None:
            announce(signum)
            for worker in self.workers:
                worker.stop()

        with postponed(stop_all) as self._stop:
            try:
                yield
            finally:
                for worker in self.workers:
                    worker.stop()
                for worker in self.workers:
                    worker.process.join()


@contextmanager
def _for_children() -> Iterator[None]:
    """Have processes begin with one thread, and deaf to Ctrl-C: that is the parent's, who tells them by SIGTERM.

    That one waits until they `become_worker`.
    """
    variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(dict.fromkeys(variables, "1"))
    # Children inherit what is blocked; for this process a signal only waits.
    blocked = {signal.SIGINT, signal.SIGTERM}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, blocked) if os.name == "posix" else None
    try:
        yield
    finally:
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def become_worker() -> None:
    """Begin to be a worker, which ends by SIGTERM, in a run after its round."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # forked, it has its parent's handler, which only notes it
    ignore_second_signal()
    if os.name == "posix":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
