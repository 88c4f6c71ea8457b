"""Give an optimizer its saved state: by parameter, adapted where its parameter is, in place where it fits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch

from torchkeep.live.adapt import make_moment
from torchkeep.live.memory import dtype_name, empty_for, spec_of
from torchkeep.live.optimizers import BuildTensor
from torchkeep.live.saved_optimizer import SavedOptimizer
from torchkeep.planning.recipes import Part
from torchkeep.planning.rows import Row
from torchkeep.tensors import TensorSpec, bits_of, is_floating, walk


def put_optimizer_state(
    optimizer: torch.optim.Optimizer,
    saved: SavedOptimizer,
    rows: Sequence[Row],
    build: BuildTensor,
    build_later: BuildTensor,
) -> tuple[str, ...]:
    """Give an optimizer the state of the parameters in matched `rows`; the others start fresh.

    `build` gives tensors with their values, `build_later` those whose values nobody looks at yet.

    Moments keep the dtype they were saved with, unless their parameter has another one now, and follow a parameter that
    is adapted. An optimizer that overrides ``load_state_dict``, or has hooks on it, gets torch's positional form
    through its own method.

    Returns:
        What a person should know: how parameters were told, what starts fresh, options that differ and which one is
        used now.
    """
    if saved.unusable:
        optimizer.state.clear()
        return (f"the optimizer's state starts fresh: {saved.unusable}",)
    trees, lost = _states(saved, rows, build)
    taken = {row.name: _names_of(row)[0] for row in rows}
    groups, notes = _merge_groups(optimizer, saved, taken, build)
    notes = (*filter(None, [saved.note]), *notes, *lost)
    beside = {key: value for key, value in saved.state.items() if key not in saved.keys}
    if loads_by_itself(optimizer):
        position = {key: index for index, key in enumerate(saved.live_keys)}
        state: dict[object, object] = {position[live]: _build_tree(tree, None, build) for live, tree in trees.items()}
        positions = iter(range(len(saved.live_keys)))
        for group in groups:
            group["params"] = [next(positions) for _ in group["params"]]
        extra = {key: value for key, value in saved.tree.items() if key not in {"state", "param_groups"}}
        state.update({key: _build_tree(value, None, build) for key, value in beside.items()})
        optimizer.load_state_dict({**extra, "state": state, "param_groups": groups})
        return notes
    by_key = dict(zip(saved.live_keys, (p for group in optimizer.param_groups for p in group["params"]), strict=True))
    on_cpu = {id(p): not (g.get("capturable") or g.get("fused")) for g in groups for p in g["params"]}
    fresh: dict[Any, Any] = {key: _build_tree(value, None, build) for key, value in beside.items()}
    for live, tree in trees.items():
        placing = _Placing(by_key[live], on_cpu[id(by_key[live])], saved.dtypes.get(taken[live]), build, build_later)
        fresh[by_key[live]] = placing.state(tree, optimizer.state.get(by_key[live], {}))
    optimizer.state.clear()
    optimizer.state.update(fresh)
    for group, merged in zip(optimizer.param_groups, groups, strict=True):
        group.update(merged)
    optimizer.__setstate__({"state": optimizer.state, "param_groups": optimizer.param_groups})
    return notes


def put_back_later(optimizer: torch.optim.Optimizer) -> Callable[[], object]:
    """What gives an optimizer its present state again, the same objects, whatever a failed load made of it.

    Tensors are copied only for an optimizer that loads by itself: what `put_optimizer_state` fills in place is filled
    when nothing fails any more. Such a one gets its state through its own method first, for what it keeps elsewhere.
    """
    attributes = dict(vars(optimizer))
    groups = [(group, dict(group)) for group in optimizer.param_groups]
    states = [(state, dict(state)) for state in optimizer.state.values() if isinstance(state, dict)]
    state = dict(optimizer.state)
    by_itself = loads_by_itself(optimizer)
    own = copy.deepcopy(optimizer.state_dict()) if by_itself else None
    leaves = [leaf for _, before in states for _, leaf in walk(before)] if by_itself else []
    values = [(leaf, leaf.clone()) for leaf in leaves if isinstance(leaf, torch.Tensor)]

    def put_back() -> None:
        if own is not None:
            with suppress(Exception):  # it refused the new state, and may refuse its old one
                optimizer.load_state_dict(own)
        vars(optimizer).clear()
        vars(optimizer).update(attributes)
        optimizer.state.clear()
        optimizer.state.update(state)
        for held, before in (*groups, *states):
            held.clear()
            held.update(before)
        for tensor, value in values:
            with torch.no_grad():
                tensor.copy_(value)

    return put_back


class _CannotFollowError(ValueError):
    """State that no adaptation of its parameter says anything about."""


def _states(
    saved: SavedOptimizer, rows: Sequence[Row], build: BuildTensor
) -> tuple[dict[str, Mapping[str, object]], list[str]]:
    """The saved state by live key, adapted; and a line for all that starts fresh though its parameter is there."""
    trees: dict[str, Mapping[str, object]] = {}
    lost: list[str] = []
    if (spanning := saved.spanning()) is not None:
        try:
            trees[saved.live_keys[0]] = _reordered(*spanning, saved, rows, build)
        except _CannotFollowError as error:
            lost.append(f"the state starts fresh: {error}")
        return trees, lost
    for row in rows:
        try:
            if (tree := _state_for(row, saved, build)) is not None:
                trees[row.name] = tree
        except _CannotFollowError as error:
            lost.append(f"the state of {row.name} starts fresh: {error}")
    return trees, lost


def _reordered(
    key: str, length: int, saved: SavedOptimizer, rows: Sequence[Row], build: BuildTensor
) -> Mapping[str, object]:
    """State over all parameters in the order in which they are now.

    Raises:
        _CannotFollowError: They are not the same parameters.
    """
    of_live = {row.name: _names_of(row) for row in rows if isinstance(row.recipe, Part | None)}
    order = [name for live in saved.live_keys for name in of_live.get(live, ())]
    same = len(order) == len(saved.live_keys) and sorted(order) == sorted(saved.keys)
    if not same or length != saved.live_elements:
        raise _CannotFollowError("it spans all parameters, and they are not those of the save")
    tree = saved.state[key]
    if not isinstance(tree, Mapping) or order == list(saved.keys):
        return tree if isinstance(tree, Mapping) else {}
    if not (sizes := saved.sizes()):
        raise _CannotFollowError("it spans all parameters, and the file does not say their sizes")
    places = [saved.keys.index(name) for name in order]

    def moved(value: object) -> object:
        if isinstance(value, TensorSpec) and value.shape == (length,):
            parts = torch.split(build(value, None), sizes)
            return torch.cat([parts[place] for place in places])
        return [moved(each) for each in value] if isinstance(value, list) else value

    return {name: moved(value) for name, value in tree.items()}


def _names_of(row: Row) -> tuple[str, ...]:
    """The saved keys that a row's state comes from."""
    return tuple(part.name for part in row.parts) or (str(row.checkpoint_name),)


