"""What a caller wants to keep: entries as JSON nodes, tensors by group and name, ties found, faults gathered."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from torchkeep.errors import FormatError
from torchkeep.folder.draft import DraftTensor, Groups
from torchkeep.folder.record import Entry, Node
from torchkeep.folder.values import encode
from torchkeep.live.memory import bytes_of, dtype_name, flat_bytes_of, is_fillable, memory_format_of, memory_of_flat
from torchkeep.live.modules import class_path, module_facts, named_parameters, named_state
from torchkeep.live.optimizers import named_optimizer_state
from torchkeep.tensors import DTYPE_NAMES, KeyPath, TensorSpec, name_of, unused_name

LOOSE_GROUP = "tensors"
_LARGEST_INLINE_BYTES = 4096
PLAIN_CLASSES = (torch.Tensor, nn.Parameter, nn.Buffer)
_QUANTISED = (torch.qint8, torch.quint8, torch.qint32)
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
    groups: Groups
    whole: str | None


def capture(saved: object) -> Captured:
    """Describe what was given to save; tensors are not read yet.

    Raises:
        FormatError: It lists every value that has no encoding, with its path.
    """
    entries, whole = _entries_of(saved)
    return capture_entries(entries, whole)


def capture_entries(entries: Mapping[str, object], whole: str | None = None) -> Captured:
    """Describe named entries; `whole` names the one that is the whole of what was saved.

    Raises:
        FormatError: As for `capture`.
    """
    capturing = Capture(entries)
    nodes = {name: capturing.entry(name, value) for name, value in entries.items()}
    capturing.refuse_faults()
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


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the draft a value is: its group, its path there, the kind of its entry, and what of that is frozen."""

    group: str
    path: KeyPath
    kind: str
    frozen: frozenset[str] = frozenset()

    def under(self, path: KeyPath) -> Place:
        """A place below this one."""
        return Place(self.group, self.path + path, self.kind, self.frozen)

    @property
    def tensor_name(self) -> str:
        """The name in the group: an optimizer's state goes by ``parameter.moment``."""
        is_state = self.kind == "optimizer" and self.path[:1] == ("state",) and len(self.path) > 1
        name = name_of(self.path[1:] if is_state else self.path) or "value"
        # safetensors keeps one name for itself, and its header is UTF-8.
        return "__metadata__~2" if name == "__metadata__" else name.encode("utf-8", "backslashreplace").decode("utf-8")


def identity_of(tensor: torch.Tensor) -> Hashable | None:
    """What is equal for tensors that are wholly the same memory; None for those without any."""
    if not tensor.numel():
        return None
    bits = tensor.is_conj(), tensor.is_neg()
    return tensor.data_ptr(), str(tensor.device), tensor.dtype, tensor.shape, tensor.stride(), bits


