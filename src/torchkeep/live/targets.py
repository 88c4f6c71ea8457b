"""What a load goes into: each object beside the entry of the checkpoint that it gets, as the pairs of a plan."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from torchkeep.errors import PlanError
from torchkeep.folder.read import FolderSource
from torchkeep.folder.record import Entry
from torchkeep.live.capture import Stateful
from torchkeep.live.modules import loads_by_itself, module_facts, optional_names, unwrap
from torchkeep.live.optimizers import NamedParameters, SavedOptimizer, live_specs, name_parameters, read_optimizer
from torchkeep.live.place import model_specs
from torchkeep.planning.paths import resolve
from torchkeep.planning.rows import Pair
from torchkeep.planning.weights import find_weights
from torchkeep.tensors import KeyPath, Source, TensorSpec, name_of, tensors_of

Kind: TypeAlias = Literal["module", "tensors", "optimizer", "stateful", "values"]


@dataclass(frozen=True, slots=True)
class Target:
    """One object to load into, and what of the checkpoint is for it.

    Attributes:
        entry: The caller's key for it; "" when there is one object without a key.
        kind: How it is loaded. ``"values"`` is a dict that is refilled.
        live: The object.
        path: Where in the checkpoint its part lies.
        node: That part of the source's tree.
        tensors: Its tensors by the names that a plan matches, for modules and mappings of tensors.
        facts: What our record says of the entry.
        named: For an optimizer, its parameters' names.
        saved: For an optimizer, its state in the file.
    """

    entry: str
    kind: Kind
    live: Any
    path: KeyPath
    node: object
    tensors: Mapping[str, TensorSpec] = field(default_factory=dict)
    facts: Mapping[str, object] = field(default_factory=dict)
    named: NamedParameters | None = None
    saved: SavedOptimizer | None = None

    def pair(self) -> Pair | None:
        """The two sides for the plan; None for what has no tensors of its own to match."""
        origin = name_of(self.path)
        name = type(unwrap(self.live) if isinstance(self.live, nn.Module) else self.live).__name__
        name = "the mapping" if self.kind == "tensors" else name
        if self.kind == "optimizer" and self.named is not None and self.saved is not None:
            live = live_specs(self.named)
            return Pair(self.saved.specs(live), live, "optimizer", name, origin, self.saved.note)
        if self.kind == "module":
            why = loads_by_itself(self.live)
            note = f"loads through its own load_state_dict: {why}" if why else ""
            inside_extra = tuple(f"{key}." for key in self.extra_state())
            tensors = {key: spec for key, spec in self.tensors.items() if not key.startswith(inside_extra)}
            return Pair(tensors, model_specs(self.live), "module", name, origin, note, optional_names(self.live))
        if self.kind == "tensors":
            return Pair(self.tensors, model_specs(self.live), "tensors", name, origin)
        return None

    def extra_state(self) -> dict[str, object]:
        """Values in a module's state dict that are no tensors: what its ``get_extra_state`` gave."""
        if not isinstance(self.node, Mapping):
            return {}
        return {
            str(key): value
            for key, value in self.node.items()
            if not isinstance(value, TensorSpec) and str(key).endswith("_extra_state")
        }

    def notes(self) -> list[str]:
        """What differs between the recorded flags of a module and its own; they are compared and never set."""
        if self.kind != "module":
            return []
        here = module_facts(self.live)
        notes = []
        for fact, word in (("frozen", "frozen"), ("eval", "in evaluation mode")):
            saved, live = self.facts.get(fact), here[fact]
            if isinstance(saved, list) and isinstance(live, list) and set(saved) != set(live):
                only_saved, only_live = len(set(saved) - set(live)), len(set(live) - set(saved))
                what = "parameters" if fact == "frozen" else "modules"
                notes.append(
                    f"{self.entry or 'model'}: {only_saved} {what} were {word} at the save and are not now, "
                    f"{only_live} the other way round; nothing was changed"
                )
        return notes


def make_targets(source: Source, into: object) -> list[Target]:
    """Find the part of a checkpoint for each object in `into`.

    Args:
        source: The opened checkpoint.
        into: A module, an optimizer, a mapping of tensors, anything with ``load_state_dict``, or a mapping whose
            keys are paths in the checkpoint and whose values are these.

    Raises:
        TypeError: Something in `into` cannot be loaded into; all of it is listed.
        NotFoundError: A path is not in the checkpoint.
        PlanError: No entry, or more than one, can be what an object wants.
    """
    if isinstance(into, Mapping) and not _is_state_dict_for(source, into):
        _refuse_plain_values(into)
        modules = {name_of(_path(key)): live for key, live in into.items() if isinstance(live, nn.Module)}
        return [_target_at(source, key, live, modules) for key, live in into.items()]
    if isinstance(into, torch.optim.Optimizer):
        return [_target_at(source, _optimizer_entry(source), into, {}, entry="")]
    if isinstance(into, (nn.Module, Mapping)):
        return [_weights_target(source, into, (), source.tree, "")]
    if isinstance(into, torch.Tensor):
        return [_tensors_target({"": into}, (), {"": source.tree}, "")]
    if isinstance(into, Stateful):
        return [Target("", "stateful", into, (), source.tree)]
    raise TypeError(f"cannot load into {type(into).__name__}: {_WANTED}")


