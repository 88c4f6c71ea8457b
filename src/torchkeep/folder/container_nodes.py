"""Nodes of values that hold others: the containers of Python, namespaces, and objects of the program's own classes.

A codec here is a generator: it yields (key, what is inside), is sent the node or the value of that, and returns its
own. Nothing recurses, so depth costs no stack. What cannot be is a ValueError or TypeError, as in `leaf_nodes`.
"""

from __future__ import annotations

import enum
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Generator, Hashable, Mapping, MutableMapping
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeAlias

from torchkeep.folder import class_nodes
from torchkeep.folder.leaf_nodes import (
    ATOM_TYPES,
    Members,
    Node,
    are_own_nodes,
    check_text,
    decode_atom,
    encode_atom,
    int_in,
    list_in,
    text_in,
)

Steps: TypeAlias = Generator[tuple[Hashable, object], object, object]

_FACTORIES: dict[str, type] = {each.__name__: each for each in (int, float, str, list, dict, set, tuple, bool)}
_PLAIN_TYPES = (str, int, float, complex, dict, list, tuple, set, frozenset, bytes, bytearray, deque)


def encode_container(value: object) -> Steps:
    """The steps to the node of a container or an object.

    Raises:
        ValueError: It has no node; the message says why.
    """
    kind = type(value)
    if kind in _ENCODERS:
        return (yield from _ENCODERS[kind](value))
    if isinstance(value, enum.Enum):
        return _encode_enum(value)
    if class_nodes.is_named_tuple(kind):
        return (yield from _encode_fields("$namedtuple", value))
    if class_nodes.is_plain_dataclass(kind):
        return (yield from _encode_fields("$dataclass", value))
    if kind is getattr(sys.modules.get("argparse"), "Namespace", None):
        return {"$namespace": (yield from _members(vars(value)))}
    plain = next((each.__name__ for each in _PLAIN_TYPES if isinstance(value, each)), None)
    raise ValueError(f"{kind}, a subclass of {plain}; {plain}(value) has an encoding" if plain else str(kind))


def _each(values: Collection[object]) -> Generator[tuple[Hashable, object], object, list[Node]]:
    if are_own_nodes(values):
        return list(values)
    nodes: list[Node] = []
    for index, value in enumerate(values):
        nodes.append((yield index, value))
    return nodes


def _pairs(mapping: Mapping[object, object]) -> Generator[tuple[Hashable, object], object, list[Node]]:
    nodes: list[Node] = []
    for key, value in mapping.items():
        key_node = yield key, key
        nodes.append([key_node, (yield key, value)])
    return nodes


def _members(mapping: Mapping[str, object]) -> Generator[tuple[Hashable, object], object, dict[str, Node]]:
    nodes: dict[str, Node] = {}
    for key, value in mapping.items():
        if type(key) is not str:
            raise ValueError(f"the attribute {key!r} is not text")
        nodes[check_text(key)] = yield key, value
    return nodes


def _encode_dict(value: dict[object, object]) -> Steps:
    if all(type(key) is str and not key.startswith("$") for key in value):
        return (yield from _members(value))  # type: ignore[arg-type]
    return {"$dict": (yield from _pairs(value))}


def _encode_ordered(value: OrderedDict[object, object]) -> Steps:
    attributes = vars(value)
    extra = next((name for name in attributes if name != "_metadata"), None)
    if extra is not None:
        raise ValueError(f"{type(value)} with the attribute {extra!r}, which would be lost")
    node: dict[str, Node] = {"$OrderedDict": (yield from _pairs(value))}
    if "_metadata" in attributes:
        node["metadata"] = yield "_metadata", attributes["_metadata"]
    return node


def _encode_default(value: defaultdict[object, object]) -> Steps:
    factory = value.default_factory
    name = None if factory is None else getattr(factory, "__name__", "")
    if name is not None and _FACTORIES.get(name) is not factory:
        raise ValueError(f"a defaultdict of {factory!r}; only of {', '.join(_FACTORIES)} or None has an encoding")
    return {"$defaultdict": [name, (yield from _pairs(value))]}


def _encode_list(value: list[object]) -> Steps:
    return (yield from _each(value))


def _sequence(tag: str) -> Callable[[Collection[object]], Steps]:
    def encode_sequence(value: Collection[object]) -> Steps:
        return {tag: (yield from _each(value))}

    return encode_sequence


def _encode_counter(value: Counter[object]) -> Steps:
    return {"$Counter": (yield from _pairs(value))}


def _encode_deque(value: deque[object]) -> Steps:
    return {"$deque": [(yield from _each(value)), value.maxlen]}


def _encode_slice(value: slice) -> Steps:
    return {"$slice": (yield from _each((value.start, value.stop, value.step)))}


def _encode_namespace(value: SimpleNamespace) -> Steps:
    return {"$simplenamespace": (yield from _members(vars(value)))}


