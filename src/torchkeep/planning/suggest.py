"""Rules to paste that make a plan fit: renames that explain differing names, then casts, then skips for the rest."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from torchkeep.planning.alignment import are_sorted
from torchkeep.planning.alternatives import alternatives
from torchkeep.planning.assignment import Assignment, assign
from torchkeep.planning.joins import find_fuses, find_splits
from torchkeep.planning.renames import generalise
from torchkeep.planning.renumbering import other_beginnings, renumber
from torchkeep.planning.rows import DIFFERENCES, Row, Status
from torchkeep.planning.rules import Cast, Rename, Rule, Skip
from torchkeep.planning.subtrees import fold, without_numbers
from torchkeep.tensors import TensorSpec

if TYPE_CHECKING:
    from torchkeep.planning.loadplan import LoadPlan

_Proposal: TypeAlias = tuple[tuple[Rule, ...], Mapping[str, tuple[str, ...]]]  # and what is ambiguous
MAX_SINGLE_SKIPS = 4
MAX_CAST_GLOBS = 3
MAX_AMBIGUITIES = 6
USUAL_COVERAGE = 0.5
MAX_BY_SHAPE = 3


@dataclass(frozen=True, slots=True)
class Suggestion:
    """One suggested rule, and what there is to know about it.

    Attributes:
        rule: The rule.
        gains: Names in the model that match with it and did not with the rules before it.
        settles: Names that differed and that it leaves alone.
        alternatives: Rules that would adapt what it leaves alone; whether the values mean that, only a person can say.
        by_shape: Whether hardly more than shapes speaks for it: what it renames has no other counterpart.
    """

    rule: Rule
    gains: tuple[str, ...]
    settles: tuple[str, ...]
    alternatives: tuple[Rule, ...] = ()
    by_shape: bool = False


class Suggestions(tuple[Rule, ...]):  # noqa: SLOT001 - a tuple has no room for slots
    """Suggested rules, in order; printed, they are code to paste with a comment on each.

    Attributes:
        explained: What is to be known of each rule.
        ambiguous: Checkpoint names that no rule is suggested for, since they could be any of these in the model; or
            this one, but hardly more than its shape says so.
        coverage: The share of the models' elements that arrives with the rules.
    """

    explained: tuple[Suggestion, ...]
    ambiguous: Mapping[str, tuple[str, ...]]
    coverage: float

    @classmethod
    def of(
        cls, explained: Sequence[Suggestion], ambiguous: Mapping[str, tuple[str, ...]], coverage: float
    ) -> Suggestions:
        """The rules of the suggestions."""
        made = cls(each.rule for each in explained)
        made.explained, made.ambiguous, made.coverage = tuple(explained), dict(ambiguous), coverage
        return made

    def __str__(self) -> str:
        lines = ["rules=[", *(f"    {each.rule!r},  # {_comment(each)}" for each in self.explained), "]"]
        claims = Counter(other for others in self.ambiguous.values() for other in others)
        said = [
            _unsaid(name, others, max(claims[other] for other in others)) for name, others in self.ambiguous.items()
        ]
        folded = list(dict.fromkeys(without_numbers(line) for line in said))
        folded = said if len(said) == len(folded) else folded
        lines += folded[:MAX_AMBIGUITIES]
        if len(folded) > MAX_AMBIGUITIES:
            lines.append(f"# left out: {len(folded) - MAX_AMBIGUITIES:,} more")
        if self and self.coverage < USUAL_COVERAGE:
            lines.append(
                f"# with these rules {self.coverage:.1%} of the model's elements arrive: is this what was meant?"
            )
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        return Suggestions.of, (self.explained, self.ambiguous, self.coverage)


def _unsaid(name: str, others: Sequence[str], claims: int) -> str:
    why = "ambiguous" if len(others) > 1 or claims > 1 else "by its shape alone"
    alike = list(dict.fromkeys(without_numbers(other) for other in others))
    return f"# {why}, left out: {name} could be {' or '.join(alike if len(alike) < len(others) else others)}"


def _comment(suggestion: Suggestion) -> str:
    said = []
    if suggestion.gains:
        alone = " by shape alone: look at it" if suggestion.by_shape else ""
        said.append(f"{_count(suggestion.gains)} gained{alone}")
    if suggestion.settles:
        said.append(f"{_count(suggestion.settles)} left alone")
    if suggestion.alternatives:
        said.append(f"or adapt: {', '.join(map(repr, suggestion.alternatives))}")
    return "; ".join(said) or "together with the next"


def _count(names: Sequence[str]) -> str:
    return f"{len(names):,} tensor{'s' if len(names) != 1 else ''}"


def suggest(plan: LoadPlan) -> Suggestions:
    """The rules that, added to the plan's own, make it fit in strict mode; the same plan gets the same rules."""
    current = plan
    explained: list[Suggestion] = []
    ambiguous: dict[str, Mapping[str, tuple[str, ...]]] = {}
    # Modules first: what is said about their tensors holds for their optimizer's state as well.
    for entry in sorted(plan.pairs, key=lambda entry: not plan.pairs[entry].counts):
        for propose in (_renumberings, _renames, _regroupings, _renames_by_shape, _casts, _skips):
            rules, unsaid = propose(current, entry)
            if unsaid:
                ambiguous[entry] = unsaid
            for rule in rules:
                following = current.with_rules(rule)
                suggestion = _explained(rule, current, following)
                explained.append(replace(suggestion, by_shape=propose is _renames_by_shape))
                current = following
    unmatched = {row.name for row in current.rows if row.status is not Status.MATCHED}
    open_names = {name: others for found in ambiguous.values() for name, others in found.items()}
    open_names = {name: others for name, others in open_names.items() if unmatched & set(others)}
    return Suggestions.of(explained, open_names, current.coverage)


