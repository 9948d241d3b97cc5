"""The server app that ``flwr run`` starts."""

from __future__ import annotations

import logging

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedpisa.config import RunConfig
from fedpisa.federation import Federation
from fedpisa.flower.compat import to_tensors
from fedpisa.simulation.rounds import rounds

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds of Flower's run config and log the global model's test metrics."""
    federation = Federation(RunConfig.from_mapping(dict(context.run_config)))
    strategy, test, task = federation.strategy(), federation.test, federation.task
    model = strategy.start_from(federation.initial_model())
    for finished in rounds(strategy, grid, model, federation.config.num_server_rounds):
        tensors = to_tensors(finished.arrays, test.x.dtype, test.x.device)
        buffers_Q = tensors.get("buffers", test.x.new_zeros(0))
        metrics = task.evaluate(tensors["params"], buffers_Q, test.x, test.y)
        logging.getLogger("flwr").info("round %d: %s", finished.server_round, metrics)
