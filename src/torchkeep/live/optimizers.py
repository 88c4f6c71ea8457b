"""Optimizer state by parameter name: what torch keys by position, keyed by what survives a changed model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from torchkeep.live.memory import dtype_name, spec_of
from torchkeep.live.modules import class_path, named_parameters
from torchkeep.tensors import TensorSpec, walk

Identity: TypeAlias = tuple[str, str]  # entry, and the name in its module; "" for a parameter that is itself the entry
BuildTensor: TypeAlias = Callable[[TensorSpec, torch.Tensor | None], torch.Tensor]
Owners: TypeAlias = Mapping[str, "nn.Module | torch.Tensor"]


@dataclass(frozen=True, slots=True)
class OptimizerParameters:
    """An optimizer's parameters in torch's order: who each is, and the label that torch's ``param_names`` gives it."""

    parameters: tuple[torch.Tensor, ...]
    identities: tuple[Identity | None, ...]
    labels: tuple[str, ...] | None

    def keys(self) -> tuple[tuple[str, ...], str]:
        """The key of each on disk, and where the keys came from: ``modules``, ``param_names`` or ``positions``."""
        if all(self.identities):
            return tuple(_identity_keys(self.identities, _entries(self.identities))), "modules"
        if self.labels is not None and not any(self.identities):
            return self.labels, "param_names"
        return tuple(_identity_keys(self.identities, _entries(self.identities))), "positions"


def _entries(identities: Sequence[Identity | None]) -> set[str]:
    return {identity[0] for identity in identities if identity is not None}


def _identity_keys(identities: Sequence[Identity | None], entries: set[str]) -> Iterator[str]:
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
    labels = _labels(groups)
    return OptimizerParameters(parameters, tuple(held.get(id(parameter)) for parameter in parameters), labels)


def _labels(groups: Sequence[Mapping[str, Any]]) -> tuple[str, ...] | None:
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


