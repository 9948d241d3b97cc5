"""The global model's metrics on each client's own samples: ``clients.parquet``.

``clients.parquet`` is a folder with a file for each evaluated round; Parquet readers read it as one table. Files are
written atomically, and a round that is repeated after an interruption replaces its file.

Shapes: ``N`` clients, ``S`` of them in a round, ``n`` samples of all clients.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpisa.datasets.client_data import ClientData
from fedpisa.runs.run_files import CLIENTS, RunReader
from fedpisa.tasks.base import Task

if TYPE_CHECKING:
    import pandas as pd

Table = Mapping[str, NDArray[Any]]
"""Columns of one round: ``round``, ``client``, ``num_examples``, ``train_loss``, ``loss`` and the other measures."""


@torch.no_grad()
def evaluate_clients(
    task: Task, data: ClientData, params_P: Tensor, buffers_Q: Tensor, batch_size: int = 8192
) -> dict[str, NDArray[np.float64]]:
    """Return the model's measures on each client's samples, each ``(N,)``.

    One pass evaluates all samples; their scores are then summed per client. Measures that are no means take another
    pass, client by client.

    Examples
    --------
    >>> from fedpisa.tasks.supervised import supervised
    >>> task = supervised(torch.nn.Linear(1, 1, bias=False), num_classes=None)
    >>> x, y = np.array([[1.0], [2.0], [3.0]], np.float32), np.zeros(3, np.float32)
    >>> data = ClientData.of(x, y, [np.array([2]), np.array([0, 1])], torch.float32)
    >>> evaluate_clients(task, data, torch.ones(1), torch.zeros(0))
    {'loss': array([4.5 , 1.25])}
    """
    means = {
        name: np.add.reduceat(score_n.double().cpu().numpy(), data.begin_N) / data.sizes_N
        for name, score_n in task.scores(params_P, buffers_Q, data, batch_size).items()
    }
    means = task.combine(means)
    for name, means_N in means.items():
        if name != "loss":
            means_N[~np.isfinite(means["loss"])] = np.nan
    further = [measure.column for measure in task.measures if measure.column not in means]
    if further:
        clients = range(data.num_clients)
        found = [task.evaluate_set(params_P, buffers_Q, data.only(client_id)) for client_id in clients]
        means |= {name: np.array([one[name] for one in found]) for name in further}
    return means


def table_of(
    number: int, data: ClientData, metrics: Table, trained: tuple[Tensor, Tensor] | None = None
) -> Table:
    """Return the table of one round.

    Parameters
    ----------
    number
        Number of the round.
    data
        The clients' samples.
    metrics
        Metrics that `evaluate_clients` returned.
    trained
        Ids and training losses of the clients that took part in the round, both ``(S,)``.
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
    """Raise a ValueError if pyarrow is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "per-client = true needs the extra parquet: run pip install 'fedpisa[parquet]'"
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


def read_tables(reader: RunReader) -> pd.DataFrame:
    """Return all rounds in ``clients.parquet``, ordered by round and client.

    Raises
    ------
    ValueError
        If the folder does not exist or a file in it is damaged, or pyarrow is not installed.
    """
    rounds = reader.client_rounds()
    if not rounds:
        raise ValueError(f"{reader.path / CLIENTS} does not exist: run with per-client = true to make it")
    require_parquet()
    return to_frame(map(reader.client_table, rounds))


def to_frame(tables: Iterable[Table | pd.DataFrame]) -> pd.DataFrame:
    """Return the tables of several rounds as one data frame."""
    import pandas as pd

    frames = [pd.DataFrame(dict(table)) for table in tables]
    empty = pd.DataFrame(columns=["round", "client", "num_examples", "train_loss", "loss", "accuracy"])
    return pd.concat(frames, ignore_index=True) if frames else empty
