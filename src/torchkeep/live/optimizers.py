"""Optimizer state by parameter name: what torch keys by position, keyed by what survives a changed model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from torchkeep.errors import PlanError
from torchkeep.live.memory import is_fillable, spec_of
from torchkeep.live.modules import named_parameters
from torchkeep.tensors import TensorSpec, walk

ParameterName: TypeAlias = tuple[str, str]  # entry of the module, name in it
BuildTensor: TypeAlias = Callable[[TensorSpec, torch.Tensor | None], torch.Tensor]


@dataclass(frozen=True, slots=True)
class NamedParameters:
    """An optimizer's parameters in torch's order, each with its key on disk, and where the keys came from."""

    parameters: tuple[nn.Parameter, ...]
    keys: tuple[str, ...]
    names: tuple[ParameterName | None, ...]
    origin: str  # "modules", "param_names" or "positions"


def name_parameters(optimizer: torch.optim.Optimizer, modules: Mapping[str, nn.Module]) -> NamedParameters:
    """Name an optimizer's parameters: by the modules given with it, else torch's ``param_names``, else by position."""
    held = {
        id(parameter): (entry, name)
        for entry, module in reversed(list(modules.items()))
        for name, parameter in reversed(list(named_parameters(module)))
    }
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = [held.get(id(parameter)) for parameter in parameters]
    if all(name is not None for name in names):
        several = len({name[0] for name in names if name}) > 1
        keys = [f"{name[0]}.{name[1]}" if several else name[1] for name in names if name]
        return NamedParameters(tuple(parameters), tuple(keys), tuple(names), "modules")
    if all("param_names" in group for group in optimizer.param_groups):
        keys = [name for group in optimizer.param_groups for name in group["param_names"]]
        if len(set(keys)) == len(keys):
            return NamedParameters(tuple(parameters), tuple(keys), tuple(names), "param_names")
    return NamedParameters(tuple(parameters), tuple(map(str, range(len(parameters)))), tuple(names), "positions")


def named_optimizer_state(
    optimizer: torch.optim.Optimizer, modules: Mapping[str, nn.Module]
) -> tuple[dict[str, object], dict[str, object]]:
    """torch's own state dict with names where it has positions, and the facts to record beside it."""
    named = name_parameters(optimizer, modules)
    state = dict(optimizer.state_dict())
    positions = iter(range(len(named.keys)))
    groups = [
        {**group, "params": [named.keys[next(positions)] for _ in group["params"]]} for group in state["param_groups"]
    ]
    by_name = {
        named.keys[key] if isinstance(key, int) and key < len(named.keys) else key: value
        for key, value in state["state"].items()
    }
    parameters = {key: list(name) for key, name in zip(named.keys, named.names, strict=True) if name is not None}
    shapes = {key: list(parameter.shape) for key, parameter in zip(named.keys, named.parameters, strict=True)}
    facts: dict[str, object] = {"names": named.origin, "parameters": parameters, "shapes": shapes}
    return {**state, "state": by_name, "param_groups": groups}, facts


