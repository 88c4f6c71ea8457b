"""What a load goes into: each object beside the entry of the checkpoint that it gets, as the pairs of a plan."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, Literal, TypeAlias

import torch
import xxhash
from torch import nn

from torchkeep.errors import CheckpointError, PlanError
from torchkeep.folder.read import FolderSource
from torchkeep.folder.record import Entry
from torchkeep.live.capture import Stateful
from torchkeep.live.modules import counters, loads_by_itself, module_facts, named_parameters, named_state, unwrap
from torchkeep.live.optimizer_forms import read_form
from torchkeep.live.optimizers import Owners, optimizer_parameters
from torchkeep.live.place import model_specs, not_plain, tied_names, unfit_memory
from torchkeep.live.saved_optimizer import SavedOptimizer, Weights, live_specs, parameters_in, read_optimizer
from torchkeep.live.shared_objects import refuse_overwriting
from torchkeep.planning.paths import node_at, resolve
from torchkeep.planning.rows import Pair
from torchkeep.planning.weights import find_weights
from torchkeep.tensors import Described, KeyPath, Source, TensorSpec, name_of, tensors_of

_AVERAGES = "n_averaged"  # beside the ``module.`` of torch.optim.swa_utils.AveragedModel
Kind: TypeAlias = Literal["module", "tensors", "optimizer", "stateful"]


@dataclass(frozen=True, slots=True)
class Target:
    """One object to load into, and what of the checkpoint is for it.

    Attributes:
        entry: The caller's key for it; "" when there is one object without a key.
        kind: How it is loaded.
        live: The object.
        path: Where in the checkpoint its part lies.
        node: That part of the source's tree.
        tensors: Its tensors by the names that a plan matches, for modules and mappings of tensors.
        facts: What our record says of the entry.
        content: What is equal for tensors of equal content, as far as the checkpoint tells.
        saved: For an optimizer, its state in the file beside its own parameters.
        frozen: For an optimizer, its parameters by entry and name that do not train now, or did not at the save.
    """

    entry: str
    kind: Kind
    live: Any
    path: KeyPath
    node: object
    tensors: Mapping[str, TensorSpec] = field(default_factory=dict)
    facts: Mapping[str, object] = field(default_factory=dict)
    content: Callable[[TensorSpec], Hashable] = attrgetter("key")
    saved: SavedOptimizer | None = None
    frozen: Mapping[str, str] = field(default_factory=dict)

    def pair(self) -> Pair | None:
        """The two sides for the plan; None for what has no tensors of its own to match."""
        origin = name_of(self.path)
        name = type(unwrap(self.live) if isinstance(self.live, nn.Module) else self.live).__name__
        if self.saved is not None:
            live = live_specs(self.saved.live_keys, _parameters(self.live))
            pair = Pair(self.saved.specs, live, "optimizer", name, origin, self.saved.note)
            return replace(pair, optional=self.frozen, mismatch=self.saved.mismatch)
        if self.kind == "stateful":
            return None
        name = name if isinstance(self.live, nn.Module) else "the mapping"
        inside_extra = tuple(f"{key}." for key in self.extra_state())
        tensors = {key: spec for key, spec in self.tensors.items() if not f"{key}.".startswith(inside_extra)}
        state = named_state(self.live) if isinstance(self.live, nn.Module) else self.live
        pair = Pair(tensors, model_specs(state), self.kind, name, origin, optional=self._optional(tensors))
        why = loads_by_itself(self.live) if isinstance(self.live, nn.Module) else None
        note = f"loads through its own load_state_dict: {why}" if why else ""
        tied = tuple(map(tuple, tied_names(state)))
        pair = replace(pair, note=note, mismatch=unfit_memory(state), tied=tied, content=self.content)
        if self.kind != "module":
            return pair
        return replace(pair, extra=tuple(self.extra_state()), model_extra=tuple(not_plain(state)))

    def _optional(self, tensors: Mapping[str, TensorSpec]) -> dict[str, str]:
        """Names that one side may have alone: counters of old batch norms, all but one of tied ones, a mere counter."""
        optional = counters(self.live) if isinstance(self.live, nn.Module) else {}
        if all(key.startswith("module.") for key in tensors if key != _AVERAGES):
            optional[_AVERAGES] = "it counts averaged models, and this is one model"
        return optional

    def extra_state(self) -> dict[str, object]:
        """Values in a module's state dict that are no plain tensors: extra state, sparse and quantised ones."""
        if self.kind != "module" or not isinstance(self.node, Mapping):
            return {}
        return {str(key): value for key, value in self.node.items() if _is_extra(str(key), value)}

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


