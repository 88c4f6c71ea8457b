"""What of a checkpoint another format can hold: its tree without what nobody built, a state dict, what is left out."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from torchkeep.errors import LimitError, NotFoundError, PlanError
from torchkeep.folder.read import FolderSource
from torchkeep.formats.storage_views import StorageView
from torchkeep.planning.paths import resolve, without
from torchkeep.planning.weights import find_weights
from torchkeep.tensors import Described, KeyPath, Source, TensorSpec, format_bytes, name_of, tensors_of, walk

# What a Builder makes live values of, and a record has nodes for.
KNOWN_CLASSES = frozenset(
    ("torch.dtype", "torch.device", "torch.Size", "torch.sparse", "torch.quantized", "numpy.ndarray")
)
_MAX_DEPTH = 200
_MAX_LISTED = 20
_MAX_NAMED = 5
_TAKEN_APART = {
    "torch.sparse": "a sparse tensor; its indices and values are kept, as tensors",
    "torch.quantized": "a quantised tensor; its integers are kept, its scale and zero point only if they are tensors",
}
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
    except (NotFoundError, PlanError) as error:
        tensors = tensors_of(node)
        if entry is None or not tensors:
            example = error.faults[0].split()[0] if isinstance(error, PlanError) else ""
            remedy = f'name the one that is meant: entry="{example}"; on the command line --entry {example}'
            if not example:
                remedy = "torchkeep show lists what is in it; entry= names a mapping of tensors"
            raise type(error)(error.what, where=source.path, faults=error.faults, remedy=remedy) from None
        return name_of(path), tensors
    return name_of((*path, *found.path)), found.tensors


def rest_of(source: Source, entry: str, tensors: Mapping[str, TensorSpec]) -> list[str]:
    """What a state dict leaves behind of its checkpoint: a line per entry beside it, then what of itself."""
    path, own = resolve(source, entry) if entry else ((), source.tree)
    lines = []
    rest = without(source.tree, [path]) if path else {}
    for key, node in rest.items() if isinstance(rest, Mapping) else ():
        held = _held(node)
        if held:
            lines.append(f"{key}{f', beside {entry}' if key == path[0] else ''}: {held}")
    apart = {(*path, *at): kind for at, kind in _taken_apart(own)} if not isinstance(own, Described) else {}
    lines += [f"{name_of(at)}: {_TAKEN_APART[kind]}" for at, kind in apart.items()]
    taken = set(map(id, tensors.values()))
    others = [
        name_of(at)
        for at, leaf in (((*path, *at), leaf) for at, leaf in walk(own))
        if id(leaf) not in taken and not any(at[:length] in apart for length in range(1, len(at)))
    ]
    if others and not isinstance(own, Described):  # of a module all else is said by its class
        more = ", ..." if len(others) > _MAX_NAMED else ""
        count = f"{len(others):,} other value{'' if len(others) == 1 else 's'}"
        lines.append(f"{count}{f' in {entry}' if path else ''}: {', '.join(others[:_MAX_NAMED])}{more}")
    return [*lines, *facts_of(source)]


def _taken_apart(node: object, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Where tensors of several parts stand, which a state dict of plain ones holds as those parts."""
    if isinstance(node, Mapping):
        inside: Iterable[tuple[Hashable, object]] = node.items()
    elif isinstance(node, (list, tuple)):
        inside = enumerate(node)
    else:
        if isinstance(node, Described) and node.class_path in _TAKEN_APART:
            yield path, node.class_path
        return
    for key, value in inside:
        yield from _taken_apart(value, (*path, key))


def shared_memory(tensors: Mapping[str, TensorSpec]) -> list[str]:
    """Tensors that are other views of memory that an earlier one is of, a line each: no format keeps that they share.

    Those that are one tensor under two names are tied, and not among these.
    """
    by_storage: dict[tuple[str, str], dict[StorageView, str]] = defaultdict(dict)
    for name, spec in tensors.items():
        if isinstance(spec.key, StorageView) and spec.numel:
            by_storage[spec.key.file, spec.key.storage].setdefault(spec.key, name)
    lines = []
    for views in by_storage.values():
        reach, owner = 0, ""
        for view, name in sorted(views.items(), key=lambda item: (item[0].begin_bytes, -item[0].end_bytes)):
            if view.begin_bytes < reach:
                lines.append(f"{name} lies in the memory of {owner}: stored apart, no longer shared")
            if view.end_bytes > reach:
                reach, owner = view.end_bytes, name
    return lines


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
