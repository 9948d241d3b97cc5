"""Language modelling: the next token at each position of a sequence.

Shapes: ``B`` sequences of ``T`` tokens, ``V`` tokens of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from fedpisa.datasets.base import IGNORED
from fedpisa.tasks.criterion import Criterion
from fedpisa.tasks.losses import Loss
from fedpisa.tasks.measures import ACCURACY, LOSS, Measure
from fedpisa.tasks.recurrent import Recurrence
from fedpisa.typing import NonNegativeFloat, NonNegativeInt


def language(
    *,
    loss_reduction: Literal["sequence", "token"] = "sequence",
    sample_tokens: NonNegativeInt = 400,
    carry_state: Literal["none", "round", "epoch"] = "none",
    activation_penalty: NonNegativeFloat = 0.0,
    slowness_penalty: NonNegativeFloat = 0.0,
) -> Criterion:
    r"""Cross-entropy of the next token at each position of a sequence; the target -100 does not count.

    With ``n_b`` counted positions of the ``T`` positions, the loss of a sequence is
    ``(1 / n_b) sum_t -log p(y_t)`` for ``sequence``, and ``(1 / T) sum_t -log p(y_t)`` for ``token``. They differ
    for padded sequences only. The perplexity is ``exp`` of the mean over all counted tokens of a set.

    Parameters
    ----------
    loss_reduction
        What counts the same: each ``sequence``, or each ``token``.
    sample_tokens
        Number of tokens of each text in the run's ``samples.txt``, which the final model writes; 0 for no texts.
    carry_state
        Where a recurrent model's state goes on. ``none``: mini-batches are drawn at random, and each window
        begins with a state of zero. ``round`` and ``epoch``: each client reads its text in order, see
        `fedpisa.clients.batches.Streams`, and the state that ends a window begins the next one, without a gradient from
        one to the other; the state is zero at the beginning of a round, or of the client's text. A client that was not
        in the round before begins with zero, too. Evaluations then pass the state through each text of a set, from zero
        at its beginning, and wherever a window does not follow the one before it. They take longer, because only
        different texts are evaluated side by side: about eight times as long for a single text on a CPU.
    activation_penalty
        Factor ``a`` of the mean square of the recurrent outputs after dropout, which is added to each loss [1]_.
    slowness_penalty
        Factor ``b`` of the mean square of the differences between successive recurrent outputs, likewise.

    References
    ----------
    .. [1] Merity, McCann, Socher, "Revisiting Activation Regularization for Language RNNs", arXiv 1708.01009, 2017.
    """
    is_plain = carry_state == "none" and not activation_penalty and not slowness_penalty
    recurrence = None if is_plain else Recurrence(carry_state, activation_penalty, slowness_penalty)
    return Language(loss_reduction, sample_tokens, recurrence)


@final
@dataclass(frozen=True)
class Language(Criterion):
    """Cross-entropy of the next token; see `language`.

    Examples
    --------
    >>> import torch
    >>> criterion, outputs, y = Language(), torch.zeros(1, 2, 4), torch.tensor([[3, -100]])
    >>> criterion.loss(outputs, y).exp()
    tensor([4.])
    >>> scores = criterion.sample_scores(outputs, y)
    >>> round(criterion.combine({"loss": 0.0, **{name: float(s) for name, s in scores.items()}})["perplexity"], 6)
    4.0
    """

    loss_reduction: Literal["sequence", "token"] = "sequence"
    sample_tokens: int = 400
    recurrence: Recurrence | None = None

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Perplexity, loss, accuracy of the next token, and bits per token."""
        bits = Measure("bits", "bits per token", higher_is_better=False)
        return (Measure("perplexity", "perplexity", higher_is_better=False), LOSS, ACCURACY, bits)

    def closed_form(self, num_outputs: int) -> Loss | None:
        """Return ``None``: the closed forms have one target for each sample."""
        return None

    def check(self, y: Tensor) -> None:
        """Refuse targets that are not a sequence of tokens for each sample."""
        if y.is_floating_point() or y.dim() < 2:
            raise ValueError(
                "task = 'language' needs a token for each position of a sequence, and the data have one target for "
                "each sample: take classification or regression"
            )

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return each sequence's loss ``(B,)`` from the logits ``(B, T, V)``."""
        return _nll(outputs, y).flatten(1).sum(1) / self._weight(y)

    def _weight(self, y: Tensor) -> Tensor | int:
        if self.loss_reduction == "token":
            return y[0].numel()
        return (y != IGNORED).flatten(1).sum(1).clamp(min=1)

    def sample_scores(self, outputs: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Return each sequence's sum of negative log-likelihoods, right tokens and counted tokens, each ``(B,)``."""
        counted = y != IGNORED
        right = (outputs.argmax(-1) == y) & counted
        return {
            "nll": _nll(outputs, y).flatten(1).sum(1),
            "right": right.flatten(1).sum(1).to(outputs.dtype),
            "tokens": counted.flatten(1).sum(1).to(outputs.dtype),
        }

    def combine(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """Return loss, perplexity, accuracy and bits, of all tokens alike."""
        nll = means["nll"] / means["tokens"]
        with np.errstate(over="ignore"):
            perplexity = np.exp(nll) if isinstance(nll, np.ndarray) else float(np.exp(nll))
        return {
            "loss": means["loss"],
            "perplexity": perplexity,
            "accuracy": means["right"] / means["tokens"],
            "bits": nll / math.log(2),
        }

    def set_scores(self) -> Callable[[Tensor, Tensor], Mapping[str, float]] | None:
        """Return ``None``: all measures are means over tokens."""
        return None


def _nll(outputs: Tensor, y: Tensor) -> Tensor:
    """Return each position's negative log-likelihood ``(B, T)``, 0 where none counts."""
    # With the tokens last and in one row after the other, the softmax takes half the time.
    nll = F.cross_entropy(outputs.flatten(0, -2), y.flatten(), ignore_index=IGNORED, reduction="none")
    return nll.view(y.shape)
