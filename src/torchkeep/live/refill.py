"""A plain dict that a run keeps: saved as it is at each save, and refilled in place by a resume."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch


class LiveDict:
    """A live dict as something with a state.

    Example:
        >>> progress = {"epoch": 3}
        >>> LiveDict(progress).load_state_dict({"epoch": 7})
        >>> progress
        {'epoch': 7}
    """

    def __init__(self, values: MutableMapping[Any, Any]) -> None:
        self._values = values

    def state_dict(self) -> MutableMapping[Any, Any]:
        """The dict itself."""
        return self._values

    def load_state_dict(self, state: Mapping[Any, Any], /) -> None:
        """Make the dict equal to a saved one."""
        _refill(self._values, state)


def _refill(live: MutableMapping[Any, Any], saved: Mapping[Any, Any]) -> None:
    """Tensors of equal dtype and shape, lists and mappings inside keep their identity."""
    for key in [key for key in live if key not in saved]:
        del live[key]
    for key, value in saved.items():
        held = live.get(key)
        if isinstance(held, MutableMapping) and isinstance(value, Mapping):
            _refill(held, value)
        elif isinstance(held, list) and isinstance(value, list):
            held[:] = value
        elif isinstance(held, torch.Tensor) and isinstance(value, torch.Tensor) and _fits(held, value):
            with torch.no_grad():
                held.copy_(value)
        else:
            live[key] = value


def _fits(held: torch.Tensor, value: torch.Tensor) -> bool:
    return (held.shape, held.dtype) == (value.shape, value.dtype)
