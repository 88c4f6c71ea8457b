"""Optimizer state by parameter name: what torch keys by position, keyed by what survives a changed model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from torchkeep.live.memory import dtype_name
from torchkeep.live.modules import class_path, named_parameters
from torchkeep.tensors import TensorSpec

Identity: TypeAlias = tuple[str, str]  # entry, and the name in its module; "" for a parameter that is itself the entry
BuildTensor: TypeAlias = Callable[[TensorSpec, torch.Tensor | None], torch.Tensor]
Owners: TypeAlias = Mapping[str, "nn.Module | torch.Tensor"]


@dataclass(frozen=True, slots=True)
class OptimizerParameters:
    """An optimizer's parameters in torch's order: who each is, and the label that torch's ``param_names`` gives it."""

    parameters: tuple[torch.Tensor, ...]
    identities: tuple[Identity | None, ...]
    labels: tuple[str, ...] | None
    group_sizes: tuple[int, ...]

    def keys(self) -> tuple[tuple[str, ...], str]:
        """The key of each on disk, and where the keys came from: ``modules``, ``param_names`` or ``positions``."""
        if all(self.identities):
            return tuple(identity_keys(self.identities, entries_of(self.identities))), "modules"
        if self.labels is not None and not any(self.identities):
            return self.labels, "param_names"
        return tuple(identity_keys(self.identities, entries_of(self.identities))), "positions"


def entries_of(identities: Sequence[Identity | None]) -> set[str]:
    """The entries that parameters are in."""
    return {identity[0] for identity in identities if identity is not None}


def identity_keys(identities: Sequence[Identity | None], entries: set[str]) -> Iterator[str]:
    """Names; with the entry in front where there are several; ``#0``, ``#1``, ... for parameters that have none."""
    unnamed = 0
    for identity in identities:
        if identity is None:
            yield f"#{unnamed}"
            unnamed += 1
        else:
            entry, name = identity
            yield entry if not name else name if len(entries) == 1 else f"{entry}.{name}"


def optimizer_parameters(optimizer: torch.optim.Optimizer, owners: Owners) -> OptimizerParameters:
    """Find who an optimizer's parameters are, among the modules and tensors that are given with it."""
    held: dict[int, Identity] = {}
    for entry, owner in owners.items():
        named = named_parameters(owner) if isinstance(owner, nn.Module) else [("", owner)]
        for name, parameter in named:
            held.setdefault(id(parameter), (entry, name))
    groups = optimizer.param_groups
    parameters = tuple(parameter for group in groups for parameter in group["params"])
    labels = labels_of(groups)
    identities = tuple(held.get(id(parameter)) for parameter in parameters)
    return OptimizerParameters(parameters, identities, labels, tuple(len(group["params"]) for group in groups))


def labels_of(groups: Sequence[Mapping[str, Any]]) -> tuple[str, ...] | None:
    """torch's ``param_names`` of all groups in order; None where a group has none, or two are equal."""
    if not groups or not all("param_names" in group for group in groups):
        return None
    labels = tuple(str(name) for group in groups for name in group["param_names"])
    return labels if len(set(labels)) == len(labels) else None


def named_optimizer_state(
    optimizer: torch.optim.Optimizer, owners: Owners
) -> tuple[dict[str, object], dict[str, object]]:
    """torch's own state dict with names where it has positions, and the facts to record beside it."""
    known = optimizer_parameters(optimizer, owners)
    keys, origin = known.keys()
    state = dict(optimizer.state_dict())
    by_name = {keys[k] if isinstance(k, int) and k < len(keys) else k: value for k, value in state["state"].items()}
    members = list(zip(keys, known.identities, known.parameters, strict=True))
    facts: dict[str, object] = {
        "class": class_path(optimizer),
        "names": origin,
        "parameters": {key: list(identity) for key, identity, _ in members if identity is not None},
        "shapes": {key: list(parameter.shape) for key, _, parameter in members},
        "dtypes": {key: dtype_name(parameter.dtype) for key, _, parameter in members},
    }
    return {**state, "state": by_name, "param_groups": named_groups(state["param_groups"], keys)}, facts


def named_groups(groups: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[dict[str, Any]]:
    """An optimizer's groups with the keys of their parameters in place of these or of torch's positions."""
    following = iter(keys)
    return [
        {
            **{key: value for key, value in group.items() if key != "params"},
            "params": [next(following) for _ in group["params"]],
        }
        for group in groups
    ]
