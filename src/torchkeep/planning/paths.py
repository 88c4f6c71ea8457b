"""Naming a place inside a checkpoint: ``"model"``, ``"state_dict.net"``, ``("a.b", 0)``."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from torchkeep.errors import NotFoundError
from torchkeep.tensors import Described, KeyPath, Source, name_of


def resolve(source: Source, key: str | KeyPath) -> tuple[KeyPath, object]:
    """The node that a key names, and its path: keys joined by dots, down to a prefix inside a state dict.

    Args:
        source: The opened checkpoint.
        key: Text, in which dots may separate keys or belong to them; or a tuple of keys, taken as they are.

    Raises:
        NotFoundError: Nothing there has that name; the message lists what has one.
    """
    tree = source.tree
    if isinstance(key, tuple):
        found = _follow(tree, key)
        if found is not None:
            return key, found[0]
    else:
        steps = _search(tree, key.split("."), ())
        if steps is not None:
            return steps
        if key == source.metadata.get("whole"):
            return (), tree
    shown = key if isinstance(key, str) else name_of(key)
    there = ", ".join(map(repr, list(_children(tree) or {})[:12])) or "nothing that has a name"
    raise NotFoundError(f"nothing in it is called {shown!r}", where=source.path, remedy=f"it holds {there}")


def node_at(tree: object, path: KeyPath) -> object:
    """The node at a path that the tree has."""
    found = _follow(tree, path)
    if found is None:
        raise KeyError(path)
    return found[0]


def _children(node: object) -> Mapping[Hashable, object] | None:
    if isinstance(node, Mapping):
        return node
    if isinstance(node, (list, tuple)):
        return dict(enumerate(node))
    if isinstance(node, Described) and isinstance(node.state, Mapping):
        return node.state
    return None


def _follow(node: object, keys: KeyPath) -> tuple[object] | None:
    for key in keys:
        inside = _children(node)
        if inside is None or key not in inside:
            return None
        node = inside[key]
    return (node,)


def _search(node: object, parts: list[str], path: KeyPath) -> tuple[KeyPath, object] | None:
    if not parts:
        return path, node
    inside = _children(node)
    if inside is None:
        return None
    for count in range(len(parts), 0, -1):
        wanted = ".".join(parts[:count])
        for key in [wanted, int(wanted)] if wanted.isdecimal() and wanted.isascii() else [wanted]:
            if key in inside:
                found = _search(inside[key], parts[count:], (*path, key))
                if found is not None:
                    return found
    prefix = ".".join(parts) + "."
    under = {
        key[len(prefix) :]: value for key, value in inside.items() if isinstance(key, str) and key.startswith(prefix)
    }
    return ((*path, ".".join(parts)), under) if under else None


def without(node: object, paths: Sequence[KeyPath]) -> object:
    """A tree without the nodes at some paths; a path that is a prefix inside a state dict takes all keys under it."""
    if () in paths:
        return {}
    inside = _children(node)
    if inside is None or not paths:
        return node
    below: dict[Hashable, list[KeyPath]] = {}
    for path in paths:
        below.setdefault(path[0], []).append(path[1:])
    prefixes = tuple(f"{path[0]}." for path in paths if len(path) == 1)
    kept = {}
    for key, value in inside.items():
        if () in below.get(key, ()) or (isinstance(key, str) and key.startswith(prefixes)):
            continue
        kept[key] = without(value, below[key]) if key in below else value
    return kept
