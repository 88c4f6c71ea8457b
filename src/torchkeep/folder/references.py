"""The tensors that nodes refer to: docs/format.md, "Nodes"."""

from __future__ import annotations

from collections.abc import Iterator

from torchkeep.folder.draft import Name
from torchkeep.folder.record import Node
from torchkeep.folder.values import containers_in


def reference_of(node: Node) -> Name | None:
    """The tensor that a node itself refers to; None for every other node."""
    reference = node.get("$tensor") if isinstance(node, dict) else None
    if not isinstance(reference, list) or len(reference) != 2:  # noqa: PLR2004 - group and name
        return None
    return str(reference[0]), str(reference[1])


def references_in(node: Node) -> Iterator[Name]:
    """The tensors that a tree refers to, in its order, each as often as it does."""
    waiting = containers_in([node])
    while waiting:
        each = waiting.pop()
        reference = reference_of(each)
        if reference is not None:
            yield reference
        waiting += reversed(containers_in(each))
