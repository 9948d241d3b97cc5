"""The data of a run: checked arrays of training and test samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from fedpisa.control.environments import Environments
from fedpisa.datasets.inputs import Inputs, Several, require_one

Features: TypeAlias = NDArray[Any]
"""Samples first, then the shape of one sample, ``(n, *shape)``: numbers, or the integers of tokens."""
Targets: TypeAlias = NDArray[Any]
"""``(n,)``: int64 class labels, or float64 regression targets; or ``(n, ...)``: several int64 labels a sample."""
Samples: TypeAlias = tuple[Features, Targets]
"""Features and targets of the same samples."""
Indices: TypeAlias = NDArray[np.int64]
"""Sorted positions of one client's samples in the training set."""
IGNORED: Final = -100
"""Label of a position that does not count, in data with several labels a sample; PyTorch's losses know it."""


@final
@dataclass(frozen=True, eq=False)
class Generated:
    """Clients whose samples are generated on demand and never stored, so that a million clients fit into memory.

    Files that are read when their samples are needed are one client's, and `split` deals them out.

    Parameters
    ----------
    sizes_N
        Number of samples of each client, int64, at least 1.
    make
        Function that returns the features and targets of samples, given the client and the position
        (``0 .. n_i - 1``) of each sample, both ``(n,)``. Equal arguments give equal samples; `fedpisa.rng.hashed`
        makes random bits of this kind. `Dataset.of` packs several features.

    Examples
    --------
    >>> squares = Generated(np.array([5]), lambda client_n, k_n: (k_n[:, None] ** 2, client_n))
    >>> parts = squares.split([np.array([0, 4]), np.array([1, 2, 3])])
    >>> parts.sizes_N.tolist(), parts.make(np.array([1, 0]), np.array([2, 1]))[0].tolist()
    ([2, 3], [[9], [16]])
    """

    sizes_N: NDArray[np.int64]
    make: Callable[[NDArray[np.int64], NDArray[np.int64]], tuple[Any, Targets]]

    def rows(self, row_n: NDArray[np.int64]) -> Samples:
        """Return samples by their positions ``(n,)`` among those of all clients, the first client's first."""
        end_N = np.cumsum(self.sizes_N)
        client_n = np.searchsorted(end_N, row_n, side="right")
        return self.make(client_n, row_n - (end_N - self.sizes_N)[client_n])

    def packed(self, name: str, inputs: Inputs) -> Generated:
        """Return the same samples with packed features, which ``make`` returns as `Dataset.of` takes them."""

        def make(client_n: NDArray[np.int64], k_n: NDArray[np.int64]) -> Samples:
            x, y = self.make(client_n, k_n)
            return inputs.packed(f"{name}: generated samples", x), y

        return Generated(self.sizes_N, make)

    def split(self, parts: Sequence[Indices]) -> Generated:
        """Return the samples of other clients, given each one's positions among those of all clients."""
        sizes_N, row_n = np.array([len(part) for part in parts]), np.concatenate(parts)
        begin_N = np.cumsum(sizes_N) - sizes_N
        return Generated(sizes_N, lambda client_n, k_n: self.rows(row_n[begin_N[client_n] + k_n]))


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """Training and test samples in memory, normalised and checked.

    Parameters
    ----------
    name
        Name of the data set.
    x_train, x_test
        Features, ``(n, *shape)``: float32 or float64, finite, already normalised; or integers, such as tokens, of at
        least 16 bits, which models get as int64. `of` also takes several features a sample, and packs them.
    y_train, y_test
        Class labels ``(n,)`` int64 in ``0 .. num_classes - 1``, or regression targets ``(n,)`` float64. A sample with
        several labels, such as the next token of each token, has ``(n, ...)`` int64, and -100 where none counts.
    num_classes
        Number of classes; ``None`` for regression, whose loss is half the squared error.
    groups
        Natural client of each training sample, ``(n,)`` int64; ``None`` if the data has no natural clients.
    test_groups
        The same of each test sample. It says which windows of texts are of one text.
    labels
        Labels of the training samples by which partitioners split, ``(n,)`` int64 from 0, if they are not ``y_train``;
        see `split_labels`. Samples that are generated on demand are split only if their classes are given here.
    default_model
        Name of the model that a run trains if its configuration names none.
    classes
        Class names in the order of the class numbers; ``None`` if the numbers serve as names.
    columns
        Feature names in order, if the samples come from a table.
    vocabulary
        Text of each token in the order of the tokens' numbers, if the samples are text.
    tokenizer
        Content of the ``tokenizer.json`` that made the tokens of the ``vocabulary``, if one did.
    generated
        Clients that generate their samples on demand. ``x_train`` and ``y_train`` then hold a few examples. With
        ``labels`` the data is split as stored data is, without generating a sample; otherwise it is not split.
    inputs
        What the columns of the features are if a sample has several, packed into one array ``(n, W)``; see `of`.
        `shape` is then ``(W,)``.
    generated_test
        Test samples that are generated on demand, as one client's. ``x_test`` and ``y_test`` then hold a few examples.
    test_labels
        Labels of all test samples, ``(n,)`` int64, if they are generated on demand.
    environments
        The clients' environments, in which a policy makes the samples; see `fedpisa.datasets.environments`.
    ground_truth
        Quantities known in closed form, such as the optimum of a quadratic.

    Raises
    ------
    ValueError
        If a part is empty, lengths or shapes differ, a number is NaN or infinite, or a label or token is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.zeros((4, 3), np.float32), np.array([0, 1, 0, 1])
    >>> data = Dataset(name="tiny", x_train=x, y_train=y, x_test=x, y_test=y, num_classes=2)
    >>> data.shape, data.num_outputs
    ((3,), 2)
    >>> text = np.array([[0, 1, 0]]), np.array([[1, 0, -100]])
    >>> data = Dataset.of("text", text, text, num_classes=2, vocabulary=("a", "b"))
    >>> data.target_shape, data.split_labels
    ((3,), None)
    """

    name: str
    x_train: Features
    y_train: Targets
    x_test: Features
    y_test: Targets
    num_classes: int | None
    groups: NDArray[np.int64] | None = None
    test_groups: NDArray[np.int64] | None = None
    labels: NDArray[np.int64] | None = None
    default_model: str = "logistic"
    classes: tuple[str, ...] | None = None
    columns: tuple[str, ...] | None = None
    vocabulary: tuple[str, ...] | None = None
    tokenizer: str | None = None
    generated: Generated | None = None
    inputs: Inputs | None = None
    generated_test: Generated | None = None
    test_labels: NDArray[np.int64] | None = None
    environments: Environments | None = None
    ground_truth: Mapping[str, NDArray[np.float64] | float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        name: str,
        train: tuple[Features | Several, Targets],
        test: tuple[Features | Several, Targets],
        **fields: Any,
    ) -> Dataset:
        """Return the data set of two pairs of features and targets; ``fields`` are the other parameters.

        Features may be several: a dictionary of arrays ``(n, ...)``, for a model called as ``module(**x)``, or a tuple,
        for ``module(*x)``. Floats get the dtype of the model, integers of more than 8 bits stay int64, and truth values
        bool.

        Examples
        --------
        >>> x = {"ids": np.array([[3, 1], [2, 0]]), "mask": np.array([[True, True], [True, False]])}
        >>> data = Dataset.of("texts", (x, np.array([0, 1])), (x, np.array([1, 0])), num_classes=2)
        >>> str(data.inputs), data.x_train.tolist()
        ('ids (2,) int64, mask (2,) bool', [[3, 1, 1, 1], [2, 0, 1, 0]])
        """
        (x_train, y_train), (x_test, y_test) = train, test
        if isinstance(x_train, Mapping | tuple):
            fields["inputs"] = inputs = Inputs.of(f"{name}: the training part", x_train)
            x_train = inputs.packed(f"{name}: the training part", x_train)
            if not isinstance(x_test, Mapping | tuple):
                raise ValueError(
                    f"{name}: the test part has one array of features; give {inputs}, as in training"
                )
            x_test = inputs.packed(f"{name}: the test part", x_test)
            for part in ("generated", "generated_test"):
                if fields.get(part) is not None:
                    fields[part] = fields[part].packed(name, inputs)
        if isinstance(x_test, Mapping | tuple):
            raise ValueError(
                f"{name}: only the test part has several features a sample; give both parts the same"
            )
        return cls(name=name, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test, **fields)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample's features."""
        return self.x_train.shape[1:]

    @property
    def num_train(self) -> int:
        """Number of training samples that can be split; that of the examples if clients generate unlabelled samples."""
        return len(self.y_train if self.labels is None else self.labels)

    @property
    def num_test(self) -> int:
        """Number of test samples."""
        return len(self.y_test) if self.generated_test is None else int(self.generated_test.sizes_N.sum())

    @property
    def train_targets(self) -> Targets | None:
        """Targets of all training samples ``(n, ...)``; ``None`` if clients generate unlabelled samples."""
        return self.y_train if self.generated is None else self.labels

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Shape of one sample's targets: ``()``, or for several labels a sample the shape of these."""
        return self.y_train.shape[1:]

    @property
    def split_labels(self) -> Targets | None:
        """What partitioners split by, ``(n,)``: ``labels``, or ``y_train`` if it has one label or number a sample."""
        return self.y_train if self.labels is None and not self.target_shape else self.labels

    @property
    def num_split_classes(self) -> int | None:
        """Number of classes of the `split_labels`; ``None`` without labels, and for a regression's targets."""
        if self.labels is not None:
            return int(self.labels.max()) + 1
        return None if self.target_shape else self.num_classes

    @property
    def num_outputs(self) -> int:
        """Number of outputs of a model for this data: one per class, one for regression, or those of a policy."""
        if self.environments is not None:
            return self.environments.num_outputs
        return 1 if self.num_classes is None else self.num_classes

    @property
    def default_task(self) -> str:
        """Name of the task that a run has if its configuration names none."""
        if self.environments is not None:
            return "ppo"
        if self.num_classes is None:
            return "regression"
        return "language" if self.target_shape else "classification"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in the order of the class numbers; empty for regression."""
        return self.classes or tuple(str(number) for number in range(self.num_classes or 0))

    def __post_init__(self) -> None:
        if isinstance(self.x_train, Mapping | tuple) or isinstance(self.x_test, Mapping | tuple):
            raise ValueError(
                f"{self.name}: several features a sample; give them to Dataset.of, which packs them"
            )
        if self.inputs is not None and (self.x_train.dtype != np.int64 or self.shape != (self.inputs.width,)):
            raise ValueError(
                f"{self.name}: features of shape {self.x_train.shape} and dtype {self.x_train.dtype} are not packed as "
                f"{self.inputs}; pack them by inputs.packed"
            )
        if self.num_classes is not None and self.num_classes < 2:
            raise ValueError(
                f"{self.name}: only {self.num_classes} class; give data with at least two different labels"
            )
        is_text = self.x_train.dtype.kind != "f" if self.inputs is None else "int64" in self.inputs.dtypes
        _check_part(self.name, "training", self.x_train, self.y_train, self.num_classes, is_text)
        _check_part(self.name, "test", self.x_test, self.y_test, self.num_classes, is_text)
        if self.x_test.shape[1:] != self.shape:
            raise ValueError(
                f"{self.name}: a test sample has shape {self.x_test.shape[1:]}, a training sample "
                f"{self.shape}; give both the same features"
            )
        if self.y_test.shape[1:] != self.target_shape:
            raise ValueError(
                f"{self.name}: a test sample has targets of shape {self.y_test.shape[1:]}, a training sample "
                f"{self.target_shape}; give both the same"
            )
        n = len(self.x_train) if self.generated is None else int(self.generated.sizes_N.sum())
        for what, values in (("group", self.groups), ("label", self.labels)):
            if values is not None and values.shape != (n,):
                raise ValueError(
                    f"{self.name}: {values.size} {what}s for {n} training samples; "
                    f"give one {what} per training sample"
                )
        for what, values in (("group", self.test_groups), ("label", self.test_labels)):
            if values is not None and values.shape != (self.num_test,):
                raise ValueError(
                    f"{self.name}: {values.size} {what}s for {self.num_test} test samples; "
                    f"give one {what} per test sample"
                )
        if self.labels is not None and (self.labels.dtype != np.int64 or self.labels.min() < 0):
            raise ValueError(
                f"{self.name}: the labels to split by are {self.labels.dtype} from {self.labels.min()}; number them "
                "from 0 in int64"
            )
        if self.vocabulary is not None:
            self._check_tokens(self.vocabulary)

    def _check_tokens(self, vocabulary: tuple[str, ...]) -> None:
        require_one(self.inputs, f"{self.name}: a vocabulary", "leave the vocabulary out")
        if len(vocabulary) != self.num_classes:
            raise ValueError(
                f"{self.name}: a vocabulary of {len(vocabulary)} tokens for {self.num_classes} classes; "
                "give one text per class"
            )
        for part, x in (("training", self.x_train), ("test", self.x_test)):
            if x.dtype.kind not in "iu" or x.min() < 0 or x.max() >= len(vocabulary):
                raise ValueError(
                    f"{self.name}: {part} features from {x.min()} to {x.max()}, {x.dtype}, are not all tokens of the "
                    f"vocabulary; number them 0 to {len(vocabulary) - 1}"
                )


def _check_part(
    name: str, part: str, x: Features, y: Targets, num_classes: int | None, is_text: bool
) -> None:
    """Raise a ValueError if features and targets of the training or the test part do not fit."""
    if x.size == 0 or x.ndim < 2:
        raise ValueError(
            f"{name}: the {part} features have shape {x.shape}; give at least one sample "
            "and one feature, as an array (samples, features ...)"
        )
    # One label in an array of its own beside features that are numbers is a column by mistake.
    column = y.shape[1:] == (1,) and not is_text
    several = num_classes is not None and y.ndim > 1 and len(y) == len(x) and y.size > 0 and not column
    if y.shape != (len(x),) and not several:
        raise ValueError(
            f"{name}: {len(x)} {part} samples but targets of shape {y.shape}; give one target per sample"
        )
    if x.dtype.kind != "f" and not is_integers(x):
        raise ValueError(
            f"{name}: {part} features are {x.dtype}; convert them to float32 or float64, or tokens to int64"
        )
    if num_classes is None and not np.issubdtype(y.dtype, np.floating):
        raise ValueError(f"{name}: {part} regression targets are {y.dtype}; convert them to float64")
    if num_classes is not None and y.dtype != np.int64:
        raise ValueError(f"{name}: {part} labels are {y.dtype}; convert them to int64")
    for what, values in (("feature", x), ("target", y)):
        if not np.isfinite(values).all():
            sample = int(np.nonzero(~np.isfinite(values))[0][0])
            raise ValueError(
                f"{name}: {part} sample {sample} has a NaN or infinite {what}; "
                "remove the sample or fill in the value"
            )
    if num_classes is None:
        return
    counted = (y != IGNORED) if several else np.ones(y.shape, np.bool_)
    wrong = counted & ((y < 0) | (y >= num_classes))
    if wrong.any():
        place = np.unravel_index(wrong.argmax(), y.shape)
        raise ValueError(
            f"{name}: label {y[place]} of {part} sample {place[0]} is out of range; "
            f"number the {num_classes} classes 0 to {num_classes - 1}"
        )
    empty = ~counted.reshape(len(y), -1).any(1)
    if empty.any():
        raise ValueError(
            f"{name}: all labels of {part} sample {empty.argmax()} are {IGNORED}, so that none counts; leave it out"
        )


def is_integers(x: NDArray[Any]) -> bool:
    """Return whether an array holds integers of more than 8 bits, such as tokens; 8 bits are pixels, thus numbers.

    Examples
    --------
    >>> [is_integers(np.zeros(1, kind)) for kind in (np.int64, np.uint16, np.uint8, np.float32)]
    [True, True, False, False]
    """
    return x.dtype.itemsize > 1 and x.dtype.kind in "iu" and np.can_cast(x.dtype, np.int64)


def train_test_split(
    targets: Targets,
    test_fraction: float,
    rng: np.random.Generator,
    kept: NDArray[np.bool_] | None = None,
) -> tuple[Indices, Indices]:
    """Split samples at random into a training and a test part, class by class if the targets are labels.

    The test part has ``round(n * test_fraction)`` samples. Largest remainders decide how many of them each class
    gives; a class keeps at least one training sample.

    Parameters
    ----------
    targets
        ``(n,)``; integers are class labels, floats are split without classes.
    test_fraction
        Share of the samples in the test part, in (0, 1).
    rng
        Generator that draws the split.
    kept
        Whether a sample must stay in the training part, ``(n,)``; by default none must.

    Returns
    -------
    tuple
        Sorted indices of the training and of the test samples.

    Examples
    --------
    >>> import numpy as np
    >>> train, test = train_test_split(np.repeat([0, 1], [8, 2]), 0.5, np.random.default_rng(0))
    >>> len(train), np.bincount(np.repeat([0, 1], [8, 2])[test]).tolist()
    (5, [4, 1])
    """
    n = len(targets)
    stratified = np.issubdtype(targets.dtype, np.integer)
    strata = np.unique(targets, return_inverse=True)[1] if stratified else np.zeros(n, np.int64)
    sizes = np.bincount(strata)
    kept = np.zeros(n, np.bool_) if kept is None else kept
    most = sizes - np.maximum(np.bincount(strata[kept], minlength=len(sizes)), 1)
    share = sizes * test_fraction
    tests = np.minimum(np.floor(share).astype(np.int64), most)
    can_give = np.flatnonzero(tests < most)
    missing = max(0, round(n * test_fraction) - int(tests.sum()))
    tests[can_give[np.argsort((tests - share)[can_give], kind="stable")][:missing]] += 1

    shuffled = rng.permutation(n)
    shuffled = shuffled[np.lexsort((kept[shuffled], strata[shuffled]))]
    first = np.repeat(np.cumsum(sizes) - sizes, sizes)
    is_test = np.arange(n) - first < np.repeat(tests, sizes)
    return np.sort(shuffled[~is_test]), np.sort(shuffled[is_test])
