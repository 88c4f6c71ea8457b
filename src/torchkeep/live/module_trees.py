"""Whether modules, live or described, form a tree whose end Python's stack reaches."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator
from typing import Any

MAX_MODULE_LEVELS = 300  # torch walks modules recursively, in two or three frames a level.


class TreeFault(enum.Enum):
    """What is wrong with a tree of modules."""

    CYCLE = "contains itself"
    DEPTH = f"is nested deeper than {MAX_MODULE_LEVELS}"


def tree_fault(root: object, children: Callable[[Any], Iterable[object]]) -> tuple[TreeFault, object] | None:
    """The first fault of a tree and the module where it is; a module may be in several places, each walked once.

    Args:
        root: The outermost module.
        children: The modules right inside one.
    """
    height: dict[int, int] = {}
    open_ids: dict[int, None] = {id(root): None}
    stack: list[tuple[object, Iterator[object]]] = [(root, iter(children(root)))]
    levels = 1
    while stack:
        node, inside = stack[-1]
        child = next(inside, None)
        if child is not None and id(child) in open_ids:
            return TreeFault.CYCLE, child
        if child is not None and id(child) not in height:
            stack.append((child, iter(children(child))))
            open_ids[id(child)] = None
            levels = len(stack)
        elif child is not None:
            levels = len(stack) + height[id(child)]
        else:
            stack.pop()
            del open_ids[id(node)]
            height[id(node)] = 1 + max((height[id(each)] for each in children(node)), default=0)
        if levels > MAX_MODULE_LEVELS:
            return TreeFault.DEPTH, node
    return None
