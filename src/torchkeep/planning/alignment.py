"""Pair tensors by where they stand: in the order of the whole, by the numbers in their names, or in a block."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise, takewhile
from typing import TypeAlias, TypeVar

MIN_TYPO_LIKENESS = 0.8
MIN_ALIGNED = 2
_DIGITS = re.compile(r"\d+")
MOST_DIGITS = 9
MOST_SORTED = 10  # names to one that is out of order
Likes: TypeAlias = Mapping[str, Hashable]
Numbers: TypeAlias = tuple[int, ...]
Like = TypeVar("Like", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Alignment:
    """Pairs of names by their places.

    Attributes:
        names: Names of one side to names of the other.
        ambiguous: Names to several that only an order which says nothing could tell apart.
        is_whole: Whether both sides are one structure of several modules in one order.
    """

    names: Mapping[str, str]
    ambiguous: Mapping[str, tuple[str, ...]]
    is_whole: bool


def align(left: Likes, right: Likes, *, in_order: bool) -> Alignment:
    """Pair names of one side with names of the other that stand at the same place.

    Args:
        left: Names, in order, to what must be equal for two to be one tensor.
        right: The same of the other side.
        in_order: Whether both orders are those of the models, as far as anybody knows.

    """
    told = in_order or all(map(_is_numbered, (left, right)))
    aligned = _by_order(left, right) if told else {}
    if aligned:
        stems = {name.rpartition(".")[0] for name in aligned}
        return Alignment(aligned, {}, is_whole=len(stems) >= MIN_ALIGNED)
    rivals = _by_order_in_blocks(left, right)
    placed = {old: others[place] for old, (place, others) in rivals.items() if told or len(others) == 1}
    ambiguous = {old: others for old, (_, others) in rivals.items() if old not in placed}
    return Alignment(placed | _by_numbers(left, right), ambiguous, is_whole=False)


def are_sorted(names: Sequence[str]) -> bool:
    """Whether a file has sorted its names, perhaps a few groups one by one, so that their order says nothing.

    Example:
        >>> are_sorted(["a.bias", "a.weight", "b.bias"]), are_sorted(["a.weight", "a.bias", "b.weight", "b.bias"])
        (True, False)
    """
    descents = sum(after < before for before, after in pairwise(names))
    return descents * MOST_SORTED <= len(names)


def _is_numbered(side: Likes) -> bool:
    """Whether numbers tell equal tensors apart: they are in order in a file that is sorted, too."""
    alike: dict[Hashable, list[str]] = defaultdict(list)
    for name, like in side.items():
        alike[like].append(name)
    return all(_differ_in_a_number(*pair) for group in alike.values() for pair in pairwise(group))


def _differ_in_a_number(one: str, other: str) -> bool:
    """Whether the first segments that differ do so in numbers only: ``3`` and ``10``, or ``norm1`` and ``norm2``."""
    differing = ((a, b) for a, b in zip(one.split("."), other.split("."), strict=False) if a != b)
    words = {_DIGITS.sub("", part) for part in next(differing, ("a", "b"))}
    return len(words) == 1


def renumbered(left: Likes, right: Likes) -> dict[str, str]:
    """Names of one side with their blocks counted as the other side counts them, where all blocks are only shifted.

    Blocks 1 to 12 that hold what blocks 0 to 11 hold are these: taken by their own numbers, all but one would fit,
    each in the place of another. Names of no such blocks are themselves.

    Example:
        >>> renumbered({"h.1.w": 8, "h.2.w": 8}, {"b.0.w": 8, "b.1.w": 8})
        {'h.1.w': 'h.0.w', 'h.2.w': 'h.1.w'}
    """
    olds, news = _families(left), _families(right)
    moves: dict[str, int] = {}
    for prefix, blocks in olds.items():
        shifted = {min(other) - min(blocks) for other in news.values() if _is_shifted(blocks, other)}
        fitting = any(list(other) == list(blocks) and _contents(other) == _contents(blocks) for other in news.values())
        if len(shifted) == 1 and not fitting:
            moves[prefix] = shifted.pop()
    return {name: _moved(name, moves) for name in left}


def _families(side: Likes) -> dict[str, dict[int, Counter[Hashable]]]:
    """What is in each block, by what stands before the block's number, then by the number in rising order."""
    families: dict[str, dict[int, Counter[Hashable]]] = defaultdict(lambda: defaultdict(Counter))
    for name, like in side.items():
        if (block := _block_of(name)) is not None:
            families[block[0]][block[1]][like] += 1
    return {prefix: dict(sorted(blocks.items())) for prefix, blocks in families.items()}


