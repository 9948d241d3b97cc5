"""A client's answers to Flower's messages, on any Grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from logging import getLogger
from typing import final

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod

from fedpisa.clients.base import Arrays
from fedpisa.clients.client import BUFFERS, Client
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
"""Name of the record in `Context.state` that holds a client's own tensors: its dual, its moments."""
EARLIER_STATE = "earlier-client-state"
"""Name of the record of those from before its last round."""
STATE_OF = "client-state-of"
"""Name of the record that says of which rounds the two are, 0 for before the first."""
EARLIER_ROUND = "earlier-round"


@final
class StateLostError(Exception):
    """The server counts on a state that the client does not have."""


def make_client_app(client_of: Callable[[Context], Client], mods: Sequence[Mod] = ()) -> ClientApp:
    """Return the Flower client app of an algorithm.

    Parameters
    ----------
    client_of
        Says who a context's client is: its task, samples, local update.
    mods
        Flower's mods, called around each message.

    Returns
    -------
    ClientApp
        ``train`` runs the local update and keeps the client's state in its own context, written once and
        last; ``evaluate`` reports the received model's loss and accuracy on the client's samples.
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
        reply = reply_to(message, outcome.upload, len(client.x), metrics)
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
    metrics = client.task.evaluate(down["params"], buffers_Q, client.x, client.y)
    record = MetricRecord({NUM_EXAMPLES: len(client.x), **metrics})
    return Message(RecordDict({METRICS: record}), reply_to=message)


def state_before(
    server_round: int, context: Context, config: ConfigRecord, client: Client, down: Arrays
) -> tuple[Arrays, int]:
    """Return the state from which a client starts a round, and the round that it is of.

    Of the two states that are kept it is the last one from before ``server_round``, so that a message that is
    repeated gets the same reply again. Where uploads are increments it is that of the round that the server
    confirms, whose reply was the last to arrive; 0 is the state before the first round.

    Raises
    ------
    StateLostError
        If the server confirms a round of which no state is kept.
    """
    kept: dict[int, str] = {}
    if STATE in context.state:
        of = context.state.config_records[STATE_OF]
        kept = {int(str(of[EARLIER_ROUND])): EARLIER_STATE, int(str(of[SERVER_ROUND])): STATE}
    if CONFIRMED_ROUND in config:
        state_round = int(str(config[CONFIRMED_ROUND]))
    else:
        state_round = max((number for number in kept if number < server_round), default=0)
    if state_round in kept:
        record = context.state.array_records[kept[state_round]]
        return to_tensors(record, client.x.dtype, client.x.device), state_round
    state = client.update.init(down["params"])
    if state and state_round > 0:
        raise StateLostError(
            f"the server confirms round {state_round}, and this client keeps the states of "
            f"{sorted(kept) or 'no round'}: it takes no part until all have begun anew"
        )
    return state, 0


def _received(message: Message, client: Client) -> tuple[Arrays, ConfigRecord]:
    arrays = message.content.array_records[ARRAYS]
    config = message.content.config_records[CONFIG]
    down = to_tensors(arrays, client.x.dtype, client.x.device)
    return {**down, **scalars(config, client.x.dtype, client.x.device)}, config
