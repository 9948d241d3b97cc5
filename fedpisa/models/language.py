"""Models of sequences of tokens: the outputs at each position are the logits of the next token.

Shapes: ``B`` sequences of ``T`` tokens, ``V`` tokens of the vocabulary, ``D`` features of a token, ``H`` hidden units,
``L`` layers.
"""

from __future__ import annotations

from typing import Annotated, final

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fedpisa.models.recurrent import Steps, packed, sequence_length, unpacked
from fedpisa.typing import PositiveInt


def bigram(shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """Table of the next token's logits for each token, starting at zero: ``V^2`` parameters.

    Its loss is convex, and strictly so with an l2 term. Its optimum without one has the frequencies of the pairs in the
    training text.

    Parameters
    ----------
    shape
        ``(T,)``, length of a sequence.
    num_outputs
        Size V of the vocabulary.

    Raises
    ------
    ValueError
        If a sample is not a sequence.

    Examples
    --------
    >>> model = bigram((8,), 65)
    >>> sum(p.numel() for p in model.parameters()), model(torch.zeros(2, 8, dtype=torch.int64)).shape
    (4225, torch.Size([2, 8, 65]))
    """
    sequence_length("bigram", shape)
    table = nn.Embedding(num_outputs, num_outputs)
    nn.init.zeros_(table.weight)
    return table


def lstm(
    shape: tuple[int, ...],
    num_outputs: int,
    *,
    embed: PositiveInt = 16,
    hidden: PositiveInt = 128,
    layers: PositiveInt = 1,
    lstm_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    tied: bool = False,
) -> nn.Module:
    """LSTM [1]_ between an embedding of the tokens and a linear layer; every window begins with a state of zero.

    With the default keys and 65 characters it has 84,177 parameters: ``V D`` of the embedding, ``4 H (D + H + 2)`` of
    the LSTM and ``(H + 1) V`` of the last layer.

    Parameters
    ----------
    shape
        ``(T,)``, length of a sequence.
    num_outputs
        Size V of the vocabulary.
    embed
        Features D of a token.
    hidden
        Hidden units H of a layer.
    layers
        Number of LSTM layers.
    lstm_dropout
        Share of values that are dropped in training, after the embedding and each layer.
    tied
        Whether the embedding and the last layer have the same weights [2]_; ``embed`` is then ``hidden``.

    Raises
    ------
    ValueError
        If a sample is not a sequence, or ``tied`` is set and ``embed`` is not ``hidden``.

    References
    ----------
    .. [1] Hochreiter, Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8), 1997.
    .. [2] Press, Wolf, "Using the Output Embedding to Improve Language Models", EACL 2017, arXiv 1608.05859.

    Examples
    --------
    >>> sum(p.numel() for p in lstm((64,), 65).parameters())
    84177
    """
    sequence_length("lstm", shape)
    if tied and embed != hidden:
        raise ValueError(
            f"model 'lstm' with tied = true needs embed = hidden, not {embed} and {hidden}: set embed = {hidden}"
        )
    return _LSTM(num_outputs, embed, hidden, layers, lstm_dropout, tied)


def gpt(
    shape: tuple[int, ...],
    num_outputs: int,
    *,
    width: PositiveInt = 64,
    heads: PositiveInt = 4,
    layers: PositiveInt = 2,
) -> nn.Module:
    """Small transformer in the manner of GPT-2 [1]_: learned positions, and layer normalisation before each sublayer.

    A position attends to itself and those before it. Weights start from a normal distribution with standard deviation
    0.02; there are no biases beside those of the normalisations. With the default keys, windows of 64 and 65 characters
    the network has 111,360 parameters: ``(2 V + T) D`` of tokens, positions and the last layer, ``12 D^2 + 4 D`` of
    each layer, and ``2 D`` of the last normalisation.

    Parameters
    ----------
    shape
        ``(T,)``, length of a sequence, which is also the longest that the model can take.
    num_outputs
        Size V of the vocabulary.
    width
        Features D of a token, a multiple of ``heads``.
    heads
        Number of attention heads of a layer.
    layers
        Number of layers, each with attention and a hidden layer of ``4 D`` units.

    Raises
    ------
    ValueError
        If a sample is not a sequence, or ``width`` is not a multiple of ``heads``.

    References
    ----------
    .. [1] Radford, Wu, Child, Luan, Amodei, Sutskever, "Language Models are Unsupervised Multitask Learners", 2019.

    Examples
    --------
    >>> sum(p.numel() for p in gpt((64,), 65).parameters())
    111360
    """
    length = sequence_length("gpt", shape)
    if width % heads:
        raise ValueError(f"model 'gpt' cannot split width = {width} among heads = {heads}: take a multiple")
    return _GPT(num_outputs, length, width, heads, layers)


@final
class _LSTM(nn.Module):
    def __init__(self, tokens: int, embed: int, hidden: int, layers: int, dropout: float, tied: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, embed)
        self.drop = nn.Dropout(dropout)
        self.rnn = nn.LSTM(embed, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.head = nn.Linear(hidden, tokens)
        if tied:
            self.head.weight = self.embed.weight
        self.state_size = 2 * layers * hidden

    def forward(self, x: Tensor, state_BZ: Tensor | None = None) -> Tensor | Steps:
        """Return the logits ``(B, T, V)`` for tokens ``(B, T)``; given a state, all of `Steps`."""
        x_BTD = self.drop(self.embed(x))
        layers, hidden = self.rnn.num_layers, self.rnn.hidden_size
        if state_BZ is None:
            # Made of the input: PyTorch adds into the state, which must be stacked if the input of stacked clients is.
            zero_LBH = torch.zeros_like(x_BTD[:, 0, :1]).expand(layers, -1, hidden).contiguous()
            start = (zero_LBH, zero_LBH)
        else:
            start = unpacked(state_BZ.to(x_BTD), layers)
        h_BTH, after = self.rnn(x_BTD, start)
        dropped_BTH = self.drop(h_BTH)
        logits_BTV: Tensor = self.head(dropped_BTH)
        if state_BZ is None:
            return logits_BTV
        return Steps(logits_BTV, packed(after), h_BTH, dropped_BTH)


@final
class _GPT(nn.Module):
    def __init__(self, tokens: int, length: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(tokens, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, tokens, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(B, T, V)`` for tokens ``(B, T)``."""
        h_BTD = self.tokens(x) + self.positions.weight[: x.shape[-1]]
        logits_BTV: Tensor = self.head(self.norm(self.blocks(h_BTD)))
        return logits_BTV


@final
class _Block(nn.Module):
    """``h + attention(norm(h))``, then ``h + mlp(norm(h))``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width, bias=False)
        self.attended = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width, bias=False), nn.GELU(), nn.Linear(4 * width, width, bias=False)
        )

    def forward(self, h_BTD: Tensor) -> Tensor:
        """Return the layer's output ``(B, T, D)``."""
        parts = self.queries_keys_values(self.norm_1(h_BTD)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h_BTD = h_BTD + self.attended(mixed.transpose(-3, -2).flatten(-2))
        out_BTD: Tensor = h_BTD + self.mlp(self.norm_2(h_BTD))
        return out_BTD