def _block_of(name: str) -> tuple[str, int, str] | None:
    """What stands before the first number of a name, the number, and what is behind it."""
    segments = name.split(".")
    place = next((place for place, segment in enumerate(segments) if is_number(segment)), None)
    if place is None:
        return None
    before, after = segments[:place], segments[place + 1 :]
    return "".join(f"{part}." for part in before), int(segments[place]), "".join(f".{part}" for part in after)


def count_shared(left: Sequence[str], right: Sequence[str]) -> int:
    """How many items two sequences begin with alike.

    Example:
        >>> count_shared(["a", "b", "c"], ["a", "b", "d", "c"])
        2
    """
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))


def is_number(segment: str) -> bool:
    """Whether a segment of a name is the number of a block."""
    return segment.isascii() and segment.isdecimal() and len(segment) <= MOST_DIGITS


def _is_shifted(blocks: Mapping[int, Counter[Hashable]], other: Mapping[int, Counter[Hashable]]) -> bool:
    def unbroken(numbers: Mapping[int, object]) -> bool:
        return max(numbers) - min(numbers) == len(numbers) - 1

    alike = len(other) == len(blocks) >= MIN_ALIGNED and _contents(other) == _contents(blocks)
    return alike and list(other) != list(blocks) and unbroken(blocks) and unbroken(other)


def _contents(blocks: Mapping[int, Counter[Hashable]]) -> list[Counter[Hashable]]:
    return list(blocks.values())


def _moved(name: str, moves: Mapping[str, int]) -> str:
    block = _block_of(name)
    if block is None or block[0] not in moves:
        return name
    prefix, number, rest = block
    return f"{prefix}{number + moves[prefix]}{rest}"


def _by_order(left: Likes, right: Likes) -> dict[str, str]:
    """When both sides are the same structure, what both have as often is in the same order."""
    lefts, rights = Counter(left.values()), Counter(right.values())
    olds = [name for name, like in left.items() if lefts[like] == rights[like]]
    news = [name for name, like in right.items() if lefts[like] == rights[like]]
    if [left[name] for name in olds] != [right[name] for name in news]:
        return {}
    if len(olds) == 1 and SequenceMatcher(None, olds[0], news[0], autojunk=False).ratio() < MIN_TYPO_LIKENESS:
        return {}
    return dict(zip(olds, news, strict=True))


def _by_numbers(left: Likes, right: Likes) -> dict[str, str]:
    """Equal tensors of which each numbered block of both sides has just one, blocks in the order of their numbers."""
    aligned: dict[str, str] = {}
    olds, news = _in_blocks(left.items()), _in_blocks(right.items())
    for kind in (kind for kind in olds if kind in news):
        old, new = olds[kind], news[kind]
        if len(old) == len(new) >= MIN_ALIGNED and all(len(names) == 1 for names in (*old.values(), *new.values())):
            aligned.update((old[one][0], new[other][0]) for one, other in zip(sorted(old), sorted(new), strict=True))
    return aligned


def _by_order_in_blocks(left: Likes, right: Likes) -> dict[str, tuple[int, tuple[str, ...]]]:
    """Modules of equal tensors in numbered blocks, where both sides have as many of them in each block.

    Returns:
        For each tensor of them the place of its module among those of its block, and who is at these places.
    """
    aligned: dict[str, tuple[int, tuple[str, ...]]] = {}
    olds, news = (_in_blocks(_signatures(side)) for side in (left, right))
    for kind in (kind for kind in olds if kind in news):
        old, new = ([blocks[number] for number in sorted(blocks)] for blocks in (olds[kind], news[kind]))
        if list(map(len, old)) == list(map(len, new)):
            for stems, other_stems in zip(old, new, strict=True):
                for last in sorted(last for last, _ in kind[0]):
                    others = tuple(f"{other}.{last}" for other in other_stems)
                    aligned |= {f"{stem}.{last}": (place, others) for place, stem in enumerate(stems)}
    return aligned


def _signatures(side: Likes) -> Iterable[tuple[str, frozenset[tuple[str, Hashable]]]]:
    """The modules of a side, in order, with what each has."""
    members: dict[str, set[tuple[str, Hashable]]] = defaultdict(set)
    for name, like in side.items():
        stem, _, last = name.rpartition(".")
        members[stem].add((last, like))
    return ((stem, frozenset(has)) for stem, has in members.items())


def _in_blocks(items: Iterable[tuple[str, Like]]) -> dict[tuple[Like, int], dict[Numbers, list[str]]]:
    """Names by what they have in common and how many numbers are in them, then by these numbers; others are out."""
    blocks: dict[tuple[Like, int], dict[Numbers, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, like in items:
        numbers = tuple(int(segment) for segment in name.split(".") if is_number(segment))
        if numbers:
            blocks[like, len(numbers)][numbers].append(name)
    return blocks