def _state_for(row: Row, saved: SavedOptimizer, build: BuildTensor) -> Mapping[str, object] | None:
    """The saved state of a row's parameter, what has its shape adapted as it is; None when there is no state.

    Raises:
        _CannotFollowError: There is state that is neither of the parameter's shape nor one number.
    """
    names = _names_of(row)
    trees = [tree for name in names if isinstance(tree := saved.state.get(name), Mapping)]
    if row.recipe is None or isinstance(row.recipe, Part) or not trees:
        return trees[0] if trees else None
    if len(trees) < len(names) or len({frozenset(tree) for tree in trees}) > 1:
        raise _CannotFollowError(f"not all of {', '.join(names)} have the same kinds of state")
    return {
        key: _followed(key, row, dict(zip(names, (tree[key] for tree in trees), strict=True)), build)
        for key in trees[0]
    }


def _followed(key: str, row: Row, values: Mapping[str, object], build: BuildTensor) -> object:
    """One kind of state, by the saved keys that it comes from, as it is for the adapted parameter."""
    first = values[row.parts[0].name]
    moments = {part: value for part in row.parts if isinstance(value := values[part.name], TensorSpec)}
    if row.recipe is not None and moments and all(value.shape == part.shape for part, value in moments.items()):
        moment = make_moment(row.recipe, lambda part: build(moments[part], None).cpu())
        return moment.to(getattr(torch, next(iter(moments.values())).dtype)).contiguous()
    if isinstance(first, TensorSpec) and first.numel > 1:
        raise _CannotFollowError(f"{key} has the shape {first.shape} and its parameter {row.parts[0].shape}")
    return first


