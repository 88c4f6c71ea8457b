"""What is read from the bytes: statistics and histogram of a tensor, and how far each one moved between checkpoints."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator, Mapping

from torchkeep.arithmetic.comparison import TensorComparison, compare
from torchkeep.arithmetic.elements import is_readable
from torchkeep.arithmetic.statistics import TensorStatistics, histogram_of, statistics_of
from torchkeep.errors import NotFoundError
from torchkeep.folder.parallel import default_threads
from torchkeep.folder.read import FolderSource
from torchkeep.planning.loadplan import make_plan
from torchkeep.planning.rows import Pair
from torchkeep.tensors import Source, TensorSpec
from torchkeep.verbs.alignment import align
from torchkeep.verbs.outline import printable
from torchkeep.viewer.numbers import number_of
from torchkeep.viewer.subject import Held

BINS = 60
BATCH_BYTES, BATCH_TENSORS = 64 << 20, 250  # what is compared between two lines: the page draws as they come

_EQUAL = ("equal", 0.0, 1.0, 0.0, 0)


def tensor_of(held: Held, position: int, other: Held | None) -> dict[str, object]:
    """The statistics and histogram of a tensor, and of the one that goes with it in another checkpoint.

    Raises:
        NotFoundError: There are not so many tensors.
        CorruptError: Its bytes are damaged.
    """
    if not 0 <= position < len(held.tensors):
        raise NotFoundError(f"there is no tensor {position} here", where=held.checkpoint.path)
    name, spec = next(itertools.islice(held.tensors.items(), position, None))
    twin = None if other is None else other.tensors.get(partners(other, held).get(name, ""))
    here = statistics_of(held.source, {name: spec}).get(name)
    there = None if other is None or twin is None else statistics_of(other.source, {name: twin}).get(name)
    values: dict[str, object] = {"statistics": _numbers(here), "histogram": None, "beside": None}
    low, high = _range_of([here, there])
    if here is not None and low is not None and high is not None:
        values["histogram"] = {"low": low, "high": high, "counts": histogram_of(held.source, spec, low, high, BINS)}
    if other is not None and twin is not None:
        beside: dict[str, object] = {"statistics": _numbers(there), "shape": twin.shape, "dtype": twin.dtype}
        if there is not None and low is not None and high is not None:
            beside["counts"] = histogram_of(other.source, twin, low, high, BINS)
        if twin.shape == spec.shape:
            pair = {name: (twin, spec)}
            beside["change"] = _change(spec, _compared(other.source, held.source, pair).get(name))
        values["beside"] = beside
    return values


def movement_of(first: Held, second: Held, limit_bytes: int | None = None) -> Iterator[dict[str, object]]:
    """How far each tensor of the second checkpoint is from the first one's: a line of totals, then a line per batch.

    Rows are ``[position, state, relative change, cosine, largest step, elements that differ]``; the state is ``equal``,
    ``changed``, ``shape`` (they differ in shape) or ``unread`` (values of less than a byte that differ).
    Tensors whose digests in both records agree are equal and not read. Where more than `limit_bytes` would be read,
    the first line is all there is.
    """
    names = partners(first, second)
    pairs = {name: (first.tensors[names[name]], spec) for name, spec in second.tensors.items() if name in names}
    known = {name: row for name, pair in pairs.items() if (row := _known(first.source, second.source, *pair))}
    unread = {name: pair for name, pair in pairs.items() if name not in known}
    taken, position_of = set(names.values()), {name: position for position, name in enumerate(second.tensors)}
    total_bytes = sum(spec.nbytes for _, spec in unread.values())
    yield {
        "tensor_count": len(pairs),
        "total_bytes": total_bytes,
        "only_from": [printable(name) for name in first.tensors if name not in taken],
        "only_to": [position_of[name] for name in second.tensors if name not in names],
    }
    if limit_bytes is not None and total_bytes > limit_bytes:
        return
    yield {"done_bytes": 0, "rows": [[position_of[name], *row] for name, row in known.items()]}
    done_bytes = 0
    for batch in _batches(unread):
        compared = _compared(first.source, second.source, batch, default_threads())
        done_bytes += sum(spec.nbytes for _, spec in batch.values())
        rows = [[position_of[name], *_change(pair[1], compared.get(name))] for name, pair in batch.items()]
        yield {"done_bytes": done_bytes, "rows": rows}


def partners(first: Held, second: Held) -> Mapping[str, str]:
    """Names in the second, with the name in the first of what `diff` lays beside each; found once for two."""
    found = second.partners.get(first)
    if found is None:
        found = second.partners[first] = _find_partners(first, second)
    return found


def _find_partners(first: Held, second: Held) -> dict[str, str]:
    if first.tensors.keys() == second.tensors.keys():
        return {name: name for name in second.tensors}
    one, other = align(first.source, second.source)
    plan = make_plan({"": Pair(one.tensors, other.tensors, "tensors", "")}, (), source="")
    names = [_names_by_spec(held) for held in (first, second)]
    found = {}
    for row in plan.rows:
        if row.checkpoint is not None and row.model is not None:
            before, after = (names[side][id(spec)].popleft() for side, spec in enumerate((row.checkpoint, row.model)))
            found[after] = before
    return found


def _names_by_spec(held: Held) -> dict[int, deque[str]]:
    """The names of each spec; tied tensors may be one spec with several."""
    names: dict[int, deque[str]] = {}
    for name, spec in held.tensors.items():
        names.setdefault(id(spec), deque()).append(name)
    return names


def _known(first: Source, second: Source, one: TensorSpec, other: TensorSpec) -> list[object] | None:
    """What can be said of two tensors without reading them, as `_change` says it."""
    if one.shape != other.shape:
        return ["shape", None, None, None, None]
    digests = [_digests(source, spec) for source, spec in ((first, one), (second, other))]
    return list(_EQUAL) if one.dtype == other.dtype and digests[0] is not None and digests[0] == digests[1] else None


def _digests(source: Source, spec: TensorSpec) -> tuple[str, ...] | None:
    if not isinstance(source, FolderSource) or not isinstance(spec.key, tuple):
        return None
    group, name = spec.key
    return source.record.tensors[group][name].chunks


def _batches(
    pairs: Mapping[str, tuple[TensorSpec, TensorSpec]],
) -> Iterator[dict[str, tuple[TensorSpec, TensorSpec]]]:
    batch: dict[str, tuple[TensorSpec, TensorSpec]] = {}
    held_bytes = 0
    for name, pair in pairs.items():
        if batch and (held_bytes + pair[1].nbytes > BATCH_BYTES or len(batch) == BATCH_TENSORS):
            yield batch
            batch, held_bytes = {}, 0
        batch[name] = pair
        held_bytes += pair[1].nbytes
    if batch:
        yield batch


def _compared(
    first: Source, second: Source, pairs: Mapping[str, tuple[TensorSpec, TensorSpec]], threads: int = 1
) -> dict[str, TensorComparison]:
    """`compare`, without the pairs of unlike dtypes of which one cannot be computed with."""
    possible = {
        name: (one, other)
        for name, (one, other) in pairs.items()
        if one.dtype == other.dtype or (is_readable(one.dtype) and is_readable(other.dtype))
    }
    return compare(first, second, possible, threads)


def _change(spec: TensorSpec, compared: TensorComparison | None) -> list[object]:
    """State, relative change, cosine, largest step and count of elements that differ; see `movement_of`."""
    if compared is None:
        return ["unread", None, None, None, None]
    if compared.is_bit_equal:
        return list(_EQUAL)
    if not is_readable(spec.dtype):
        return ["unread", None, None, None, compared.differing_count]
    measured = (compared.relative_change, compared.cosine, compared.largest_step)
    return ["changed", *map(number_of, measured), compared.differing_count]


def _numbers(statistics: TensorStatistics | None) -> dict[str, object] | None:
    if statistics is None:
        return None
    return {
        "minimum": number_of(statistics.minimum),
        "maximum": number_of(statistics.maximum),
        "mean": number_of(statistics.mean),
        "std": number_of(statistics.std),
        "zero_count": statistics.zero_count,
        "nan_count": statistics.nan_count,
        "inf_count": statistics.inf_count,
        "first_nan": statistics.first_nan,
        "first_inf": statistics.first_inf,
    }


def _range_of(both: list[TensorStatistics | None]) -> tuple[float | None, float | None]:
    """The least and the greatest finite value of both, for bins that both share."""
    lows = [each.minimum for each in both if each is not None and each.minimum is not None]
    highs = [each.maximum for each in both if each is not None and each.maximum is not None]
    return (min(lows), max(highs)) if lows and highs and math.isfinite(max(highs) - min(lows)) else (None, None)
