"""Recurrent models whose state can be given to them, and AWD-LSTM.

Shapes: ``B`` sequences of ``T`` tokens, ``V`` tokens of the vocabulary, ``D`` features of a token, ``H`` hidden units,
``L`` layers, ``Z`` numbers of a sequence's state.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from fedpisa.typing import Decay, PositiveInt


class Steps(NamedTuple):
    """What a recurrent module returns if it is given a state: ``module(x, state_BZ)``.

    Such a module has an integer ``state_size``, which is ``Z``.

    Parameters
    ----------
    outputs
        The same as ``module(x)`` for a state of zero.
    state_BZ
        The state after the last position.
    hidden_BTH
        The outputs of the last recurrent layer.
    dropped_BTH
        The same after dropout.
    """

    outputs: Tensor
    state_BZ: Tensor
    hidden_BTH: Tensor
    dropped_BTH: Tensor


def packed(state: tuple[Tensor, Tensor]) -> Tensor:
    """Return an LSTM's hidden and cell state, each ``(L, B, H)``, as one tensor ``(B, 2 L H)``.

    Examples
    --------
    >>> state = torch.arange(4.0).reshape(2, 1, 1, 2)
    >>> packed(tuple(state)), torch.equal(torch.stack(unpacked(packed(tuple(state)), 1)), state)
    (tensor([[0., 1., 2., 3.]]), True)
    """
    return torch.stack(state).movedim(2, 0).flatten(1)


def unpacked(state_BZ: Tensor, layers: int) -> tuple[Tensor, Tensor]:
    """Return the hidden and the cell state, each ``(L, B, H)``, of a state `packed`."""
    hidden = state_BZ.shape[1] // (2 * layers)
    h_LBH, c_LBH = state_BZ.reshape(-1, 2, layers, hidden).permute(1, 2, 0, 3).unbind()
    return h_LBH.contiguous(), c_LBH.contiguous()


def awd_lstm(
    shape: tuple[int, ...],
    num_outputs: int,
    *,
    embed: PositiveInt = 400,
    hidden: PositiveInt = 1150,
    layers: PositiveInt = 3,
    embedding_dropout: Decay = 0.1,
    input_dropout: Decay = 0.4,
    hidden_dropout: Decay = 0.25,
    output_dropout: Decay = 0.4,
    weight_dropout: Decay = 0.5,
) -> nn.Module:
    """AWD-LSTM [1]_: LSTM layers with dropout of recurrent weights, tied to the embedding.

    The last layer has ``embed`` hidden units, the others ``hidden``. All dropout but that of words and weights has one
    mask for all positions of a sequence. Recurrent layers have ``4 H (D + H + 2)`` parameters each, the embedding
    ``V D`` and the last layer's bias ``V``.

    Parameters
    ----------
    shape
        ``(T,)``, length of a sequence.
    num_outputs
        Size V of the vocabulary.
    embed
        Features D of a token.
    hidden
        Hidden units H of all layers but the last.
    layers
        Number of LSTM layers.
    embedding_dropout
        Share of the vocabulary's words that are zero in a mini-batch.
    input_dropout, hidden_dropout, output_dropout
        Share of features that are zero before the first layer, between layers, and after the last one.
    weight_dropout
        Share of the recurrent weights ``h -> h`` that are zero in a mini-batch.

    Raises
    ------
    ValueError
        If a sample is not a sequence.

    References
    ----------
    .. [1] Merity, Keskar, Socher, "Regularizing and Optimizing LSTM Language Models", ICLR 2018, arXiv 1708.02182.

    Examples
    --------
    >>> sum(p.numel() for p in awd_lstm((70,), 10_000).parameters())
    24221600
    """
    sequence_length("awd-lstm", shape)
    sizes = (embed, *[hidden] * (layers - 1), embed)
    dropouts = (embedding_dropout, input_dropout, hidden_dropout, output_dropout, weight_dropout)
    return _AWDLSTM(num_outputs, sizes, dropouts)


@final
class _AWDLSTM(nn.Module):
    def __init__(self, tokens: int, sizes: tuple[int, ...], dropouts: tuple[float, ...]) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, sizes[0])
        self.rnns = nn.ModuleList(
            nn.LSTM(below, above, batch_first=True) for below, above in itertools.pairwise(sizes)
        )
        self.head = nn.Linear(sizes[-1], tokens)
        self.head.weight = self.embed.weight
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)
        nn.init.zeros_(self.head.bias)
        # Layers, so that their masks are functions of the step's key.
        words, inputs, hidden, outputs, weights = (nn.Dropout(share) for share in dropouts)
        self.drop_words, self.drop_inputs, self.drop_hidden = words, inputs, hidden
        self.drop_outputs, self.drop_weights = outputs, weights
        self.sizes, self.state_size = sizes[1:], 2 * sum(sizes[1:])

    def forward(self, x: Tensor, state_BZ: Tensor | None = None) -> Tensor | Steps:
        """Return the logits ``(B, T, V)`` for tokens ``(B, T)``; given a state, all of `Steps`."""
        weight_VD = self.embed.weight
        table_VD = weight_VD * self.drop_words(torch.ones_like(weight_VD[:, :1]))
        out_BTH = _locked(self.drop_inputs, F.embedding(x, table_VD))
        start_BZ = state_BZ
        if start_BZ is None:
            # Made of the input: PyTorch adds into the state, which must be stacked if the input of stacked clients is.
            start_BZ = torch.zeros_like(out_BTH[:, 0, :1]).expand(-1, self.state_size)
        parts = torch.split(start_BZ.to(out_BTH), [2 * size for size in self.sizes], 1)
        after, hidden_BTH = [], out_BTH
        for number, (rnn, part_BZ) in enumerate(zip(self.rnns, parts, strict=True)):
            dropped = {"weight_hh_l0": self.drop_weights(rnn.weight_hh_l0)}
            hidden_BTH, state = functional_call(rnn, dropped, (out_BTH, unpacked(part_BZ, 1)))
            after.append(packed(state))
            last = number == len(self.rnns) - 1
            out_BTH = _locked(self.drop_outputs if last else self.drop_hidden, hidden_BTH)
        logits_BTV: Tensor = self.head(out_BTH)
        return logits_BTV if state_BZ is None else Steps(logits_BTV, torch.cat(after, 1), hidden_BTH, out_BTH)


def _locked(drop: nn.Dropout, x_BTD: Tensor) -> Tensor:
    """Return dropout with one mask for all positions of a sequence."""
    dropped: Tensor = x_BTD * drop(torch.ones_like(x_BTD[:, :1]))
    return dropped


def sequence_length(model: str, shape: tuple[int, ...]) -> int:
    """Return the length of a sequence of tokens."""
    if len(shape) != 1:
        raise ValueError(
            f"model {model!r} needs sequences of tokens (length,), and a sample has shape {shape}: take text, such as "
            "dataset = 'tinyshakespeare'"
        )
    return shape[0]
