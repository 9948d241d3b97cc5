"""Named random streams: every random choice of a run comes from its seed, and from nothing else.

A stream is named by a word and some counters (round, client), so that what is drawn does not depend on
the order in which an engine does its work.
"""

from __future__ import annotations

import hashlib

import numpy as np


def stream_key(seed: int, name: str, *counters: int) -> int:
    """Return the 128-bit key of the stream ``name`` with these ``counters``.

    Examples
    --------
    >>> stream_key(0, "sampling", 3) == stream_key(0, "sampling", 3)
    True
    >>> stream_key(0, "sampling", 3) == stream_key(0, "sampling", 4)
    False
    """
    text = ":".join([str(seed), name, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def generator(seed: int, name: str, *counters: int) -> np.random.Generator:
    """Return the NumPy generator of a named stream.

    Parameters
    ----------
    seed
        The run's seed.
    name
        What is drawn: ``partition``, ``sampling``, ``batches``, ...
    counters
        What tells draws of one kind apart, such as the server round or the client.

    Examples
    --------
    >>> int(generator(0, "partition").integers(10)) == int(generator(0, "partition").integers(10))
    True
    """
    return np.random.Generator(np.random.Philox(key=stream_key(seed, name, *counters)))


def torch_seed(seed: int, name: str, *counters: int) -> int:
    """Return a 63-bit seed for ``torch.manual_seed`` from a named stream.

    Examples
    --------
    >>> 0 <= torch_seed(0, "initial-weights") < 2**63
    True
    """
    return stream_key(seed, name, *counters) >> 65