def _explained(rule: Rule, before: LoadPlan, after: LoadPlan) -> Suggestion:
    matched = {(row.entry, row.name) for row in before.rows if row.status is Status.MATCHED}
    gained = [row.name for row in after.rows if row.status is Status.MATCHED and (row.entry, row.name) not in matched]
    if not isinstance(rule, Skip):
        return Suggestion(rule, tuple(gained), ())
    differed = [row for row in before.rows if row.differs and rule.acts_on(row.entry) and rule.matches(row.name)]
    settled = tuple(dict.fromkeys(row.name for row in differed))
    counting = [row for row in differed if before.pairs[row.entry].counts]
    others = {row.name for row in before.rows if row.status is not Status.SHAPE_DIFFERS}
    return Suggestion(rule, tuple(gained), settled, alternatives(counting, others))


def _renumberings(plan: LoadPlan, entry: str) -> _Proposal:
    """Renames of modules whose numbers are others, where more tensors match with them than with other renames."""
    if not plan.pairs[entry].counts:
        return (), {}
    rows = [row for row in plan.rows if row.entry == entry]
    offered = {row.resulting_name: row.checkpoint.shape for row in rows if row.resulting_name and row.checkpoint}
    own = {row.name: row.model.shape for row in rows if row.model}
    limit = _limit(plan, entry)
    found = [(rules, plan.with_rules(*rules)) for rules in _renumbered(offered, own, entry=limit)]
    fitting = [each for each in found if len(each[1].collisions) <= len(plan.collisions)]
    if not fitting:
        return (), {}
    rules, renumbered = max(fitting, key=lambda each: each[1].matched_count)
    otherwise = plan.with_rules(*_renames(plan, entry)[0])
    return (rules if renumbered.matched_count > otherwise.matched_count else ()), {}


def _renumbered(
    offered: Mapping[str, tuple[int, ...]], own: Mapping[str, tuple[int, ...]], *, entry: str | None
) -> Iterator[tuple[Rule, ...]]:
    """Renames to other numbers, with the names as they are and with each other beginning that they may have."""
    for gone, put in [("", ""), *other_beginnings(offered, own)]:
        begun = (Rename(f"^{re.escape(gone)}", put, entry=entry),) if gone or put else ()
        shapes = {begun[0].apply(name) if begun else name: shape for name, shape in offered.items()}
        names = renumber(shapes, own)
        if names:
            settled = {name: name for name in shapes if name not in names}
            yield *begun, *generalise(names, settled, {}, entry=entry)
            yield *begun, Rename(names, entry=entry)


