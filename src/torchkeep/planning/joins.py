"""Find leftovers that are one tensor on one side and several on the other, by the names that such parts have."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torchkeep.planning.regrouping import Fuse, Split
from torchkeep.tensors import TensorSpec

Names: TypeAlias = Mapping[str, TensorSpec]
PARTS = (
    ("q", "k", "v"),
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("to_q", "to_k", "to_v"),
    ("wq", "wk", "wv"),
    ("W_q", "W_k", "W_v"),
    ("q_lin", "k_lin", "v_lin"),
    ("q_linear", "k_linear", "v_linear"),
    ("query_proj", "key_proj", "value_proj"),
    ("gate_proj", "up_proj"),
    ("to_k", "to_v"),
    ("k_proj", "v_proj"),
    ("key", "value"),
)


@dataclass(frozen=True, slots=True)
class _Join:
    """How parts of a side are one tensor of the other."""

    parts: tuple[str, ...]
    whole: str
    ratios: tuple[int, ...]
    dim: int


def find_fuses(checkpoint: Names, model: Names, *, entry: str | None) -> tuple[Fuse, ...]:
    """The rules that join leftovers of a checkpoint into leftovers of a model."""
    return tuple(Fuse(join.parts, join.whole, dim=join.dim, entry=entry) for join in _joins(checkpoint, model))


def find_splits(checkpoint: Names, model: Names, *, entry: str | None) -> tuple[Split, ...]:
    """The rules that divide leftovers of a checkpoint into leftovers of a model."""
    return tuple(
        Split(join.whole, join.parts, ratios=join.ratios, dim=join.dim, entry=entry)
        for join in _joins(model, checkpoint)
    )


def _joins(finer: Names, coarser: Names) -> tuple[_Join, ...]:
    """The join that explains most, for each whole that it makes."""
    wholes: dict[object, list[str]] = defaultdict(list)
    for name, spec in coarser.items():
        wholes[_numbers(name), spec.dtype, spec.shape, _ending(name)].append(name)
    votes: Counter[_Join] = Counter()
    for parts in PARTS:
        for ending, members in _groups(finer, parts):
            for dim, shape in _joined(members):
                found = wholes.get((_numbers(ending.name), members[0].dtype, shape, ending.last), [])
                if len(found) == 1:
                    sizes = [spec.shape[dim] for spec in members]
                    common = math.gcd(*sizes)
                    ratios = tuple(size // common for size in sizes)
                    votes[_Join(*_named(parts, found[0], ending.last), ratios, dim)] += 1
                    break
    best: dict[str, _Join] = {}
    for join, _ in votes.most_common():
        best.setdefault(join.whole, join)
    return tuple(best.values())


@dataclass(frozen=True, slots=True)
class _Ending:
    """A name of the group without its part, and what it ends in."""

    name: str
    last: str


def _groups(names: Names, parts: tuple[str, ...]) -> Iterator[tuple[_Ending, list[TensorSpec]]]:
    """Specs of names that differ in the part only, all parts there."""
    first = re.compile(rf"(?<![^.]){re.escape(parts[0])}(?![^.])")
    for name in names:
        for found in first.finditer(name):
            siblings = [f"{name[: found.start()]}{part}{name[found.end() :]}" for part in parts]
            if all(sibling in names for sibling in siblings):
                rest = name[: found.start()] + name[found.end() :]
                yield _Ending(rest, _ending(name)), [names[sibling] for sibling in siblings]


def _joined(members: list[TensorSpec]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The shapes that the members make along the first and along the last dimension, where they go together."""
    rank = len(members[0].shape)
    for dim in (0, -1):
        at = dim % rank if rank else 0
        besides = {(spec.dtype, spec.shape[:at], spec.shape[at + 1 :]) for spec in members}
        if rank and len(besides) == 1 and all(len(spec.shape) == rank for spec in members):
            shape = members[0].shape
            yield dim, (*shape[:at], sum(spec.shape[at] for spec in members), *shape[at + 1 :])


def _numbers(name: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\d+", name))


def _ending(name: str) -> str:
    """What a name ends in after its last dot or underscore: ``in_proj_weight`` is a weight."""
    return re.split(r"[._]", name)[-1]


def _named(parts: tuple[str, ...], whole: str, ending: str) -> tuple[tuple[str, ...], str]:
    """The segments that change: ``q``, ``k``, ``v`` and ``qkv``; or ``q.weight``, ... and ``in_proj_weight``."""
    *_, segment, last = ["", *whole.split(".")]
    return (parts, segment) if last == ending else (tuple(f"{part}.{ending}" for part in parts), last)
