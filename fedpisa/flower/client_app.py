"""The Flower client app of an algorithm, for any Grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from logging import getLogger
from typing import final

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod

from fedpisa.clients.base import Arrays
from fedpisa.clients.client import BUFFERS, Client
from fedpisa.clients.memory import initial_state
from fedpisa.components import one_line
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
    state_lost_reply,
)

STATE = "client-state"
"""Name of the record in `Context.state` with the client's state after its last round."""
EARLIER_STATE = "earlier-client-state"
"""Name of the record with the client's state before its last round."""
STATE_OF = "client-state-of"
"""Name of the record with the rounds of the two states; 0 is before the first round."""
EARLIER_ROUND = "earlier-round"


@final
class StateLostError(Exception):
    """The client does not have the state that the server expects."""


def make_client_app(client_of: Callable[[Context], Client], mods: Sequence[Mod] = ()) -> ClientApp:
    """Return the Flower client app of an algorithm.

    Parameters
    ----------
    client_of
        Function that returns the client of a context.
    mods
        Flower's mods, which wrap the handling of each message.

    Returns
    -------
    ClientApp
        ``train`` runs the local update, and writes the client's state into its context when all else is done.
        ``evaluate`` reports the received model's metrics on the client's samples.
    """
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = client_of(context)
        down, config = _received(message, client)
        server_round = int(str(config[SERVER_ROUND]))
        try:
            state, state_round = state_before(server_round, context, config, client, down)
        except StateLostError as error:
            getLogger("flwr").error("round %d: %s", server_round, one_line(error))
            return state_lost_reply(message)
        outcome = client.run_round(server_round, down, state)
        metrics = {name: float(value) for name, value in outcome.metrics.items()}
        reply = reply_to(message, outcome.upload, client.data.num_samples, metrics)
        if outcome.state:
            context.state[STATE] = to_record(outcome.state)
            context.state[EARLIER_STATE] = to_record(state)
            rounds = {SERVER_ROUND: server_round, EARLIER_ROUND: state_round}
            context.state[STATE_OF] = ConfigRecord({**rounds})
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
    metrics = client.task.evaluate_set(down["params"], buffers_Q, client.data)
    record = MetricRecord({NUM_EXAMPLES: client.data.num_samples, **metrics})
    return Message(RecordDict({METRICS: record}), reply_to=message)


def state_before(
    server_round: int, context: Context, config: ConfigRecord, client: Client, down: Arrays
) -> tuple[Arrays, int]:
    """Return the state from which a client starts a round, and the round after which the client had it.

    A client keeps two states. By default it starts from the last state of an earlier round, so that a repeated message
    gets the same reply. If uploads are increments, it starts from the state of the round that the server confirms: the
    last round whose reply arrived. Round 0 is the initial state.

    Raises
    ------
    StateLostError
        If the client has no state of the confirmed round.
    """
    kept: dict[int, str] = {}
    if STATE in context.state:
        rounds = context.state.config_records[STATE_OF]
        kept = {int(str(rounds[EARLIER_ROUND])): EARLIER_STATE, int(str(rounds[SERVER_ROUND])): STATE}
    if CONFIRMED_ROUND in config:
        state_round = int(str(config[CONFIRMED_ROUND]))
    else:
        state_round = max((number for number in kept if number < server_round), default=0)
    if state_round in kept:
        record = context.state.array_records[kept[state_round]]
        return to_tensors(record, client.task.dtype, client.data.x.device), state_round
    state = initial_state(client.task, client.update, down["params"])
    if state and state_round > 0:
        raise StateLostError(
            f"the server confirms round {state_round}, and this client has the states of "
            f"{sorted(kept) or 'no round'}: it takes no part until all clients begin anew"
        )
    return state, 0


def _received(message: Message, client: Client) -> tuple[Arrays, ConfigRecord]:
    arrays = message.content.array_records[ARRAYS]
    config = message.content.config_records[CONFIG]
    down = to_tensors(arrays, client.task.dtype, client.data.x.device)
    return {**down, **scalars(config, client.task.dtype, client.data.x.device)}, config
