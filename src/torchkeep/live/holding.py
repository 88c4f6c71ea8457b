"""Whether an object is part of what a state holds: it is there itself, or shares memory with something that is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from torchkeep.live.modules import storage_of, unwrap
from torchkeep.tensors import walk


def not_held(objects: Sequence[object], state: Mapping[str, object]) -> list[object]:
    """The objects that a state holds nothing of.

    Example:
        >>> model, other = nn.Sequential(nn.Linear(2, 1)), nn.Linear(2, 1)
        >>> not_held([model[0], model.state_dict(), other], {"model": model})
        [Linear(in_features=2, out_features=1, bias=True)]
    """
    held = {each for value in state.values() for each in _marks(value)}
    held |= {id(part) for value in state.values() if isinstance(value, nn.Module) for part in value.modules()}
    return [each for each in objects if held.isdisjoint(_marks(each))]


def _marks(value: object) -> Iterator[int]:
    """What two objects have in common of which one is part of the other: addresses of objects and of memory."""
    if isinstance(value, nn.Module):
        yield id(unwrap(value))
        yield from map(storage_of, (*value.parameters(), *value.buffers()))
        return
    yield id(value)
    for _, leaf in walk(value):
        if isinstance(leaf, torch.Tensor):
            yield storage_of(leaf)