def loads_by_itself(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer must load through its own ``load_state_dict``."""
    overridden = type(optimizer).load_state_dict is not torch.optim.Optimizer.load_state_dict
    pre_hooks = optimizer._optimizer_load_state_dict_pre_hooks  # noqa: SLF001 - torch has no public way to ask
    hooks = pre_hooks, optimizer._optimizer_load_state_dict_post_hooks  # noqa: SLF001 - as above
    return overridden or any(hooks)


@dataclass(frozen=True, slots=True)
class _Placing:
    """One parameter's state on its way: where each tensor goes, and in which dtype."""

    parameter: torch.Tensor
    step_on_cpu: bool
    saved_dtype: str | None
    build: BuildTensor
    build_later: BuildTensor

    def state(self, tree: Mapping[str, object], held: Mapping[str, object]) -> dict[str, object]:
        """The state, tensors that fit filled in place. A step counter stays on the CPU, as torch keeps it."""
        return {key: self._value(key, value, held.get(key)) for key, value in tree.items()}

    def _value(self, key: str, value: object, held: object) -> object:
        device = torch.device("cpu") if key == "step" and self.step_on_cpu else self.parameter.device
        if isinstance(value, TensorSpec) and (key == "step" or not self._changes(value)):
            return self.build_later(value, held if _is_like(held, value, device) else _new_on(value, device))
        built = _build_tree(value, device, self.build)
        if key == "step" or not isinstance(value, (TensorSpec, torch.Tensor)) or not isinstance(built, torch.Tensor):
            return built
        return built.to(self.parameter.dtype) if self._changes(spec_of(built)) else built

    def _changes(self, moment: TensorSpec) -> bool:
        """Whether a moment must follow its parameter to another dtype: the arithmetic of a step wants one of both.

        Where the file does not say the parameter's dtype at the save, a moment that is narrower than it follows.
        """
        own = dtype_name(self.parameter.dtype)
        if moment.dtype == own or not (is_floating(moment.dtype) and is_floating(own)):
            return False
        return bits_of(moment.dtype) < bits_of(own) if self.saved_dtype is None else self.saved_dtype != own


def _merge_groups(
    optimizer: torch.optim.Optimizer, saved: SavedOptimizer, taken: Mapping[str, str], build: BuildTensor
) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """The live groups with the options of the checkpoint's groups that their parameters came from."""
    group_of = {key: group for group in saved.groups for key in group["params"]}
    merged, notes, begin = [], [], 0
    for index, group in enumerate(optimizer.param_groups):
        keys = saved.live_keys[begin : begin + len(group["params"])]
        begin += len(group["params"])
        origins = [group_of[taken[key]] for key in keys if taken.get(key) in group_of]
        if not origins:
            merged.append(dict(group))
            continue
        options = {
            option: _build_tree(value, None, build)
            for option, value in origins[0].items()
            if option not in {"params", "param_names"} and _belongs(option, group, optimizer)
        }
        if any(_options(origin) != _options(origins[0]) for origin in origins):
            notes.append(f"group {index}: its parameters come from groups whose options differ; the first's are used")
        notes += [f"group {index}: {note}" for note in _differing_options(options, group)]
        merged.append({**group, **options, "params": group["params"]})
    return merged, tuple(notes)


def _differing_options(saved: Mapping[str, Any], live: Mapping[str, Any]) -> Iterator[str]:
    """Options of the checkpoint that win over other ones; where a scheduler moved the rate, its base is compared."""
    for option in ("lr", "weight_decay", "momentum", "decoupled_weight_decay"):
        base = "initial_lr" if option == "lr" else option
        theirs, own = saved.get(base, saved.get(option)), live.get(base, live.get(option))
        if theirs is not None and own is not None and not bool(theirs == own):
            yield f"{option} {_number(theirs)} from the checkpoint, not {_number(own)}"


def _number(value: object) -> object:
    return value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value


def _belongs(option: str, group: Mapping[str, object], optimizer: torch.optim.Optimizer) -> bool:
    """Whether a group has such an option: another class's are left out; ``initial_lr`` comes from a scheduler."""
    if option == "decoupled_weight_decay" and isinstance(optimizer, torch.optim.AdamW):
        return False  # it is what AdamW is, whatever Adam's group says
    return option in group or option == "initial_lr"


def _options(group: Mapping[str, object]) -> dict[str, str]:
    return {key: repr(value) for key, value in group.items() if key not in {"params", "param_names"}}


def _is_like(held: object, saved: TensorSpec, device: torch.device) -> TypeGuard[torch.Tensor]:
    """Whether a tensor that an optimizer holds can take a saved one's values in place."""
    if not isinstance(held, torch.Tensor) or held.device != device or held.layout is not torch.strided:
        return False
    return (dtype_name(held.dtype), tuple(held.shape)) == (saved.dtype, saved.shape)


def _new_on(saved: TensorSpec, device: torch.device) -> torch.Tensor | None:
    """A new tensor for a saved one's values; None on the CPU, where the builder makes it."""
    return None if device.type == "cpu" else empty_for(saved).to(device)


def _build_tree(value: object, device: torch.device | None, build: BuildTensor) -> Any:  # noqa: ANN401 - whatever was saved
    if isinstance(value, TensorSpec):
        built = build(value, None)
        return built if device is None else built.to(device)
    if isinstance(value, torch.Tensor):
        return value if device is None else value.to(device)
    if isinstance(value, Mapping):
        return {key: _build_tree(each, device, build) for key, each in value.items()}
    if type(value) is list:
        return [_build_tree(each, device, build) for each in value]
    if type(value) is tuple:
        return tuple(_build_tree(each, device, build) for each in value)
    return value