@dataclass(slots=True)
class Capture:
    """Turns values into nodes, and keeps the tensors found on the way by group and name."""

    given: Mapping[str, object]
    groups: dict[str, dict[str, DraftTensor]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    specs: dict[Hashable, TensorSpec] = field(default_factory=dict)
    # Identity of memory -> where it is stored; the tensors stay referenced by the readers, so addresses stay theirs.
    stored: dict[Hashable, tuple[str, str]] = field(default_factory=dict)

    def entry(self, name: str, value: object) -> Entry:
        """One entry as a node, its tensors added to its group."""
        is_loose = isinstance(value, torch.Tensor)
        place = Place(LOOSE_GROUP, (name,), "value") if is_loose else Place(name, (), "value")
        facts, state = dict[str, object](), value
        if isinstance(value, nn.Module):
            frozen = frozenset(n for n, parameter in named_parameters(value) if not parameter.requires_grad)
            place = replace(place, kind="module", frozen=frozen)
            facts, state = module_facts(value), named_state(value)
        elif isinstance(value, torch.optim.Optimizer):
            place = replace(place, kind="optimizer")
            state, facts = named_optimizer_state(value, self.owners)
        elif isinstance(value, Stateful) and not isinstance(value, type):
            place = replace(place, kind="stateful")
            facts, state = {"class": class_path(value)}, value.state_dict()
        try:
            tree = encode(state, partial(self.leaf, place))
        except FormatError as error:
            faults = error.faults or (error.what,)
            self.faults += [f"{name}{'' if fault.startswith(':') else '.'}{fault}" for fault in faults]
            tree = None
        return Entry(place.kind, tree, facts)

    def refuse_faults(self) -> None:
        """Raise a `FormatError` that lists the values without an encoding, if there are any."""
        if self.faults:
            count = len(self.faults)
            raise FormatError(
                f"cannot save: {count} {'value has' if count == 1 else 'values have'} no encoding",
                faults=self.faults,
                remedy="take them out, or keep what they are made of (numbers, strings, tensors, state dicts)",
            )

    @property
    def owners(self) -> dict[str, nn.Module | torch.Tensor]:
        """The modules and tensors given beside, which name the parameters of optimizers."""
        return {key: each for key, each in self.given.items() if isinstance(each, (nn.Module, torch.Tensor))}

    def leaf(self, above: Place, path: KeyPath, value: object) -> Node | None:
        """The hook of `encode`: a node for what belongs to torch or keeps a state, None for what does not."""
        place = above.under(path)
        if isinstance(value, torch.Tensor):
            return self.tensor(place, value)
        if isinstance(value, nn.Module):
            return encode(named_state(value), partial(self.leaf, place))
        if isinstance(value, torch.optim.Optimizer):
            return encode(named_optimizer_state(value, self.owners)[0], partial(self.leaf, place))
        if isinstance(value, Stateful) and not isinstance(value, type):
            return encode(value.state_dict(), partial(self.leaf, place))
        return self.plain_leaf(value, place)

    def plain_leaf(self, value: object, place: Place) -> Node | None:
        """A node for torch's plain values and for large arrays; None for everything else."""
        if isinstance(value, torch.Size):
            return {"$torch.Size": list(value)}
        if isinstance(value, torch.dtype):
            return {"$torch.dtype": dtype_name(value)}
        if isinstance(value, torch.device):
            return {"$torch.device": str(value)}
        array = _large_array(value)
        return None if array is None else {"$numpy.tensor": self.tensor(place, array)}

    def tensor(self, place: Place, tensor: torch.Tensor) -> Node:
        """A tensor of any layout as a node, its parts added to the group."""
        fault = _fault_of(tensor)
        if fault is not None:
            raise FormatError(fault)

        def part(name: str, inner: torch.Tensor) -> Node:
            return self.strided(place.under((name,)), inner)

        if tensor.is_quantized:
            return {"$torch.quantized": _quantized_node(tensor, part)}
        if tensor.layout is not torch.strided:
            return {"$torch.sparse": _sparse_node(tensor, part)}
        return self.strided(place, tensor)

    def strided(self, place: Place, tensor: torch.Tensor) -> Node:
        """A plain tensor as a reference, its bytes added to the group unless the same memory is there already."""
        # Only memory that is wholly the same is a tie; a view of a part is stored as a tensor of its own.
        identity = identity_of(tensor)
        stored = None if identity is None else self.stored.get(identity)
        if stored is None:
            group = self.groups.setdefault(place.group, {})
            stored = (place.group, unused_name(place.tensor_name, group))
            may_change = not place.frozen or name_of(place.path) not in place.frozen
            group[stored[1]] = _draft_of(self._spec_of(tensor), may_change, tensor)
            if identity is not None:
                self.stored[identity] = stored
        node: dict[str, object] = {"$tensor": list(stored)}
        if place.kind != "module" and isinstance(tensor, nn.Parameter):
            node["parameter"] = True
        if place.kind != "module" and tensor.requires_grad and tensor.is_leaf:
            node["requires_grad"] = True
        memory_format = memory_format_of(tensor)
        return node if memory_format == "contiguous" else node | {"memory_format": memory_format}

    def _spec_of(self, tensor: torch.Tensor) -> TensorSpec:
        """What a tensor is; one value for all that are alike."""
        kind = (tensor.dtype, tensor.shape)
        spec = self.specs.get(kind)
        if spec is None:
            spec = self.specs[kind] = TensorSpec(dtype_name(tensor.dtype), tuple(tensor.shape))
        return spec


def _draft_of(spec: TensorSpec, may_change: bool, tensor: torch.Tensor) -> DraftTensor:  # noqa: FBT001 - a fact of the tensor
    if not is_fillable(tensor) or not tensor.numel():
        return DraftTensor(spec, may_change, bytes_of, tensor.detach())
    return DraftTensor(spec, may_change, memory_of_flat, flat_bytes_of(tensor), is_divisible=True)


def _fault_of(tensor: torch.Tensor) -> str | None:
    if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
        return "not initialised yet; run the model once, then save it"
    if type(tensor) not in PLAIN_CLASSES:
        return f"a tensor of class {class_path(tensor)}"
    if tensor.is_meta:
        return "a meta tensor: it has no values"
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.is_quantized and tensor.dtype not in _QUANTISED:
        return f"a quantised tensor of {tensor.dtype}"
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


def _large_array(value: object) -> torch.Tensor | None:
    """A numpy array that is stored as a tensor: over 4 KiB, of a dtype that torch shares; else None."""
    if "numpy" not in sys.modules:
        return None
    import numpy as np

    if type(value) is not np.ndarray or value.nbytes <= _LARGEST_INLINE_BYTES:
        return None
    if not value.dtype.isnative or value.dtype.kind not in "biufc" or value.dtype.name not in DTYPE_NAMES:
        return None
    plain = np.ascontiguousarray(value)
    return torch.from_numpy(plain if plain.flags.writeable else plain.copy())