def _renames(plan: LoadPlan, entry: str) -> _Proposal:
    """Renames that let more tensors match and none fewer."""
    found, settled, only_in_checkpoint = _assigned(plan, entry)
    unsaid = {**found.ambiguous, **{old: (new,) for old, new in found.by_shape.items()}}
    return _generalised(plan, entry, found.names, settled, only_in_checkpoint), unsaid


def _renames_by_shape(plan: LoadPlan, entry: str) -> _Proposal:
    """Renames of the last few modules of a model that otherwise fits, where each has just one counterpart."""
    found, settled, only_in_checkpoint = _assigned(plan, entry)
    contested = Counter([*found.by_shape.values(), *(new for others in found.ambiguous.values() for new in others)])
    names = {old: new for old, new in found.by_shape.items() if contested[new] == 1}
    rows = [row for row in plan.rows if row.entry == entry and row.model is not None]
    fits = sum(row.status is Status.MATCHED for row in rows) >= USUAL_COVERAGE * len(rows)
    if not fits or len({name.rpartition(".")[0] for name in names}) > MAX_BY_SHAPE:
        return (), {}
    return _generalised(plan, entry, names, settled, only_in_checkpoint), {}


def _generalised(
    plan: LoadPlan, entry: str, names: Mapping[str, str], settled: Mapping[str, str], leftover: Collection[str]
) -> tuple[Rule, ...]:
    """Few renames for the names, or the names one by one, if they gain anything."""
    others = {name: name for name in leftover if name not in names}
    limit = _limit(plan, entry)
    if names:
        for rules in (generalise(names, settled, others, entry=limit), (Rename(names, entry=limit),)):
            if _is_better(plan.with_rules(*rules), plan):
                return rules
    return ()


def _assigned(plan: LoadPlan, entry: str) -> tuple[Assignment, dict[str, str], Collection[str]]:
    """Which leftovers are likely one tensor; the names that have their place; the checkpoint's leftovers."""
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
    in_order = not are_sorted(list(plan.pairs[entry].checkpoint))
    known = [*settled, *settled.values()]
    found = assign(only_in_checkpoint, leftover(Status.ONLY_IN_MODEL), known, in_order=in_order)
    return found, settled, only_in_checkpoint


def _regroupings(plan: LoadPlan, entry: str) -> _Proposal:
    """Several tensors as one and one as several, with the renames that this makes possible, if it gains anything."""
    limit = _limit(plan, entry)
    sides: dict[Status, dict[str, TensorSpec]] = {Status.ONLY_IN_CHECKPOINT: {}, Status.ONLY_IN_MODEL: {}}
    for row in plan.rows:
        spec = row.checkpoint or row.model
        if row.entry == entry and row.status in sides and spec is not None:
            sides[row.status][row.name] = spec
    only_in_checkpoint, only_in_model = sides.values()
    for find in (find_fuses, find_splits):
        rules = find(only_in_checkpoint, only_in_model, entry=limit)
        if rules:
            regrouped = plan.with_rules(*rules)
            renames, ambiguous = _renames(regrouped, entry)
            if _is_better(regrouped.with_rules(*renames), plan):
                return (*rules, *renames), ambiguous
    return (), {}


def _casts(plan: LoadPlan, entry: str) -> _Proposal:
    rows = [row for row in plan.rows if row.entry == entry]
    narrowed = [row.name for row in rows if row.status is Status.DTYPE_DIFFERS]
    if not narrowed:
        return (), {}
    subtrees = fold(narrowed, {row.name for row in rows} - set(narrowed))
    globs = [subtree.glob for subtree in subtrees] if len(subtrees) <= MAX_CAST_GLOBS else []
    return (Cast(*globs, entry=_limit(plan, entry)),), {}


def _skips(plan: LoadPlan, entry: str) -> _Proposal:
    rows = [row for row in plan.rows if row.entry == entry]
    differing = dict.fromkeys(row.name for status in DIFFERENCES for row in rows if row.status is status)
    matched = {row.name for row in rows if row.status is Status.MATCHED}
    globs = [subtree.glob for subtree in fold(differing, matched)]
    limit = _limit(plan, entry)
    if len(globs) <= MAX_SINGLE_SKIPS:
        return tuple(Skip(glob, entry=limit) for glob in globs), {}
    return (Skip(*globs, entry=limit),), {}


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
