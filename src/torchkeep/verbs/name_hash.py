"""The hash that a file's name carries, as torchvision and `torch.hub` name weights: ``resnet50-0676ba61.pth``."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

_HASH = re.compile(r"-([0-9a-f]{8,64})\.")  # as torch.hub looks for it
_DATE = re.compile(r"(19|20)\d{6}")
_SHARD_DIGITS = 16  # our own shards carry another digest
_PIECE_BYTES = 4 << 20


def hash_in(name: str) -> str | None:
    """The first digits of the sha256 that a file's name promises, or None.

    Example:
        >>> (
        ...     hash_in("mobilenet_v2-b0353104.pth"),
        ...     hash_in("model-00001-of-00002.safetensors"),
        ...     hash_in("run-20240131.pt"),
        ... )
        ('b0353104', None, None)
    """
    match = _HASH.search(name)
    if match is None or _DATE.fullmatch(match[1]):
        return None
    is_shard = len(match[1]) == _SHARD_DIGITS and name.endswith(".safetensors")
    return None if is_shard else match[1]


def fault_of_name(path: Path, expected: str, told: Callable[[int], object] | None = None) -> str | None:
    """Read a file and compare its sha256 with the digits in its name: the fault, or None.

    Args:
        path: The file.
        expected: The first digits.
        told: Called with the bytes of each piece that was read.
    """
    state = hashlib.sha256()
    buffer = memoryview(bytearray(_PIECE_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            state.update(buffer[:count])
            if told is not None:
                told(count)
    found = state.hexdigest()[: len(expected)]
    return None if found == expected else f"its sha256 begins with {found}, and its name says {expected}"