@dataclass(frozen=True, slots=True)
class SavedOptimizer:
    """An optimizer's state as a file has it: per parameter its state tree, and the groups with their options."""

    keys: tuple[str, ...]
    state: Mapping[str, Mapping[str, object]]
    groups: tuple[Mapping[str, object], ...]
    tree: Mapping[str, object]
    shapes: Mapping[str, tuple[int, ...]]
    note: str

    def specs(self, live: Mapping[str, TensorSpec]) -> dict[str, TensorSpec | None]:
        """The shape of each parameter at the save: recorded, else that of its moments; None where nothing says it.

        Only an optimizer that keeps moments of its parameters' shape says it; LBFGS and factored ones do not.
        """
        if self.shapes:
            return {key: TensorSpec("float32", self.shapes[key]) if key in self.shapes else None for key in self.keys}
        moments = {key: _shaped(self.state.get(key)) for key in self.keys}
        tells = any(spec.shape == live[key].shape for key, specs in moments.items() if key in live for spec in specs)
        if not tells:
            return dict.fromkeys(self.keys)
        fitting = {
            key: [spec for spec in specs if key in live and spec.shape == live[key].shape]
            for key, specs in moments.items()
        }
        return {key: next(iter(fitting[key] or specs), None) for key, specs in moments.items()}

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor of the state."""
        return (leaf for _, leaf in walk(self.tree) if isinstance(leaf, TensorSpec))


def _shaped(state: Mapping[str, object] | None) -> list[TensorSpec]:
    return [leaf for leaf in (state or {}).values() if isinstance(leaf, TensorSpec) and leaf.shape]


def _shapes(facts: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
    shapes = facts.get("shapes")
    return {key: tuple(shape) for key, shape in shapes.items()} if isinstance(shapes, dict) else {}


def read_optimizer(tree: object, facts: Mapping[str, object], live: NamedParameters, at: str) -> SavedOptimizer:
    """Understand a saved optimizer: by our names, else torch's ``param_names``, else by position in the live order.

    Args:
        tree: What the file has, with `TensorSpec` leaves.
        facts: What our record says beside it; empty for other formats.
        live: The optimizer it is for, whose order gives names to positions.
        at: The entry, for errors.

    Raises:
        PlanError: It is no optimizer state, or has only positions and another number of parameters.
    """
    if not isinstance(tree, Mapping) or not isinstance(tree.get("param_groups"), (list, tuple)):
        raise PlanError(
            f"{at!r} holds no optimizer state", remedy="name the entry that does, or leave the optimizer out"
        )
    groups = tuple(tree["param_groups"])
    ids: list[object] = [each for group in groups for each in group.get("params", ())]
    state = tree.get("state") or {}
    note = ""
    keys: list[str] = [str(each) for each in ids]
    if all("param_names" in group for group in groups) and groups:
        keys = [str(name) for group in groups for name in group["param_names"]]
    elif not facts or "positions" in {facts.get("names"), live.origin}:
        if len(ids) != len(live.keys):
            raise PlanError(
                f"{at!r} has {len(ids)} parameters by position only and the optimizer has {len(live.keys)}, "
                "so nothing says which belongs to which",
                remedy="load it together with its module, over the same parameters in the same order, or leave it out",
            )
        keys = list(live.keys)
        note = "positions only on one side: taken in the order of the optimizer's parameters"
    named = dict(zip(ids, keys, strict=True))
    by_key = {named.get(each, str(each)): value for each, value in state.items() if isinstance(value, Mapping)}
    renamed, begin = [], 0
    for group in groups:
        count = len(group.get("params", ()))
        renamed.append({**group, "params": keys[begin : begin + count]})
        begin += count
    shapes = {named[old]: shape for old, shape in _shapes(facts).items() if old in named}
    return SavedOptimizer(tuple(keys), by_key, tuple(renamed), tree, shapes, note)


def live_specs(named: NamedParameters) -> dict[str, TensorSpec]:
    """The parameters of a live optimizer as the plan sees them."""
    return {key: spec_of(parameter) for key, parameter in zip(named.keys, named.parameters, strict=True)}


def put_optimizer_state(
    optimizer: torch.optim.Optimizer,
    named: NamedParameters,
    saved: SavedOptimizer,
    taken: Mapping[str, str],
    build: BuildTensor,
) -> tuple[str, ...]:
    """Give an optimizer the state of the parameters in `taken` (live key to saved key); the others start fresh.

    Moments keep the dtype they were saved with. An optimizer that overrides ``load_state_dict``, or has hooks on it,
    gets torch's positional form through its own method.

    Returns:
        What a person should know: options that differ and which one is used now.
    """
    groups, notes = _merge_groups(optimizer, named, saved, taken)
    if _loads_by_itself(optimizer):
        position = {key: index for index, key in enumerate(named.keys)}
        state: dict[object, object] = {
            position[live]: _build_tree(saved.state[key], None, None, build)
            for live, key in taken.items()
            if key in saved.state
        }
        positions = iter(range(len(named.keys)))
        for group in groups:
            group["params"] = [next(positions) for _ in group["params"]]
        extra = {key: value for key, value in saved.tree.items() if key not in {"state", "param_groups"}}
        optimizer.load_state_dict({**extra, "state": state, "param_groups": groups})
        return notes
    by_key = dict(zip(named.keys, named.parameters, strict=True))
    on_cpu = {id(p): not (g.get("capturable") or g.get("fused")) for g in groups for p in g["params"]}
    fresh: dict[torch.Tensor, dict[str, object]] = {}
    for live, key in taken.items():
        parameter = by_key[live]
        if key in saved.state:
            held = optimizer.state.get(parameter, {})
            step_device = torch.device("cpu") if on_cpu[id(parameter)] else parameter.device
            fresh[parameter] = _build_state(saved.state[key], held, parameter.device, step_device, build)
    optimizer.state.clear()
    optimizer.state.update(fresh)
    for group, merged in zip(optimizer.param_groups, groups, strict=True):
        group.update({option: _build_tree(value, None, None, build) for option, value in merged.items()})
    optimizer.__setstate__({"state": optimizer.state, "param_groups": optimizer.param_groups})
    return notes


def _loads_by_itself(optimizer: torch.optim.Optimizer) -> bool:
    overridden = type(optimizer).load_state_dict is not torch.optim.Optimizer.load_state_dict
    pre_hooks = optimizer._optimizer_load_state_dict_pre_hooks  # noqa: SLF001 - torch has no public way to ask
    hooks = pre_hooks, optimizer._optimizer_load_state_dict_post_hooks  # noqa: SLF001 - as above
    return overridden or any(hooks)


def _merge_groups(
    optimizer: torch.optim.Optimizer, named: NamedParameters, saved: SavedOptimizer, taken: Mapping[str, str]
) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """The live groups with the options of the checkpoint's groups that their parameters came from."""
    group_of = {key: group for group in saved.groups for key in group["params"]}  # type: ignore[attr-defined]
    merged, notes, begin = [], [], 0
    for index, group in enumerate(optimizer.param_groups):
        keys = named.keys[begin : begin + len(group["params"])]
        begin += len(group["params"])
        origins = [group_of[taken[key]] for key in keys if taken.get(key) in group_of]
        if not origins:
            merged.append(dict(group))
            continue
        options = {k: v for k, v in origins[0].items() if k not in {"params", "param_names"}}
        if any(_options(origin) != _options(origins[0]) for origin in origins):
            notes.append(
                f"group {index}: its parameters come from groups whose options differ; the first one's are used"
            )
        for option in ("lr", "weight_decay", "momentum"):
            if option in options and option in group and not _equal(options[option], group[option]):
                notes.append(f"group {index}: {option} {options[option]} from the checkpoint, not {group[option]}")
        merged.append({**group, **options, "params": group["params"]})
    return merged, tuple(notes)


