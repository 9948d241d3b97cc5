"""What a round of a trial costs."""

from __future__ import annotations

import numpy as np

from fedpisa.clients.memory import sampler_of
from fedpisa.runs.run_files import Row
from fedpisa.runs.simulation import Simulation


def sample_gradients(simulation: Simulation, row: Row) -> int:
    """Return the gradients of single samples that the clients of a simulation's latest round computed.

    A mini-batch of 32 samples counts 32. What an algorithm computes besides its gradients, as for a preconditioner or
    an evaluation, does not count. Neither do clients whose replies were lost.

    Parameters
    ----------
    simulation
        The simulation.
    row
        The row of its latest round.
    """
    batches = row.get("local_steps") or 0
    if not batches:
        return 0
    federation, reported = simulation.federation, simulation.strategy.reported
    sizes_N = federation.data.sizes_N
    ids_S = np.arange(len(sizes_N)) if reported is None else reported[0].cpu().numpy()
    number = simulation.server_round
    update = federation.schedule.scaled(federation.algorithm.local_update, number).at_round(number)
    indices = sampler_of(federation.task, update).draw(sizes_N[ids_S], ids_S, number, simulation.config.seed)
    samples = np.count_nonzero(indices.weight_SKCB)
    return round(samples * batches / int(indices.gradients_S.sum()))
