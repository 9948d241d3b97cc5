"""Run one job with fedpisa in a separate process: ``python -m fedpisa.bench.engine JOB``."""

from __future__ import annotations

from collections.abc import Iterator

from fedpisa.bench.protocol import job, report
from fedpisa.runs.process import own_process, reserved_heap


@own_process()
@reserved_heap()
def main() -> None:
    """Run the job whose JSON is the first argument."""
    from fedpisa.config.run import RunConfig
    from fedpisa.runs.simulation import Simulation

    work = job()
    evaluation: list[float] = []

    def rounds() -> Iterator[None]:
        # The last round is evaluated; an additional round keeps evaluation out of the timed rounds.
        keys = {**work.keys(), "num-server-rounds": work.warm_up + work.rounds + 1}
        rows = Simulation(RunConfig.from_mapping(keys)).rows()
        evaluation.append(float(next(rows)["evaluation_seconds"] or 0))
        for _ in rows:
            yield

    report(work, rounds(), evaluation)


if __name__ == "__main__":
    main()
