"""Models with layers of all kinds, each a function ``(num_outputs) -> nn.Module``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEATURES, IMAGES, SERIES, TOKENS, VOLUMES = "features", "images", "series", "tokens", "volumes"
SHAPES = {FEATURES: (6,), IMAGES: (2, 6, 6), SERIES: (5, 4), TOKENS: (5,), VOLUMES: (1, 4, 4, 4)}
WIDTH = 8
DATA: dict[str, str] = {}
"""The kind of samples of each model."""


def of(kind: str) -> Callable[[Any], Any]:
    """Register the kind of samples that a model takes."""

    def note(build: Any) -> Any:
        DATA[f"{build.__module__.rpartition('.')[2]}:{build.__name__}"] = kind
        return build

    return note


class Apply(nn.Module):
    """A layer that applies a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def dense(num_outputs: int, *middle: nn.Module, width: int = WIDTH) -> nn.Module:
    return nn.Sequential(nn.Linear(6, WIDTH), *middle, nn.Linear(width, num_outputs))


def convolutional(num_outputs: int, *middle: nn.Module, channels: int = 4) -> nn.Module:
    head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, num_outputs))
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), *middle, head)


class Recurrent(nn.Module):
    def __init__(self, cell: nn.Module, width: int, num_outputs: int, first: bool = True) -> None:
        super().__init__()
        self.cell, self.last, self.first = cell, nn.Linear(width, num_outputs), first

    def forward(self, x: Tensor) -> Tensor:
        states = self.cell(x if self.first else x.transpose(0, 1))[0]
        result: Tensor = self.last(states[:, -1] if self.first else states[-1])
        return result


@of(SERIES)
def lstm(num_outputs: int) -> nn.Module:
    return Recurrent(nn.LSTM(4, WIDTH, batch_first=True), WIDTH, num_outputs)


@of(SERIES)
def lstm_bidirectional(num_outputs: int) -> nn.Module:
    return Recurrent(
        nn.LSTM(4, WIDTH, num_layers=2, bidirectional=True, batch_first=True), 2 * WIDTH, num_outputs
    )


@of(SERIES)
def lstm_projected(num_outputs: int) -> nn.Module:
    return Recurrent(nn.LSTM(4, WIDTH, proj_size=3, batch_first=True), 3, num_outputs)


@of(SERIES)
def gru_sequence_first(num_outputs: int) -> nn.Module:
    return Recurrent(nn.GRU(4, WIDTH), WIDTH, num_outputs, first=False)


@of(SERIES)
def rnn_relu(num_outputs: int) -> nn.Module:
    return Recurrent(nn.RNN(4, WIDTH, nonlinearity="relu", batch_first=True), WIDTH, num_outputs)


@of(SERIES)
class LstmCell(nn.Module):
    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.cell, self.last = nn.LSTMCell(4, WIDTH), nn.Linear(WIDTH, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), WIDTH)
        for step in x.unbind(1):
            h, c = self.cell(step, (h, c))
        result: Tensor = self.last(h)
        return result


@of(SERIES)
class PackedSequence(nn.Module):
    """A GRU on packed sequences, whose lengths depend on the samples."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.cell, self.last = nn.GRU(4, WIDTH, batch_first=True), nn.Linear(WIDTH, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        lengths = (x[:, :, 0] > 0).sum(1).clamp(min=1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        result: Tensor = self.last(self.cell(packed)[1][-1])
        return result


@of(SERIES)
class Attention(nn.Module):
    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.attention(x, x, x)[0].mean(1))
        return result


@of(SERIES)
def transformer_encoder(num_outputs: int) -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 12, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(encoder, nn.Flatten(), nn.Linear(20, num_outputs))


@of(SERIES)
class CausalAttention(nn.Module):
    """Causal attention written by hand, with its mask in a buffer."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(4, 4, bias=False) for _ in range(3))
        self.last = nn.Linear(4, num_outputs)
        self.register_buffer("mask", torch.ones(5, 5, dtype=torch.bool).tril())

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).mT / 2
        weights = scores.masked_fill(~self.mask, -torch.inf).softmax(-1)
        result: Tensor = self.last((weights @ self.value(x))[:, -1])
        return result


@of(SERIES)
def convolution_1d(num_outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(5, 6, 3, padding="same"),
        nn.GLU(1),
        nn.AdaptiveMaxPool1d(2),
        nn.Flatten(),
        nn.Linear(6, num_outputs),
    )


