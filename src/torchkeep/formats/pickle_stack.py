"""The working memory of a pickle machine: values, marks, and values remembered by number, all of them counted."""

from __future__ import annotations

from torchkeep.formats.faults import ExcessError, MalformedError
from torchkeep.tensors import Described

_MAX_VALUES = 1_000_000
_MAX_MARKS = 10_000
_MAX_MEMO_GAPS = 100_000
_FILLED_GAP = 16
_FREE_CONTAINERS = 250_000
_BYTES_PER_CONTAINER = 16
_NO_VALUE = object()


class PickleStack:
    """Values above the last mark are at hand; `stream_bytes` bounds how many objects may be made.

    Raises:
        MalformedError: A value or mark is taken that is not there.
        ExcessError: More values, marks or objects are made than such a stream can justify.
    """

    def __init__(self, stream_bytes: int) -> None:
        self._values: list[object] = []
        self._below: list[list[object]] = []
        self._count_below = 0
        self._memo: list[object] = []
        self._sparse_memo: dict[int, object] = {}
        self._put_at: dict[int, int] = {}
        self._containers_left = _FREE_CONTAINERS + stream_bytes // _BYTES_PER_CONTAINER

    def push(self, value: object) -> None:
        """Put a value on top."""
        self._values.append(value)
        if len(self._values) + self._count_below > _MAX_VALUES:
            raise ExcessError(f"more than {_MAX_VALUES:,} values wait to be put together")

    def push_container(self, value: object) -> None:
        """Put a new object on top; objects are counted because few bytes can make many of them."""
        self._containers_left -= 1
        if self._containers_left < 0:
            raise ExcessError("more objects than its size can justify")
        self.push(value)

    def pop(self) -> object:
        """Take the value on top."""
        if not self._values:
            raise MalformedError("a value is taken from an empty stack")
        return self._values.pop()

    def top(self) -> object:
        """The value on top, which stays."""
        if not self._values:
            raise MalformedError("a value is taken from an empty stack")
        return self._values[-1]

    def mark(self) -> None:
        """Begin a new row of values."""
        if len(self._below) >= _MAX_MARKS:
            raise ExcessError(f"more than {_MAX_MARKS:,} marks are open")
        self._count_below += len(self._values)
        self._below.append(self._values)
        self._values = []

    def pop_to_mark(self) -> list[object]:
        """Take all values above the last mark, and the mark."""
        if not self._below:
            raise MalformedError("a mark is taken where none was set")
        values, self._values = self._values, self._below.pop()
        self._count_below -= len(self._values)
        return values

    def pop_last(self, count: int) -> tuple[object, ...]:
        """Take the last few values, in the order they were put there."""
        if len(self._values) < count:
            raise MalformedError("a value is taken from an empty stack")
        values = tuple(self._values[-count:])
        del self._values[-count:]
        return values

    def discard(self) -> None:
        """Drop the value on top, or the mark where none is above it."""
        if self._values:
            self._values.pop()
        else:
            self.pop_to_mark()

    def pop_result(self) -> object:
        """Take the one value that is left at the end."""
        value = self.pop()
        if self._values or self._below:
            raise MalformedError("values are left over at the end")
        return value

    def put(self, index: int) -> None:
        """Remember the value on top by a number."""
        value = self.top()
        if isinstance(value, Described):
            self._put_at[id(value)] = index
        self._remember(index, value)

    def memoize(self) -> None:
        """Remember the value on top by the next number."""
        self.put(len(self._memo))

    def get(self, index: int) -> None:
        """Put a remembered value on top."""
        value = self._memo[index] if 0 <= index < len(self._memo) else _NO_VALUE
        if value is _NO_VALUE:
            value = self._sparse_memo.get(index, _NO_VALUE)
        if value is _NO_VALUE:
            raise MalformedError(f"value {index} is used and was never remembered")
        self.push(value)

    def replace_top(self, value: object) -> None:
        """Put another value in the place of the one on top, and wherever that one is remembered."""
        index = self._put_at.pop(id(self._values[-1]), None)
        self._values[-1] = value
        if index is not None:
            self._remember(index, value)

    def _remember(self, index: int, value: object) -> None:
        # Numbers come in order, but for a start at 1: a list takes a tenth of a dict.
        if 0 <= index < len(self._memo):
            self._memo[index] = value
        elif 0 <= index <= len(self._memo) + _FILLED_GAP:
            self._memo += [_NO_VALUE] * (index - len(self._memo))
            self._memo.append(value)
        elif index < 0:
            raise MalformedError(f"a value is remembered as number {index}")
        elif len(self._sparse_memo) < _MAX_MEMO_GAPS or index in self._sparse_memo:
            self._sparse_memo[index] = value
        else:
            raise ExcessError("the numbers of remembered values have too many gaps")
