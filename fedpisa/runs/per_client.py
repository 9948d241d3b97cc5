"""How the global model does on each client's own samples, round by round: ``clients.parquet``.

It is a folder with a file for each evaluated round, which readers of Parquet take for one table. A file is
whole or not there, and a round that is repeated after an interruption replaces its own.

Shapes: ``N`` clients, ``S`` of them in a round, ``n`` samples of all clients.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpisa.datasets.client_data import ClientData
from fedpisa.rng import seeded
from fedpisa.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd

FILE = "clients.parquet"

Table = Mapping[str, NDArray[Any]]
"""Columns of one round: ``round``, ``client``, ``num_examples``, ``train_loss``, ``loss`` and ``accuracy``."""


@torch.no_grad()
def evaluate_clients(
    task: Task, data: ClientData, params_P: Tensor, buffers_Q: Tensor, batch_size: int = 8192
) -> dict[str, NDArray[np.float64]]:
    """Return the model's mean loss and, for classification, accuracy on each client's samples, both ``(N,)``.

    All samples are evaluated in one pass and then summed client by client.

    Examples
    --------
    >>> task = Task(torch.nn.Linear(1, 1, bias=False), num_classes=None)
    >>> x, y = np.array([[1.0], [2.0], [3.0]], np.float32), np.zeros(3, np.float32)
    >>> data = ClientData.of(x, y, [np.array([2]), np.array([0, 1])], torch.float32)
    >>> evaluate_clients(task, data, torch.ones(1), torch.zeros(0))
    {'loss': array([4.5 , 1.25])}
    """
    with seeded(0, "evaluation"):
        parts = [task.eval_losses(params_P, buffers_Q, x_B, y_B) for x_B, y_B in data.batches(batch_size)]
    columns = {"loss": [losses_B for losses_B, _ in parts]}
    if task.num_classes is not None:
        columns["accuracy"] = [correct_B for _, correct_B in parts]
    return {
        name: np.add.reduceat(torch.cat(values).double().cpu().numpy(), data.begin_N) / data.sizes_N
        for name, values in columns.items()
    }


def table_of(
    number: int, data: ClientData, metrics: Table, trained: tuple[Tensor, Tensor] | None = None
) -> Table:
    """Return a round's table.

    Parameters
    ----------
    number
        The round.
    data
        Whose samples they are.
    metrics
        What `evaluate_clients` returned.
    trained
        Numbers of the round's clients and their training losses, both ``(S,)``; the others have none.
    """
    train_loss_N = np.full(data.num_clients, np.nan)
    if trained is not None:
        ids_S, losses_S = trained
        train_loss_N[ids_S.cpu().numpy()] = losses_S.double().cpu().numpy()
    return {
        "round": np.full(data.num_clients, number),
        "client": np.arange(data.num_clients),
        "num_examples": data.sizes_N,
        "train_loss": train_loss_N,
        **metrics,
    }


def require_parquet() -> None:
    """Raise a ValueError if Parquet files cannot be written here."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "per-client = true needs the extra parquet, run pip install 'fedpisa[parquet]'"
        ) from error


def to_parquet(table: Table) -> bytes:
    """Return a table as the bytes of a Parquet file; the same table gives the same bytes."""
    import pyarrow
    from pyarrow import parquet

    stream = io.BytesIO()
    parquet.write_table(
        pyarrow.table({name: pyarrow.array(column) for name, column in table.items()}), stream
    )
    return stream.getvalue()


def read_tables(folder: Path) -> pd.DataFrame:
    """Return all rounds in ``clients.parquet``, ordered by round and client.

    Raises
    ------
    ValueError
        If there is no such folder, or Parquet files cannot be read here.
    """
    import pandas as pd

    if not folder.exists():
        raise ValueError(f"{folder} does not exist: run with per-client = true to have it")
    require_parquet()
    files = sorted(folder.glob("round-*.parquet"))
    return pd.concat([pd.read_parquet(file) for file in files], ignore_index=True) if files else to_frame([])


def to_frame(tables: Iterable[Table]) -> pd.DataFrame:
    """Return tables below each other."""
    import pandas as pd

    frames = [pd.DataFrame(dict(table)) for table in tables]
    empty = pd.DataFrame(columns=["round", "client", "num_examples", "train_loss", "loss", "accuracy"])
    return pd.concat(frames, ignore_index=True) if frames else empty
