"""Text that a language model writes: each token is drawn from the model's probabilities after those before it.

Shapes: ``B`` texts, ``T`` tokens of a text, ``V`` tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def continued(
    logits: Callable[[Tensor], Tensor],
    prompts_BT: Tensor,
    length: int,
    window: int,
    generator: torch.Generator,
) -> Tensor:
    """Return prompts and the ``length`` tokens that a model writes after them, ``(B, T + length)``.

    ``P(y_t = v | y_<t) = softmax(logits)_v``, where the model sees the last ``window`` tokens.

    Parameters
    ----------
    logits
        Function from tokens ``(B, T')`` to the logits ``(B, T', V)`` of the next tokens.
    prompts_BT
        The beginnings, of the same length.
    length
        Number of tokens to write.
    window
        Longest text that the model takes.
    generator
        Generator on the CPU that draws the tokens.

    Examples
    --------
    >>> def counting(tokens):
    ...     return 100.0 * torch.nn.functional.one_hot((tokens + 1) % 5, 5)
    >>> continued(counting, torch.tensor([[0, 1]]), 4, 2, torch.Generator())
    tensor([[0, 1, 2, 3, 4, 0]])
    """
    texts_BT = prompts_BT
    for _ in range(length):
        last_BV = logits(texts_BT[:, -window:])[:, -1]
        probs_BV = last_BV.double().softmax(-1).cpu()
        drawn_B1 = torch.multinomial(probs_BV, 1, generator=generator)
        texts_BT = torch.cat([texts_BT, drawn_B1.to(texts_BT.device)], 1)
    return texts_BT
