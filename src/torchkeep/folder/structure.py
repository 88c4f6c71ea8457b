"""The description of a whole model in a record: a table of objects, each a class by name and its state.

docs/format.md, "Whole models". Nothing here imports or looks up what a file names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from torchkeep.errors import CorruptError, LimitError
from torchkeep.folder.leaf_nodes import Members, Node
from torchkeep.folder.values import DecodeLeaf, decode
from torchkeep.tensors import Described, Named, TensorSpec

MAX_OBJECTS = 200_000
STRUCTURE = "structure"  # The member of an entry that holds it.


@dataclass(frozen=True, slots=True)
class ClassSource:
    """What a class was when its objects were saved.

    Attributes:
        file: Its file, from its top package down: ``"torchvision/models/resnet.py"``.
        version: The version of that package; None where it has none.
        file_digest: The digest of the file's text: where it is the same, so is the class.
        digest: The digest of the class's text.
        attributes: The names that its ``__init__`` always sets, with those of its bases.
        text: The class's text, where it was asked for: for people to read, never to run.
    """

    file: str | None
    version: str | None
    file_digest: str | None
    digest: str | None
    attributes: tuple[str, ...] = ()
    text: str | None = None

    def node(self) -> Node:
        """It as JSON."""
        node: dict[str, Node] = {"file": self.file, "version": self.version, "file_digest": self.file_digest}
        node |= {"digest": self.digest, "attributes": list(self.attributes)}
        return node | ({} if self.text is None else {"text": self.text})


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a model gave for example inputs: trees with `TensorSpec` at the tensors.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
        outputs: Tensors of the output by their path in it.
    """

    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    outputs: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Structure:
    """A whole model as a record describes it.

    Attributes:
        root: The model. Objects are one where they were one, so descriptions may contain themselves.
        sources: Classes by ``"module:Class"``, bases of those in the description too.
        hooks: What was not stored: the module's name, the kind of hook, the hook's name.
        fingerprint: What it gave for example inputs, or None.
    """

    root: Described
    sources: Mapping[str, ClassSource]
    hooks: tuple[tuple[str, str, str], ...]
    fingerprint: Fingerprint | None


def decode_structure(node: Node, decode_leaf: DecodeLeaf) -> Structure:
    """Read a structure back.

    Args:
        node: The member ``structure`` of an entry.
        decode_leaf: As for `values.decode`: makes `TensorSpec` of tensor nodes.

    Raises:
        CorruptError: It is not what docs/format.md says.
        LimitError: More than 200,000 objects.
    """
    members = _mapping(node, "structure")
    table = _list(members.get("objects"), "objects")
    if len(table) > MAX_OBJECTS:
        raise LimitError(f"the model is described as {len(table):,} objects; at most {MAX_OBJECTS:,} are read")
    reading = _Reading([_begin(each, index) for index, each in enumerate(table)], decode_leaf)
    if not table:
        raise CorruptError("the description of the model is damaged: no objects")
    for index, each in enumerate(table):
        reading.fill(index, _mapping(each, f"objects.{index}"))
    hooks = [_texts(each, "hooks", 3) for each in _list(members.get("hooks", []), "hooks")]
    fingerprint = members.get("fingerprint")
    return Structure(
        reading.objects[0],
        {name: _source(each, name) for name, each in _mapping(members.get("sources", {}), "sources").items()},
        tuple((at, kind, name) for at, kind, name in hooks),
        None if fingerprint is None else _fingerprint(fingerprint, reading.leaf),
    )


def texts_in(structures: Iterable[Node]) -> dict[str, str]:
    """The texts of classes in structures, by the dotted name of the class."""
    sources = [(each.get("sources") or {}) if isinstance(each, dict) else {} for each in structures]
    found = {
        name.replace(":", "."): _source(node, name).text
        for each in sources
        for name, node in _mapping(each, "sources").items()
    }
    return {name: text for name, text in found.items() if text is not None}


def _begin(node: Node, index: int) -> Described:
    members = _mapping(node, f"objects.{index}")
    name = members.get("class")
    if not isinstance(name, str):
        raise CorruptError(f"the description of the model is damaged: objects.{index} has no class")
    return Described(name)


