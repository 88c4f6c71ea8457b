"""Drafts of a folder whose tensors are read from another checkpoint while they are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

from torchkeep.errors import FormatError
from torchkeep.folder.draft import Draft, DraftTensor
from torchkeep.folder.read import FolderSource
from torchkeep.folder.record import Entry, Node
from torchkeep.folder.values import encode
from torchkeep.tensors import Described, KeyPath, Source, TensorSpec, name_of, tensors_of, unused_name

Told: TypeAlias = Callable[[int], object] | None
_LOOSE_GROUP = "tensors"


def draft_of_record(
    opened: FolderSource, reader: Source, spec_of: Callable[[TensorSpec], TensorSpec], told: Told
) -> Draft:
    """A draft of all that a torchkeep checkpoint holds: entries with their kinds, random states, metrics, step.

    Args:
        opened: The checkpoint.
        reader: Where its tensors are read, perhaps with other dtypes.
        spec_of: The spec that `reader` has for one of `opened`.
        told: Called with the bytes that were read.
    """
    record = opened.record
    specs = {spec.key: spec for spec in opened.specs()} | {
        spec.key: spec_of(spec) for spec in tensors_of(opened.tree).values()
    }
    groups = {
        group: {
            name: _draft_tensor(
                reader, specs[group, name], told, may_change=not _is_frozen(record.entries, group, name)
            )
            for name in tensors
        }
        for group, tensors in record.tensors.items()
    }
    provenance = {key: value for key, value in record.provenance.items() if key not in {"parent", "sequence"}}
    return Draft(record.entries, groups, record.whole, record.step, record.metrics, record.rng, provenance)


def _is_frozen(entries: Mapping[str, Entry], group: str, name: str) -> bool:
    frozen = entries[group].facts.get("frozen") if group in entries else None
    return isinstance(frozen, list) and name in frozen


def draft_of_tree(tree: object, reader: Source, provenance: Mapping[str, object], told: Told) -> Draft:
    """A draft of a tree as `save` would make it of the values that the tree is of.

    Args:
        tree: Plain values, `TensorSpec` at the tensors, `Described` of the classes that a record has nodes for.
        reader: Where its tensors are read.
        provenance: What the record says of where it comes from.
        told: Called with the bytes that were read.

    Raises:
        FormatError: Values without an encoding; all of them are listed.
    """
    entries, whole = _entries_of(tree)
    drafting = _Drafting(reader, told)
    nodes, faults = {}, list[str]()
    for name, value in entries.items():
        group = _LOOSE_GROUP if isinstance(value, TensorSpec) else name
        try:
            nodes[name] = Entry("value", encode(value, partial(drafting.leaf, group, name)), {})
        except FormatError as error:
            faults += [f"{name}.{fault}" for fault in error.faults or (error.what,)]
    if faults:
        raise FormatError("values have no encoding", faults=faults, remedy="convert one entry of it: entry=...")
    return Draft(nodes, drafting.groups, whole, provenance=provenance)


def _entries_of(tree: object) -> tuple[dict[str, object], str | None]:
    """The entries, and the one that is the whole, as for what `save` is given."""
    if isinstance(tree, Mapping) and tree and all(isinstance(key, str) for key in tree):
        if not all(isinstance(value, TensorSpec) for value in tree.values()):
            return dict(tree), None
        return {"model": tree}, "model"
    return {"value": tree}, "value"


class _Drafting:
    def __init__(self, reader: Source, told: Told) -> None:
        self.groups: dict[str, dict[str, DraftTensor]] = {}
        self._reader, self._told = reader, told
        self._stored: dict[tuple[object, ...], tuple[str, str]] = {}

    def leaf(self, group: str, entry: str, path: KeyPath, value: object) -> Node | None:
        """The hook of `encode`: nodes for tensors and for what torch alone can hold."""
        if isinstance(value, TensorSpec):
            return self.tensor(group, path or (entry,), value)
        return self.described(group, path or (entry,), value) if isinstance(value, Described) else None

    def described(self, group: str, path: KeyPath, value: Described) -> Node:
        """The node of a class of torch's or numpy's."""
        first = value.args[0] if value.args else None
        if value.class_path in {"torch.dtype", "torch.device"}:
            return {f"${value.class_path}": str(first)}
        if value.class_path == "torch.Size" and isinstance(first, (tuple, list)):
            return {"$torch.Size": list(first)}
        if value.class_path == "numpy.ndarray" and isinstance(first, TensorSpec):
            return {"$numpy.tensor": self.tensor(group, path, first)}
        if value.class_path in {"torch.sparse", "torch.quantized"} and isinstance(value.state, Mapping):
            parts = {
                str(key): self.tensor(group, (*path, key), part) if isinstance(part, TensorSpec) else part
                for key, part in value.state.items()
            }
            return {f"${value.class_path}": parts}
        raise FormatError(f"a {value.class_path}, which is not built")

    def tensor(self, group: str, path: KeyPath, spec: TensorSpec) -> Node:
        """A reference, with the tensor put in the group unless it is there by another name."""
        identity = (spec.key, spec.dtype, spec.shape)
        stored = self._stored.get(identity) if spec.numel else None
        if stored is None:
            tensors = self.groups.setdefault(group, {})
            name = name_of(path).encode("utf-8", "backslashreplace").decode("utf-8")
            stored = (group, unused_name("__metadata__~2" if name == "__metadata__" else name, tensors))
            tensors[stored[1]] = _draft_tensor(self._reader, spec, self._told, may_change=True)
            self._stored[identity] = stored
        node: dict[str, object] = {"$tensor": list(stored)}
        node |= {"parameter": True} if spec.parameter else {}
        node |= {"requires_grad": True} if spec.requires_grad else {}
        return node | ({"memory_format": spec.memory_format} if spec.memory_format != "contiguous" else {})


def _draft_tensor(reader: Source, spec: TensorSpec, told: Told, *, may_change: bool) -> DraftTensor:
    def fill(begin: int, buffer: memoryview) -> None:
        reader.read_range_into(spec, begin, buffer)
        if told is not None:
            told(buffer.nbytes)

    def read(_: object) -> memoryview:
        whole = memoryview(bytearray(spec.nbytes))
        fill(0, whole)
        return whole

    return DraftTensor(TensorSpec(spec.dtype, spec.shape), may_change, read, fill=fill)
