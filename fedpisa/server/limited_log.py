"""Warnings about clients, which cannot fill or forge a log."""

from __future__ import annotations

from typing import final

from fedpisa.components import LOG, printable


@final
class LimitedLog:
    """Logs each text once in a round, on one line, and at most ``most`` lines in a run.

    Further texts are only counted. The count is logged whenever it is a power of ten.

    Parameters
    ----------
    most
        Number of lines.

    Examples
    --------
    >>> log = LimitedLog(most=1)
    >>> for text in ("a", "a", "b"):
    ...     log.warning(1, text)
    >>> log.dropped
    1
    """

    def __init__(self, most: int = 200) -> None:
        self.most, self.dropped = most, 0
        self._logged = 0
        self._round, self._texts = 0, set[str]()

    def warning(self, server_round: int, text: str) -> None:
        """Log a text about a round."""
        if server_round != self._round:
            self._round, self._texts = server_round, set()
        if text in self._texts:
            return
        if self._logged < self.most:
            self._texts.add(text)
            self._logged += 1
            LOG.warning("round %d: %s", server_round, printable(text, 400))
            return
        self.dropped += 1
        if str(self.dropped).strip("0") == "1":
            LOG.warning(
                "round %d: %d further warnings about clients are not logged", server_round, self.dropped
            )
