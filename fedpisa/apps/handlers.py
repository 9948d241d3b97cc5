"""A client's answers to Flower's messages, on whatever Grid they travel."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedpisa.clients.base import Arrays
from fedpisa.clients.local import BUFFERS, Client
from fedpisa.flower.compat import to_record, to_tensors
from fedpisa.flower.messages import (
    ARRAYS,
    CONFIG,
    CONFIRMED_ROUND,
    METRICS,
    NUM_EXAMPLES,
    SERVER_ROUND,
    reply_to,
    scalars,
)

STATE = "client-state"
"""Name of the record in `Context.state` that holds a client's own tensors: its dual, its moments."""
EARLIER_STATE = "earlier-client-state"
"""Name of the record of those from before its last round, where the algorithm is incremental."""
STATE_OF = "client-state-of"
"""Name of the record that says which round the state is of."""


def make_client_app(client_of: Callable[[Context], Client]) -> ClientApp:
    """Return the Flower client app of an algorithm.

    Parameters
    ----------
    client_of
        Says who a context's client is: its task, samples, local update.

    Returns
    -------
    ClientApp
        ``train`` runs the local update and keeps the client's state in its own context, written once and
        last; ``evaluate`` reports the received model's loss and accuracy on the client's samples.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = client_of(context)
        down, config = _received(message, client)
        state, server_round = _state(context, config, client, down), int(str(config[SERVER_ROUND]))
        outcome = client.run_round(server_round, down, state)
        metrics = {name: float(value) for name, value in outcome.metrics.items()}
        reply = reply_to(message, outcome.upload, len(client.x), metrics)
        if outcome.state:
            context.state[STATE] = to_record(outcome.state)
        if client.update.incremental:
            context.state[EARLIER_STATE] = to_record(state)
            context.state[STATE_OF] = ConfigRecord({SERVER_ROUND: server_round})
        return reply

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        client = client_of(context)
        down, _ = _received(message, client)
        return evaluation_reply(message, client, down)

    return app


def evaluation_reply(message: Message, client: Client, down: Arrays) -> Message:
    """Return a client's evaluation of a model on its own samples."""
    buffers_Q = down.get(BUFFERS, down["params"].new_zeros(0))
    metrics = client.task.evaluate(down["params"], buffers_Q, client.x, client.y)
    record = MetricRecord({NUM_EXAMPLES: len(client.x), **metrics})
    return Message(RecordDict({METRICS: record}), reply_to=message)


def _state(context: Context, config: ConfigRecord, client: Client, down: Arrays) -> Arrays:
    """Return the client's state: from before its last reply if the server did not get that one."""
    if STATE not in context.state:
        return client.update.init(down["params"])
    lost = False
    if STATE_OF in context.state and CONFIRMED_ROUND in config:
        lost = context.state.config_records[STATE_OF][SERVER_ROUND] != config[CONFIRMED_ROUND]
    record = context.state.array_records[EARLIER_STATE if lost else STATE]
    return to_tensors(record, client.x.dtype, client.x.device)


def _received(message: Message, client: Client) -> tuple[Arrays, ConfigRecord]:
    arrays = message.content.array_records[ARRAYS]
    config = message.content.config_records[CONFIG]
    down = to_tensors(arrays, client.x.dtype, client.x.device)
    return {**down, **scalars(config, client.x.dtype, client.x.device)}, config
