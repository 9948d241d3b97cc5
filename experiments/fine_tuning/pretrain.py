"""Pretrain a small GPT-2 on the thirty roles of Shakespeare that follow the ten largest: python pretrain.py OUT.

``OUT`` then has ``pretrained``, a folder that ``from_pretrained`` reads, ``run``, the directory of the run, and
``random``, the model that it starts from.
"""

from __future__ import annotations

import sys
from pathlib import Path

import fedpisa
from fedpisa.authoring import Dataset, PositiveInt
from fedpisa.bench.networks import save_random_gpt2
from fedpisa.datasets.text import tinyshakespeare
from fedpisa.runs.merged import save_merged

WINDOW = 64
CHARACTERS = 65


def smaller_roles(*, data_dir: Path, largest: PositiveInt = 10, roles: PositiveInt = 30) -> Dataset:
    """Return the windows of the roles that follow the largest, with the characters' numbers of ``tinyshakespeare``.

    Parameters
    ----------
    largest
        Number of roles that are left out.
    roles
        Number of roles that follow them.
    """
    left_out, all_roles = (
        tinyshakespeare(data_dir=data_dir, num_clients=number, window=WINDOW)
        for number in (largest, largest + roles)
    )
    train, test = len(left_out.x_train), len(left_out.x_test)  # the largest roles come first
    return Dataset.of(
        "smaller-roles",
        (all_roles.x_train[train:], all_roles.y_train[train:]),
        (all_roles.x_test[test:], all_roles.y_test[test:]),
        num_classes=all_roles.num_classes,
        vocabulary=all_roles.vocabulary,
    )


def main(out: Path, rounds: int = 600) -> None:
    """Make the random model, train it in one place by Adam, and write the result."""
    save_random_gpt2(out / "random", WINDOW, CHARACTERS)
    keys = {
        "dataset": "pretrain:smaller_roles",
        "task": "language",
        "model": "hf-causal-lm",
        "pretrained": str(out / "random"),
        "algorithm": "fedsgd",
        "optimizer": "adam",
        "learning-rate": 0.003,
        "num-clients": 1,
        "partitioner": "iid",
        "batch-size": 64,
        "num-server-rounds": rounds,
        "eval-every": rounds // 10,
    }
    result = fedpisa.run(keys, out=out / "run")
    save_merged(out / "run", out / "pretrained")
    print(f"test perplexity on the smaller roles: {result.last('test_perplexity'):.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
