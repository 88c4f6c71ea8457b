"""Capture the same objects again and again: what is built as it was is not described again, only looked at.

A module of plain parameters and buffers, and an optimizer that keeps tensors, are described by the same words at every
save as long as every table holds the same tensors under the same names, in the same memory. That is asked anew each
time, and whatever is not so is captured as at the first time. Everything else is captured anew: it is small.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from torchkeep.folder.draft import DraftTensor
from torchkeep.folder.record import Entry
from torchkeep.live.capture import PLAIN_CLASSES, Capture, Captured, identity_of
from torchkeep.live.optimizers import named_groups


class Recapture:
    """The capture of one mapping of objects, repeated.

    Args:
        given: Name to object, as for `capture_entries`.
    """

    def __init__(self, given: Mapping[str, object]) -> None:
        self.given = dict(given)
        self._kept: _Kept | None = None

    def is_of(self, given: Mapping[str, object]) -> bool:
        """Whether a mapping holds the same objects under the same names."""
        return list(given) == list(self.given) and all(map(operator.is_, given.values(), self.given.values()))

    def capture(self) -> Captured:
        """Describe the objects as they are now; the groups of what is built as before are the same mappings as before.

        Raises:
            FormatError: As for `capture_entries`.
        """
        is_grad_enabled = torch.is_grad_enabled()
        # Views that are made in inference mode do not count changes.
        with torch.inference_mode(mode=False), torch.set_grad_enabled(is_grad_enabled):
            return self._captured()

    def _captured(self) -> Captured:
        kept = self._kept
        if kept is None or not kept.holds():
            return self._anew()
        capturing = Capture(self.given, stored=dict(kept.stored))
        entries: dict[str, Entry] = {}
        for name, value in self.given.items():
            entry = kept.entries.get(name)
            if entry is None:
                entry = capturing.entry(name, value)
            elif isinstance(value, torch.optim.Optimizer) and isinstance(entry.tree, dict):
                groups = capturing.node(name, ("param_groups",), named_groups(value.param_groups, kept.keys[name]))
                entry = replace(entry, tree={**entry.tree, "param_groups": groups})
            entries[name] = entry
        if not set(capturing.groups).isdisjoint(kept.groups):
            return self._anew()
        merged = {**kept.groups, **capturing.groups}
        order = [name for name in kept.order if name in merged] + [name for name in merged if name not in kept.order]
        capturing.refuse_faults()
        return Captured(entries, {name: merged[name] for name in order}, None)

    def _anew(self) -> Captured:
        self._kept = None
        capturing = Capture(self.given)
        entries = {name: capturing.entry(name, value) for name, value in self.given.items()}
        capturing.refuse_faults()
        captured = Captured(entries, capturing.groups, None)
        self._kept = _kept(self.given, captured, capturing)
        return captured


@dataclass(frozen=True, slots=True)
class _Kept:
    """What is used again, and the questions whose answers must be as they were."""

    entries: Mapping[str, Entry]
    groups: Mapping[str, Mapping[str, DraftTensor]]
    order: Sequence[str]
    keys: Mapping[str, Sequence[str]]
    stored: Mapping[Any, tuple[str, str]]
    watches: Sequence[_Watch]

    def holds(self) -> bool:
        """Whether everything is built as it was."""
        return all(watch.holds() for watch in self.watches)


@dataclass(frozen=True, slots=True)
class _Watch:
    """Tables and what was in them, tensors and where they lay, those that a bit may turn into others, and flags."""

    tables: Sequence[tuple[Mapping[Any, object], Sequence[object], Sequence[object]]]
    sizes: Callable[[], list[int]]
    known_sizes: list[int]
    tensors: Sequence[torch.Tensor]
    known_places: list[object]
    turnable: Sequence[torch.Tensor]
    known_bits: list[tuple[bool, bool]]
    flags: Callable[[], list[object]]
    known_flags: list[object]

    def holds(self) -> bool:
        """Whether all of it is as it was."""
        if self.sizes() != self.known_sizes or self.flags() != self.known_flags:
            return False
        for table, keys, values in self.tables:
            if not (all(map(operator.is_, table.values(), values)) and all(map(operator.is_, table, keys))):
                return False
        return _places(self.tensors) == self.known_places and _bits(self.turnable) == self.known_bits


def _places(tensors: Sequence[torch.Tensor]) -> list[object]:
    return [(each.data_ptr(), each.shape, each.stride(), each.dtype) for each in tensors]


def _bits(tensors: Sequence[torch.Tensor]) -> list[tuple[bool, bool]]:
    return [(each.is_conj(), each.is_neg()) for each in tensors]


def _watch(
    tables: Sequence[Mapping[Any, object]],
    sized: Callable[[], list[int]],
    tensors: Sequence[torch.Tensor],
    flags: Callable[[], list[object]],
) -> _Watch:
    filled = [(table, list(table), list(table.values())) for table in tables if table]
    turnable = [each for each in tensors if each.is_complex() or not each.is_contiguous()]
    return _Watch(filled, sized, sized(), tensors, _places(tensors), turnable, _bits(turnable), flags, flags())


def _kept(given: Mapping[str, object], captured: Captured, capturing: Capture) -> _Kept | None:
    """What of a capture can be used again; None when nothing can."""
    watches: dict[str, _Watch] = {}
    for name, value in given.items():
        if isinstance(value, nn.Module) and (watch := _watch_module(value)) is not None:
            watches[name] = watch
        if isinstance(value, torch.optim.Optimizer) and (watch := _watch_optimizer(value)) is not None:
            watches[name] = watch
    if any(isinstance(value, nn.Module) and name not in watches for name, value in given.items()):
        return None  # optimizers go by the names of modules
    groups = {name: group for name, group in captured.groups.items() if name in watches}
    # Every tensor must be stored with those that are kept: what is tied to anything else may be elsewhere next time.
    own = [tensor for watch in watches.values() for tensor in watch.tensors]
    count = len({identity_of(tensor) for tensor in own if tensor.numel()}) + sum(not tensor.numel() for tensor in own)
    if not watches or count != sum(len(group) for group in groups.values()):
        return None
    if not all(isinstance(captured.entries[name].tree, dict) for name in watches):
        return None
    stored = {identity: place for identity, place in capturing.stored.items() if place[0] in groups}
    keys = {
        name: [key for group in captured.entries[name].tree["param_groups"] for key in group["params"]]  # type: ignore[index]
        for name in watches
        if isinstance(given[name], torch.optim.Optimizer)
    }
    entries = {name: captured.entries[name] for name in watches}
    return _Kept(entries, groups, list(captured.groups), keys, stored, list(watches.values()))


def _watch_module(module: nn.Module) -> _Watch | None:
    """The watch of a module whose state dict is its parameters and buffers and nothing else; None for others."""
    children = list(module.modules())
    if not all(_is_plain(child) for child in children):
        return None
    tables: list[Mapping[Any, object]] = []
    counted: list[Any] = []
    for child in children:
        own = (child._parameters, child._buffers, child._modules)  # noqa: SLF001 - what a state dict is made of
        tables += own
        counted += [*own, child._forward_pre_hooks, *_hooks(child)]  # noqa: SLF001 - as above
    tensors = [value for value in module.state_dict(keep_vars=True).values() if isinstance(value, torch.Tensor)]
    if not all(_is_strided(tensor) for tensor in tensors):
        return None
    parameters = [tensor for tensor in tensors if isinstance(tensor, nn.Parameter)]
    with_buffers = [child for child in children if child._buffers]  # noqa: SLF001 - as above
    known = [child._parameters for child in children]  # noqa: SLF001 - as above

    def flags() -> list[object]:
        return [
            all(map(operator.is_, [child._parameters for child in children], known)),  # noqa: SLF001 - as above
            *[parameter.requires_grad for parameter in parameters],
            *[child.training for child in children],
            *[frozenset(child._non_persistent_buffers_set) for child in with_buffers],  # noqa: SLF001 - as above
            vars(module).get("state_dict"),
        ]

    return _watch(tables, lambda: [len(each) for each in counted], tensors, flags)


def _is_strided(tensor: torch.Tensor) -> bool:
    return type(tensor) in PLAIN_CLASSES and tensor.layout is torch.strided and not tensor.is_quantized


def _hooks(child: nn.Module) -> tuple[Any, Any]:
    return child._state_dict_hooks, child._state_dict_pre_hooks  # noqa: SLF001 - hooks have no public list


def _is_plain(child: nn.Module) -> bool:
    kind = type(child)
    overrides = (
        kind.state_dict is not nn.Module.state_dict
        or kind._save_to_state_dict is not nn.Module._save_to_state_dict  # noqa: SLF001 - torch has no public way to ask
        or kind.get_extra_state is not nn.Module.get_extra_state
    )
    return not overrides and not any(_hooks(child))


def _watch_optimizer(optimizer: torch.optim.Optimizer) -> _Watch | None:
    """The watch of an optimizer that keeps nothing but tensors for each parameter; None for others."""
    if type(optimizer).state_dict is not torch.optim.Optimizer.state_dict:
        return None
    pre_hooks = optimizer._optimizer_state_dict_pre_hooks  # noqa: SLF001 - hooks have no public list
    hooks = (pre_hooks, optimizer._optimizer_state_dict_post_hooks)  # noqa: SLF001 - as above
    inner = list(optimizer.state.values())
    if any(hooks) or not all(isinstance(each, dict) for each in inner):
        return None
    tensors = [value for each in inner for value in each.values()]
    if not all(isinstance(value, torch.Tensor) and _is_strided(value) for value in tensors):
        return None
    lists = [group["params"] for group in optimizer.param_groups]
    tables: list[Mapping[Any, object]] = [optimizer.state, *inner]
    parameters = [list(each) for each in lists]
    state = optimizer.state  # load_state_dict puts another one in its place

    def flags() -> list[object]:
        same = (
            all(map(operator.is_, g["params"], each))
            for g, each in zip(optimizer.param_groups, parameters, strict=False)
        )
        return [*same, optimizer.state is state, vars(optimizer).get("state_dict")]

    def sizes() -> list[int]:
        groups = [len(group["params"]) for group in optimizer.param_groups]
        return [len(optimizer.param_groups), *groups, *map(len, (*hooks, optimizer.state, *inner))]

    return _watch(tables, sizes, tensors, flags)
