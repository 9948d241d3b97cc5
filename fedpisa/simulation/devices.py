"""Where a run computes."""

from __future__ import annotations

import torch


def resolve_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` is the first GPU if there is one, otherwise the CPU.

    Raises
    ------
    ValueError
        If the device is not available.

    Examples
    --------
    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).tolist()  # the device meta has no values
    except (RuntimeError, AssertionError, ImportError) as error:
        cause = (" ".join(str(error).split()) or type(error).__name__).split(". ")[0][:150]
        raise ValueError(
            f'device {name!r} is not available ({cause}): use device = "cpu" or "auto"'
        ) from error
    return device
