"""The vocabulary that all rooms share: what a tensor is on disk, and where tensors come from.

Nothing here imports torch. A `Source` is one opened checkpoint of any format: a tree of plain Python values whose
tensor leaves are `TensorSpec`, and one verb that reads the bytes of a tensor into memory the caller owns.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

from torchkeep.errors import LimitError

KeyPath: TypeAlias = tuple[Hashable, ...]

# torch's name -> (code in a safetensors header, bits per element). None: safetensors has no code for it.
_DTYPES: dict[str, tuple[str | None, int]] = {
    "bool": ("BOOL", 8),
    "uint8": ("U8", 8),
    "int8": ("I8", 8),
    "uint16": ("U16", 16),
    "int16": ("I16", 16),
    "uint32": ("U32", 32),
    "int32": ("I32", 32),
    "uint64": ("U64", 64),
    "int64": ("I64", 64),
    "float16": ("F16", 16),
    "bfloat16": ("BF16", 16),
    "float32": ("F32", 32),
    "float64": ("F64", 64),
    "complex64": ("C64", 64),
    "complex32": (None, 32),
    "complex128": (None, 128),
    "float8_e4m3fn": ("F8_E4M3", 8),
    "float8_e5m2": ("F8_E5M2", 8),
    "float8_e8m0fnu": ("F8_E8M0", 8),
    "float8_e4m3fnuz": ("F8_E4M3FNUZ", 8),
    "float8_e5m2fnuz": ("F8_E5M2FNUZ", 8),
    # One torch element holds two 4-bit values, so a torch element takes a byte; safetensors counts the halves.
    "float4_e2m1fn_x2": ("F4", 8),
    "float6_e2m3": ("F6_E2M3", 6),
    "float6_e3m2": ("F6_E3M2", 6),
}
DTYPE_NAMES: frozenset[str] = frozenset(_DTYPES)
DTYPE_OF_CODE: Mapping[str, str] = {code: name for name, (code, _) in _DTYPES.items() if code is not None}
CODE_OF_DTYPE: Mapping[str, str] = {name: code for name, (code, _) in _DTYPES.items() if code is not None}
_FLOATING = ("float", "bfloat")


def bits_of(dtype: str) -> int:
    """Bits that one element of a dtype takes; `dtype` is torch's name without ``torch.``."""
    return _DTYPES[dtype][1]


def is_floating(dtype: str) -> bool:
    """Whether a dtype is real and floating-point, as torch's ``is_floating_point`` answers."""
    return dtype.startswith(_FLOATING)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor as a file describes it: enough to plan with, and to read it with.

    Attributes:
        dtype: torch's name without ``torch.``: ``"bfloat16"``.
        shape: Sizes in elements.
        key: What its `Source` finds the bytes by. Two specs of one source with an equal key are one tensor (tied).
            None for a spec that does not come from a file.
        device: The tag in the file, for example ``"cuda:7"``; None where the format has no tag.
        parameter: Whether it was saved as an ``nn.Parameter`` object.
        requires_grad: The flag it was saved with.
        memory_format: ``"contiguous"``, ``"channels_last"`` or ``"channels_last_3d"``. Bytes are read in C order.

    Example:
        >>> TensorSpec("float32", (2, 3)).nbytes
        24
    """

    dtype: str
    shape: tuple[int, ...]
    key: Hashable = None
    device: str | None = None
    parameter: bool = False
    requires_grad: bool = False
    memory_format: str = "contiguous"

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements in C order."""
        return (self.numel * bits_of(self.dtype) + 7) // 8

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