def _options(group: Mapping[str, object]) -> dict[str, str]:
    return {key: repr(value) for key, value in group.items() if key not in {"params", "param_names"}}


def _equal(one: object, other: object) -> bool:
    if isinstance(one, TensorSpec) or isinstance(other, torch.Tensor):
        return False
    return one == other


def _build_state(
    saved: Mapping[str, object],
    held: Mapping[str, object],
    device: torch.device,
    step_device: torch.device,
    build: BuildTensor,
) -> dict[str, object]:
    """One parameter's state; its step counter stays on the CPU unless the optimizer wants it elsewhere."""
    return {
        key: _build_tree(value, held.get(key), step_device if key == "step" else device, build)
        for key, value in saved.items()
    }


def _build_tree(value: object, held: object, device: torch.device | None, build: BuildTensor) -> object:
    if isinstance(value, TensorSpec):
        fits = (
            isinstance(held, torch.Tensor)
            and is_fillable(held)
            and (spec_of(held).dtype, spec_of(held).shape) == (value.dtype, value.shape)
        )
        built = build(value, held if fits and isinstance(held, torch.Tensor) else None)
        return built if device is None else built.to(device)
    if isinstance(value, Mapping):
        return {key: _build_tree(each, None, device, build) for key, each in value.items()}
    if isinstance(value, (list, tuple)) and type(value) in {list, tuple}:
        return type(value)(_build_tree(each, None, device, build) for each in value)
    return value