def by_own_code_first(targets: Sequence[Target]) -> list[Target]:
    """Targets in the order to load them: what loads by code of its own may refuse, so it comes before what cannot."""

    def place(target: Target) -> int:
        if target.kind == "stateful":
            return 0
        if target.kind == "module":
            return 1 if loads_by_itself(target.live) or target.extra_state() else 3
        return 2 if target.kind == "optimizer" else 3

    return sorted(targets, key=place)


def make_targets(source: Source, into: object) -> list[Target]:
    """Find the part of a checkpoint for each object in `into`.

    Args:
        source: The opened checkpoint.
        into: A module, an optimizer, a mapping of tensors, anything with ``load_state_dict``, or a mapping whose
            keys are paths in the checkpoint and whose values are these.

    Raises:
        TypeError: Something in `into` cannot be loaded into; all of it is listed.
        NotFoundError: A path is not in the checkpoint.
        PlanError: No entry, or more than one, can be what an object wants; or one object is for two that differ.
    """
    if isinstance(into, Mapping) and not _is_state_dict_for(source, into):
        _refuse_plain_values(into)
        owners = {name_of(_path(k)): live for k, live in into.items() if isinstance(live, (nn.Module, torch.Tensor))}
        others = {k: _target_at(source, k, v) for k, v in into.items() if not isinstance(v, torch.optim.Optimizer)}
        weights = _weights_of(source, list(others.values())) if len(others) < len(into) else {}
        targets = [others.get(k) or _optimizer_target(source, v, k, owners, weights) for k, v in into.items()]
        refuse_overwriting(targets, _content_of(source))
        return targets
    if isinstance(into, torch.optim.Optimizer):
        return [_optimizer_target(source, into, _optimizer_entry(source), {}, _weights_of(source, []), entry="")]
    if isinstance(into, (nn.Module, Mapping)):
        return [_weights_target(source, into, (), source.tree, "")]
    if isinstance(into, torch.Tensor):
        return [_tensors_target({"": into}, (), {"": source.tree}, "")]
    if isinstance(into, Stateful) and not isinstance(into, type):
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
    plain = [key for key, live in into.items() if not _takes_a_load(live)]
    if plain:
        shown = ", ".join(f"{key!r} ({type(into[key]).__name__})" for key in plain)
        raise TypeError(f"cannot load into {shown}: {_WANTED}; plain values come back in what load returns")


def _is_extra(name: str, value: object) -> bool:
    if isinstance(value, Described):
        return value.class_path in {"torch.sparse", "torch.quantized", "torch.dtype"} or name.endswith("_extra_state")
    return not isinstance(value, TensorSpec) and (name.endswith("_extra_state") or not isinstance(value, Mapping))


def _takes_a_load(live: object) -> bool:
    if isinstance(live, type):
        return False
    if isinstance(live, Mapping):
        return bool(live) and all(isinstance(value, torch.Tensor) for value in live.values())
    return isinstance(live, (nn.Module, torch.Tensor, Stateful))


def _path(key: object) -> KeyPath:
    return key if isinstance(key, tuple) else (str(key),)


def _target_at(source: Source, key: object, live: object) -> Target:
    path, node = resolve(source, key if isinstance(key, tuple) else str(key))
    entry = name_of(_path(key))
    if isinstance(live, nn.Module):
        return _weights_target(source, live, path, node, entry)
    if isinstance(live, torch.Tensor):
        return _tensors_target({"": live}, path, {"": node}, entry)
    if isinstance(live, Mapping):
        return _tensors_target(live, path, node, entry)
    return Target(entry, "stateful", live, path, node)


def _weights_of(source: Source, targets: Sequence[Target]) -> Weights:
    """The parameters that the file has of the modules to load into; without any, those of its only model, under ""."""
    modules = {t.entry: parameters_in(t.tensors, t.live) for t in targets if t.kind == "module"}
    if modules:
        return modules
    try:
        return {"": parameters_in(find_weights(source.tree).tensors, None)}
    except CheckpointError:  # none, or several that could be it
        return {}