@dataclass(frozen=True, slots=True, eq=False)
class Described:
    """A value of a class that was not built: the description a file gives of it.

    Attributes:
        class_path: The importable path in the file: ``"torch.Size"``, ``"omegaconf.dictconfig.DictConfig"``.
        args: What it would have been called with.
        kwargs: Keyword arguments of that call.
        state: What would have become its state; for most objects a dict of its attributes.
        items: What would have been appended to it, or set in it as ``(key, value)`` pairs.
        transient: Attributes that hold tensors and are known to be no part of its state dict.
    """

    class_path: str
    args: tuple[object, ...] = ()
    kwargs: Mapping[str, object] = field(default_factory=dict)
    state: object = None
    items: tuple[object, ...] = ()
    transient: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        is_module = isinstance(self.state, Mapping) and "_modules" in self.state
        return f"<{self.class_path}, not built{': torchkeep.load_whole(path, trust=[...]) does' if is_module else ''}>"


@dataclass(frozen=True, slots=True, eq=False)
class Named(Described):
    """A class or function that a file names; as a value it is the description of itself."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Enclosing(Described):
    """Stands inside a described object for that very object, so that a tree has an end; walkers do not enter it.

    Attributes:
        outer: The description that it stands for.
    """

    outer: Described | None = None


class Source(Protocol):
    """One opened checkpoint, whatever its format: the joint between files and everything done with them."""

    @property
    def format(self) -> str:
        """The format by its bytes: ``"torchkeep"``, ``"torch-zip"``, ``"torch-legacy"``, ``"safetensors"``, ..."""

    @property
    def path(self) -> Path:
        """The file or folder that was opened."""

    @property
    def tree(self) -> object:
        """What was saved: plain Python values, `TensorSpec` at the tensors, `Described` at what was not built."""

    @property
    def metadata(self) -> Mapping[str, object]:
        """What the file says beside the tree: producer, versions, ``__metadata__``."""

    def read_into(self, spec: TensorSpec, buffer: memoryview) -> None:
        """Read a tensor's bytes, C order, native endian, into a writable buffer of exactly ``spec.nbytes`` bytes.

        Raises:
            CorruptError: Bytes are absent, short, or differ from the checksum that the format has. The buffer may
                then hold some of them.
        """

    def read_range_into(self, spec: TensorSpec, begin: int, buffer: memoryview) -> None:
        """Read a part of a tensor's bytes, C order, native endian: those from `begin` on that fill `buffer`.

        `begin` and the length are bytes of whole elements. Formats with checksums compare the whole that the part is
        checked by first, once: what is read is what was written.

        Raises:
            CorruptError: As for `read_into`.
            ValueError: The range is not of the tensor, or not of whole elements.
        """

    def close(self) -> None:
        """Let go of open files; harmless when called twice."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Where the bytes of a tensor lie in a file as they are in memory: C order, native endian.

    Attributes:
        descriptor: The file, open for reading; it stays the source's.
        begin: Where the first byte stands.
    """

    descriptor: int
    begin: int


@runtime_checkable
class Mappable(Protocol):
    """What a `Source` can do too where tensors may be used in its files, without being read."""

    def extent_of(self, spec: TensorSpec) -> Extent | None:
        """Where a tensor lies; None for one that has to be read to become what it is."""

    def check(self, specs: Iterable[TensorSpec], threads: int = 1, /) -> None:
        """Compare what lies in files with the checksums that the format has, without keeping it.

        Raises:
            CorruptError: It differs.
        """


MAX_REPEATED_VALUES = 1_000_000
MAX_DEPTH = 1_000


def walk(tree: object) -> Iterator[tuple[KeyPath, object]]:
    """Yield every leaf of a tree with its path, in order; mappings, sequences and `Described` values are entered.

    Raises:
        LimitError: The tree contains itself, is deeper than 1,000, or unfolds to a million more values than it holds
            (a few bytes can name the same list a billion times).
    """
    repeated = 0
    seen_ids: set[int] = set()
    open_ids: list[int] = []
    stack: list[Iterator[tuple[KeyPath, object]]] = [iter([((), tree)])]
    while stack:
        try:
            path, node = next(stack[-1])
        except StopIteration:
            stack.pop()
            if open_ids:
                open_ids.pop()
            continue
        inside = _children(path, node)
        if inside is None:
            yield path, node
            continue
        if id(node) in open_ids:
            raise LimitError(f"the saved object contains itself at {name_of(path)!r}")
        if len(stack) > MAX_DEPTH:
            raise LimitError(f"the saved object is nested deeper than {MAX_DEPTH:,}")
        if id(node) in seen_ids:
            repeated += 1 + (len(node) if isinstance(node, Sized) else 1)
            if repeated > MAX_REPEATED_VALUES:
                raise LimitError(f"the saved object repeats itself more than {MAX_REPEATED_VALUES:,} times")
        seen_ids.add(id(node))
        open_ids.append(id(node))
        stack.append(inside)


def _children(path: KeyPath, node: object) -> Iterator[tuple[KeyPath, object]] | None:
    if isinstance(node, Mapping):
        return (((*path, key), value) for key, value in node.items())
    if isinstance(node, (list, tuple)):
        return (((*path, index), value) for index, value in enumerate(node))
    if isinstance(node, Described):
        return _described_children(path, node)
    return None


def _described_children(path: KeyPath, node: Described) -> Iterator[tuple[KeyPath, object]]:
    if isinstance(node.state, Mapping):
        yield from (((*path, key), value) for key, value in node.state.items())
    elif node.state is not None:
        yield (*path, "state"), node.state
    yield from (((*path, f"arg{index}"), value) for index, value in enumerate(node.args))
    yield from (((*path, key), value) for key, value in node.kwargs.items())
    yield from (((*path, f"item{index}"), value) for index, value in enumerate(node.items))


def name_of(path: KeyPath) -> str:
    """The dotted name of a path: ``("state_dict", "fc.weight")`` is ``"state_dict.fc.weight"``."""
    return ".".join(str(key) for key in path)


def tensors_of(tree: object) -> dict[str, TensorSpec]:
    """All tensors of a tree by dotted name, in order; a name that occurs twice gets the suffix ``~2``, ``~3``, ...

    Raises:
        LimitError: As for `walk`.

    Example:
        >>> spec = TensorSpec("float32", (2,))
        >>> list(tensors_of({"a": {"b": spec}, "a.b": spec}))
        ['a.b', 'a.b~2']
    """
    found: dict[str, TensorSpec] = {}
    for path, leaf in walk(tree):
        if isinstance(leaf, TensorSpec):
            found[unused_name(name_of(path), found)] = leaf
    return found


def check_range(spec: TensorSpec, begin: int, buffer: memoryview) -> None:
    """Refuse a range that is not of a tensor's whole elements; see `Source.read_range_into`."""
    item_bytes = bits_of(spec.dtype) // 8 or 1
    if begin < 0 or begin + buffer.nbytes > spec.nbytes or begin % item_bytes or buffer.nbytes % item_bytes:
        raise ValueError(f"bytes {begin:,} to {begin + buffer.nbytes:,} are not whole elements of {spec}")


def unused_name(name: str, taken: Mapping[str, object]) -> str:
    """`name`, or the first of ``name~2``, ``name~3``, ... that is not taken."""
    if name not in taken:
        return name
    count = 2
    while f"{name}~{count}" in taken:
        count += 1
    return f"{name}~{count}"


def printable(text: str) -> str:
    r"""Text from a file as one line that does nothing to a terminal.

    Example:
        >>> printable("a\x1b[2J")
        'a\\x1b[2J'
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)


def format_bytes(count_bytes: int) -> str:
    """Bytes for people, in powers of 1000.

    Example:
        >>> format_bytes(999), format_bytes(14_200_000)
        ('999 bytes', '14.2 MB')
    """
    if count_bytes < 1000:  # noqa: PLR2004 - powers of 1000
        return f"{count_bytes} byte{'' if count_bytes == 1 else 's'}"
    size = float(count_bytes)
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.95:  # noqa: PLR2004 - what rounds to 1000.0 is 1.0 of the next unit
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"
