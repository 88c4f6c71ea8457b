"""An interpreter of pickle streams that builds plain values and descriptions: it imports nothing and calls nothing.

Whatever a stream names becomes a `Named`, a name and nothing more. What may become of a call on it is decided by a
`Vocabulary`, with constructors of our own; every other object is `Described`. Protocols 0 to 5.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn, Protocol

from torchkeep.errors import CheckpointError, CorruptError, FormatError, LimitError, UnsafeError
from torchkeep.formats import pickle_arguments as arguments
from torchkeep.formats.faults import ExcessError, MalformedError
from torchkeep.formats.pickle_stack import PickleStack
from torchkeep.formats.regular_file import READ_AGAIN, ByteStream
from torchkeep.formats.untangling import complete, untangle
from torchkeep.tensors import Described, Named, TensorSpec

_LAST_PROTOCOL = 5
_MAX_KEY_VALUES = 1_000


class Vocabulary(Protocol):
    """What the names in a stream mean."""

    def name(self, module: str, name: str) -> Named:
        """The global of that name; raises `UnsafeError` for one that is only good for running or reaching something."""

    def construct(self, callee: Described, args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
        """A plain value for a call on a global, or its description."""

    def set_state(self, target: object, state: object) -> object:
        """`target` with its state, or what is to stand in its place."""

    def resolve(self, persistent_id: object) -> object:
        """What stands for an object that is kept outside the stream."""


class PickleMachine:
    """Reads one pickled object from a stream, and leaves the stream behind its end.

    Raises:
        CorruptError: The stream ends early or breaks the rules of pickle.
        UnsafeError: It names something whose only use is to run or reach something; nothing was run.
        LimitError: It asks for more values, marks or depth than its size can justify.
        FormatError: It needs a pickle protocol after 5, an extension registry or out-of-band buffers.
    """

    def __init__(self, stream: ByteStream, vocabulary: Vocabulary, path: Path, stream_name: str) -> None:
        self._stream = stream
        self._vocabulary = vocabulary
        self._path = path
        self._stream_name = stream_name
        self._opcode_at = 0
        self._stack = PickleStack(stream.remaining)
        self._items: dict[int, tuple[Described, list[object]]] = {}
        self._acts = self._pushing_acts() | self._building_acts()

    def load(self) -> object:
        """The object, as plain values, `TensorSpec` and `Described`."""
        try:
            self._run()
            value = self._stack.pop_result()
        except MalformedError as fault:
            self._fail(CorruptError, "the pickle stream is damaged", str(fault))
        except ExcessError as fault:
            remedy = "save the tensors alone, without the large Python objects beside them"
            self._fail(LimitError, "the pickle stream asks for too much", str(fault), remedy)
        except UnsafeError as refusal:
            self._fail(UnsafeError, refusal.what, "; ".join(refusal.faults), str(refusal.remedy))
        for described, items in self._items.values():
            complete(described, "items", tuple(items))
        untangle(value, self._path)
        return value

    def _run(self) -> None:
        acts, take = self._acts, self._stream.take
        while True:
            self._opcode_at = self._stream.position
            opcode = take(1)
            if opcode == b".":
                return
            act = acts.get(opcode)
            if act is None:
                raise MalformedError(f"{opcode!r} is no pickle opcode")
            act()

    def _fail(self, kind: type[CheckpointError], what: str, fault: str, remedy: str = READ_AGAIN) -> NoReturn:
        place = f"{self._stream_name}, byte {self._opcode_at:,}"
        raise kind(what, where=self._path, faults=[f"{place}: {fault}"], remedy=remedy) from None

    def _pushing_acts(self) -> dict[bytes, Callable[[], object]]:
        """Opcodes that put a value on the stack, or move values there."""
        stack, stream = self._stack, self._stream

        def pushing(read: Callable[..., object], *widths: int) -> Callable[[], object]:
            return lambda: stack.push(read(stream, *widths))

        def counted(use: Callable[[int], None], *widths: int) -> Callable[[], object]:
            return lambda: use(arguments.read_count(stream, *widths))

        return {
            b"(": stack.mark,
            b"0": stack.discard,
            b"1": stack.pop_to_mark,
            b"2": lambda: stack.push(stack.top()),
            b"N": lambda: stack.push(None),
            b"\x88": lambda: stack.push(True),
            b"\x89": lambda: stack.push(False),
            b"F": pushing(arguments.read_decimal_float),
            b"G": pushing(arguments.read_float),
            b"I": pushing(arguments.read_decimal_or_boolean),
            b"J": pushing(arguments.read_integer),
            b"K": pushing(arguments.read_count, 1),
            b"M": pushing(arguments.read_count, 2),
            b"L": pushing(arguments.read_decimal),
            b"\x8a": pushing(arguments.read_long, 1),
            b"\x8b": pushing(arguments.read_long, 4),
            b"S": pushing(arguments.read_quoted),
            b"T": lambda: stack.push(arguments.text_or_bytes(arguments.read_sized(stream, 4))),
            b"U": lambda: stack.push(arguments.text_or_bytes(arguments.read_sized(stream, 1))),
            b"V": pushing(arguments.read_escaped),
            b"X": pushing(arguments.read_text, 4),
            b"\x8c": pushing(arguments.read_text, 1),
            b"\x8d": pushing(arguments.read_text, 8),
            b"B": pushing(arguments.read_sized, 4),
            b"C": pushing(arguments.read_sized, 1),
            b"\x8e": pushing(arguments.read_sized, 8),
            b"\x96": lambda: stack.push_container(bytearray(arguments.read_sized(stream, 8))),
            b"g": lambda: stack.get(arguments.read_decimal(stream)),
            b"h": counted(stack.get, 1),
            b"j": counted(stack.get, 4),
            b"p": lambda: stack.put(arguments.read_decimal(stream)),
            b"q": counted(stack.put, 1),
            b"r": counted(stack.put, 4),
            b"\x94": stack.memoize,
        }

    def _building_acts(self) -> dict[bytes, Callable[[], object]]:
        """Opcodes that put values together, name globals, or rule the stream."""
        stack = self._stack
        return {
            b"]": lambda: stack.push_container([]),
            b"}": lambda: stack.push_container({}),
            b")": lambda: stack.push(()),
            b"\x8f": lambda: stack.push_container(set()),
            b"l": lambda: stack.push_container(stack.pop_to_mark()),
            b"t": lambda: stack.push_container(tuple(stack.pop_to_mark())),
            b"\x85": lambda: stack.push_container(stack.pop_last(1)),
            b"\x86": lambda: stack.push_container(stack.pop_last(2)),
            b"\x87": lambda: stack.push_container(stack.pop_last(3)),
            b"d": self._dict,
            b"\x91": self._frozenset,
            b"a": self._append,
            b"e": self._appends,
            b"s": self._set_item,
            b"u": self._set_marked_items,
            b"\x90": self._add_items,
            b"c": self._global,
            b"\x93": self._stack_global,
            b"R": self._reduce,
            b"\x81": self._reduce,
            b"\x92": self._new_object_with_keywords,
            b"o": self._marked_object,
            b"i": self._instance,
            b"b": self._build,
            b"P": lambda: self._persistent(arguments.decoded(self._stream.take_line())),
            b"Q": lambda: self._persistent(stack.pop()),
            b"\x80": self._protocol,
            b"\x95": self._frame,
            **dict.fromkeys([b"\x82", b"\x83", b"\x84"], self._extension),
            **dict.fromkeys([b"\x97", b"\x98"], self._buffer),
        }

    def _append(self) -> None:
        value = self._stack.pop()
        self._extend(self._stack.top(), [value])

    def _appends(self) -> None:
        values = self._stack.pop_to_mark()
        self._extend(self._stack.top(), values)

    def _extend(self, target: object, values: list[object]) -> None:
        if type(target) is list or type(target) is deque:
            target.extend(values)
        elif type(target) is Described:
            self._items_of(target).extend(values)
        else:
            raise MalformedError(f"values are appended to {_kind(target)}")

    def _items_of(self, target: Described) -> list[object]:
        return self._items.setdefault(id(target), (target, []))[1]

    def _set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items(self._stack.top(), [key, value])

    def _set_marked_items(self) -> None:
        values = self._stack.pop_to_mark()
        self._set_items(self._stack.top(), values)

    def _set_items(self, target: object, values: list[object]) -> None:
        if len(values) % 2:
            raise MalformedError("a key has no value")
        pairs = zip(values[::2], values[1::2], strict=True)
        if isinstance(target, dict):
            for key, value in pairs:
                if type(key) is not str:
                    check_key(key)
                target[key] = value
        elif type(target) is Described:
            self._items_of(target).extend(pairs)
        else:
            raise MalformedError(f"an item is set in {_kind(target)}")

    def _dict(self) -> None:
        values = self._stack.pop_to_mark()
        made: dict[object, object] = {}
        self._set_items(made, values)
        self._stack.push_container(made)

    def _add_items(self) -> None:
        values = self._stack.pop_to_mark()
        target = self._stack.top()
        if type(target) is Described:
            self._items_of(target).extend(values)
            return
        if type(target) is not set:
            raise MalformedError(f"values are added to {_kind(target)}")
        for value in values:
            check_key(value)
            target.add(value)

    def _frozenset(self) -> None:
        values = self._stack.pop_to_mark()
        for value in values:
            check_key(value)
        self._stack.push_container(frozenset(values))

    def _push_global(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise MalformedError("a global is not named by two texts")
        self._stack.push_container(self._vocabulary.name(module, name))

    def _global(self) -> None:
        module, name = self._stream.take_line(), self._stream.take_line()
        self._push_global(arguments.decoded(module), arguments.decoded(name))

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._push_global(module, name)

    def _reduce(self) -> None:
        args, callee = self._stack.pop(), self._stack.pop()
        self._call(callee, args, {})

    def _new_object_with_keywords(self) -> None:
        kwargs, args, callee = self._stack.pop(), self._stack.pop(), self._stack.pop()
        if type(kwargs) is not dict or not all(isinstance(name, str) for name in kwargs):
            raise MalformedError("keyword arguments are not a dict of names")
        self._call(callee, args, kwargs)

    def _marked_object(self) -> None:
        values = self._stack.pop_to_mark()
        if not values:
            raise MalformedError("an object has no class")
        self._call(values[0], tuple(values[1:]), {})

    def _instance(self) -> None:
        self._global()
        callee = self._stack.pop()
        self._call(callee, tuple(self._stack.pop_to_mark()), {})

    def _call(self, callee: object, args: object, kwargs: Mapping[str, object]) -> None:
        if not isinstance(callee, Described):
            raise MalformedError(f"{_kind(callee)} is called")
        if type(args) is not tuple:
            raise MalformedError(f"arguments are {_kind(args)}")
        self._stack.push_container(self._vocabulary.construct(callee, args, kwargs))

    def _build(self) -> None:
        state, target = self._stack.pop(), self._stack.top()
        made = self._vocabulary.set_state(target, state)
        if made is not target:
            self._stack.replace_top(made)

    def _persistent(self, name: object) -> None:
        self._stack.push_container(self._vocabulary.resolve(name))

    def _protocol(self) -> None:
        protocol = arguments.read_count(self._stream, 1)
        if protocol > _LAST_PROTOCOL:
            self._fail(FormatError, f"pickle protocol {protocol} is not known", "PROTO", "save with protocol 5 or less")

    def _frame(self) -> None:
        if arguments.read_count(self._stream, 8) > self._stream.remaining:
            raise MalformedError("a frame is longer than what is left")

    def _extension(self) -> None:
        self._fail(FormatError, "it refers to a registry of pickle extensions", "EXT", "save it without copyreg codes")

    def _buffer(self) -> None:
        self._fail(FormatError, "it refers to buffers outside of the stream", "NEXT_BUFFER", "save it with its buffers")


def set_described_state(target: Described, state: object) -> None:
    """Give a description the state that the stream has for it."""
    if isinstance(state, tuple) and len(state) == 2 and all(part is None or type(part) is dict for part in state):
        state = {name: value for part in state if isinstance(part, dict) for name, value in part.items()}
    complete(target, "state", state)


def check_key(key: object) -> None:
    """Refuse what cannot be hashed in bounded time: nested tuples hash recursively, and shared ones exponentially.

    Raises:
        MalformedError: The key is not hashable, or holds more than 1,000 values.
    """
    budget = _MAX_KEY_VALUES
    waiting = [key]
    while waiting:
        value = waiting.pop()
        budget -= 1
        if isinstance(value, (tuple, frozenset)):
            budget -= len(value)
            if budget >= 0:
                waiting.extend(value)
        elif not isinstance(value, (Described, TensorSpec)):
            try:
                hash(value)
            except TypeError:
                raise MalformedError(f"{_kind(value)} is used as a key") from None
        if budget < 0:
            raise MalformedError(f"a key holds more than {_MAX_KEY_VALUES:,} values")


def _kind(value: object) -> str:
    return value.class_path if isinstance(value, Described) else f"a {type(value).__name__}"
