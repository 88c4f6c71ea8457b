"""One object given for two entries: no harm where they are the same, and refused where the last would win."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, TypeAlias

from torch import nn

from torchkeep.errors import PlanError
from torchkeep.live.modules import unwrap
from torchkeep.tensors import TensorSpec, walk

if TYPE_CHECKING:
    from torchkeep.live.targets import Target

Content: TypeAlias = Callable[[TensorSpec], Hashable]


def refuse_overwriting(targets: Sequence[Target], content: Content) -> None:
    """Return if no object is loaded from two entries that differ, as far as the checkpoint tells.

    Args:
        targets: What is loaded.
        content: What is equal for tensors of equal content.

    Raises:
        PlanError: Some are; each pair of entries is named.
    """
    objects = [unwrap(target.live) if isinstance(target.live, nn.Module) else target.live for target in targets]
    faults = [
        f"{targets[i].entry!r} and {targets[j].entry!r} are for one and the same {type(objects[i]).__name__} and differ"
        for i, j in combinations(range(len(targets)), 2)
        if objects[i] is objects[j] and _leaves(targets[i], content) != _leaves(targets[j], content)
    ]
    if faults:
        raise PlanError(
            "an object would be loaded twice, and keep only what comes last",
            faults=faults,
            remedy="name one entry for each object, or make a copy for the second with copy.deepcopy",
        )


def _leaves(target: Target, content: Content) -> list[tuple[Hashable, object]]:
    return [(path, content(leaf) if isinstance(leaf, TensorSpec) else leaf) for path, leaf in walk(target.node)]
