"""Work over tensors cut into ranges, so that a large one keeps all threads busy and none is held whole."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias, TypeVar

from torchkeep.arithmetic.elements import Values, decode, pieces_of, whole_bytes
from torchkeep.folder.parallel import in_parallel
from torchkeep.tensors import Source, TensorSpec

RANGE_BYTES = 64 << 20
Progress: TypeAlias = Callable[[int, int], object]  # bytes done, bytes in all; called from any thread, one at a time
_T = TypeVar("_T")


def in_ranges(
    specs: Mapping[str, TensorSpec],
    action: Callable[[str, int, int], _T],
    threads: int,
    progress: Progress | None = None,
) -> dict[str, list[_T]]:
    """The results of an action on every range of every tensor, in order by name.

    Args:
        specs: What to cut.
        action: Takes a name and a range of its bytes, end exclusive, of whole elements.
        threads: How many ranges are worked on at once.
        progress: Told after each range.
    """
    items = [(name, begin, end) for name, spec in specs.items() for begin, end in ranges_of(spec)]
    total_bytes = sum(end - begin for _, begin, end in items)
    done_bytes, telling = 0, threading.Lock()

    def work(item: tuple[str, int, int]) -> _T:
        nonlocal done_bytes
        result = action(*item)
        if progress is not None:
            with telling:
                done_bytes += item[2] - item[1]
                progress(done_bytes, total_bytes)
        return result

    found: dict[str, list[_T]] = {name: [] for name in specs}
    for (name, _, _), result in zip(items, in_parallel(work, items, threads), strict=True):
        found[name].append(result)
    return found


def ranges_of(spec: TensorSpec) -> Iterator[tuple[int, int]]:
    """The ranges of a tensor's bytes, of whole elements; none of a tensor without elements."""
    step = whole_bytes(spec.dtype, RANGE_BYTES)
    for begin in range(0, spec.nbytes, step):
        yield begin, min(begin + step, spec.nbytes)


def values_in(source: Source, spec: TensorSpec, begin: int, end: int) -> Iterator[Values]:
    """The values from byte `begin` to `end` of a tensor, a piece at a time; each is overwritten by the next.

    Raises:
        CorruptError: As for `Source.read_into`.
        FormatError: The dtype cannot be computed with.
    """
    buffer: memoryview | None = None
    for at, stop in pieces_of(spec.dtype, begin, end):
        if buffer is None:
            buffer = memoryview(bytearray(stop - at))
        piece = buffer[: stop - at]
        source.read_range_into(spec, at, piece)
        yield decode(spec.dtype, piece)
