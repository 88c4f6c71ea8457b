"""What of a checkpoint another format can hold: its tree without what nobody built, a state dict, what is left out."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torchkeep.errors import LimitError, NotFoundError, PlanError
from torchkeep.folder.read import FolderSource
from torchkeep.planning.paths import resolve, without
from torchkeep.planning.weights import find_weights
from torchkeep.tensors import Described, KeyPath, Source, TensorSpec, format_bytes, name_of, tensors_of, walk

# What a Builder makes live values of, and a record has nodes for.
KNOWN_CLASSES = frozenset(
    ("torch.dtype", "torch.device", "torch.Size", "torch.sparse", "torch.quantized", "numpy.ndarray")
)
_MAX_DEPTH = 200
_MAX_LISTED = 20
_DROPPED = object()


@dataclass(slots=True)
class Contents:
    """What is to be written, and what is not.

    Attributes:
        tree: The whole tree, for formats that hold one; `Described` only of the known classes.
        losses: What of the source is not in it, one line each.
    """

    tree: object
    losses: list[str] = field(default_factory=list)


def weights_in(source: Source, entry: str | None) -> tuple[str, dict[str, TensorSpec]]:
    """The tensors of an entry by name, as a state dict has them: the weights, or what is named; and where they are.

    Raises:
        NotFoundError: There are none, or nothing has that name.
        PlanError: Several entries could be the weights.
    """
    path, node = ((), source.tree) if entry is None else resolve(source, entry)
    try:
        found = find_weights(node)
    except (NotFoundError, PlanError):
        tensors = tensors_of(node)
        if entry is None or not tensors:
            raise
        return name_of(path), tensors
    return name_of((*path, *found.path)), found.tensors


def rest_of(source: Source, entry: str, tensors: Mapping[str, TensorSpec]) -> list[str]:
    """What a state dict leaves behind of its checkpoint, a line per entry beside it."""
    path = resolve(source, entry)[0] if entry else ()
    lines = []
    rest = without(source.tree, [path]) if path else {}
    for key, node in rest.items() if isinstance(rest, Mapping) else ():
        held = _held(node)
        if held:
            lines.append(f"{key}{f', beside {entry}' if key == path[0] else ''}: {held}")
    if not path:
        taken = set(map(id, tensors.values()))
        others = [name_of(at) for at, leaf in walk(source.tree) if id(leaf) not in taken]
        lines += [f"{len(others):,} other values: {', '.join(others[:5])}"] if others else []
    return [*lines, *facts_of(source)]


def facts_of(source: Source) -> list[str]:
    """What a record of torchkeep says beside the tree, which no other format has a place for."""
    if not isinstance(source, FolderSource):
        return []
    record = source.record
    lists = [entry.facts.get("frozen") for entry in record.entries.values()]
    frozen = sum(len(names) for names in lists if isinstance(names, list))
    facts = {
        "step": record.step is not None,
        "metrics": bool(record.metrics),
        "random states": record.rng is not None,
        f"which {frozen:,} parameters were frozen": bool(frozen),
    }
    return [f"{fact}: a fact of torchkeep's record" for fact, is_there in facts.items() if is_there]


def _held(node: object) -> str:
    """What is under a node, in a few words; empty for nothing."""
    if isinstance(node, (Mapping, list, tuple, Described)):
        specs = tensors_of(node)
        values = sum(1 for _ in walk(node)) - len(specs)
        parts = [f"{len(specs):,} tensors, {format_bytes(sum(s.nbytes for s in specs.values()))}"] if specs else []
        return ", ".join([*parts, *([f"{values:,} values"] if values else [])])
    return str(node) if isinstance(node, TensorSpec) else f"a value ({type(node).__name__})"


def contents_of(source: Source, entry: str | None) -> Contents:
    """The tree of a source, or of one entry of it, without what is of classes that nobody built.

    A pickled module becomes its state dict. What is left out of a list leaves None in its place.

    Raises:
        NotFoundError: Nothing has that name, or nothing is left.
        LimitError: It is nested deeper than 200.
    """
    path, node = ((), source.tree) if entry is None else resolve(source, entry)
    contents = Contents(None)
    tensors_of(node)  # Only a tree that this survives may be entered by recursion.
    tree = _plain(node, path, contents.losses)
    if tree is _DROPPED:
        raise NotFoundError("nothing in it can be kept", where=source.path, faults=contents.losses)
    contents.tree = tree
    if entry is not None:
        contents.losses += [f"{key}: {held}" for key, held in _beside(source.tree, path)]
    contents.losses += facts_of(source)
    return contents


def _beside(tree: object, path: KeyPath) -> list[tuple[object, str]]:
    rest = without(tree, [path])
    return [(key, held) for key, node in rest.items() if (held := _held(node))] if isinstance(rest, Mapping) else []


def _plain(node: object, path: KeyPath, losses: list[str]) -> object:
    if len(path) > _MAX_DEPTH:
        raise LimitError(f"nested deeper than {_MAX_DEPTH} at {name_of(path[:5])}")
    if isinstance(node, Described):
        return _plain_described(node, path, losses)
    if isinstance(node, Mapping):
        inside = {key: _plain(value, (*path, key), losses) for key, value in node.items()}
        return _like(node, {key: value for key, value in inside.items() if value is not _DROPPED})
    if isinstance(node, (list, tuple)):
        items = [_plain(value, (*path, at), losses) for at, value in enumerate(node)]
        items = [None if item is _DROPPED else item for item in items]
        if isinstance(node, tuple) and hasattr(node, "_fields"):
            return tuple.__new__(type(node), items)
        return tuple(items) if isinstance(node, tuple) else items
    return node


def _like(node: Mapping[object, object], inside: dict[object, object]) -> object:
    if isinstance(node, OrderedDict):
        made = OrderedDict(inside)
        made.__dict__.update(node.__dict__)  # torch's _metadata
        return made
    if isinstance(node, defaultdict):
        return defaultdict(node.default_factory, inside)
    if type(node) is not dict and isinstance(node, dict):
        same = node.copy()
        same.clear()
        same.update(inside)
        return same
    return inside


def _plain_described(node: Described, path: KeyPath, losses: list[str]) -> object:
    if node.class_path in KNOWN_CLASSES:
        return node
    where = name_of(path) or "the whole"
    try:
        found = find_weights(node)
    except (NotFoundError, PlanError):
        found = None
    if found is not None and not found.path:
        losses.append(f"{where}: a {node.class_path}; its tensors are kept, as a dict")
        return dict(found.tensors)
    held = _held(node)
    losses.append(f"{where}: a {node.class_path}, which is not built{f' ({held})' if held else ''}")
    return _DROPPED


def map_specs(tree: object, change: Callable[[TensorSpec], TensorSpec]) -> object:
    """The same tree with every spec changed, those inside `Described` values of known classes too."""
    if isinstance(tree, TensorSpec):
        return change(tree)
    if isinstance(tree, Mapping):
        return _like(tree, {key: map_specs(value, change) for key, value in tree.items()})
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return tuple.__new__(type(tree), [map_specs(value, change) for value in tree])
    if type(tree) is tuple:
        return tuple(map_specs(value, change) for value in tree)
    return [map_specs(value, change) for value in tree] if type(tree) is list else tree


def brief(losses: list[str]) -> tuple[str, ...]:
    """At most twenty lines of what is lost."""
    more = [f"and {len(losses) - _MAX_LISTED:,} more"] if len(losses) > _MAX_LISTED else []
    return (*losses[:_MAX_LISTED], *more)
