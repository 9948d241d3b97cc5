"""The logger ``fedpisa``: each message is one line, in which names of users and nodes cannot control a terminal."""

from __future__ import annotations

from logging import LogRecord, getLogger

from fedpisa.components.names import escaped


def _escape(record: LogRecord) -> bool:
    record.msg, record.args = escaped(record.getMessage()), ()
    return True


LOG = getLogger("fedpisa")
if _escape not in LOG.filters:
    LOG.addFilter(_escape)