class _Reading:
    """The objects of one structure while they are filled."""

    def __init__(self, objects: list[Described], decode_leaf: DecodeLeaf) -> None:
        self.objects = objects
        self._decode_leaf = decode_leaf
        self._tensors: dict[tuple[object, ...], object] = {}

    def fill(self, index: int, members: Members) -> None:
        """Give an object its state, arguments and items: objects exist before what refers to them."""
        value = partial(decode, decode_leaf=self.leaf)
        state = value(_mapping(members.get("state", {}), f"objects.{index}.state"))
        object.__setattr__(self.objects[index], "state", state)
        for part in ("args", "items"):
            if part in members:
                nodes = _list(members[part], f"objects.{index}.{part}")
                object.__setattr__(self.objects[index], part, tuple(map(value, nodes)))

    def leaf(self, tag: str, payload: object, node: Members) -> object:
        """The hook of `decode` for what whole models have beside tensors."""
        if tag == "$tensor":
            return self._tensor(payload, node)
        if tag == "$object":
            if type(payload) is not int or not 0 <= payload < len(self.objects):
                raise ValueError(f"there is no object {payload!r}")
            return self.objects[payload]
        if tag == "$name":
            if not isinstance(payload, str):
                raise TypeError("a name wanted")
            return Named(payload)
        if tag == "$logger":
            return Described("logging.getLogger", (payload,))
        if tag == "$method":
            owner, name = _list(payload, tag)
            return Described("builtins.getattr", (decode(owner, self.leaf), name))
        if tag == "$partial":
            function, args, kwargs = _list(payload, tag)
            value = partial(decode, decode_leaf=self.leaf)
            state = (value(function), tuple(map(value, _list(args, tag))), value(_mapping(kwargs, tag)), None)
            return Described("functools.partial", state[:1], state=state)
        if tag == "$torch.packed":
            return Described("torch.packed", state=decode(_mapping(payload, tag), self.leaf))
        return self._decode_leaf(tag, payload, node)

    def _tensor(self, payload: object, node: Members) -> object:
        """One value for each tensor that was one; another `alias` of the same memory is another."""
        spec = self._decode_leaf("$tensor", payload, node)
        if not isinstance(spec, TensorSpec):
            raise TypeError("a tensor wanted")
        identity = (spec.key, spec.parameter, spec.requires_grad, spec.memory_format, repr(node.get("alias", 0)))
        if identity not in self._tensors:
            state = {each: decode(node[each], self.leaf) for each in ("stride", "attributes") if each in node}
            own = replace(spec)
            self._tensors[identity] = Described("torch.Tensor", (own,), state=state) if state else own
        return self._tensors[identity]


def _source(node: Node, name: str) -> ClassSource:
    members = _mapping(node, name)
    texts = {each: members.get(each) for each in ("file", "version", "file_digest", "digest", "text")}
    if any(value is not None and not isinstance(value, str) for value in texts.values()):
        raise CorruptError(f"the description of the model is damaged: sources.{name}")
    attributes = tuple(_texts(members.get("attributes", []), name))
    return ClassSource(**texts, attributes=attributes)  # type: ignore[arg-type]


def _fingerprint(node: Node, leaf: DecodeLeaf) -> Fingerprint:
    members = _mapping(node, "fingerprint")
    args = decode(_list(members.get("args"), "fingerprint.args"), leaf)
    kwargs, outputs = (decode(_mapping(members.get(each), each), leaf) for each in ("kwargs", "outputs"))
    return Fingerprint(tuple(args), kwargs, outputs)  # type: ignore[arg-type]


def _mapping(node: Node, at: str) -> dict[str, object]:
    if not isinstance(node, dict):
        raise CorruptError(f"the description of the model is damaged: {at} is {type(node).__name__}, not an object")
    return node


def _list(node: Node, at: str) -> list[object]:
    if not isinstance(node, list):
        raise CorruptError(f"the description of the model is damaged: {at} is {type(node).__name__}, not a list")
    return node


def _texts(node: Node, at: str, length: int | None = None) -> list[str]:
    texts = _list(node, at)
    if not all(isinstance(each, str) for each in texts) or length not in (None, len(texts)):
        raise CorruptError(f"the description of the model is damaged: {at} is not made of texts")
    return texts  # type: ignore[return-value]
