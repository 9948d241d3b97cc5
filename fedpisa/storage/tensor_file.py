"""The content of a file of named tensors: safetensors, whose metadata holds a description as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

if TYPE_CHECKING:
    from torch import Tensor

FORMAT: Final = 1


@final
class DamagedFileError(ValueError):
    """The content of a file differs from what was written.

    Parameters
    ----------
    file
        The file.
    """

    def __init__(self, file: Path) -> None:
        super().__init__(f"{file} is damaged")


def encode(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """Return the content of a file.

    Parameters
    ----------
    tensors
        The tensors by name; safetensors sorts them.
    about
        The description, which JSON can express; its ``format`` is `FORMAT`.

    Examples
    --------
    >>> import torch
    >>> content = encode({"w": torch.eye(2)[:, 1]}, {"format": FORMAT, "round": 3})
    >>> decode(content, Path("w.safetensors"))
    ({'format': 1, 'round': 3}, {'w': tensor([0., 1.])})
    """
    from safetensors.torch import save

    # Copies, because safetensors takes neither views nor tensors that share memory.
    own = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    return save(own, metadata={"about": json.dumps(about)})


def decode(content: bytes, file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the description and the tensors of a file with this content.

    Raises
    ------
    DamagedFileError
        If the content is not that of such a file. A changed byte within a tensor goes unnoticed: a digest shows it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(content)
        length = int.from_bytes(content[:8], "little")
        about = dict(json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["about"]))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(file) from error
    return about, tensors


def require_format(about: Mapping[str, Any], file: Path) -> None:
    """Raise a ValueError if another version of fedpisa wrote a file with this description."""
    if about["format"] != FORMAT:
        raise ValueError(f"{file} has the format {about['format']}, and this fedpisa reads {FORMAT}")
