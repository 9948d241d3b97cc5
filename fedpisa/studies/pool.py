"""Worker processes: they are spawned, send messages over pipes, and stop on this process's signals."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar, final

from fedpisa.runs.signals import SIGNALS, Stop, ignore_second_signal, postponed

CONTEXT: multiprocessing.context.SpawnContext | multiprocessing.context.ForkContext
CONTEXT = multiprocessing.get_context("spawn")
"""Start method of the workers: spawn, because a fork of a process that has used torch's threads may hang."""


class Worker:
    """A process, and the parent's end of a pipe to it.

    Parameters
    ----------
    work
        Main function of the process. Its last argument is the other end of the pipe; it calls `become_worker` first.
    arguments
        Arguments of ``work`` before the pipe.
    """

    def __init__(self, work: Callable[..., None], *arguments: object) -> None:
        self.pipe, child_end = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=work, args=(*arguments, child_end), daemon=True)
        with _for_children():
            self.process.start()
        child_end.close()  # the pipe then closes when the process ends
        self.told = False

    def stop(self) -> None:
        """Stop the process after its round; a second call kills it."""
        if self.process.is_alive():
            self.process.kill() if self.told else self.process.terminate()
        self.told = True


W = TypeVar("W", bound=Worker)


@final
class Pool(Generic[W]):
    """A pool of workers.

    Parameters
    ----------
    kind
        Class of the workers.
    """

    def __init__(self, kind: Callable[..., W]) -> None:
        self._kind = kind
        self._stop = Stop()
        self.workers = list[W]()

    @property
    def signum(self) -> int | None:
        """The signal that came, if any; after it, add no workers."""
        return self._stop.signum

    def begin(self, *arguments: object) -> W:
        """Start a worker, and return it."""
        self.workers.append(self._kind(*arguments))
        return self.workers[-1]

    def hear(self) -> Iterator[tuple[W, Any]]:
        """Wait for messages, and yield each with its worker; the message is ``None`` if the worker has ended."""
        if self.signum is not None:  # the signal may have come while a worker was being created
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
        """Remove a worker, and wait for its end."""
        self.workers.remove(worker)
        worker.process.join()

    @contextmanager
    def at_work(self, announce: Callable[[int], None] = lambda signum: None) -> Iterator[None]:
        """Stop all workers on Ctrl-C, SIGTERM or SIGHUP, and at the end of the block.

        Parameters
        ----------
        announce
            Called with the first signal, before the workers are stopped.
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
    """Start processes with one thread, and with Ctrl-C, SIGTERM and SIGHUP blocked.

    Only the parent handles Ctrl-C and SIGHUP; it sends SIGTERM to the workers. `become_worker` unblocks SIGTERM.
    """
    variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(dict.fromkeys(variables, "1"))
    # Children inherit the mask; in this process the signals are only delayed.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS) if os.name == "posix" else None
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
    """Set up this process as a worker, which SIGTERM ends; a run ends after its round."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a forked process inherits the parent's handler
    ignore_second_signal()
    if os.name == "posix":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
