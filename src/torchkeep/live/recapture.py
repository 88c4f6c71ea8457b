"""Capture the same objects again and again: what is built as it was is not described again, only looked at.

A module of plain parameters and buffers, and an optimizer that keeps tensors, are described by the same words at every
save as long as every table holds the same tensors under the same names, in the same memory. That is asked anew each
time, and whatever is not so is captured as at the first time. Everything else is captured anew: it is small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from torchkeep.folder.draft import Groups
from torchkeep.folder.record import Entry
from torchkeep.folder.values import Node, encode
from torchkeep.live.capture import Capture, Captured, Place, identity_of
from torchkeep.live.watch import Parts, Watch, parts_of_module, parts_of_optimizer
from torchkeep.tensors import KeyPath


class Recapture:
    """The capture of one mapping of objects, repeated.

    Args:
        given: Name to object, as for `capture_entries`.
    """

    def __init__(self, given: Mapping[str, object]) -> None:
        self.given = dict(given)
        self._kept: _Kept | None = None

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
        if kept is None or not kept.watch.holds():
            return self._anew()
        capturing = Capture(self.given, stored=dict(kept.stored))
        entries: dict[str, Entry] = {}
        for name, value in self.given.items():
            entry = kept.entries.get(name)
            if entry is None:
                entry = capturing.entry(name, value)
            elif isinstance(value, torch.optim.Optimizer) and isinstance(entry.tree, dict):
                groups = _encode_groups(capturing, name, value.param_groups, kept.keys[name])
                entry = replace(entry, tree={**entry.tree, "param_groups": groups})
            entries[name] = entry
        if not capturing.groups.keys().isdisjoint(kept.groups):
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
    """What is used again, and what must be as it was for that.

    Attributes:
        entries: The entries that are known.
        groups: Their tensors.
        order: Of all groups.
        keys: By optimizer, the keys of the parameters of each of its groups.
        stored: Where memory is stored, as for `Capture`.
        watch: Whether everything is built as it was.
    """

    entries: Mapping[str, Entry]
    groups: Groups
    order: Sequence[str]
    keys: Mapping[str, Sequence[Node]]
    stored: Mapping[Any, tuple[str, str]]
    watch: Watch


def _kept(given: Mapping[str, object], captured: Captured, capturing: Capture) -> _Kept | None:
    """What of a capture can be used again; None when nothing can."""
    watched = Parts()
    entries: dict[str, Entry] = {}
    keys: dict[str, Sequence[Node]] = {}
    for name, value in given.items():
        entry = captured.entries[name]
        if isinstance(value, nn.Module):
            parts = parts_of_module(value)
            if parts is None:
                return None  # optimizers go by the names of modules
        elif isinstance(value, torch.optim.Optimizer):
            parts, keys_of_groups = parts_of_optimizer(value), _keys_of_groups(entry.tree)
            if parts is None or keys_of_groups is None:
                continue
            keys[name] = keys_of_groups
        else:
            continue
        watched.add(parts)
        entries[name] = entry
    groups = {name: group for name, group in captured.groups.items() if name in entries}
    # Every tensor must be stored with those that are kept: what is tied to anything else may be elsewhere next time.
    filled = [tensor for tensor in watched.tensors if tensor.numel()]
    count = len({identity_of(tensor) for tensor in filled}) + len(watched.tensors) - len(filled)
    if not entries or count != sum(len(group) for group in groups.values()):
        return None
    stored = {identity: place for identity, place in capturing.stored.items() if place[0] in groups}
    return _Kept(entries, groups, list(captured.groups), keys, stored, Watch(watched))


def _keys_of_groups(tree: Node) -> Sequence[Node] | None:
    """The keys in each group of an optimizer's node; None where what a user put there is encoded otherwise."""
    groups = tree.get("param_groups") if isinstance(tree, dict) else None
    if not isinstance(groups, list) or not all(isinstance(group, dict) and "params" in group for group in groups):
        return None
    return [group["params"] for group in groups]


@dataclass(frozen=True, slots=True)
class _Encoded:
    """Stands for a value whose node is known."""

    node: Node


def _encode_groups(capturing: Capture, name: str, groups: Sequence[Mapping[str, object]], keys: Sequence[Node]) -> Node:
    """The node of an optimizer's groups, as `named_groups` orders their members; the keys are encoded already."""
    above = Place(name, ("param_groups",), "optimizer")

    def leaf(path: KeyPath, value: object) -> Node | None:
        return value.node if isinstance(value, _Encoded) else capturing.leaf(above, path, value)

    plain = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    return encode([{**group, "params": _Encoded(each)} for group, each in zip(plain, keys, strict=True)], leaf)
