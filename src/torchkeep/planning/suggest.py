"""Rules to paste that make a plan fit: renames that explain differing names, then casts, then skips for the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import TYPE_CHECKING

from torchkeep.planning.assignment import assign
from torchkeep.planning.renames import generalise
from torchkeep.planning.rows import DIFFERENCES, Row, Status
from torchkeep.planning.rules import Cast, Rename, Rule, Skip
from torchkeep.planning.subtrees import fold
from torchkeep.tensors import TensorSpec

if TYPE_CHECKING:
    from torchkeep.planning.loadplan import LoadPlan

MAX_SINGLE_SKIPS = 4
MAX_CAST_GLOBS = 3


def suggest(plan: LoadPlan) -> tuple[Rule, ...]:
    """The rules that, added to the plan's own, make it fit in strict mode; the same plan gets the same rules."""
    current = plan
    # Modules first: what is said about their tensors holds for their optimizer's state as well.
    for entry in sorted(plan.pairs, key=lambda entry: not plan.pairs[entry].counts):
        for propose in (_renames, _casts, _skips):
            current = current.with_rules(*propose(current, entry))
    return current.rules[len(plan.rules) :]


def _renames(plan: LoadPlan, entry: str) -> tuple[Rule, ...]:
    """Renames that let more tensors match and none fewer."""
    pair = plan.pairs[entry]
    rows = [row for row in plan.rows if row.entry == entry]
    claims = Counter(row.resulting_name for row in rows if row.resulting_name is not None)

    def leftover(status: Status) -> dict[str, Hashable]:
        found = (row for row in rows if row.status is status and claims[row.name] <= 1)
        return {row.name: _likeness(row.checkpoint or row.model, with_dtype=pair.counts) for row in found}

    settled = {
        row.resulting_name: row.name
        for row in rows
        if row.resulting_name is not None and row.status is not Status.ONLY_IN_CHECKPOINT
    }
    only_in_checkpoint = leftover(Status.ONLY_IN_CHECKPOINT)
    assigned = assign(only_in_checkpoint, leftover(Status.ONLY_IN_MODEL), [*settled, *settled.values()])
    if not assigned:
        return ()
    others = {name: name for name in only_in_checkpoint if name not in assigned}
    limit = _limit(plan, entry)
    exact = (Rename(assigned, entry=limit),)
    for rules in (generalise(assigned, settled, others, entry=limit), exact):
        if _is_better(plan.with_rules(*rules), plan):
            return rules
    return ()


def _casts(plan: LoadPlan, entry: str) -> tuple[Rule, ...]:
    rows = [row for row in plan.rows if row.entry == entry]
    narrowed = [row.name for row in rows if row.status is Status.DTYPE_DIFFERS]
    if not narrowed:
        return ()
    subtrees = fold(narrowed, {row.name for row in rows} - set(narrowed))
    globs = [subtree.glob for subtree in subtrees] if len(subtrees) <= MAX_CAST_GLOBS else []
    return (Cast(*globs, entry=_limit(plan, entry)),)


def _skips(plan: LoadPlan, entry: str) -> tuple[Rule, ...]:
    rows = [row for row in plan.rows if row.entry == entry]
    differing = dict.fromkeys(row.name for status in DIFFERENCES for row in rows if row.status is status)
    matched = {row.name for row in rows if row.status is Status.MATCHED}
    globs = [subtree.glob for subtree in fold(differing, matched)]
    limit = _limit(plan, entry)
    if len(globs) <= MAX_SINGLE_SKIPS:
        return tuple(Skip(glob, entry=limit) for glob in globs)
    return (Skip(*globs, entry=limit),)


def _limit(plan: LoadPlan, entry: str) -> str | None:
    """The entry a rule must be limited to, or None when it may act on all: one module with its optimizers."""
    modules = [name for name, pair in plan.pairs.items() if pair.counts]
    return None if [entry] in (modules, list(plan.pairs)) else entry


def _likeness(spec: TensorSpec | None, *, with_dtype: bool) -> Hashable:
    if spec is None:
        return None
    return (spec.shape, spec.dtype) if with_dtype else spec.shape


def _is_better(new: LoadPlan, old: LoadPlan) -> bool:
    def matched(rows: tuple[Row, ...]) -> set[tuple[str, str]]:
        return {(row.entry, row.name) for row in rows if row.status is Status.MATCHED}

    return len(new.collisions) <= len(old.collisions) and matched(new.rows) > matched(old.rows)
