"""Checkpoints that are written while the run goes on."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, final

from fedpisa.components import LOG
from fedpisa.storage import checkpoint
from fedpisa.storage.checkpoint import Checkpoint

BESIDE: Final = 64 * 2**20
"""Bytes of tensors above which a checkpoint is written beside the run; a smaller one delays a round too little."""


@final
class CheckpointWriter:
    """Writes a run's checkpoints, large ones in a thread beside the run.

    At most one is being written. The caller gives a copy of the run's state, which stays in memory until its file is
    complete; encoding takes twice that memory again, as it does without a thread.

    Parameters
    ----------
    directory
        Folder of the checkpoints.
    limit
        Bytes up to which a copy may stay in memory while the run goes on; 0 to write all checkpoints at once.

    Examples
    --------
    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with CheckpointWriter(Path(folder), limit=0) as writer:
    ...         writer.write(Checkpoint(1, {"w": torch.ones(2)}, {}))
    ...     [file.name.split("-")[1] for file in checkpoint.newest_first(Path(folder))]
    ['1']
    """

    def __init__(self, directory: Path, limit: int) -> None:
        self.directory, self.limit = directory, limit
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._written: Future[Path] | None = None

    def write(self, state: Checkpoint) -> None:
        """Write a checkpoint, or start to; nothing may change its tensors.

        Raises
        ------
        OSError
            If it cannot be written, or the one before could not; earlier checkpoints stay.
        """
        self.wait()
        size = sum(value.numel() * value.element_size() for value in state.tensors.values())
        if not BESIDE < size <= self.limit:
            checkpoint.write(self.directory, state)
            return
        # The memory of an accelerator is the run's.
        here = replace(state, tensors={name: value.cpu() for name, value in state.tensors.items()})
        self._written = self._thread.submit(checkpoint.write, self.directory, here)

    def wait(self) -> None:
        """Wait until the last checkpoint is complete.

        Raises
        ------
        OSError
            If it could not be written.
        """
        if self._written is None:
            return
        error = self._written.exception()  # an interrupt leaves it for the next call
        self._written = None
        if error is not None:
            raise error

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        first: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for the last checkpoint; an error of it is only logged if the run ends with another one."""
        try:
            self.wait()
        except Exception as error:
            if first is None:
                raise
            LOG.warning("the last checkpoint was not written (%s)", error)
        finally:
            self._thread.shutdown(wait=False)
