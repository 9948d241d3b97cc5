"""What server and nodes tell each other besides models: once before the first round, and with each message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self, final

from flwr.app import ConfigRecord, RecordDict

RUN: Final = "run"
"""Name of the record that goes with every message to a node."""
NODE: Final = "node"
"""Name of a node's answer to the first question."""
NO_CLIENT: Final = -1
"""A node's number where it has none of its own."""


@final
@dataclass(frozen=True)
class RunRecord:
    """What a node has to know about a run.

    Parameters
    ----------
    run
        The run's number, which it keeps when it goes on.
    client
        The node's client number; `NO_CLIENT` before the server has given it one.
    num_clients
        ``N``.
    model
        The model's name.
    classes
        The classes' names in the order of their numbers; none for regression.
    columns
        The features' columns in their order, where the server's samples come from a table.
    """

    run: str
    client: int
    num_clients: int
    model: str
    classes: tuple[str, ...]
    columns: tuple[str, ...] = ()

    def to_record(self) -> ConfigRecord:
        """Return the record."""
        return ConfigRecord(
            {
                "run": self.run,
                "client": self.client,
                "num-clients": self.num_clients,
                "model": self.model,
                "classes": list(self.classes),
                "columns": list(self.columns),
            }
        )

    @classmethod
    def of(cls, content: RecordDict) -> Self | None:
        """Return the record in a message's content or a context's state; ``None`` if there is none.

        Examples
        --------
        >>> record = RunRecord("7", 0, 3, "logistic", ("no", "yes"))
        >>> RunRecord.of(RecordDict({RUN: record.to_record()})) == record, RunRecord.of(RecordDict())
        (True, None)
        """
        if RUN not in content.config_records:
            return None
        record = content.config_records[RUN]
        classes, columns = record["classes"], record.get("columns", [])
        assert isinstance(classes, list)
        assert isinstance(columns, list)
        return cls(
            str(record["run"]),
            int(str(record["client"])),
            int(str(record["num-clients"])),
            str(record["model"]),
            tuple(map(str, classes)),
            tuple(map(str, columns)),
        )


@final
@dataclass(frozen=True)
class NodeRecord:
    """What a node says of itself: what its samples look like, and nothing of what is in them.

    Parameters
    ----------
    client
        Its client number, `NO_CLIENT` if it has none of its own.
    own_data
        Whether its samples are its own, rather than a part of the run's data set.
    num_examples
        Their number.
    shape
        The shape of one.
    num_outputs
        Outputs that a model of them has.
    layout
        Fingerprint of its model's parameters.
    """

    client: int
    own_data: bool
    num_examples: int
    shape: tuple[int, ...]
    num_outputs: int
    layout: str

    def to_record(self) -> ConfigRecord:
        """Return the record."""
        return ConfigRecord(
            {
                "client": self.client,
                "own-data": self.own_data,
                "num-examples": self.num_examples,
                "shape": list(self.shape),
                "num-outputs": self.num_outputs,
                "layout": self.layout,
            }
        )

    @classmethod
    def of(cls, content: RecordDict) -> Self:
        """Read a node's answer, which can be anything.

        Raises
        ------
        ValueError
            If it is no such record.

        Examples
        --------
        >>> record = NodeRecord(-1, True, 100, (30,), 2, "abc")
        >>> NodeRecord.of(RecordDict({NODE: record.to_record()})) == record
        True
        """
        if NODE not in content.config_records:
            raise ValueError(
                "its answer lacks the record that a fedpisa node sends: run the same version on it"
            )
        values: Mapping[str, object] = {**content.config_records[NODE]}
        kinds = {
            "client": int,
            "own-data": bool,
            "num-examples": int,
            "shape": list,
            "num-outputs": int,
            "layout": str,
        }
        wrong = [name for name, kind in kinds.items() if type(values.get(name)) is not kind]
        shape = values.get("shape")
        if wrong or not isinstance(shape, list) or not all(type(size) is int for size in shape):
            raise ValueError(
                f"its answer has no fit {', '.join(wrong) or 'shape'}: run the same version on it"
            )
        client, num_examples, num_outputs = (
            int(str(values[name])) for name in ("client", "num-examples", "num-outputs")
        )
        return cls(
            client, bool(values["own-data"]), num_examples, tuple(shape), num_outputs, str(values["layout"])
        )
