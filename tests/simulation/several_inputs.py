"""Data sets whose samples have several features, models for them, and the same models written for one array."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpisa.datasets import Dataset
from fedpisa.datasets.base import Generated

LENGTH, TOKENS, BIG = 6, 9, 2**53
"""``BIG + 1`` is no float64."""


def text_samples(n: int, seed: int) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
    """Return tokens, their mask and a weight, by name, and labels."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, TOKENS, (n, LENGTH))
    mask = np.arange(LENGTH) < rng.integers(1, LENGTH + 1, n)[:, None]
    return {"input_ids": ids, "attention_mask": mask, "weight": rng.random(n) + 0.5}, ids[:, 0] % 3


def image_samples(n: int, seed: int) -> tuple[tuple[NDArray[Any], ...], NDArray[np.int64]]:
    """Return an image, a row of a table and a large integer, in order, and labels."""
    rng = np.random.default_rng(seed)
    table = rng.standard_normal((n, 3)).astype(np.float32)
    return (rng.standard_normal((n, 1, 4, 4)), table, BIG + rng.integers(0, 2, n)), (table[:, 0] > 0).astype(
        np.int64
    )


def texts() -> Dataset:
    """Return samples of three natural clients."""
    groups = np.arange(50) % 3
    return Dataset.of("texts", text_samples(50, 0), text_samples(20, 1), num_classes=3, groups=groups)


def images() -> Dataset:
    """Return images with further features."""
    return Dataset.of("images", image_samples(50, 0), image_samples(20, 1), num_classes=2)


def next_tokens() -> Dataset:
    """Return texts with a target for each token, of which padding does not count."""

    def part(n: int, seed: int) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
        x, _ = text_samples(n, seed)
        return x, np.where(x["attention_mask"], (x["input_ids"] + 1) % TOKENS, -100)

    return Dataset.of("next", part(40, 0), part(20, 1), num_classes=TOKENS)


def own_torch_data() -> list[tuple[dict[str, Tensor], int]]:
    """Return `text_samples` as a PyTorch data set gives them, one by one."""
    x, y = text_samples(50, 0)
    columns = {name: torch.from_numpy(values) for name, values in x.items()}
    return [({name: value[row] for name, value in columns.items()}, int(y[row])) for row in range(50)]


def one_label_in_an_array() -> Dataset:
    """Return samples of numbers with labels in a column, which is a mistake."""
    x, y = image_samples(50, 0)
    return Dataset.of("column", (x[:2], y[:, None]), (x[:2], y[:, None]), num_classes=2)


def one_array(several: Dataset) -> Dataset:
    """Return the same samples with float64 features side by side; large integers lose what is above `BIG`."""
    assert several.inputs is not None
    parts = []
    for x in (several.x_train, several.x_test):
        in_order, by_name = several.inputs.arguments(torch.from_numpy(x), torch.float64)
        values = [(value - BIG if value.max() >= BIG else value) for value in (*in_order, *by_name.values())]
        parts.append(np.concatenate([value.reshape(len(x), -1).double().numpy() for value in values], axis=1))
    return Dataset(
        name=several.name,
        x_train=parts[0],
        y_train=several.y_train,
        x_test=parts[1],
        y_test=several.y_test,
        num_classes=several.num_classes,
        groups=several.groups,
    )


def texts_in_one_array() -> Dataset:
    """Return `texts` as one array."""
    return one_array(texts())


def images_in_one_array() -> Dataset:
    """Return `images` as one array."""
    return one_array(images())


