"""Workloads of the benchmarks: federations of synthetic images or texts.

The time of a round depends on the shapes alone, so pixels, labels and tokens are random.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from fedpisa.datasets.base import Dataset

Algorithm = Literal["fedavg", "sisa"]
"""``fedavg``: one epoch of plain SGD. ``sisa``: one step along the gradient of all samples."""

ALGORITHMS: Final[tuple[Algorithm, ...]] = ("fedavg", "sisa")
LEARNING_RATE: Final = 0.05
SHAPE: Final = (1, 28, 28)
CLASSES: Final = 10
WINDOW: Final = 64
"""Tokens of a window of text."""
TOKENS: Final = 65
"""Tokens of the vocabulary, as many as Shakespeare's characters."""
TEST_SAMPLES: Final = 1000
SEED: Final = 0
TEXT_MODELS: Final = ("lstm", "gpt", "lora")
"""Models whose samples are windows of text."""
AT_ONCE: Final = (*TEXT_MODELS, "vit")
"""Models whose gradient of all samples is one pass; that of the others goes through mini-batches."""
_NETWORKS: Final = ("vit", "lora")
"""Models of `fedpisa.bench.networks`; the others are fedpisa's by name."""


@final
@dataclass(frozen=True)
class Workload:
    """A federation and a model.

    Parameters
    ----------
    name
        A letter.
    clients, samples
        Number of clients, and of samples per client.
    per_round
        Number of clients per round.
    batch
        Samples in a mini-batch.
    model
        ``mlp`` 784-200-200-10, ``leaf-cnn`` (5x5x32, 5x5x64, 512: 1.66 M parameters) or ``logistic``; for windows of
        text ``lstm``, ``gpt`` or ``lora``; ``vit``. See `fedpisa.bench.networks`.
    rounds
        Number of timed rounds; a round takes between a hundredth of a second and a few seconds.
    on_the_fly
        Whether samples are made when they are needed, because they do not fit into memory.
    """

    name: str
    clients: int
    samples: int
    per_round: int
    batch: int
    model: str
    rounds: int = 20
    on_the_fly: bool = False

    @property
    def steps(self) -> int:
        """Number of SGD steps of a client in a round."""
        return -(-self.samples // self.batch)

    @property
    def is_text(self) -> bool:
        """Whether samples are windows of text."""
        return self.model in TEXT_MODELS

    @property
    def missing(self) -> str:
        """Why the workload cannot run here: the extra that it lacks; empty if it can."""
        if self.model != "lora" or (find_spec("transformers") and find_spec("peft")):
            return ""
        return f"{self.name} needs the extra language; run pip install 'fedpisa[language]'"

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.clients:,} clients x {self.samples}, {self.per_round:,} per round, "
            f"batch {self.batch}, {self.model}"
        )


_ALL = (
    Workload("A", clients=100, samples=600, per_round=10, batch=32, model="mlp"),
    Workload("B", clients=100, samples=600, per_round=10, batch=32, model="leaf-cnn", rounds=4),
    Workload("C", clients=1_000, samples=60, per_round=100, batch=20, model="logistic"),
    Workload("D", clients=10_000, samples=20, per_round=1_000, batch=20, model="logistic"),
    Workload("M", 1_000_000, samples=20, per_round=1_000, batch=20, model="logistic", on_the_fly=True),
    Workload("L", clients=10, samples=64, per_round=10, batch=32, model="lstm", rounds=5),
    Workload("G", clients=10, samples=64, per_round=10, batch=32, model="gpt", rounds=5),
    Workload("V", clients=10, samples=64, per_round=10, batch=32, model="vit", rounds=5),
    Workload("R", clients=10, samples=64, per_round=10, batch=32, model="lora", rounds=5),
)
WORKLOADS: Final[Mapping[str, Workload]] = MappingProxyType({workload.name: workload for workload in _ALL})


