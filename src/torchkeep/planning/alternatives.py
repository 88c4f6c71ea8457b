"""Adaptations that would make tensors fit whose shapes differ: offered beside a `Skip`, never taken by themselves."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence

from torchkeep.planning.adaptations import (
    Adaptation,
    DoesNotFitError,
    InputChannels,
    ResizePositions,
    ResizeRows,
    Transpose,
)
from torchkeep.planning.globs import is_bare
from torchkeep.planning.rows import Row, Status
from torchkeep.planning.subtrees import fold
from torchkeep.tensors import is_floating

_POSITIONS = re.compile(r"pos|relative_position_bias_table")
_VOCABULARY = re.compile(r"emb|wte|tok|vocab|lm_head|shared|decoder\.(weight|bias)$")
_CONVOLUTION_RANKS = (3, 4, 5)
_MATRIX_RANK = 2


def alternatives(rows: Sequence[Row], others: Collection[str]) -> tuple[Adaptation, ...]:
    """The adaptations that make rows fit whose shapes differ, where there are any.

    Args:
        rows: Rows of one entry that a suggested `Skip` would leave alone.
        others: Names that must not be adapted with them.
    """
    differing = (row for row in rows if row.status is Status.SHAPE_DIFFERS)
    found = [rule for row in differing if (rule := next(_adaptations(row), None)) is not None]
    globs: dict[Adaptation, list[str]] = defaultdict(list)
    for rule in found:
        globs[rule.with_globs()] += rule.globs
    folded = {
        rule: dict.fromkeys(tree.glob for tree in fold(dict.fromkeys(names), others)) for rule, names in globs.items()
    }
    return tuple(rule.with_globs(*(folded[rule] if len(names) > 1 else names)) for rule, names in globs.items())


def _adaptations(row: Row) -> Iterator[Adaptation]:
    """What makes a tensor fit and is known to be done to tensors of such names and shapes."""
    if row.recipe is None or row.model is None or row.refusal:
        return
    old, new = row.recipe.shape, row.model.shape
    glob = row.name.rpartition(".")[0] or row.name
    glob = glob if is_bare(glob) else row.name
    candidates: list[Adaptation] = []
    if len(old) == _MATRIX_RANK and old == new[::-1]:
        candidates.append(Transpose(row.name))
    if is_floating(row.model.dtype) and _POSITIONS.search(row.name):
        candidates += [ResizePositions(row.name), ResizePositions(row.name, sampling="linear")]
    if is_floating(row.model.dtype) and len(old) in _CONVOLUTION_RANKS:
        candidates.append(InputChannels(glob))
    if _VOCABULARY.search(row.name):
        candidates.append(ResizeRows(glob))
    for rule in candidates:
        try:
            if rule.adapt(row.recipe, row.model).shape == new:
                yield rule
        except DoesNotFitError:
            continue