@of(VOLUMES)
def convolution_3d(num_outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 3, 2),
        nn.BatchNorm3d(3),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Flatten(),
        nn.Linear(3, num_outputs),
    )


@of(IMAGES)
def dilated_grouped_transposed(num_outputs: int) -> nn.Module:
    return convolutional(
        num_outputs,
        nn.Conv2d(4, 4, 3, dilation=2, padding=2, groups=2, padding_mode="reflect"),
        nn.ELU(inplace=True),
        nn.ConvTranspose2d(4, 6, 2, stride=2),
        channels=6,
    )


@of(IMAGES)
def depthwise_separable(num_outputs: int) -> nn.Module:
    return convolutional(num_outputs, nn.Conv2d(4, 4, 3, groups=4), nn.Hardswish(), nn.Conv2d(4, 4, 1))


@of(IMAGES)
def pixel_shuffle(num_outputs: int) -> nn.Module:
    return convolutional(num_outputs, nn.PixelShuffle(2), nn.PixelUnshuffle(2), nn.ChannelShuffle(2))


@of(IMAGES)
class MaxUnpool(nn.Module):
    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 3, 3, padding=1), nn.Linear(108, num_outputs)
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.unpool(*self.pool(self.first(x))).flatten(1))
        return result


@of(IMAGES)
def other_pools(num_outputs: int) -> nn.Module:
    return convolutional(num_outputs, nn.LPPool2d(2, 2), nn.Upsample(scale_factor=2), nn.AdaptiveMaxPool2d(3))


@of(IMAGES)
def normalised_in_groups(num_outputs: int) -> nn.Module:
    return convolutional(num_outputs, nn.GroupNorm(2, 4), nn.SiLU(), nn.InstanceNorm2d(4, affine=True))


@of(IMAGES)
def instance_norm_with_statistics(num_outputs: int) -> nn.Module:
    return convolutional(num_outputs, nn.InstanceNorm2d(4, track_running_stats=True))


@of(IMAGES)
def local_response_norm(num_outputs: int) -> nn.Module:
    return convolutional(num_outputs, nn.LocalResponseNorm(2), nn.ReLU6())


@of(IMAGES)
def unfolded(num_outputs: int) -> nn.Module:
    return nn.Sequential(nn.Unfold(3), Apply(lambda x: x.mean(-1)), nn.Linear(18, num_outputs))


@of(FEATURES)
def layer_and_rms_norm(num_outputs: int) -> nn.Module:
    return dense(num_outputs, nn.LayerNorm(WIDTH), nn.GELU(), nn.RMSNorm(WIDTH))


@of(FEATURES)
def batch_norm(num_outputs: int) -> nn.Module:
    return dense(num_outputs, nn.BatchNorm1d(WIDTH), nn.ReLU(inplace=True))


@of(FEATURES)
def batch_norm_plain(num_outputs: int) -> nn.Module:
    return dense(num_outputs, nn.BatchNorm1d(WIDTH, affine=False), nn.Softplus())


@of(FEATURES)
def batch_norm_cumulative(num_outputs: int) -> nn.Module:
    return dense(num_outputs, nn.BatchNorm1d(WIDTH, momentum=None), nn.Tanh())


@of(FEATURES)
def batch_norm_without_statistics(num_outputs: int) -> nn.Module:
    return dense(num_outputs, nn.BatchNorm1d(WIDTH, track_running_stats=False), nn.Tanh())


@of(IMAGES)
def batch_norm_frozen(num_outputs: int) -> nn.Module:
    layer = nn.BatchNorm2d(4)
    layer.eval().train = lambda mode=True: layer  # type: ignore[method-assign, assignment, misc]
    return convolutional(num_outputs, layer)