def _optimizer_target(
    source: Source,
    live: torch.optim.Optimizer,
    key: object,
    owners: Owners,
    weights: Weights,
    *,
    entry: str | None = None,
) -> Target:
    path, node = resolve(source, key if isinstance(key, tuple) else str(key))
    entry = name_of(_path(key)) if entry is None else entry
    form = read_form(node)
    if form is None:
        raise PlanError(
            f"{name_of(path)!r} of {source.path} holds no optimizer state",
            remedy="name the entry that does, or leave the optimizer out",
        )
    recorded = _entry_at(source, path)
    facts = {} if recorded is None else recorded.facts
    saved = read_optimizer(form, facts, optimizer_parameters(live, owners), live, weights)
    frozen = _frozen_now(owners, facts, saved) | _frozen_then(source, saved)
    return Target(entry, "optimizer", live, path, node, facts=facts, saved=saved, frozen=frozen)


def _frozen_now(owners: Owners, facts: Mapping[str, Any], saved: SavedOptimizer) -> dict[str, str]:
    """Saved parameters that the optimizer may leave: they are in the modules given with it, and do not train."""
    still = {
        (entry, name)
        for entry, owner in owners.items()
        if isinstance(owner, nn.Module)
        for name, parameter in named_parameters(owner)
        if not parameter.requires_grad
    }
    recorded = facts.get("parameters")
    order = list(recorded.values()) if isinstance(recorded, dict) else []
    ids = [tuple(each) if isinstance(each, list) else None for each in order]
    by_key = dict(zip(saved.keys, ids, strict=False)) if len(ids) == len(saved.keys) else {}
    names = {key for key, identity in by_key.items() if identity in still}
    own_entries = {entry for entry, _ in saved.identities.values()}
    names |= {name for entry, name in still if own_entries == {entry}} | {f"{entry}.{name}" for entry, name in still}
    return dict.fromkeys(names, "its parameter does not train now")


def _frozen_then(source: Source, saved: SavedOptimizer) -> dict[str, str]:
    """Live parameters that may start fresh: they did not train at the save."""
    entries = source.record.entries if isinstance(source, FolderSource) else {}
    frozen = {(name, each) for name, entry in entries.items() for each in _strings(entry.facts.get("frozen"))}
    return {key: "its parameter did not train at the save" for key, each in saved.identities.items() if each in frozen}


def _strings(value: object) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list) else []


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _weights_target(
    source: Source, live: nn.Module | Mapping[str, torch.Tensor], path: KeyPath, node: object, entry: str
) -> Target:
    """A module or state dict, and its weights: what we saved as a module is that, other trees are searched."""
    kind: Kind = "module" if isinstance(live, nn.Module) else "tensors"
    saved = _entry_at(source, path)
    if saved is not None and saved.kind == "module":
        return Target(entry, kind, live, path, node, tensors_of(node), saved.facts, _content_of(source))
    found = find_weights(node, where=source.path, below=path)
    path = (*path, *found.path)
    below = node_at(node, found.path)
    saved = _entry_at(source, path)
    facts = {} if saved is None else saved.facts
    return Target(entry, kind, live, path, below, found.tensors, facts, _content_of(source))


def _content_of(source: Source) -> Callable[[TensorSpec], Hashable]:
    """What is equal for tensors of equal values: their digests, from our record or made now, and what they are."""

    def content(spec: TensorSpec) -> Hashable:
        if isinstance(source, FolderSource):
            key: Any = spec.key
            return source.record.tensors[key[0]][key[1]].chunks, spec.dtype, spec.shape
        values = bytearray(spec.nbytes)
        source.read_into(spec, memoryview(values))
        return xxhash.xxh3_128_digest(values), spec.dtype, spec.shape

    return content


def _tensors_target(live: Mapping[str, torch.Tensor], path: KeyPath, node: object, entry: str) -> Target:
    return Target(entry, "tensors", live, path, node, tensors_of(node))


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
        key for key, value in (tree.items() if isinstance(tree, Mapping) else ()) if read_form(value) is not None
    ]
    if read_form(tree) is not None:
        return ()
    if len(candidates) != 1:
        found = ", ".join(map(repr, candidates)) or "none"
        raise PlanError(
            f"{len(candidates)} entries of {source.path} hold optimizer state: {found}",
            remedy='name one: load(..., into={"optimizer": optimizer})',
        )
    return (candidates[0],)