def made_on_demand() -> Dataset:
    """Return the samples of `texts` and their natural clients, made when they are needed."""
    stored, (x, y) = texts(), text_samples(50, 0)
    assert stored.groups is not None
    rows = [np.flatnonzero(stored.groups == client) for client in range(3)]

    def make(
        client_n: NDArray[np.int64], k_n: NDArray[np.int64]
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
        row_n = np.array([rows[client][k] for client, k in zip(client_n, k_n, strict=True)], np.int64)
        return {name: values[row_n] for name, values in reversed(x.items())}, y[row_n]

    generated = Generated(np.array([len(row) for row in rows]), make)
    return Dataset.of("made", (x, y), text_samples(20, 1), num_classes=3, generated=generated)


class MeanOfTokens(nn.Module):
    """The mean embedding of the tokens that count, times the weight, and a layer."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.embedding, self.last = nn.Embedding(TOKENS, 5), nn.Linear(5, num_outputs)

    def forward(self, attention_mask: Tensor, input_ids: Tensor, weight: Tensor) -> Tensor:
        assert (attention_mask.dtype, input_ids.dtype) == (torch.bool, torch.int64)
        assert weight.dtype == self.last.weight.dtype
        counts = attention_mask[..., None].to(weight.dtype)
        h = (self.embedding(input_ids) * counts).sum(1) / counts.sum(1).clamp(min=1)
        return self.last(torch.tanh(h) * weight[:, None])


class MeanOfTokensInOneArray(MeanOfTokens):
    """The same on features side by side."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        ids, mask, weight = x.split([LENGTH, LENGTH, 1], 1)
        return super().forward(mask != 0, ids.long(), weight[:, 0])


class ImageAndTable(nn.Module):
    """A convolution of the image, and a layer on it, the row of the table and the integer."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.convolution, self.last = nn.Conv2d(1, 2, 3), nn.Linear(12, num_outputs)

    def forward(self, image: Tensor, table: Tensor, number: Tensor) -> Tensor:
        assert number.dtype == torch.int64
        odd = (number - BIG).to(table.dtype)
        h = torch.tanh(self.convolution(image)).flatten(1)
        return self.last(torch.cat([h, table, odd[:, None]], 1))


class ImageAndTableInOneArray(ImageAndTable):
    """The same on features side by side."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        image, table, odd = x.split([16, 3, 1], 1)
        return super().forward(image.reshape(-1, 1, 4, 4), table, odd[:, 0].long() + BIG)


class EachToken(nn.Module):
    """Outputs for each token."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.embedding, self.last = nn.Embedding(TOKENS, 5), nn.Linear(5, num_outputs)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, weight: Tensor) -> Tensor:
        return self.last(self.embedding(input_ids) * attention_mask[..., None] * weight[:, None, None])


class Recurrent(EachToken):
    """A model that says that it has a state."""

    state_size = 2


class Attention(nn.Module):
    """Attention over the tokens that count, as one of PyTorch's fused kernels."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.last = nn.Linear(4, num_outputs)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, weight: Tensor) -> Tensor:
        h = self.embedding(input_ids)
        h, _ = self.attention(h, h, h, key_padding_mask=~attention_mask, need_weights=False)
        return self.last(h[:, 0] * weight[:, None])


class Noisy(ImageAndTable):
    """A model with batch statistics and dropout."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs)
        self.norm, self.dropout = nn.BatchNorm1d(3), nn.Dropout(0.3)

    def forward(self, image: Tensor, table: Tensor, number: Tensor) -> Tensor:
        return super().forward(self.dropout(image), self.norm(table), number)


def sized(shape: tuple[tuple[int, ...], ...], num_outputs: int) -> nn.Module:
    """Return a model that needs the shapes of the features."""
    assert shape == ((1, 4, 4), (3,), ())
    return ImageAndTable(num_outputs)


class WithoutMask(nn.Module):
    """A model that does not take the mask."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.last = nn.Linear(LENGTH, num_outputs)

    def forward(self, input_ids: Tensor, weight: Tensor) -> Tensor:
        return self.last(input_ids.to(weight.dtype) * weight[:, None])


class WritesInputs(MeanOfTokens):
    """A model that writes into what it gets."""

    def forward(self, attention_mask: Tensor, input_ids: Tensor, weight: Tensor) -> Tensor:
        outputs = super().forward(attention_mask.clone(), input_ids.clone(), weight.clone())
        for values in (attention_mask, input_ids, weight):
            values.zero_()
        return outputs
