"""The client app that ``flwr run`` starts on every node."""

from __future__ import annotations

from logging import getLogger

from flwr.app import Context, Message, MessageType, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from fedpisa.apps.node import node_run, state_folder
from fedpisa.apps.records import NodeRecord, RunRecord
from fedpisa.apps.states import read_state
from fedpisa.clients.client import Client
from fedpisa.flower.client_app import STATE, make_client_app
from fedpisa.flower.messages import CONFIG, SERVER_ROUND


def client_of(context: Context) -> Client:
    """Return a node's client in the run of the current message."""
    return node_run(context, RunRecord.of(context.state)).client


def own_state(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Read the client's state from the node's file, handle the message, and write the state before replying.

    This is a Flower mod, which wraps the client app.
    """
    run = RunRecord.of(message.content)
    context.state[RunRecord.NAME] = run.to_record()
    if message.metadata.message_type != MessageType.TRAIN:
        return call_next(message, context)
    file = node_run(context, run).state_file(run.run, state_folder(context))
    read_state(file, context.state)
    kept = STATE in context.state
    reply = call_next(message, context)
    if not reply.has_error():
        file.write(context.state)
    server_round = int(str(message.content.config_records[CONFIG][SERVER_ROUND]))
    if STATE in context.state and not kept and server_round > 1:
        text = "round %d: %s did not exist, and the initial state was used: correct in a node's first round"
        getLogger("flwr").warning(text, server_round, file.path)
    return reply


app = make_client_app(client_of, mods=[own_state])


@app.query()
def describe(message: Message, context: Context) -> Message:
    """Return the description of the node's samples."""
    node = node_run(context, RunRecord.of(context.state))
    return Message(RecordDict({NodeRecord.NAME: node.record().to_record()}), reply_to=message)
