"""Which tensors share a shard, so that unchanged ones can be hard links: docs/format.md, "Partition". Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

SHARD_BYTES = 4 * 2**30
_MIN_UNIT_BYTES = 2**20
_UNITS_PER_CHECKPOINT = 512
_UNIT_SPLITS = 2  # after this many splits a shard is cut into units


@dataclass(frozen=True, slots=True)
class ParentShard:
    """A shard of the checkpoint before: its tensors in file order, their bytes, its count of splits."""

    file: str
    names: tuple[str, ...]
    nbytes: int
    splits: int = 0


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """A shard to be: its tensors and their bytes, the parent's file if it is a link to that, and why it is as it is."""

    names: tuple[str, ...]
    nbytes: int
    splits: int
    link: str | None
    reason: str


def unit_bytes(checkpoint_bytes: int) -> int:
    """U: what is smaller is not worth a shard of its own.

    Example:
        >>> unit_bytes(10 * 2**30) == 20 * 2**20
        True
    """
    return max(_MIN_UNIT_BYTES, checkpoint_bytes // _UNITS_PER_CHECKPOINT)


def partition(
    sizes: Mapping[str, int],
    parent: Sequence[ParentShard],
    changed: AbstractSet[str],
    checkpoint_bytes: int,
    frozen: AbstractSet[str] = frozenset(),
) -> list[PlannedShard]:
    """Plan the shards of one group.

    Every tensor is in exactly one planned shard. A linked shard has exactly the tensors of the parent's, none of them
    changed. Equal arguments give equal plans.

    Args:
        sizes: The group's tensors in order, each with its bytes.
        parent: The group's shards in the checkpoint before; none at the first save.
        changed: Names of tensors that are new, or whose bytes, dtype or shape differ from the parent's.
        checkpoint_bytes: Bytes of all tensors of all groups.
        frozen: Names of tensors that training cannot change.

    Example:
        >>> sizes = {"backbone": 90 * 2**20, "head": 2**20}
        >>> before = [ParentShard("model.safetensors", ("backbone", "head"), 91 * 2**20)]
        >>> for shard in partition(sizes, before, {"head"}, 91 * 2**20):
        ...     print(shard.names, shard.splits, shard.reason)
        ('head',) 0 changed
        ('backbone',) 1 stayed while 1 of 2 tensors changed
    """
    unit = unit_bytes(checkpoint_bytes)
    planned = [shard for before in parent for shard in _next(before, sizes, changed, unit)]
    placed = {name for shard in planned for name in shard.names}
    return _with_new(planned, [name for name in sizes if name not in placed], sizes, frozen)


def _next(before: ParentShard, sizes: Mapping[str, int], changed: AbstractSet[str], unit: int) -> list[PlannedShard]:
    present = [name for name in before.names if name in sizes]
    staying = [name for name in present if name not in changed]
    if len(staying) == len(before.names):
        return [PlannedShard(before.names, before.nbytes, before.splits, before.file, "unchanged")]
    staying_bytes = _total(staying, sizes)
    if staying_bytes < unit:
        return _shards([present], sizes, before.splits, "changed, but for less than is worth a shard")
    moved = [name for name in present if name in changed]
    splits = before.splits + 1
    why = f"stayed while {len(before.names) - len(staying)} of {len(before.names)} tensors changed"
    parts = [staying]
    if splits >= _UNIT_SPLITS:
        why = f"{why}, again: cut into units"
        parts = _packed(staying, sizes, unit)
    return _shards([moved], sizes, before.splits, "changed") + _shards(parts, sizes, splits, why)


def _with_new(
    planned: list[PlannedShard], new: Sequence[str], sizes: Mapping[str, int], frozen: AbstractSet[str]
) -> list[PlannedShard]:
    """Let each new tensor join the smallest shard that is written anyway, while that stays within `SHARD_BYTES`."""
    homeless: list[str] = []
    for name in new:
        written = [at for at, shard in enumerate(planned) if shard.link is None]
        at = min(written, key=lambda each: planned[each].nbytes, default=None)
        if at is None or planned[at].nbytes + sizes[name] > SHARD_BYTES:
            homeless.append(name)
            continue
        shard = planned[at]
        planned[at] = replace(shard, names=(*shard.names, name), nbytes=shard.nbytes + sizes[name])
    return planned + _first(homeless, sizes, frozen)


def _first(names: Sequence[str], sizes: Mapping[str, int], frozen: AbstractSet[str]) -> list[PlannedShard]:
    changing, staying = ([name for name in names if (name in frozen) is stays] for stays in (False, True))
    if not (_total(changing, sizes) and _total(staying, sizes)):
        return _shards(_packed(names, sizes, SHARD_BYTES), sizes, 0, "new")
    return [
        *_shards(_packed(changing, sizes, SHARD_BYTES), sizes, 0, "new, may change"),
        *_shards(_packed(staying, sizes, SHARD_BYTES), sizes, 0, "new, frozen"),
    ]


def _packed(names: Iterable[str], sizes: Mapping[str, int], limit_bytes: int) -> list[list[str]]:
    """Parts in order: a tensor of the limit or more alone, smaller ones together up to the limit."""
    parts: list[list[str]] = []
    open_part: list[str] = []
    open_bytes = 0
    for name in names:
        if sizes[name] >= limit_bytes:
            parts.append([name])
            continue
        if open_bytes + sizes[name] > limit_bytes:
            parts.append(open_part)
            open_part, open_bytes = [], 0
        open_part.append(name)
        open_bytes += sizes[name]
    if open_part and not open_bytes and parts:
        parts[-1] += open_part  # nothing but tensors of no bytes: not worth a shard
    elif open_part:
        parts.append(open_part)
    return parts


def _shards(parts: Iterable[Sequence[str]], sizes: Mapping[str, int], splits: int, reason: str) -> list[PlannedShard]:
    return [PlannedShard(tuple(part), _total(part, sizes), splits, None, reason) for part in parts if part]


def _total(names: Iterable[str], sizes: Mapping[str, int]) -> int:
    return sum(sizes[name] for name in names)
