"""Find which entry of a nested checkpoint holds the weights, and say why that one."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torchkeep.errors import NotFoundError, PlanError
from torchkeep.tensors import Described, KeyPath, TensorSpec, name_of, unused_name, walk

USUAL_KEYS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "module",
    "params",
    "weights",
    "model_weights",
    "params_ema",
    "ema",
    "model_ema",
    "state_dict_ema",
    "ema_state_dict",
    "ema_model",
)
MAX_DEPTH = 8
MAX_MODULE_DEPTH = 100
MAX_LISTED = 20
CLEARLY_MORE = 10
_OPTIMIZER_STATE = "optimizer state"
_BY_NAME = "no weights by its name"
_OPTIMIZER = re.compile(r"optim|param_groups")
_NO_WEIGHTS = re.compile(r"sched|(^|_)(rng|random|scaler|amp|sampler|dataloader|callbacks|loops)(_|s?$)")
_EMA = re.compile(r"(^|_)ema(_|\d|$)")


@dataclass(frozen=True, slots=True)
class Weights:
    """The entry of a checkpoint that is taken to be the weights.

    Attributes:
        path: Its keys from the root; empty when the root is the state dict.
        name: The same, dotted: ``"model.state_dict"``.
        tensors: Its tensors, by name relative to it.
        others: Other places with tensors: dotted name, number of tensors, why not taken.
    """

    path: KeyPath
    name: str
    tensors: dict[str, TensorSpec]
    others: tuple[tuple[str, int, str], ...] = ()

    @property
    def candidates(self) -> tuple[str, ...]:
        """Names of the others that could have been taken: state dicts as well."""
        return tuple(name for name, _, why in self.others if why not in (_OPTIMIZER_STATE, _BY_NAME))


def find_weights(tree: object, *, where: Path | None = None, below: KeyPath = ()) -> Weights:
    """Choose the weights of a checkpoint: raw before EMA, usual keys before others, else what is clearly largest.

    Args:
        tree: Nested mappings and `Described`, with `TensorSpec` at the tensors.
        where: The file or folder, for messages.
        below: The path of the tree in the checkpoint, for their hints.

    Raises:
        NotFoundError: Nothing in it looks like a state dict; says what is there.
        PlanError: Several could be meant, a GAN's G and D for example; says which, and how to name one.
        LimitError: The tree contains itself, is too deep or repeats itself too often.

    Example:
        >>> weight = TensorSpec("float32", (2, 2))
        >>> find_weights({"epoch": 3, "model": {"fc.weight": weight}, "optimizer": {"state": {}}}).name
        'model'
    """
    for _ in walk(tree):  # Only a tree that this survives may be entered by recursion.
        pass
    candidates: list[Weights] = []
    refused: list[tuple[str, int, str]] = []
    _visit((), tree, candidates, refused)
    if not candidates:
        raise _nothing_found(tree, refused, where, below)
    ranked = sorted(candidates, key=_rank)
    chosen = ranked[0]
    rivals = [other for other in ranked[1:] if _ties(chosen, other)]
    if rivals:
        raise _tie([chosen, *rivals], where, below)
    others = [(other.name, len(other.tensors), _why_not(other, chosen)) for other in ranked[1:]]
    return Weights(chosen.path, chosen.name, chosen.tensors, (*others, *refused))


def _visit(path: KeyPath, node: object, candidates: list[Weights], refused: list[tuple[str, int, str]]) -> None:
    """Collect every state dict below a node, and what has tensors but can be none."""
    why_not = _no_weights(path, node)
    if why_not is not None:
        count = sum(isinstance(leaf, TensorSpec) for _, leaf in walk(node))
        if count:
            refused.append((name_of(path), count, why_not))
        return
    tensors = _as_state_dict(path, node)
    if tensors:
        candidates.append(Weights(path, name_of(path), tensors))
    elif len(path) < MAX_DEPTH:
        for key, child in _children(node):
            if isinstance(child, (Mapping, Described, list, tuple)):
                _visit((*path, key), child, candidates, refused)


def _as_state_dict(path: KeyPath, node: object) -> dict[str, TensorSpec]:
    """The tensors of a node that is a state dict, or of a module that was saved whole; else nothing."""
    attributes = _attributes(node)
    if attributes is None:
        return {}
    if isinstance(attributes.get("_parameters"), Mapping) and isinstance(attributes.get("_modules"), Mapping):
        return dict(_module_tensors("", attributes, MAX_MODULE_DEPTH))
    if isinstance(node, Described) and node.class_path.startswith("__torch__"):
        return dict(_script_tensors("", node, MAX_MODULE_DEPTH))
    tensors = _flattened(node)
    if not tensors or not all(isinstance(key, str) for key in attributes):
        return {}
    direct = [key for key, value in attributes.items() if isinstance(value, TensorSpec) and key in tensors]
    plain = [value for value in attributes.values() if not isinstance(value, (TensorSpec, Mapping, Described))]
    if direct:
        # Loose tensors beside whole entries are values among entries, not a state dict.
        return tensors if len(direct) >= len(plain) and 2 * len(direct) >= len(tensors) else {}
    nested = path and _is_usual(path[-1]) and not any(_is_usual(key) for key in attributes)
    return tensors if nested and len(tensors) == sum(1 for _ in walk(node)) else {}


def _attributes(node: object) -> Mapping[Hashable, object] | None:
    if isinstance(node, Mapping):
        return node
    if isinstance(node, Described) and isinstance(node.state, Mapping):
        return node.state
    return None


def _children(node: object) -> Iterator[tuple[Hashable, object]]:
    attributes = _attributes(node)
    if attributes is not None:
        yield from attributes.items()
    elif isinstance(node, (list, tuple)):
        yield from enumerate(node)


def _flattened(node: object) -> dict[str, TensorSpec]:
    """All tensors below a node that may be weights, by dotted name."""
    found: dict[str, TensorSpec] = {}
    for path, leaf in walk(node):
        containers = path[:-1] or path
        if isinstance(leaf, TensorSpec) and not any(_never_weights(key) for key in containers):
            found[unused_name(name_of(path), found)] = leaf
    return found


def _module_tensors(prefix: str, module: Mapping[Hashable, object], depth: int) -> Iterator[tuple[str, TensorSpec]]:
    """Names as ``state_dict()`` of the module would have them."""
    transient = module.get("_non_persistent_buffers_set")
    hidden = transient if isinstance(transient, (set, frozenset, list, tuple)) else ()
    for group in ("_parameters", "_buffers"):
        members = module.get(group)
        for name, value in members.items() if isinstance(members, Mapping) else ():
            if isinstance(value, TensorSpec) and not (group == "_buffers" and name in hidden):
                yield f"{prefix}{name}", value
    children = module.get("_modules")
    for name, child in children.items() if isinstance(children, Mapping) and depth else ():
        attributes = _attributes(child)
        if attributes is not None:
            yield from _module_tensors(f"{prefix}{name}.", attributes, depth - 1)


def _script_tensors(prefix: str, module: Described, depth: int) -> Iterator[tuple[str, TensorSpec]]:
    """Names as ``state_dict()`` of a TorchScript module would have them."""
    attributes = module.state if isinstance(module.state, Mapping) else {}
    for name, value in attributes.items():
        if isinstance(value, TensorSpec) and name not in module.transient:
            yield f"{prefix}{name}", value
        elif isinstance(value, Described) and depth:
            yield from _script_tensors(f"{prefix}{name}.", value, depth - 1)


def _no_weights(path: KeyPath, node: object) -> str | None:
    """Why a node can hold no weights whatever is in it; None when it can."""
    attributes = _attributes(node)
    if attributes is not None and "param_groups" in attributes:
        return _OPTIMIZER_STATE
    return _never_weights(path[-1]) if path else None


def _never_weights(key: Hashable) -> str | None:
    text = key.lower() if isinstance(key, str) else ""
    if _OPTIMIZER.search(text) and "." not in text:
        return _OPTIMIZER_STATE
    return _BY_NAME if _NO_WEIGHTS.search(text) and "." not in text else None


def _is_usual(key: Hashable) -> bool:
    return isinstance(key, str) and key.lower() in USUAL_KEYS


def _is_ema(weights: Weights) -> bool:
    return any(isinstance(key, str) and _EMA.search(key.lower()) for key in weights.path)


def _rank(weights: Weights) -> tuple[bool, bool, int, int, int]:
    """Best first: the root, raw, a usual key, then shallow, then the order of the usual keys, then the largest."""
    last = weights.path[-1] if weights.path else ""
    usual = _is_usual(last)
    order = USUAL_KEYS.index(str(last).lower()) if usual else 0
    return _is_ema(weights), bool(weights.path) and not usual, len(weights.path) * usual, order, -_elements(weights)


def _elements(weights: Weights) -> int:
    return sum(spec.numel for spec in weights.tensors.values())


def _ties(chosen: Weights, other: Weights) -> bool:
    """Whether nothing tells two apart: the same rank, and neither has clearly more tensors."""
    if _rank(chosen)[:-1] != _rank(other)[:-1]:
        return False
    return len(chosen.tensors) < CLEARLY_MORE * len(other.tensors)


def _why_not(other: Weights, chosen: Weights) -> str:
    if _is_ema(other) and not _is_ema(chosen):
        return "EMA; raw weights go first"
    if _rank(other)[1] and not _rank(chosen)[1]:
        return "not a usual name for weights"
    return "fewer tensors" if len(other.tensors) < len(chosen.tensors) else f"{chosen.name} goes first"


def _tie(rivals: list[Weights], where: Path | None, below: KeyPath) -> PlanError:
    listed = [f"{found.name}   {len(found.tensors):,} tensors" for found in rivals[:MAX_LISTED]]
    if len(rivals) > MAX_LISTED:
        listed.append(f"... and {len(rivals) - MAX_LISTED:,} more")
    return PlanError(
        f"{len(rivals):,} entries could be the weights",
        where=where,
        faults=listed,
        remedy=f'name the one that is meant: into={{"{name_of((*below, *rivals[0].path))}": model}}',
    )


def _nothing_found(
    tree: object, refused: list[tuple[str, int, str]], where: Path | None, below: KeyPath
) -> NotFoundError:
    listed = [f"{name}   {count:,} tensors: {why}" for name, count, why in refused]
    passed = {name for name, _, _ in refused}
    if _attributes(tree) is None and not isinstance(tree, (list, tuple)):
        listed.append(f"a single {tree if isinstance(tree, TensorSpec) else type(tree).__name__}")
    for key, child in _children(tree):
        if str(key) not in passed:
            listed.append(f"{key}   {child if isinstance(child, (TensorSpec, Described)) else type(child).__name__}")
    if len(listed) > MAX_LISTED:
        listed[MAX_LISTED:] = [f"... and {len(listed) - MAX_LISTED:,} more"]
    remedy = "is this the file that was meant? torchkeep show lists what is in it"
    by_name = next((name for name, _, why in refused if why == _BY_NAME), None)
    if by_name is not None:
        remedy = f'if {by_name} is meant, name it: into={{"{name_of((*below, by_name))}": model}}'
    arrays = sum(f"{type(leaf).__module__}.{type(leaf).__name__}" == "numpy.ndarray" for _, leaf in walk(tree))
    if arrays and not refused:
        listed.append(f"{arrays:,} numpy array{'s' if arrays > 1 else ''} in all, which are no tensors")
        remedy = "load it without into, make tensors of the arrays with torch.from_numpy, and save those"
    return NotFoundError(
        "no entry looks like weights (a mapping of names to tensors)",
        where=where,
        faults=listed or ["nothing at all"],
        remedy=remedy,
    )
