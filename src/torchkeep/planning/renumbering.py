"""Find modules that stand elsewhere in their list since others were put in, taken out or grouped."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import product, takewhile
from typing import TypeAlias

from torchkeep.planning.alignment import count_shared, is_number

ASIDE = "unused"
MOST_COMPARED = 250_000
MOST_HEADS = 4
MIN_PAIRED = 0.5  # of the shorter list
MOST_DISPLACED = 0.5  # for each that moves
_MATRIX_RANK = 2
_Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
_Modules: TypeAlias = Mapping[str, Mapping[str, tuple[int, ...]]]


def renumber(checkpoint: _Shapes, model: _Shapes) -> dict[str, str]:
    """The names that a checkpoint's tensors have in a model whose lists have other numbers; {} where they agree.

    Modules of one list, whose names differ in nothing but numbers, are laid side by side in the order of the numbers.
    A pair counts where each longest common sequence of the two has it, and where nothing else of its block stays.

    Args:
        checkpoint: Name to shape.
        model: Name to shape.

    Returns:
        Checkpoint name to model name, for an exchange all at once. What is in nobody's place, but has a name that
        another one gets, is put aside under ``unused``.

    Example:
        >>> renumber({"0.weight": (8, 4), "2.weight": (2, 8)}, {"0.weight": (8, 4), "3.weight": (2, 8)})
        {'2.weight': '3.weight'}
    """
    olds, news = _modules(checkpoint), _modules(model)
    agreeing = {stem for stem in olds if stem in news and _kind(olds[stem]) == _kind(news[stem])}
    found = {stem: other for moves in _moves(olds, news, agreeing) for stem, other in moves.items()}
    moves = _whole_blocks(found, agreeing)
    names = {
        f"{stem}.{last}": f"{other}.{last}"
        for stem, other in moves.items()
        for last in olds[stem]
        if last in news[other]
    }
    taken = set(moves.values()) - set(moves)
    return names | {f"{stem}.{last}": f"{ASIDE}.{stem}.{last}" for stem in olds if stem in taken for last in olds[stem]}


def other_beginnings(checkpoint: _Shapes, model: _Shapes) -> list[tuple[str, str]]:
    """What the names of a whole list may begin with in the checkpoint, and in the model instead.

    Example:
        >>> other_beginnings({"features.0.weight": (8, 4)}, {"net.features.0.weight": (8, 4)})
        [('', 'net.')]
    """
    heads = [Counter(map(_head, _modules(side))).most_common(MOST_HEADS) for side in (checkpoint, model)]
    found: dict[tuple[str, str], None] = {}
    for (left, _), (right, _) in product(*heads):
        same = count_shared(left[::-1], right[::-1])
        gone, put = left[: len(left) - same], right[: len(right) - same]
        if gone != put:
            found["".join(f"{word}." for word in gone), "".join(f"{word}." for word in put)] = None
    return list(found)


def _head(stem: str) -> tuple[str, ...]:
    """What stands before the first number of a name."""
    return tuple(takewhile(lambda part: not is_number(part), stem.split(".")))


def _modules(side: _Shapes) -> _Modules:
    """What each module has, for modules with a number in their names."""
    modules: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for name, shape in side.items():
        stem, _, last = name.rpartition(".")
        if any(map(is_number, stem.split("."))):
            modules[stem][last] = shape
    return modules


def _kind(tensors: Mapping[str, tuple[int, ...]]) -> Hashable:
    """What is equal for two modules that may be one: a counter may be missing, and the bias of a matrix."""
    may_be_missing = {"num_batches_tracked"}
    if len(tensors.get("weight", ())) >= _MATRIX_RANK:
        may_be_missing.add("bias")
    return frozenset((last, shape) for last, shape in tensors.items() if last not in may_be_missing)


def _moves(olds: _Modules, news: _Modules, agreeing: set[str]) -> Iterator[dict[str, str]]:
    """What has moved for sure in each list where modules of both sides have no place by their names.

    Where it would move nearly all that has a place the names are right: blocks 1 to 3 are not the blocks 0 to 2.
    """
    lists: dict[tuple[str, ...], tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for side, modules in enumerate((olds, news)):
        for stem in sorted(modules, key=_by_numbers):
            lists[tuple(part for part in stem.split(".") if not is_number(part))][side].append(stem)
    for left, right in lists.values():
        both_differ = not agreeing.issuperset(left) and not agreeing.issuperset(right)
        if both_differ and len(left) * len(right) <= MOST_COMPARED:
            pairs = common_to_all([_kind(olds[stem]) for stem in left], [_kind(news[stem]) for stem in right])
            moves = {left[i]: right[j] for i, j in pairs if left[i] != right[j]}
            displaced = agreeing.intersection({*moves, *moves.values()})
            enough = len(pairs) >= MIN_PAIRED * min(len(left), len(right))
            if enough and MOST_DISPLACED * len(moves) > len(displaced):
                yield moves


def _by_numbers(stem: str) -> list[tuple[bool, int, str]]:
    parts = stem.split(".")
    return [(False, int(part), "") if is_number(part) else (True, 0, part) for part in parts]


def common_to_all(left: Sequence[Hashable], right: Sequence[Hashable]) -> list[tuple[int, int]]:
    """The pairs of places that every longest common subsequence of two sequences has.

    Example:
        >>> common_to_all("abb", "xabbb")
        [(0, 1)]
    """
    before = _lengths(left, right)
    behind = [row[::-1] for row in _lengths(left[::-1], right[::-1])][::-1]
    longest = before[-1][-1]
    at_rank: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for i, one in enumerate(left):
        for j, other in enumerate(right):
            if one == other and before[i][j] + 1 + behind[i + 1][j + 1] == longest:
                at_rank[before[i][j]].append((i, j))
    return [pairs[0] for _, pairs in sorted(at_rank.items()) if len(pairs) == 1]


def _lengths(left: Sequence[Hashable], right: Sequence[Hashable]) -> list[list[int]]:
    """How long a common subsequence the first i and the first j have at most."""
    rows = [[0] * (len(right) + 1)]
    for one in left:
        last, row = rows[-1], [0]
        for j, other in enumerate(right):
            row.append(last[j] + 1 if one == other else max(last[j + 1], row[j]))
        rows.append(row)
    return rows


def _whole_blocks(moves: Mapping[str, str], agreeing: set[str]) -> dict[str, str]:
    """The moves of blocks of which nothing stays: an adapter of block 3 is no adapter of block 5 that has another."""
    kept = dict(moves)
    while True:
        taken = set(kept.values())
        stay = {stem for stem in agreeing if stem not in kept and stem not in taken}
        held = {
            ".".join(parts[:cut]) for stem in stay for parts in [stem.split(".")] for cut in range(1, len(parts) + 1)
        }
        whole = {stem: other for stem, other in kept.items() if held.isdisjoint(_blocks(stem, other))}
        if len(whole) == len(kept):
            return kept
        kept = whole


def _blocks(stem: str, other: str) -> tuple[str, str]:
    """Two names up to the first segment in which they differ."""
    left, right = stem.split("."), other.split(".")
    end = count_shared(left, right) + 1
    return ".".join(left[:end]), ".".join(right[:end])
