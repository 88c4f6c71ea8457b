"""Weigh pairs of names that may be one tensor: what is systematic or alike is believed, what only shapes say is not."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Mapping
from difflib import SequenceMatcher

from torchkeep.planning.alignment import count_shared, is_number

MIN_TYPO_LIKENESS = 0.75
MIN_MODULES = 3
MIN_SHARE = 0.25
MIN_DISTINCT_RANK = 3
_DIGITS = re.compile(r"\d+")
# What the modules of torch call their tensors: such a module goes to one place as a whole.
_LEAF_TENSORS = frozenset(
    ["weight", "bias", "running_mean", "running_var", "num_batches_tracked", "weight_g", "weight_v", "gamma", "beta"]
)


def believed(
    names: Mapping[str, str], likes: Mapping[str, Hashable], *, structural: Collection[str], model_count: int
) -> dict[str, str]:
    """The pairs for which more speaks than equal shapes.

    Args:
        names: Checkpoint name to model name.
        likes: Checkpoint name to what it has in common with its counterpart.
        structural: Checkpoint names that were paired because both sides are one structure in one order.
        model_count: How many tensors the model has.
    """
    whole = _modules_kept_whole(names)
    changes = {old: _changes(_unit(old), _unit(new)) for old, new in whole.items()}
    units: dict[tuple[str, str], set[str]] = defaultdict(set)
    tensors: Counter[tuple[str, str]] = Counter()
    for old, found in changes.items():
        for change in found:
            units[change].add(_unit(old))
            tensors[change] += 1
    unique = {like for like, count in Counter(likes.values()).items() if count == 1}

    def is_believed(change: tuple[str, str]) -> bool:
        if _differ_in_digits_only(*change):
            return False
        systematic = len(units[change]) >= MIN_MODULES or tensors[change] >= max(2, MIN_SHARE * model_count)
        return systematic or _is_alike(*change)

    sure = {
        (_unit(old), _unit(new))
        for old, new in whole.items()
        if all(is_believed(change) for change in changes[old])
        or (old in structural and not any(_differ_in_digits_only(*change) for change in changes[old]))
        or (likes[old] in unique and _rank(likes[old]) >= MIN_DISTINCT_RANK)
    }
    # What is believed of one tensor of a module is believed of the module.
    return {old: new for old, new in whole.items() if (_unit(old), _unit(new)) in sure}


def _modules_kept_whole(names: Mapping[str, str]) -> dict[str, str]:
    """Pairs without those that would divide a module among several, or make one of several."""
    votes: Counter[tuple[str, str]] = Counter((_unit(old), _unit(new)) for old, new in names.items())
    best: dict[tuple[str, int], tuple[str, str] | None] = {}
    for pair, count in votes.items():
        for side in (0, 1):
            rival = best.get((pair[side], side), pair)
            tied = rival is not None and rival != pair and votes[rival] == count
            if tied:
                best[pair[side], side] = None
            elif rival is None or votes[rival] <= count:
                best[pair[side], side] = pair
    kept = {pair for pair in votes if best[pair[0], 0] == best[pair[1], 1] == pair}
    return {old: new for old, new in names.items() if (_unit(old), _unit(new)) in kept}


def _unit(name: str) -> str:
    """The module that a tensor belongs to, or the tensor itself where it is no part of a plain module."""
    stem, _, last = name.rpartition(".")
    if stem and last in _LEAF_TENSORS:
        return stem
    part, _, kind = name.rpartition("_")
    return part if kind in {"weight", "bias"} else name


def _changes(old: str, new: str) -> tuple[tuple[str, str], ...]:
    """What changes between two names, segment by segment where both have as many; numbers are all alike."""
    left, right = (["*" if is_number(part) else part for part in name.split(".")] for name in (old, new))
    shared = count_shared(left[::-1], right[::-1])
    left, right = left[: len(left) - shared], right[: len(right) - shared]
    shared = count_shared(left, right)
    left, right = left[shared:], right[shared:]
    if len(left) == len(right):
        pairs = [(a, b) for a, b in zip(left, right, strict=True) if a != b]
    else:
        pairs = [(".".join(left), ".".join(right))]
    return tuple(pair if _differ_in_digits_only(*pair) else _without_digits(*pair) for pair in pairs)


def _without_digits(old: str, new: str) -> tuple[str, str]:
    return _DIGITS.sub("#", old), _DIGITS.sub("#", new)


def _differ_in_digits_only(old: str, new: str) -> bool:
    """Whether two are of one series, as ``conv1`` and ``conv2``: each is there, or is not, for a reason."""
    return old != new and _DIGITS.sub("", old) == _DIGITS.sub("", new)


def _is_alike(old: str, new: str) -> bool:
    """Whether two are one name with a slip, or one of them is nothing: something was put around or taken off."""
    if not old or not new:
        return True
    return SequenceMatcher(None, old, new, autojunk=False).ratio() >= MIN_TYPO_LIKENESS


def _rank(like: Hashable) -> int:
    """The number of dimensions of a tensor, as far as a likeness tells."""
    shape = like[0] if isinstance(like, tuple) and like and isinstance(like[0], tuple) else like
    return len(shape) if isinstance(shape, tuple) else 0
