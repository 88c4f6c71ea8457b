"""Laying what a module's state has beside its tensors (extra state, sparse and quantised tensors) beside a file's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torchkeep.planning.globs import quoted
from torchkeep.planning.match import arrange, find_names, skipping_rule
from torchkeep.planning.rows import Pair
from torchkeep.planning.rules import Rename, Rule


@dataclass(frozen=True, slots=True)
class ExtraState:
    """What becomes of the extra state of one pair.

    Attributes:
        arriving: The model's name of each that arrives, and its name in the file.
        faults: What one side has alone and no rule leaves alone, a line each.
    """

    arriving: dict[str, str]
    faults: tuple[str, ...]


def match_extra_state(entry: str, pair: Pair, rules: Sequence[Rule]) -> ExtraState:
    """Match extra state by name, as tensors are: after `Rename`, without wrappers, and where nothing skips it."""
    active = [rule for rule in rules if rule.acts_on(entry)]
    named = {resulting: source for source, resulting in _resulting(entry, pair, active)}
    found = find_names({name: name for name in named}, pair.model_extra, ())
    kept = {name: other for name, other in found.items() if not _is_skipped(active, name, other)}
    taken = set(found.values())
    alone = [(name, "checkpoint") for name in named if name not in taken]
    alone += [(name, "model") for name in pair.model_extra if name not in found]
    faults = (
        f"{name}, which is no plain tensor, is only in the {side}: Skip({quoted(name)}) leaves it alone"
        for name, side in alone
        if not _is_skipped(active, name)
    )
    return ExtraState({name: named[other] for name, other in kept.items()}, tuple(faults))


def extra_names(entry: str, pair: Pair, rules: Sequence[Rule]) -> set[str]:
    """The names of extra state on both sides, once the rules that rename have acted."""
    return {resulting for _, resulting in _resulting(entry, pair, rules)} | set(pair.model_extra)


def _resulting(entry: str, pair: Pair, rules: Sequence[Rule]) -> Iterator[tuple[str, str]]:
    renames = [rule for rule in rules if isinstance(rule, Rename)]
    return ((offer.source, offer.name) for offer in arrange(dict.fromkeys(pair.extra), renames, entry))


def _is_skipped(rules: Sequence[Rule], *names: str) -> bool:
    return any(skipping_rule(name, rules) is not None for name in names)