_WANTED = "a module, an optimizer, anything with load_state_dict, tensors, or a mapping of these is wanted"


def _is_state_dict_for(source: Source, into: Mapping[Any, object]) -> bool:
    """A mapping of only tensors is one state dict, unless its keys are those of tensors among other entries."""
    if not into or not all(isinstance(value, torch.Tensor) for value in into.values()):
        return False
    tree = source.tree
    if not isinstance(tree, Mapping) or all(isinstance(value, TensorSpec) for value in tree.values()):
        return True
    return not all(isinstance(tree.get(key), TensorSpec) for key in into)


def _refuse_plain_values(into: Mapping[Any, object]) -> None:
    kinds = (nn.Module, torch.Tensor, Mapping)
    plain = [key for key, live in into.items() if not isinstance(live, kinds) and not isinstance(live, Stateful)]
    if plain:
        shown = ", ".join(f"{key!r} ({type(into[key]).__name__})" for key in plain)
        raise TypeError(f"cannot load into {shown}: {_WANTED}; plain values come back in what load returns")


def _path(key: object) -> KeyPath:
    return key if isinstance(key, tuple) else (str(key),)


def _target_at(
    source: Source, key: object, live: object, modules: Mapping[str, nn.Module], *, entry: str | None = None
) -> Target:
    path, node = resolve(source, key if isinstance(key, tuple) else str(key))
    entry = name_of(_path(key)) if entry is None else entry
    if isinstance(live, torch.optim.Optimizer):
        saved_entry = _entry_at(source, path)
        facts = {} if saved_entry is None else saved_entry.facts
        named = name_parameters(live, modules)
        saved = read_optimizer(node, facts, named, name_of(path))
        return Target(entry, "optimizer", live, path, node, facts=facts, named=named, saved=saved)
    if isinstance(live, nn.Module):
        return _weights_target(source, live, path, node, entry)
    if isinstance(live, torch.Tensor):
        return _tensors_target({"": live}, path, {"": node}, entry)
    if isinstance(live, Mapping) and live and all(isinstance(value, torch.Tensor) for value in live.values()):
        return _tensors_target(live, path, node, entry)
    if isinstance(live, MutableMapping):
        if not isinstance(node, Mapping):
            raise PlanError(f"{name_of(path)!r} is {type(node).__name__} in {source.path}, and {entry!r} is a mapping")
        return Target(entry, "values", live, path, node)
    return Target(entry, "stateful", live, path, node)


def _weights_target(
    source: Source, live: nn.Module | Mapping[str, torch.Tensor], path: KeyPath, node: object, entry: str
) -> Target:
    """A module or state dict, and its weights: what we saved as a module is that, other trees are searched."""
    kind: Kind = "module" if isinstance(live, nn.Module) else "tensors"
    saved = _entry_at(source, path)
    if saved is not None and saved.kind == "module":
        return Target(entry, kind, live, path, node, tensors_of(node), saved.facts)
    found = find_weights(node)
    path = (*path, *found.path)
    below = _at(node, found.path)
    saved = _entry_at(source, path)
    return Target(entry, kind, live, path, below, found.tensors, {} if saved is None else saved.facts)


def _tensors_target(live: Mapping[str, torch.Tensor], path: KeyPath, node: object, entry: str) -> Target:
    return Target(entry, "tensors", live, path, node, tensors_of(node))


def _at(node: object, path: KeyPath) -> object:
    for key in path:
        node = node[key] if isinstance(node, Mapping) else getattr(node, "state")[key]  # noqa: B009 - a Described
    return node


def _entry_at(source: Source, path: KeyPath) -> Entry | None:
    """What our own record says of the entry that a path is exactly."""
    if not isinstance(source, FolderSource):
        return None
    whole = source.record.whole
    if not path:
        return None if whole is None else source.record.entries.get(whole)
    return source.record.entries.get(str(path[0])) if len(path) == 1 and whole is None else None


def _optimizer_entry(source: Source) -> str | KeyPath:
    tree = source.tree
    candidates = [
        key
        for key, value in (tree.items() if isinstance(tree, Mapping) else ())
        if isinstance(value, Mapping) and "param_groups" in value
    ]
    if isinstance(tree, Mapping) and "param_groups" in tree:
        return ()
    if len(candidates) != 1:
        found = ", ".join(map(repr, candidates)) or "none"
        raise PlanError(
            f"{len(candidates)} entries of {source.path} hold optimizer state: {found}",
            remedy='name one: load(..., into={"optimizer": optimizer})',
        )
    return (candidates[0],)
