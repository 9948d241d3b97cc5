"""Encoding of named tensors and a description: safetensors with the description as JSON in its header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fedpisa.storage.files import DamagedFileError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT: Final = 1


def encode(tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> bytes:
    """Return the bytes of a file with these tensors.

    Parameters
    ----------
    tensors
        Tensors by name; the file does not keep their order.
    description
        Values that JSON can express; the entry ``format`` is `FORMAT`.

    Examples
    --------
    >>> import torch
    >>> content = encode({"w": torch.eye(2)[:, 1]}, {"format": FORMAT, "round": 3})
    >>> decode(content, Path("w.safetensors"))
    ({'format': 1, 'round': 3}, {'w': tensor([0., 1.])})
    """
    from safetensors.torch import save

    # safetensors accepts neither views nor tensors that share memory; only those are copied.
    owned: dict[str, Tensor] = {}
    places = set[int]()
    for name, value in tensors.items():
        here = value.detach().cpu()
        is_whole = (
            here.is_contiguous() and here.untyped_storage().nbytes() == here.numel() * here.element_size()
        )
        owned[name] = here if is_whole and here.data_ptr() not in places else here.clone().contiguous()
        places.add(here.data_ptr())
    return save(owned, metadata={"about": json.dumps(description)})


def decode(content: bytes, file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the description and the tensors of a file's bytes; ``file`` is its path for error messages.

    Raises
    ------
    DamagedFileError
        If the bytes are not those of such a file. A changed byte within a tensor is not detected.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(content)
        length = int.from_bytes(content[:8], "little")
        description = dict(json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["about"]))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(file) from error
    return description, tensors


def require_format(description: Mapping[str, Any], file: Path) -> None:
    """Raise a ValueError if the description of a file names another format than `FORMAT`."""
    if description["format"] != FORMAT:
        raise ValueError(
            f"{file} has the format {description['format']}, but this version of fedpisa reads format {FORMAT}: "
            "use the version that wrote it"
        )
