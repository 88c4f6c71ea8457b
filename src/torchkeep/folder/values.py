"""The codec of docs/format.md, "Nodes": plain values to JSON and back, without running anything that a file names."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from types import GeneratorType
from typing import TypeAlias

from torchkeep.errors import CheckpointError, CorruptError, FormatError
from torchkeep.folder.container_nodes import CONTAINER_DECODERS, Steps, decode_dict, decode_list, encode_container
from torchkeep.folder.leaf_nodes import ATOM_TYPES, LEAF_DECODERS, Members, Node, decode_atom, encode_atom, encode_leaf
from torchkeep.folder.numpy_nodes import NUMPY_DECODERS, encode_numpy
from torchkeep.tensors import KeyPath, name_of

__all__ = ["MAX_LEVELS", "Node", "containers_in", "decode", "decode_plain", "encode"]

MAX_LEVELS = 500
EncodeLeaf: TypeAlias = Callable[[KeyPath, object], Node | None]
DecodeLeaf: TypeAlias = Callable[[str, object, Members], object]

_SHOWN_KEYS = 20
_CONTAINERS: frozenset[type] = frozenset((dict, list))
_NO_LEAF = object()
_HOOK_TAGS = frozenset(("$tensor", "$numpy.tensor", "$object", "$name", "$method", "$partial", "$logger"))
_NEWER = "was it written by a newer torchkeep? upgrade this one"
_EXTRA_MEMBERS = {"$datetime": {"fold", "zone"}, "$time": {"fold", "zone"}, "$OrderedDict": {"metadata"}}
_REMEDY = "leave them out, or save what they are made of: numbers, text, lists, dicts, tensors"


def encode(value: object, encode_leaf: EncodeLeaf) -> Node:
    """Turn a value into what `json.dumps` writes and `decode` reads back equal, with the same types and order.

    A container that occurs twice is written twice. Arrays come back in C order and native byte order; integers of more
    than 640 digits, which JSON readers refuse, are kept in hexadecimal (``{"$int": "0x..."}``).

    Args:
        value: Plain Python values, containers of them, and whatever the hook takes.
        encode_leaf: Asked first, with the path and the value, for everything but an exact str, int, float, bool, None,
            dict, list or tuple. Returns the node, or None to decline; a `FormatError` from it is a fault of the value.

    Raises:
        FormatError: Values without an encoding, all of them by path, containers that hold themselves among them; or
            nodes nested deeper than 500 levels of JSON.

    Example:
        >>> encode({"lr": 0.1, "betas": (0.9, float("inf"))}, lambda path, value: None)
        {'lr': 0.1, 'betas': {'$tuple': [0.9, {'$float': 'inf'}]}}
    """
    encoder = _Encoder(encode_leaf)
    node = _run(encoder.begin, value, [])
    if encoder.faults:
        count = f"{len(encoder.faults)} value{'s have' if len(encoder.faults) > 1 else ' has'}"
        raise FormatError(f"cannot save: {count} no encoding", faults=encoder.faults, remedy=_REMEDY)
    _check_levels(node)
    return node


def decode(node: Node, decode_leaf: DecodeLeaf) -> object:
    """Turn what `json.loads` read back into the value that `encode` was given.

    Enum members, dataclasses and named tuples are rebuilt only where their class is already imported; elsewhere they
    are `Described`. Nothing is imported and no constructor of theirs is called.

    Args:
        node: JSON values: dicts, lists, strings, numbers, booleans, None.
        decode_leaf: Asked with the tag, its payload and the whole node for ``$tensor``, ``$numpy.tensor``,
            ``$torch.*`` and what only whole models have. Returns the value, or NotImplemented for a tag that it does
            not know.

    Raises:
        CorruptError: A node is not what docs/format.md says; the message names its path.
        FormatError: A tag that this version does not know, or a dtype that this machine has not.

    Example:
        >>> decode({"betas": {"$tuple": [0.9, {"$float": "inf"}]}}, lambda tag, payload, node: NotImplemented)
        {'betas': (0.9, inf)}
    """
    path: list[Hashable] = []
    try:
        return _run(_Decoder(decode_leaf).begin, node, path)
    except CheckpointError:
        raise
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        why = f"{error} is not known" if isinstance(error, KeyError) else str(error)
        raise CorruptError("a value in the record is not valid", faults=[f"{_place(path)}: {why}"]) from error


def decode_plain(node: Node) -> object:
    """Decode a node that holds no tensors and nothing of torch's.

    Raises:
        CorruptError: It does, or it is not what docs/format.md says.
    """
    return decode(node, _refuse_leaf)


def _refuse_leaf(tag: str, _payload: object, _node: Members) -> object:
    raise CorruptError(f"the record is damaged: {tag} where only plain values belong")


def _place(path: list[Hashable]) -> str:
    shown = name_of(tuple(path[:_SHOWN_KEYS]))
    return shown if len(path) <= _SHOWN_KEYS else f"{shown} ..."


def _run(begin: Callable[[object, list[Hashable]], object], root: object, path: list[Hashable]) -> object:
    """Walk a value without recursion: `begin` gives its answer at once, or the steps to it."""
    stack: list[Steps] = []
    answer = begin(root, path)
    while True:
        if isinstance(answer, GeneratorType):
            stack.append(answer)
            answer = None  # what starts it
        elif not stack:
            return answer
        else:
            path.pop()
        try:
            key, inside = stack[-1].send(answer)
        except StopIteration as stop:
            answer = stop.value
            stack.pop()
        else:
            path.append(key)
            answer = begin(inside, path)


def _check_levels(node: Node) -> None:
    """Refuse a node that `json` could not walk, naming the members at the top that hold the deepest ones."""
    too_deep = [key for key, inside in _members(node) if _is_deeper(inside, MAX_LEVELS - 1)]
    if too_deep:
        faults = [f"{key}: more than {MAX_LEVELS} levels" for key in too_deep]
        raise FormatError("cannot save: nested too deep", faults=faults, remedy="flatten it before saving")


def _members(node: Node) -> Iterable[tuple[object, Node]]:
    return node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()


def _is_deeper(node: Node, levels: int) -> bool:
    """Whether something stands more than some levels below a node."""
    level = containers_in([node])
    for _ in range(levels):
        level = [inside for each in level for inside in containers_in(each)]
        if not level:
            return False
    return any(level)


def containers_in(node: dict[str, Node] | list[Node]) -> list[dict[str, Node] | list[Node]]:
    """Those of the nodes right inside one that others stand in."""
    nodes = node.values() if isinstance(node, dict) else node
    if _CONTAINERS.isdisjoint(map(type, nodes)):  # without a step of Python for each of a million numbers
        return []
    return [each for each in nodes if isinstance(each, (dict, list))]


class _Encoder:
    def __init__(self, encode_leaf: EncodeLeaf) -> None:
        self.encode_leaf = encode_leaf
        self.faults: list[str] = []
        self.open_ids: set[int] = set()

    def begin(self, value: object, path: list[Hashable]) -> Node | Steps:
        """The node of one value, or the steps to it; a fault is noted, and null stands in its place."""
        if id(value) in self.open_ids:
            self.faults.append(f"{name_of(tuple(path))}: it contains itself")
            return None
        try:
            node = self._leaf_of(value, path)
        except (ValueError, FormatError) as error:
            self._note(error, path)
            return None
        return self._inside(value, list(path)) if node is _NO_LEAF else node

    def _leaf_of(self, value: object, path: list[Hashable]) -> Node:
        kind = type(value)
        if kind in ATOM_TYPES:
            return encode_atom(value)
        if kind in (dict, list, tuple):
            return _NO_LEAF
        node = self.encode_leaf(tuple(path), value)
        node = encode_leaf(value) if node is None else node
        node = encode_numpy(value) if node is None else node
        return _NO_LEAF if node is None else node

    def _inside(self, value: object, path: list[Hashable]) -> Steps:
        self.open_ids.add(id(value))
        try:
            return (yield from encode_container(value))
        except (ValueError, FormatError) as error:
            self._note(error, path)
        finally:
            self.open_ids.discard(id(value))
        return None

    def _note(self, error: ValueError | FormatError, path: list[Hashable]) -> None:
        at = name_of(tuple(path))
        if isinstance(error, FormatError):
            inner = error.faults or (f": {error.what}",)
            self.faults += [at + (fault if fault.startswith(":") else f".{fault}") for fault in inner]
        else:
            self.faults.append(f"{at}: {error}")


class _Decoder:
    def __init__(self, decode_leaf: DecodeLeaf) -> None:
        self.decode_leaf = decode_leaf

    def begin(self, node: object, path: list[Hashable]) -> object:
        """The value of one node, or the steps to it."""
        if len(path) > MAX_LEVELS:
            raise ValueError(f"more than {MAX_LEVELS} levels")
        if isinstance(node, list):
            return decode_list(node)
        if not isinstance(node, dict):
            return decode_atom(node)
        tags = [key for key in node if key.startswith("$")]
        if not tags:
            return decode_dict(node)
        if len(tags) > 1:
            raise ValueError(f"both {tags[0]} and {tags[1]}")
        return self._tagged(tags[0], node)

    def _tagged(self, tag: str, node: Members) -> object:
        payload = node[tag]
        if tag in _HOOK_TAGS or tag.startswith("$torch."):
            value = self.decode_leaf(tag, payload, node)
            if value is not NotImplemented:
                return value
        decoder = LEAF_DECODERS.get(tag) or NUMPY_DECODERS.get(tag)
        if decoder is None and tag not in CONTAINER_DECODERS:
            raise FormatError(f"the record holds a {tag} value, which this torchkeep does not know", remedy=_NEWER)
        extra = sorted(node.keys() - {tag} - _EXTRA_MEMBERS.get(tag, set()))
        if extra:
            raise ValueError(f"{tag} with a member {extra[0]!r}")
        return CONTAINER_DECODERS[tag](payload, node) if decoder is None else decoder(payload, node)
