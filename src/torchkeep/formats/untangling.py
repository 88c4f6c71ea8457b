"""Make a tree from a file safe to walk.

Objects that refer back to an enclosing one are cut there; trees that would hang or overflow a walker are refused.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

from torchkeep.errors import LimitError
from torchkeep.tensors import MAX_DEPTH, MAX_REPEATED_VALUES, Described, Enclosing

_ENOUGH = 1 << 62


@dataclass(slots=True)
class _Frame:
    node: object
    children: Iterator[tuple[object, object]]
    height: int = 1
    unfolded: int = 1


def complete(target: Described, field: str, value: object) -> None:
    """Fill in a part of a description that is still being read: what refers to itself exists before its parts."""
    object.__setattr__(target, field, value)


def untangle(tree: object, where: Path) -> None:
    """Cut and check a tree in place, in time linear in what it holds, however often it names the same value.

    Where a described object is found inside itself (a child that knows its parent), an `Enclosing` stands for it.

    Raises:
        LimitError: A plain value contains itself, the tree is nested deeper than 1,000, or it unfolds to a million
            values more than it holds.
    """
    if not _is_container(tree):
        return
    finished: dict[int, tuple[int, int]] = {}
    held = 0
    open_ids = {id(tree)}
    root = _Frame(tree, _children(tree))
    stack = [root]
    while stack:
        frame = stack[-1]
        for key, child in frame.children:
            if not _is_container(child):
                frame.unfolded += 1
                held += 1
            elif id(child) in open_ids:
                _cut(frame.node, key, child, where)
            elif id(child) in finished:
                _add(frame, *finished[id(child)])
            else:
                open_ids.add(id(child))
                stack.append(_Frame(child, _children(child)))
                break
        else:
            stack.pop()
            held += 1
            open_ids.discard(id(frame.node))
            finished[id(frame.node)] = frame.height, frame.unfolded
            if stack:
                _add(stack[-1], frame.height, frame.unfolded)
        if len(stack) > MAX_DEPTH or frame.height > MAX_DEPTH:
            raise LimitError(f"the saved object is nested deeper than {MAX_DEPTH:,}", where=where)
    if root.unfolded - held > MAX_REPEATED_VALUES:
        raise LimitError(f"the saved object repeats itself more than {MAX_REPEATED_VALUES:,} times", where=where)


def _add(frame: _Frame, height: int, unfolded: int) -> None:
    frame.height = max(frame.height, height + 1)
    frame.unfolded = min(frame.unfolded + unfolded, _ENOUGH)


def _cut(node: object, key: object, child: object, where: Path) -> None:
    bare = Enclosing(child.class_path, outer=child) if isinstance(child, Described) else None
    if bare is not None and isinstance(node, (dict, list, deque)):
        node[key] = bare  # type: ignore[index]
    elif bare is not None and isinstance(node, Described) and key == "state":
        complete(node, "state", bare)
    elif bare is not None and isinstance(node, Described):
        for part in ("args", "items"):
            complete(node, part, tuple(bare if each is child else each for each in getattr(node, part)))
    elif bare is not None and _has_attributes(node):
        vars(node)[str(key)] = bare
    else:
        raise LimitError("the saved object contains itself", where=where)


def _is_container(node: object) -> bool:
    return isinstance(node, (dict, list, tuple, deque, Described)) or _has_attributes(node)


def _has_attributes(node: object) -> bool:
    # By name, because argparse takes as long to import as a small file takes to open.
    return isinstance(node, SimpleNamespace) or type(node).__module__ == "argparse"


def _children(node: object) -> Iterator[tuple[object, object]]:
    if isinstance(node, OrderedDict):
        return chain(node.items(), ((None, value) for value in vars(node).values()))
    if isinstance(node, dict):
        return iter(node.items())
    if isinstance(node, (list, tuple, deque)):
        return enumerate(node)
    if isinstance(node, Described):
        inside: Iterable[object] = chain(node.args, node.kwargs.values(), node.items)
        return chain([("state", node.state)], ((None, value) for value in inside))
    return iter(vars(node).items())
