"""What a caller wants to keep: entries as JSON nodes, tensors by group and name, ties found, faults gathered."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from torchkeep.errors import FormatError
from torchkeep.folder.record import Entry, Node
from torchkeep.folder.values import encode
from torchkeep.folder.write import DraftTensor
from torchkeep.live.memory import bytes_of, dtype_name, memory_format_of
from torchkeep.live.modules import class_path, module_facts, named_parameters, named_state
from torchkeep.live.optimizers import named_optimizer_state
from torchkeep.tensors import DTYPE_NAMES, KeyPath, TensorSpec, name_of, unused_name

LOOSE_GROUP = "tensors"
_PLAIN_CLASSES = (torch.Tensor, nn.Parameter, nn.Buffer)
_SPARSE_PARTS = {
    torch.sparse_csr: ("crow_indices", "col_indices"),
    torch.sparse_bsr: ("crow_indices", "col_indices"),
    torch.sparse_csc: ("ccol_indices", "row_indices"),
    torch.sparse_bsc: ("ccol_indices", "row_indices"),
}


@runtime_checkable
class Stateful(Protocol):
    """Anything that gives its state and takes it back: schedulers, scalers, samplers, loaders."""

    def state_dict(self) -> object:
        """The state."""

    def load_state_dict(self, state: Mapping[str, object], /) -> object:
        """Take a state back."""


@dataclass(frozen=True, slots=True)
class Captured:
    """Entries and groups of a draft."""

    entries: Mapping[str, Entry]
    groups: Mapping[str, Mapping[str, DraftTensor]]
    whole: str | None


def capture(saved: object) -> Captured:
    """Describe what was given to save; tensors are not read yet.

    Raises:
        FormatError: It lists every value that has no encoding, with its path.
    """
    entries, whole = _entries_of(saved)
    capturing = _Capture(entries)
    nodes = {name: capturing.entry(name, value) for name, value in entries.items()}
    if capturing.faults:
        count = len(capturing.faults)
        raise FormatError(
            f"cannot save: {count} {'value has' if count == 1 else 'values have'} no encoding",
            faults=capturing.faults,
            remedy="take them out, or keep what they are made of (numbers, strings, tensors, state dicts)",
        )
    return Captured(nodes, capturing.groups, whole)


def _entries_of(saved: object) -> tuple[dict[str, object], str | None]:
    """The entries, and the one that is the whole when what was saved is not a mapping of entries."""
    if isinstance(saved, Mapping) and saved and all(isinstance(key, str) for key in saved):
        if not all(isinstance(value, torch.Tensor) for value in saved.values()):
            return dict(saved), None
        return {"model": saved}, "model"
    if isinstance(saved, nn.Module):
        return {"model": saved}, "model"
    if isinstance(saved, torch.optim.Optimizer):
        return {"optimizer": saved}, "optimizer"
    return {"value": saved}, "value"


@dataclass(slots=True)
class _Capture:
    given: Mapping[str, object]
    groups: dict[str, dict[str, DraftTensor]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    # Identity of memory -> where it is stored; the tensors stay referenced by the readers, so addresses stay theirs.
    stored: dict[Hashable, tuple[str, str]] = field(default_factory=dict)

    def entry(self, name: str, value: object) -> Entry:
        """One entry as a node, its tensors added to its group."""
        loose = isinstance(value, torch.Tensor)
        group = LOOSE_GROUP if loose else name
        prefix: KeyPath = (name,) if loose else ()
        kind, facts, state, frozen = "value", dict[str, object](), value, frozenset[str]()
        if isinstance(value, nn.Module):
            kind, facts, state = "module", module_facts(value), named_state(value)
            frozen = frozenset(n for n, parameter in named_parameters(value) if not parameter.requires_grad)
        elif isinstance(value, torch.optim.Optimizer):
            modules = {key: each for key, each in self.given.items() if isinstance(each, nn.Module)}
            kind = "optimizer"
            state, facts = named_optimizer_state(value, modules)
        elif isinstance(value, Stateful) and not isinstance(value, type):
            kind, facts, state = "stateful", {"class": class_path(value)}, value.state_dict()
        leaf = partial(self.leaf, group, prefix, kind, frozen)
        try:
            tree = encode(state, leaf)
        except FormatError as error:
            self.faults += [
                f"{name}.{fault}" if not fault.startswith(":") else name + fault
                for fault in error.faults or (error.what,)
            ]
            tree = None
        return Entry(kind, tree, facts)

    def leaf(
        self, group: str, prefix: KeyPath, kind: str, frozen: frozenset[str], path: KeyPath, value: object
    ) -> Node | None:
        """The hook of `encode`: a node for what belongs to torch, None for what does not."""
        path = prefix + path
        if isinstance(value, torch.Tensor):
            return self._tensor(group, path, kind, frozen, value)
        if isinstance(value, torch.Size):
            return {"$torch.Size": list(value)}
        if isinstance(value, torch.dtype):
            return {"$torch.dtype": dtype_name(value)}
        if isinstance(value, torch.device):
            return {"$torch.device": str(value)}
        again = partial(self.leaf, group, path, kind, frozen)
        if isinstance(value, nn.Module):
            return encode(named_state(value), again)
        if isinstance(value, torch.optim.Optimizer):
            modules = {key: each for key, each in self.given.items() if isinstance(each, nn.Module)}
            return encode(named_optimizer_state(value, modules)[0], again)
        if _is_large_array(value):
            return {"$numpy.tensor": self._tensor(group, path, kind, frozen, torch.from_numpy(value))}
        return None

    def _tensor(
        self, group: str, path: KeyPath, kind: str, frozen: frozenset[str], tensor: torch.Tensor
    ) -> Node | None:
        fault = _fault_of(tensor)
        if fault is not None:
            raise FormatError(fault)
        part = partial(self._part, group, path, kind, frozen)
        if tensor.is_quantized:
            return {"$torch.quantized": _quantized_node(tensor, part)}
        if tensor.layout is not torch.strided:
            return {"$torch.sparse": _sparse_node(tensor, part)}
        return self._stored(group, path, kind, frozen, tensor)

    def _part(
        self, group: str, path: KeyPath, kind: str, frozen: frozenset[str], name: str, tensor: torch.Tensor
    ) -> Node:
        return self._stored(group, (*path, name), kind, frozen, tensor)

    def _stored(self, group: str, path: KeyPath, kind: str, frozen: frozenset[str], tensor: torch.Tensor) -> Node:
        # Only memory that is wholly the same is a tie; a view of a part is stored as a tensor of its own.
        identity = (
            tensor.data_ptr(),
            str(tensor.device),
            tensor.dtype,
            tensor.shape,
            tensor.stride(),
            tensor.is_conj(),
            tensor.is_neg(),
        )
        place = self.stored.get(identity) if tensor.numel() else None
        if place is None:
            of_group = self.groups.setdefault(group, {})
            shown = path[1:] if kind == "optimizer" and path[:1] == ("state",) and len(path) > 1 else path
            place = (group, unused_name(name_of(shown) or "value", of_group))
            spec = TensorSpec(dtype_name(tensor.dtype), tuple(tensor.shape))
            of_group[place[1]] = DraftTensor(spec, name_of(path) not in frozen, partial(bytes_of, tensor))
            self.stored[identity] = place
        node: dict[str, object] = {"$tensor": list(place)}
        if kind != "module":
            node |= {"parameter": True} if isinstance(tensor, nn.Parameter) else {}
            node |= {"requires_grad": True} if tensor.requires_grad and tensor.is_leaf else {}
        memory_format = memory_format_of(tensor)
        return node | ({"memory_format": memory_format} if memory_format != "contiguous" else {})


def _fault_of(tensor: torch.Tensor) -> str | None:
    if type(tensor) not in _PLAIN_CLASSES:
        return f"a tensor of class {class_path(tensor)}"
    if tensor.is_meta:
        return "a meta tensor: it has no values"
    if tensor.is_nested:
        return "a nested tensor"
    if not tensor.is_quantized and dtype_name(tensor.dtype) not in DTYPE_NAMES:
        return f"a tensor of {tensor.dtype}"
    return None


def _sparse_node(tensor: torch.Tensor, part: Callable[[str, torch.Tensor], Node]) -> dict[str, Node]:
    node: dict[str, Node] = {"layout": str(tensor.layout).removeprefix("torch."), "shape": list(tensor.shape)}
    if tensor.layout is torch.sparse_coo:
        plain = tensor.detach()
        node |= {"coalesced": plain.is_coalesced(), "indices": part("indices", plain._indices())}  # noqa: SLF001 - indices() needs a coalesced one
        return node | {"values": part("values", plain._values())}  # noqa: SLF001 - as above
    compressed, plain_name = _SPARSE_PARTS[tensor.layout]
    node |= {"compressed": part("compressed", getattr(tensor, compressed)())}
    node |= {"plain": part("plain", getattr(tensor, plain_name)())}
    return node | {"values": part("values", tensor.values())}


def _quantized_node(tensor: torch.Tensor, part: Callable[[str, torch.Tensor], Node]) -> dict[str, Node]:
    scheme = str(tensor.qscheme()).removeprefix("torch.")
    node: dict[str, Node] = {
        "scheme": scheme,
        "dtype": dtype_name(tensor.dtype),
        "values": part("values", tensor.int_repr()),
    }
    if scheme == "per_tensor_affine":
        return node | {"scale": tensor.q_scale(), "zero_point": tensor.q_zero_point()}
    return node | {
        "scales": part("scales", tensor.q_per_channel_scales()),
        "zero_points": part("zero_points", tensor.q_per_channel_zero_points()),
        "axis": tensor.q_per_channel_axis(),
    }


def _is_large_array(value: object) -> bool:
    """Whether a value is a numpy array that is stored as a tensor: over 4 KiB, of a dtype that torch shares."""
    import numpy as np

    if type(value) is not np.ndarray or value.nbytes <= 4096:  # noqa: PLR2004 - the bound in docs/format.md
        return False
    return value.dtype.isnative and value.dtype.kind in "biufc" and value.dtype.name in DTYPE_NAMES
