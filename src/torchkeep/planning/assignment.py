"""Find which leftover tensors are the same under other names: by beginnings, by order, by likeness."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby, islice, takewhile

from torchkeep.planning.alignment import Alignment, align, is_number, renumbered
from torchkeep.planning.evidence import believed

_DIGITS = re.compile(r"\d+")
MAX_CHANGES = 40
MAX_COMPARED = 20_000
MAX_RIVALS = 8
MIN_EXPLAINED = 2
MIN_LIKENESS = 0.4
MIN_RATIO = 0.5
MIN_LEAD = 0.2


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which leftovers are likely one tensor.

    Attributes:
        names: Checkpoint name to model name.
        ambiguous: Checkpoint names that could be several of the model's, or that share one with others, to those.
        by_shape: Checkpoint names to those of the model where hardly more than the shapes speaks for it.
    """

    names: Mapping[str, str]
    ambiguous: Mapping[str, tuple[str, ...]]
    by_shape: Mapping[str, str]


def assign(
    checkpoint: Mapping[str, Hashable],
    model: Mapping[str, Hashable],
    settled: Collection[str] = (),
    *,
    in_order: bool = True,
) -> Assignment:
    """Find which leftovers of a checkpoint and of a model are likely one tensor; nothing is guessed in a tie.

    Args:
        checkpoint: Leftover names, in order, to what must be equal for two to be one tensor: shape and dtype.
        model: The same of the other side.
        settled: Names that are on both sides. A module with one of them is there: its leftovers belong to no other.
        in_order: Whether the checkpoint's order is that of a model; a file may have sorted its names.
    """
    own_name = {new: old for old, new in renumbered(checkpoint, model).items()}
    if len(own_name) < len(checkpoint):
        own_name = {name: name for name in checkpoint}
    left, right = {name: checkpoint[own] for name, own in own_name.items()}, dict(model)
    modules = frozenset(stem for name in settled if (stem := name.rpartition(".")[0]))
    assigned, ambiguous = _assign_by_beginnings(left, right, modules)
    taken = set(assigned.values())
    open_left = {name: like for name, like in left.items() if name not in assigned}
    open_right = {name: like for name, like in right.items() if name not in taken}
    alignment = align(open_left, open_right, in_order=in_order)
    similar, tied = _assign_by_similarity(open_left, open_right, modules, alignment, rivals=ambiguous)
    found = assigned | similar
    structural = {old for old, new in similar.items() if alignment.is_whole and alignment.names.get(old) == new}
    sure = believed(found, left, structural=structural, model_count=len(model) + len(settled) // 2)
    unsure = {old: (new,) for old, new in found.items() if old not in sure}
    return Assignment(
        {own_name[old]: new for old, new in sure.items()},
        {
            own_name[old]: others
            for old, others in {**tied, **ambiguous, **alignment.ambiguous}.items()
            if old not in found
        },
        {own_name[old]: new for old, (new,) in unsure.items()},
    )


def _may_be_one(old: str, new: str, modules: Collection[str]) -> bool:
    """Whether nothing says that two are different tensors: a module that is on both sides, or the number of a block."""
    old_module, new_module = old.rpartition(".")[0], new.rpartition(".")[0]
    if old_module != new_module and (old_module in modules or new_module in modules):
        return False
    return not _are_blocks_of_one(old, new)


def _are_blocks_of_one(old: str, new: str) -> bool:
    """Whether the first that differs in two names is a number behind the same: blocks of one list, or of one series."""
    differing = ((a, b) for a, b in zip(old.split("."), new.split("."), strict=False) if a != b)
    return len({_DIGITS.sub("", part) for part in next(differing, ("a", "b"))}) == 1


def _assign_by_beginnings(
    left: Mapping[str, Hashable], right: Mapping[str, Hashable], modules: Collection[str]
) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Pairs that one change at the beginning of many names explains, the change that explains most first.

    Returns:
        The pairs; and names that changes which explain as much would pair otherwise, to all that they could be.
    """
    assigned: dict[str, str] = {}
    ambiguous: dict[str, tuple[str, ...]] = {}
    ends: dict[tuple[str, Hashable], list[str]] = defaultdict(list)
    for name, like in right.items():
        for ending in _ends(name):
            ends[ending, like].append(name)
    votes: Counter[tuple[str, str]] = Counter()
    for name, like in left.items():
        end = next((end for end in _ends(name) if (end, like) in ends), None)
        if end is not None:
            cut = len(end)
            others = (other for other in ends[end, like] if _may_be_one(name, other, modules))
            first = islice(others, MAX_RIVALS)
            votes.update((name[: len(name) - cut], other[: len(other) - cut]) for other in first)
    changes = [change for change, _ in votes.most_common(MAX_CHANGES)]
    open_left, open_right = dict(left), dict(right)
    while changes:
        explained = {change: _explained(change, open_left, open_right, modules) for change in changes}
        best = max(changes, key=lambda change: (len(explained[change]), -len(change[0]) - len(change[1])))
        changes.remove(best)
        if len(explained[best]) < MIN_EXPLAINED:
            break
        rivals = [
            change
            for change in changes
            if len(explained[change]) == len(explained[best]) and _contradict(explained[change], explained[best])
        ]
        chosen = _likeliest([best, *rivals])
        if chosen is not None:
            assigned |= explained[chosen]
        for change in [best, *rivals] if chosen is None else [chosen]:
            for old, new in explained[change].items():
                open_left.pop(old, None)
                open_right.pop(new, None)
                if chosen is None:
                    ambiguous[old] = tuple(dict.fromkeys([*ambiguous.get(old, ()), new]))
        if chosen is not None and chosen != best:
            changes.append(best)
            changes.remove(chosen)
    return assigned, ambiguous


def _likeliest(changes: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    """Of changes that contradict one another the one whose names clearly are the likest; None when none is."""
    ranked = sorted(((_likeness_of_change(*change), change) for change in changes), reverse=True)
    if len(ranked) == 1:
        return ranked[0][1]
    (*words, ratio), (*next_words, next_ratio) = ranked[0][0], ranked[1][0]
    clear = words > next_words or (ratio >= MIN_RATIO and ratio - next_ratio >= MIN_LEAD)
    return ranked[0][1] if clear else None


def _likeness_of_change(old: str, new: str) -> tuple[bool, int, float]:
    """Whether two beginnings have the same numbers, how many words they share first, how alike their letters are."""
    left, right = old.split("."), new.split(".")
    same_numbers = list(filter(is_number, left)) == list(filter(is_number, right))
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1] != "", zip(left, right, strict=False)))
    return same_numbers, shared, SequenceMatcher(None, old, new, autojunk=False).ratio()


def _ends(name: str) -> list[str]:
    segments = name.split(".")
    return [".".join(segments[cut:]) for cut in range(len(segments))]


def _explained(
    change: tuple[str, str], left: Mapping[str, Hashable], right: Mapping[str, Hashable], modules: Collection[str]
) -> dict[str, str]:
    old, new = change
    moved = {name: new + name[len(old) :] for name in left if name.startswith(old)}
    return {
        name: target
        for name, target in moved.items()
        if target in right and right[target] == left[name] and _may_be_one(name, target, modules)
    }


def _contradict(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    if any(one[name] != other[name] for name in one.keys() & other.keys()):
        return True
    claimed = {target: name for name, target in one.items()}
    return any(claimed.get(target, name) != name for name, target in other.items())


@dataclass(frozen=True, slots=True)
class _Features:
    """What the likeness of names is computed from."""

    name: str
    stem: str
    last: str
    numbers: tuple[str, ...]
    trigrams: frozenset[str]

    @classmethod
    def of(cls, name: str) -> _Features:
        """The features of one name."""
        stem, _, last = name.rpartition(".")
        return cls(name, stem, last, tuple(re.findall(r"\d+", name)), _trigrams(stem))


def _assign_by_similarity(
    left: Mapping[str, Hashable],
    right: Mapping[str, Hashable],
    modules: Collection[str],
    alignment: Alignment,
    *,
    rivals: Mapping[str, tuple[str, ...]],
) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Pairs inside buckets of equal tensors, the likeliest of all first; a tie leaves all that take part in it out.

    Of names in `rivals` only their place may tell who they are.
    """
    ambiguous: dict[str, tuple[str, ...]] = {}
    contested = {new for others in rivals.values() for new in others}
    found_likely = (
        (score, old, new)
        for score, old, new in _scores(left, right, alignment.names)
        if _may_be_one(old, new, modules)
        and (alignment.names.get(old) == new or not (old in rivals or new in contested))
    )
    scored = sorted(found_likely, key=lambda found: -found[0])
    assigned: dict[str, str] = {}
    gone: set[tuple[str, str]] = set()
    for _, group in groupby(scored, key=lambda found: found[0]):
        equals = [(old, new) for _, old, new in group if ("left", old) not in gone and ("right", new) not in gone]
        olds, news = Counter(old for old, _ in equals), Counter(new for _, new in equals)
        for old, new in equals:
            gone |= {("left", old), ("right", new)}
            if olds[old] == news[new] == 1:
                assigned[old] = new
            else:
                ambiguous[old] = tuple(dict.fromkeys([*ambiguous.get(old, ()), new]))
    unsaid = {name: others for name, others in ambiguous.items() if name not in assigned}
    return {name: assigned[name] for name in left if name in assigned}, unsaid


def _scores(
    left: Mapping[str, Hashable], right: Mapping[str, Hashable], aligned: Mapping[str, str]
) -> Iterator[tuple[float, str, str]]:
    """Every pair of equal tensors that may be one, with how likely it is; in big buckets only where numbers agree."""
    buckets: dict[Hashable, tuple[list[_Features], list[_Features]]] = defaultdict(lambda: ([], []))
    for side, names in enumerate((left, right)):
        for name, like in names.items():
            buckets[like][side].append(_Features.of(name))
    for olds, news in buckets.values():
        lasts = {new.last for new in news}
        by_numbers: dict[tuple[str, ...], list[_Features]] = defaultdict(list)
        for new in news:
            by_numbers[new.numbers].append(new)
        many = len(olds) * len(news) > MAX_COMPARED
        for old in olds:
            for new in by_numbers[old.numbers] if many else news:
                in_order = aligned.get(old.name) == new.name and (old.last == new.last or old.last not in lasts)
                if in_order or (old.last == new.last and _is_likely(old.stem, new.stem)):
                    likeness = 1.0 if _is_inside(old.stem, new.stem) else _likeness(old.trigrams, new.trigrams)
                    likeness += 0.2 * (old.last == new.last) + 0.1 * (old.numbers == new.numbers) + 0.5 * in_order
                    yield round(likeness, 6), old.name, new.name


def _is_likely(old_stem: str, new_stem: str) -> bool:
    """Whether two modules may be one by their names alone: by their ends, or by what follows where they part."""
    if _is_inside(old_stem, new_stem):
        return True
    old, new = old_stem.split("."), new_stem.split(".")
    if old[-1] == new[-1]:
        return True
    while old and new and old[0] == new[0]:
        del old[0], new[0]
    return _likeness(_trigrams(".".join(old)), _trigrams(".".join(new))) >= MIN_LIKENESS


def _is_inside(one: str, other: str) -> bool:
    """Whether one is the other, or the other inside something."""
    longer, shorter = (one, other) if len(one) > len(other) else (other, one)
    return longer == shorter or not shorter or longer.endswith(f".{shorter}")


def _likeness(one: frozenset[str], other: frozenset[str]) -> float:
    return 2 * len(one & other) / (len(one) + len(other))


def _trigrams(text: str) -> frozenset[str]:
    padded = f".{text}."
    return frozenset(padded[index : index + 3] for index in range(max(len(padded) - 2, 1)))