@dataclass(frozen=True, slots=True)
class SavedOptimizer:
    """An optimizer's state in a file beside the live one it is for: both sides under keys that agree.

    Attributes:
        keys: The saved parameters' keys, in their order.
        live_keys: The live parameters' keys, in torch's order.
        identities: Who each live parameter is.
        state: Per saved key its state tree; what other optimizers keep beside is under its own key.
        groups: The saved groups, their ``params`` as keys.
        tree: What the file has, with `TensorSpec` leaves.
        specs: Per saved key the parameter at the save; None where nothing says it.
        dtypes: Per saved key the parameter's dtype at the save, where it was recorded.
        note: How the two sides were brought together, if that is not by name.
        mismatch: Why they cannot be.
    """

    keys: tuple[str, ...]
    live_keys: tuple[str, ...]
    identities: Mapping[str, Identity]
    state: Mapping[object, object]
    groups: tuple[Mapping[str, Any], ...]
    tree: Mapping[str, object]
    specs: Mapping[str, TensorSpec | None]
    dtypes: Mapping[str, str]
    note: str
    mismatch: str

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor of the state."""
        return (leaf for _, leaf in walk(self.tree) if isinstance(leaf, TensorSpec))


def read_optimizer(
    tree: Mapping[str, Any], facts: Mapping[str, Any], live: OptimizerParameters, here: str
) -> SavedOptimizer:
    """Bring a saved optimizer and a live one together: by who the parameters are, by torch's names, or by position.

    Args:
        tree: What the file has, with `TensorSpec` leaves.
        facts: What our record says beside it; empty for other formats.
        live: The parameters of the optimizer it is for.
        here: The class of that optimizer.
    """
    groups = tuple(group for group in tree["param_groups"] if isinstance(group, Mapping))
    ids = [each for group in groups for each in group.get("params", ())]
    recorded = dict(facts.get("parameters") or {})
    identities = [_identity(recorded.get(each)) if isinstance(each, str) else None for each in ids]
    keys, live_keys, note, mismatch = _bring_together(identities, _labels(groups), live)
    renamed = dict(zip(ids, keys, strict=True))
    state = tree.get("state")
    by_key = {renamed.get(key, key): value for key, value in state.items()} if isinstance(state, Mapping) else {}
    shapes, dtypes = ({renamed[k]: v for k, v in dict(facts.get(f) or {}).items() if k in renamed} for f in _FACTS)
    begin, own_groups = 0, []
    for group in groups:
        count = len(group.get("params", ()))
        own_groups.append({**group, "params": keys[begin : begin + count]})
        begin += count
    saved_class = facts.get("class")
    if isinstance(saved_class, str) and saved_class != here:
        mismatch = mismatch or f"saved from {saved_class}, and this is {here}: one's state is not the other's"
    return SavedOptimizer(
        tuple(keys),
        tuple(live_keys),
        {key: identity for key, identity in zip(live_keys, live.identities, strict=True) if identity is not None},
        by_key,
        tuple(own_groups),
        tree,
        _specs(keys, by_key, shapes, dict(zip(live_keys, live.parameters, strict=True))),
        dtypes,
        note,
        mismatch,
    )


_FACTS = ("shapes", "dtypes")
_BY_POSITION = "positions only on one side: taken in the order of the optimizer's parameters"


def _identity(recorded: object) -> Identity | None:
    return (str(recorded[0]), str(recorded[1])) if isinstance(recorded, list) and len(recorded) == 2 else None  # noqa: PLR2004 - entry and name


def _bring_together(
    saved: Sequence[Identity | None], labels: tuple[str, ...] | None, live: OptimizerParameters
) -> tuple[list[str], list[str], str, str]:
    """Keys for both sides that are equal where the parameters are the same; a note; why it cannot be."""
    if any(saved) and any(live.identities):
        entries = _entries([*saved, *live.identities])
        note = "" if all(saved) else "parameters that are in no module given with it are taken in their order"
        return list(_identity_keys(saved, entries)), list(_identity_keys(live.identities, entries)), note, ""
    if labels is not None and (live.labels is not None or any(live.identities)):
        names = list(_identity_keys(live.identities, _entries(live.identities)))
        return list(labels), names if any(live.identities) else list(live.labels or ()), "", ""
    names = list(live.keys()[0])
    if len(saved) == len(names):
        return names, names, _BY_POSITION, ""
    mismatch = (
        f"{len(saved)} parameters by position only on one side and {len(names)} on the other: "
        "nothing says which belongs to which"
    )
    return [f"saved #{index}" for index in range(len(saved))], names, "", mismatch


def _specs(
    keys: Sequence[str],
    state: Mapping[object, object],
    shapes: Mapping[str, Sequence[int]],
    live: Mapping[str, torch.Tensor],
) -> dict[str, TensorSpec | None]:
    """The shape of each parameter at the save: recorded, else that of its moments; None where nothing says it.

    Only an optimizer that keeps moments of its parameters' shape says it; LBFGS and factored ones do not.
    """
    if shapes:
        return {key: TensorSpec("float32", tuple(shapes[key])) if key in shapes else None for key in keys}
    moments = {key: _shaped(state.get(key)) for key in keys}
    fitting = {key: [m for m in moments[key] if key in live and m.shape == tuple(live[key].shape)] for key in keys}
    tells = any(fitting.values())
    return {key: next(iter(fitting[key] or moments[key]), None) if tells else None for key in keys}


def _shaped(state: object) -> list[TensorSpec]:
    values = state.values() if isinstance(state, Mapping) else ()
    return [leaf for leaf in values if isinstance(leaf, TensorSpec) and leaf.shape]


def live_specs(live_keys: Sequence[str], parameters: Sequence[torch.Tensor]) -> dict[str, TensorSpec]:
    """The parameters of a live optimizer as the plan sees them."""
    return {key: spec_of(parameter) for key, parameter in zip(live_keys, parameters, strict=True)}