@of(FEATURES)
class FunctionalBatchNorm(nn.Module):
    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, WIDTH), nn.Linear(WIDTH, num_outputs)
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("var", torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(F.batch_norm(self.first(x), self.mean, self.var, training=self.training))
        return result


@of(FEATURES)
def ghost_batch_norm(num_outputs: int) -> nn.Module:
    layer = nn.BatchNorm1d(WIDTH)
    ghost = Apply(lambda h: torch.cat([layer(part) for part in h.split(2)]) if layer.training else layer(h))
    ghost.layer = layer
    return dense(num_outputs, ghost)


@of(FEATURES)
def no_dropout(num_outputs: int) -> nn.Module:
    return dense(num_outputs, nn.SELU(), nn.AlphaDropout(0.0), nn.Dropout(0.0, inplace=True))


@of(IMAGES)
def no_channel_dropout(num_outputs: int) -> nn.Module:
    return convolutional(num_outputs, nn.Dropout2d(0.0), nn.FeatureAlphaDropout(0.0), nn.CELU())


@of(FEATURES)
def activations(num_outputs: int) -> nn.Module:
    return dense(
        num_outputs,
        nn.PReLU(WIDTH),
        nn.RReLU(0.2, 0.2),
        nn.LeakyReLU(),
        nn.Mish(),
        nn.Hardtanh(),
        nn.LogSigmoid(),
        nn.Softsign(),
        nn.Threshold(-0.5, 0.1),
    )


@of(FEATURES)
def in_place(num_outputs: int) -> nn.Module:
    return dense(num_outputs, Apply(lambda h: h.mul_(0.5).add_(1.0).clamp_(-1, 2)), nn.Sigmoid())


@of(FEATURES)
class Bilinear(nn.Module):
    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.both = nn.Bilinear(3, 3, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.both(*x.split(3, 1))
        return result


@of(TOKENS)
def embedding(num_outputs: int) -> nn.Module:
    return nn.Sequential(
        Apply(Tensor.long), nn.Embedding(7, 4, padding_idx=0), nn.Flatten(), nn.Linear(20, num_outputs)
    )


@of(TOKENS)
def embedding_sparse(num_outputs: int) -> nn.Module:
    return nn.Sequential(
        Apply(Tensor.long), nn.Embedding(7, 4, sparse=True), nn.Flatten(), nn.Linear(20, num_outputs)
    )


@of(TOKENS)
def embedding_bag(num_outputs: int) -> nn.Module:
    return nn.Sequential(Apply(Tensor.long), nn.EmbeddingBag(7, 4, mode="mean"), nn.Linear(4, num_outputs))


@of(TOKENS)
class TiedEmbedding(nn.Module):
    """The last layer shares the embedding's weight, as in language models."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.embedding, self.last = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.last.weight = self.embedding.weight
        self.num_outputs = num_outputs

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(torch.tanh(self.embedding(x.long()).mean(1)))[:, : self.num_outputs]
        return result


@of(FEATURES)
class Fourier(nn.Module):
    """Random features in a buffer, real transforms and a complex buffer."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.last, self.phase = nn.Linear(2 * WIDTH + 4, num_outputs), nn.Parameter(torch.randn(4))
        self.register_buffer("frequencies", torch.randn(6, WIDTH))
        self.register_buffer("filter", torch.randn(4, dtype=torch.complex128))

    def forward(self, x: Tensor) -> Tensor:
        angles = x @ self.frequencies
        spectrum = torch.fft.rfft(x) * self.filter * torch.exp(1j * self.phase)
        result: Tensor = self.last(torch.cat([angles.sin(), angles.cos(), spectrum.abs().to(x.dtype)], 1))
        return result


@of(IMAGES)
class SpectralConvolution(nn.Module):
    """A Fourier neural operator's layer, with a complex weight."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3, 6, 4, dtype=torch.complex128) / 6)
        self.last = nn.Linear(108, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.einsum("bixy,ioxy->boxy", torch.fft.rfft2(x.to(torch.float64)), self.weight)
        result: Tensor = self.last(torch.fft.irfft2(spectrum).flatten(1).to(x.dtype))
        return result


@of(FEATURES)
class CosineHead(nn.Module):
    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.first, self.prototypes = nn.Linear(6, WIDTH), nn.Parameter(torch.randn(num_outputs, WIDTH))
        self.log_scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        h = F.normalize(torch.relu(self.first(x)) + 0.1, dim=-1)
        return self.log_scale.exp() * h @ F.normalize(self.prototypes, dim=-1).mT


@of(FEATURES)
def transformer_decoder(num_outputs: int) -> nn.Module:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerDecoderLayer(3, 1, 6, dropout=0.0, batch_first=True)
            self.last = nn.Linear(6, num_outputs)

        def forward(self, x: Tensor) -> Tensor:
            x = x.view(len(x), 2, 3)
            result: Tensor = self.last(self.layer(x, x.flip(1)).flatten(1))
            return result

    return Decoder()