@final
@dataclass(frozen=True)
class Job:
    """The job of one process: a workload, an algorithm, and the numbers of timed and warm-up rounds."""

    workload: Workload
    algorithm: Algorithm = "fedavg"
    rounds: int = 20
    warm_up: int = 3

    def to_json(self) -> str:
        """Return the job as one argument of a command line.

        Examples
        --------
        >>> job = Job(WORKLOADS["C"], "sisa", rounds=2)
        >>> Job.from_json(job.to_json()) == job
        True
        """
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the job from the text of `to_json`."""
        values: dict[str, Any] = json.loads(text)
        return cls(**{**values, "workload": Workload(**values["workload"])})

    def keys(self) -> dict[str, object]:
        """Return the keys of fedpisa's run configuration."""
        workload = self.workload
        keys: dict[str, object] = {"batches-per-round": "all"}
        if workload.model in AT_ONCE:
            keys = {"batch-size": "full"}
        if self.algorithm == "fedavg":
            keys = {"local-epochs": 1, "learning-rate": LEARNING_RATE}
        return {
            "algorithm": self.algorithm,
            "dataset": f"{__name__}:{self._source}",
            "samples-per-client": workload.samples,
            "partitioner": "natural",
            "model": f"fedpisa.bench.networks:{workload.model}"
            if workload.model in _NETWORKS
            else workload.model,
            "num-clients": workload.clients,
            "fraction-train": workload.per_round / workload.clients,
            "batch-size": workload.batch,
            "num-server-rounds": self.warm_up + self.rounds,
            "eval-every": 10**9,
            "seed": SEED,
            **keys,
        }

    @property
    def _source(self) -> str:
        if self.workload.is_text:
            return "texts"
        return "generated" if self.workload.on_the_fly else "images"


def samples(n: int, seed: int = SEED) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return random images ``(n, 1, 28, 28)`` and labels ``(n,)``.

    Examples
    --------
    >>> x, y = samples(7)
    >>> x.shape, y.shape, x.dtype, y.max() < CLASSES
    ((7, 1, 28, 28), (7,), dtype('float32'), np.True_)
    """
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, *SHAPE), dtype=np.float32), rng.integers(0, CLASSES, n)


def windows(n: int, seed: int = SEED) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return windows of random tokens, and the token that follows each, both ``(n, 64)``.

    Examples
    --------
    >>> x, y = windows(7)
    >>> x.shape, bool((x[:, 1:] == y[:, :-1]).all())
    ((7, 64), True)
    """
    text = np.random.default_rng(seed).integers(0, TOKENS, (n, WINDOW + 1))
    return text[:, :-1].copy(), text[:, 1:].copy()


def generated(*, seed: int, num_clients: int, samples_per_client: int) -> Dataset:
    """Return random images that each client makes when needed: a sample is a window of one long random vector."""
    from fedpisa import rng
    from fedpisa.datasets.base import Generated

    size, windows = int(np.prod(SHAPE)), 2**20
    noise = np.random.default_rng(seed).standard_normal(windows + size, dtype=np.float32)
    window = np.lib.stride_tricks.sliding_window_view(noise, size)
    key = rng.stream_key(seed, "bench")

    def make(
        client_n: NDArray[np.int64], position_n: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        bits_n = rng.hashed(key, client_n, position_n)
        x = window[(bits_n % np.uint64(windows)).astype(np.int64)]
        return x.reshape(-1, *SHAPE), ((bits_n >> np.uint64(32)) % np.uint64(CLASSES)).astype(np.int64)

    sizes_N = np.full(num_clients, samples_per_client)
    examples = make(np.zeros(CLASSES, np.int64), np.arange(CLASSES))
    return _dataset("generated", examples, seed, generated=Generated(sizes_N, make))


def images(*, seed: int, num_clients: int, samples_per_client: int) -> Dataset:
    """Return random 28x28 images, the same number for every client."""
    train = samples(num_clients * samples_per_client, seed)
    return _dataset("images", train, seed, groups=np.repeat(np.arange(num_clients), samples_per_client))


def texts(*, seed: int, num_clients: int, samples_per_client: int) -> Dataset:
    """Return windows of random tokens, the same number for every client."""
    from fedpisa.datasets.base import Dataset

    return Dataset.of(
        "texts",
        windows(num_clients * samples_per_client, seed),
        windows(TEST_SAMPLES // 10, seed + 1),
        num_classes=TOKENS,
        default_model="gpt",
        groups=np.repeat(np.arange(num_clients), samples_per_client),
    )


def _dataset(name: str, train: tuple[NDArray[Any], NDArray[Any]], seed: int, **parts: Any) -> Dataset:
    from fedpisa.datasets.base import Dataset

    x_test, y_test = samples(TEST_SAMPLES, seed + 1)
    return Dataset(
        name=name,
        x_train=train[0],
        y_train=train[1],
        x_test=x_test,
        y_test=y_test,
        num_classes=CLASSES,
        default_model="logistic",
        **parts,
    )