def _encode_enum(value: enum.Enum) -> Node:
    reference = class_nodes.class_reference(type(value))
    if type(value).__members__.get(str(value.name)) is not value:
        raise ValueError(f"{value!r} is not a member with a name")
    return {"$enum": [reference, value.name, encode_atom(value.value) if type(value.value) in ATOM_TYPES else None]}


def _encode_fields(tag: str, value: object) -> Steps:
    reference = class_nodes.class_reference(type(value))
    return {tag: [reference, (yield from _members(class_nodes.fields_of(value)))]}


_ENCODERS: dict[type, Callable[..., Steps]] = {
    dict: _encode_dict,
    OrderedDict: _encode_ordered,
    defaultdict: _encode_default,
    Counter: _encode_counter,
    list: _encode_list,
    tuple: _sequence("$tuple"),
    set: _sequence("$set"),
    frozenset: _sequence("$frozenset"),
    deque: _encode_deque,
    slice: _encode_slice,
    SimpleNamespace: _encode_namespace,
}


def decode_list(node: list[object]) -> Steps:
    """The steps to a list."""
    return (yield from _each(node))


def decode_dict(node: Mapping[str, object]) -> Steps:
    """The steps to a dict with text for keys."""
    return (yield from _members(node))


def _decode_each(make: Callable[[list[object]], object], payload: object, _: Members) -> Steps:
    return make((yield from _each(list_in(payload))))


def _decode_set(make: type[set[object] | frozenset[object]], payload: object, _: Members) -> Steps:
    items = yield from _each(list_in(payload))
    found = make(items)
    if len(found) != len(items):
        raise ValueError("an item occurs twice")
    return found


def _decode_pairs(make: Callable[[], MutableMapping[object, Any]], payload: object, _: Members) -> Steps:
    found = make()
    for index, pair in enumerate(list_in(payload)):
        key_node, value_node = list_in(pair, 2)
        key = yield index, key_node
        if key in found:
            raise ValueError(f"the key {key!r} occurs twice")
        found[key] = yield key, value_node
    return found


def _decode_ordered(payload: object, members: Members) -> Steps:
    found = yield from _decode_pairs(OrderedDict, payload, members)
    if "metadata" in members:
        metadata = yield "_metadata", members["metadata"]
        if not isinstance(metadata, dict):
            raise TypeError("metadata is not a dict")
        vars(found)["_metadata"] = metadata
    return found


def _decode_default(payload: object, members: Members) -> Steps:
    name, pairs = list_in(payload, 2)
    factory = None if name is None else _FACTORIES[text_in(name)]
    return (yield from _decode_pairs(partial(defaultdict[object, object], factory), pairs, members))


def _decode_deque(payload: object, _: Members) -> Steps:
    nodes, maxlen = list_in(payload, 2)
    items = yield from _each(list_in(nodes))
    if maxlen is not None and int_in(maxlen) < len(items):
        raise ValueError("more items than its maxlen")
    return deque(items, None if maxlen is None else int_in(maxlen))


def _decode_slice(payload: object, _: Members) -> Steps:
    start, stop, step = yield from _each(list_in(payload, 3))
    return slice(start, stop, step)


def _decode_namespace(payload: object, _: Members) -> Steps:
    from argparse import Namespace

    namespace = Namespace()
    vars(namespace).update((yield from _members(_object_in(payload))))
    return namespace


def _decode_simple_namespace(payload: object, _: Members) -> Steps:
    namespace = SimpleNamespace()
    vars(namespace).update((yield from _members(_object_in(payload))))
    return namespace


def _decode_enum(payload: object, _: Members) -> Steps:
    reference, member, value = list_in(payload, 3)
    yield from ()
    return class_nodes.rebuild_enum(text_in(reference), text_in(member), decode_atom(value))


def _decode_fields(rebuild: Callable[[str, Mapping[str, object]], object], payload: object, _: Members) -> Steps:
    reference, nodes = list_in(payload, 2)
    return rebuild(text_in(reference), (yield from _members(_object_in(nodes))))


def _object_in(payload: object) -> dict[str, object]:
    if not isinstance(payload, dict):
        raise TypeError(f"an object wanted, found {type(payload).__name__}")
    return payload


CONTAINER_DECODERS: Mapping[str, Callable[[object, Members], Steps]] = {
    "$dict": partial(_decode_pairs, dict),
    "$OrderedDict": _decode_ordered,
    "$defaultdict": _decode_default,
    "$Counter": partial(_decode_pairs, Counter[object]),
    "$tuple": partial(_decode_each, tuple),
    "$set": partial(_decode_set, set),
    "$frozenset": partial(_decode_set, frozenset),
    "$deque": _decode_deque,
    "$slice": _decode_slice,
    "$namespace": _decode_namespace,
    "$simplenamespace": _decode_simple_namespace,
    "$enum": _decode_enum,
    "$dataclass": partial(_decode_fields, class_nodes.rebuild_dataclass),
    "$namedtuple": partial(_decode_fields, class_nodes.rebuild_named_tuple),
}
