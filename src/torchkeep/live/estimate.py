"""How many bytes a checkpoint will take, before the optimizer has made its state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

# Tensors like the parameter that an optimizer keeps for each one that trains, by class; torch.optim's own.
_MOMENTS = {
    "ASGD": 1,
    "Adadelta": 2,
    "Adagrad": 1,
    "Adam": 2,
    "AdamW": 2,
    "Adamax": 2,
    "Muon": 1,
    "NAdam": 2,
    "RAdam": 2,
    "Rprop": 2,
}
_UNKNOWN_MOMENTS = 2


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes of tensors of one checkpoint: of what training leaves as it is, and of what each save may write anew."""

    frozen_bytes: int
    changing_bytes: int


def estimate(state: Mapping[str, object]) -> Estimate:
    """Estimate from live objects; what is neither module, optimizer nor tensor is taken to be small.

    Example:
        >>> model = nn.Linear(100, 10, bias=False)
        >>> estimate({"model": model, "optimizer": torch.optim.Adam(model.parameters())})
        Estimate(frozen_bytes=0, changing_bytes=12000)
    """
    frozen_bytes = changing_bytes = 0
    counted: set[int] = set()
    for value in state.values():
        tensors = list(value.state_dict(keep_vars=True).values()) if isinstance(value, nn.Module) else [value]
        for tensor in tensors:
            if not isinstance(tensor, torch.Tensor) or id(tensor) in counted:
                continue
            counted.add(id(tensor))
            if isinstance(tensor, nn.Parameter) and not tensor.requires_grad:
                frozen_bytes += tensor.nbytes
            else:
                changing_bytes += tensor.nbytes
        if isinstance(value, torch.optim.Optimizer):
            changing_bytes += sum(_bytes_for(value, parameter, group) for parameter, group in _trained(value))
    return Estimate(frozen_bytes, changing_bytes)


def _trained(optimizer: torch.optim.Optimizer) -> list[tuple[torch.Tensor, Mapping[str, object]]]:
    return [(each, group) for group in optimizer.param_groups for each in group["params"] if each.requires_grad]


def _bytes_for(optimizer: torch.optim.Optimizer, parameter: torch.Tensor, group: Mapping[str, object]) -> int:
    """What it holds for a parameter, or will hold after its first step."""
    held = optimizer.state.get(parameter)
    if held:
        return sum(each.nbytes for each in held.values() if isinstance(each, torch.Tensor))
    kind = type(optimizer).__name__
    if kind == "SGD":
        return parameter.nbytes if group.get("momentum") else 0
    if kind == "RMSprop":
        return parameter.nbytes * (1 + bool(group.get("momentum")) + bool(group.get("centered")))
    return parameter.nbytes * (_MOMENTS.get(kind, _UNKNOWN_MOMENTS) + bool(group.get("amsgrad")))
