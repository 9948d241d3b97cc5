"""What server and nodes send each other besides models: once before the first round, and with each message."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final, Self, final, get_args, get_type_hints

from flwr.app import ConfigRecord, RecordDict

from fedpisa.components import kebab

NO_CLIENT: Final = -1
"""Client number of a node that has none yet."""


@dataclass(frozen=True)
class _Record:
    """A dataclass as a `ConfigRecord`: each field is an entry, and a tuple is a list."""

    NAME: ClassVar[str]

    def to_record(self) -> ConfigRecord:
        """Return the record."""
        values = ((kebab(field.name), getattr(self, field.name)) for field in fields(self))
        return ConfigRecord(
            {name: list(value) if isinstance(value, tuple) else value for name, value in values}
        )

    @classmethod
    def of(cls, content: RecordDict) -> Self:
        """Return the record in a message's content or a context's state, which can be anything.

        Raises
        ------
        ValueError
            If there is no such record, or an entry is missing or of another type.
        """
        if cls.NAME not in content.config_records:
            raise ValueError(
                f"the message lacks the record {cls.NAME!r}: run the same version of fedpisa on all nodes"
            )
        record, kinds = content.config_records[cls.NAME], get_type_hints(cls)
        values: dict[str, Any] = {field.name: record.get(kebab(field.name)) for field in fields(cls)}
        for name, value in values.items():
            kind, *_ = get_args(kinds[name]) or [None]  # the type of a tuple's items
            if kind is None:
                is_valid = type(value) is kinds[name]
            else:
                is_valid = isinstance(value, list) and all(type(item) is kind for item in value)
            if not is_valid:
                raise ValueError(
                    f"the record {cls.NAME!r} has no valid {kebab(name)}: run the same version of fedpisa on all nodes"
                )
            values[name] = value if kind is None else tuple(value)
        return cls(**values)


@final
@dataclass(frozen=True)
class RunRecord(_Record):
    """The description of a run, for a node.

    Parameters
    ----------
    run
        The run's number; a resumed run keeps it.
    client
        The node's client number, `NO_CLIENT` before the server has assigned one.
    num_clients
        ``N``.
    model
        The model's name.
    classes
        The classes' names in the order of their numbers; none for regression.
    columns
        The features' columns in their order, if the server's samples come from a table.
    is_text
        Whether samples are windows of text, of which ``classes`` are the tokens.
    tokenizer
        Content of the ``tokenizer.json`` that makes the tokens; empty for characters and words.
    inputs
        What a sample's features are if they are several, as `fedpisa.datasets.inputs.Inputs.to_text` writes it.
    playing
        Number of environments side by side and of steps in each, if the clients have environments.

    Examples
    --------
    >>> record = RunRecord("7", 0, 3, "logistic", ("no", "yes"))
    >>> RunRecord.of(RecordDict({RunRecord.NAME: record.to_record()})) == record
    True
    """

    NAME: ClassVar[str] = "run"
    run: str
    client: int
    num_clients: int
    model: str
    classes: tuple[str, ...]
    columns: tuple[str, ...] = ()
    is_text: bool = False
    tokenizer: str = ""
    inputs: str = ""
    playing: tuple[int, ...] = ()


@final
@dataclass(frozen=True)
class NodeRecord(_Record):
    """A node's description of its samples, without anything of their content.

    Parameters
    ----------
    client
        The node's client number, `NO_CLIENT` if its configuration names none.
    own_data
        Whether the samples are the node's own, rather than a part of the run's data set.
    num_examples
        The number of samples.
    shape
        The shape of a sample.
    num_outputs
        The number of outputs of a model for them.
    layout
        Fingerprint of the parameters of the node's model.
    actions
        The kind of the actions, ``discrete`` or ``continuous``, if the node has environments.

    Examples
    --------
    >>> record = NodeRecord(-1, True, 100, (30,), 2, "abc")
    >>> NodeRecord.of(RecordDict({NodeRecord.NAME: record.to_record()})) == record
    True
    """

    NAME: ClassVar[str] = "node"
    client: int
    own_data: bool
    num_examples: int
    shape: tuple[int, ...]
    num_outputs: int
    layout: str
    actions: str = ""
