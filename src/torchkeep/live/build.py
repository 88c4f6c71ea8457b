"""From an opened checkpoint to live torch objects: tensors read, tied ones tied again, torch's own types made."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from torchkeep.errors import CorruptError
from torchkeep.folder.parallel import in_parallel
from torchkeep.folder.read import FolderSource
from torchkeep.live.gpus import fill_gpu, takes_pieces
from torchkeep.live.mapped import MappedFiles
from torchkeep.live.memory import empty_for, memory_of, takes_bytes_of, writing_to
from torchkeep.live.packed import pack
from torchkeep.tensors import Described, Source, TensorSpec

MEMORY_FORMATS = {"channels_last": torch.channels_last, "channels_last_3d": torch.channels_last_3d}
_LAYOUTS = {
    name: getattr(torch, name) for name in ("sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc")
}


class Builder:
    """Builds live values from one source, on one device.

    Args:
        source: The opened checkpoint.
        device: Where tensors go; the file's own tag is never followed.
        mapped: Where tensors of no other memory lie, if not in memory of their own.
    """

    def __init__(self, source: Source, device: torch.device | str = "cpu", mapped: MappedFiles | None = None) -> None:
        self.source = source
        self._mapped = mapped
        self.device = _usable(device)
        self._built: dict[tuple[Hashable, bool, bool, str], torch.Tensor] = {}
        self._gathered: Gathered | None = None
        self._unread: set[object] = set()  # of those built, in `gathering`

    @contextmanager
    def gathering(self, threads: int) -> Iterator[None]:
        """Let `fill_later` and `value` only note what they will read; leaving the block reads all of it side by side.

        Raises:
            CorruptError: On leaving; tensors hold some of the bytes.
        """
        gathered = self._gathered = Gathered(self.source, self.fill)
        try:
            yield
        finally:
            self._gathered = None
        gathered.read(threads)
        if self._mapped is not None:
            self._mapped.check(threads)
        self._unread.clear()

    def tensor(self, spec: TensorSpec) -> torch.Tensor:
        """The tensor of a spec as it was saved; equal keys give the same tensor."""
        identity = (spec.key, spec.parameter, spec.requires_grad, spec.memory_format)
        built = self._built.get(identity)
        if built is None:
            built = self.fill_later(spec, None)
            self._built[identity] = built
            if self._gathered is not None:
                self._unread.add(identity)
        elif self._gathered is None and identity in self._unread:
            self.fill(spec, built)
        return built

    def read(self, spec: TensorSpec) -> torch.Tensor:
        """A new contiguous CPU tensor with a spec's values."""
        tensor = empty_for(spec)
        self.source.read_into(spec, memory_of(tensor))
        return tensor

    def fill(self, spec: TensorSpec, target: torch.Tensor | None) -> torch.Tensor:
        """Read a tensor into `target`'s own memory where dtype and shape agree; without a target, make one."""
        if target is None:
            return self._finish(self.read(spec), spec)
        if takes_bytes_of(spec, target):
            self.source.read_into(spec, memory_of(target))
            # Autograd must see that the memory changed, as after copy_.
            torch.autograd.graph.increment_version(target)
        elif takes_pieces(spec, target):
            fill_gpu(self.source, spec, target)
        else:
            with writing_to(target):
                target.copy_(self.read(spec))
        return target

    def fill_later(self, spec: TensorSpec, target: torch.Tensor | None) -> torch.Tensor:
        """Like `fill`; inside `gathering` the values come when that is left, so nothing may look at them before."""
        if self._gathered is None:
            return self.fill(spec, target)
        if target is None:
            mapped = None if self._mapped is None else self._mapped.tensor(spec)
            if mapped is not None:
                return self._finish(mapped, spec)
            if self.device.type != "cpu" or spec.memory_format in MEMORY_FORMATS:
                return self._finish(self.read(spec), spec)
            target = empty_for(spec)
            self._gathered.note(spec, target, is_direct=True)
            return self._finish(target, spec)
        self._gathered.note(spec, target, is_direct=takes_bytes_of(spec, target))
        return target

    def value(self, node: object) -> Any:  # noqa: ANN401 - whatever was saved
        """A tree with everything in it built; what is of an unknown class stays `Described`."""
        if isinstance(node, TensorSpec):
            return self.tensor(node)
        if isinstance(node, Described):
            return self._described(node)
        return _map_children(node, self.value)

    def value_now(self, node: object) -> Any:  # noqa: ANN401 - whatever was saved
        """Like `value`, complete, also inside `gathering`."""
        gathered, self._gathered = self._gathered, None
        try:
            return self.value(node)
        finally:
            self._gathered = gathered

    def _finish(self, tensor: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
        tensor = tensor.to(self.device)
        if spec.memory_format in MEMORY_FORMATS:
            tensor = tensor.contiguous(memory_format=MEMORY_FORMATS[spec.memory_format])
        if spec.parameter:
            return nn.Parameter(tensor, requires_grad=spec.requires_grad)
        return tensor.requires_grad_() if spec.requires_grad else tensor

    def _described(self, node: Described) -> object:
        make = MAKERS.get(node.class_path)
        if make is None:
            return node
        try:
            return make(self, node)
        except (TypeError, ValueError, RuntimeError, KeyError, IndexError, AttributeError, OverflowError) as error:
            raise CorruptError(f"a {node.class_path} in it cannot be made: {error}", where=self.source.path) from error

    def state_of(self, node: Described) -> dict[str, Any]:
        """The state of a described object with everything in it built and complete, for its maker.

        Raises:
            TypeError: It has none.
        """
        if not isinstance(node.state, Mapping):
            raise TypeError("no description of it")
        return {key: self.value_now(value) for key, value in node.state.items()}


class Gathered:
    """What is to be read from one source, and the tensors that it goes into.

    Args:
        source: The opened checkpoint.
        fill: What fills one whose memory does not take the bytes as they are.
    """

    def __init__(self, source: Source, fill: Callable[[TensorSpec, torch.Tensor], object]) -> None:
        self._source = source
        self._fill = fill
        self._specs: list[TensorSpec] = []
        self._targets: list[torch.Tensor] = []
        self._is_direct: list[bool] = []

    def note(self, spec: TensorSpec, target: torch.Tensor, *, is_direct: bool) -> None:
        """Read a tensor into `target` later; `is_direct` where its memory takes the bytes as they are."""
        if spec.nbytes:
            self._specs.append(spec)
            self._targets.append(target)
            self._is_direct.append(is_direct)

    def read(self, threads: int) -> None:
        """Read all of it; memory that overlaps is filled in the order in which it was noted, after the rest."""
        shared = _overlapping(self._targets)
        apart: list[int] = []
        converted: list[int] = []
        for index, is_direct in enumerate(self._is_direct):
            if index not in shared:
                (apart if is_direct else converted).append(index)
        if isinstance(self._source, FolderSource):
            specs = [self._specs[index] for index in apart]
            self._source.read_each(specs, lambda position: memory_of(self._targets[apart[position]]), threads)
        else:
            in_parallel(self._read, apart, threads)
        if apart:
            # Autograd must see that the memory changed, as after copy_.
            torch.autograd.graph.increment_version([self._targets[index] for index in apart])
        in_parallel(lambda index: self._fill(self._specs[index], self._targets[index]), converted, threads)
        for index in sorted(shared):
            self._fill(self._specs[index], self._targets[index])

    def _read(self, index: int) -> None:
        self._source.read_into(self._specs[index], memory_of(self._targets[index]))


def _overlapping(tensors: Iterable[torch.Tensor]) -> set[int]:
    """The positions of tensors whose memory, from the first element to the last, another one's reaches into."""
    ranges = sorted((t.data_ptr(), t.data_ptr() + _reach(t), index) for index, t in enumerate(tensors))
    found: set[int] = set()
    reach, last = 0, -1
    for begin, end, index in ranges:
        if begin < reach:
            found |= {index, last}
        if end > reach:
            reach, last = end, index
    return found


def _reach(tensor: torch.Tensor) -> int:
    """Bytes from the begin of a tensor's first element to the end of its last, in memory."""
    if tensor.is_contiguous():
        return tensor.nbytes
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.itemsize


def _usable(device: torch.device | str) -> torch.device:
    if not isinstance(device, (str, int, torch.device)):
        raise TypeError(
            f'map_location is one device, as "cpu" or "cuda:0", not a {type(device).__name__}: what device a tensor '
            "was saved from plays no part"
        )
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"map_location={device!r} is no device here: {str(error).splitlines()[0]}") from error
    return found


def _map_children(node: object, change: Callable[[object], object]) -> object:
    """The same container with its children changed; what is no container, or of a class of its own, is itself."""
    if type(node) is dict:
        return {key: change(value) for key, value in node.items()}
    if type(node) is OrderedDict:
        made = OrderedDict((key, change(value)) for key, value in node.items())
        made.__dict__.update(node.__dict__)  # torch's _metadata
        return made
    if type(node) is defaultdict:
        return defaultdict(node.default_factory, {key: change(value) for key, value in node.items()})
    if type(node) is list:
        return [change(value) for value in node]
    if type(node) is tuple:
        return tuple(change(value) for value in node)
    if type(node) is deque:
        return deque((change(value) for value in node), node.maxlen)
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return tuple.__new__(type(node), [change(value) for value in node])
    return node


def _make_dtype(_: Builder, node: Described) -> object:
    dtype = vars(torch).get(str(node.args[0]))  # getattr would import what torch loads lazily
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{node.args[0]!r} is not a dtype")
    return dtype


def _make_device(_: Builder, node: Described) -> object:
    return torch.device(*[arg for arg in node.args if isinstance(arg, (str, int))])


def _make_size(_: Builder, node: Described) -> object:
    sizes = node.args[0]
    if not isinstance(sizes, (list, tuple)) or not all(type(size) is int for size in sizes):
        raise TypeError("its sizes are not integers")
    return torch.Size(sizes)


def _make_array(builder: Builder, node: Described) -> object:
    spec = node.args[0]
    if not isinstance(spec, TensorSpec):
        raise TypeError("its values are not a tensor")
    return builder.read(spec).numpy()


def _make_sparse(builder: Builder, node: Described) -> object:
    state = builder.state_of(node)
    layout, shape = _LAYOUTS[state["layout"]], tuple(state["shape"])
    # Indices outside the shape would be read out of bounds later: torch checks them only when asked to.
    if layout is torch.sparse_coo:
        made = torch.sparse_coo_tensor(state["indices"], state["values"], shape, check_invariants=True)
        return made.coalesce() if state.get("coalesced") else made
    return torch.sparse_compressed_tensor(
        state["compressed"], state["plain"], state["values"], shape, layout=layout, check_invariants=True
    )


def _make_quantized(builder: Builder, node: Described) -> object:
    state = builder.state_of(node)
    values = state["values"]
    if state["dtype"] not in {"qint8", "quint8", "qint32"}:
        raise ValueError(f"{state['dtype']!r} is not a quantised dtype")
    if state["scheme"] == "per_tensor_affine":
        return torch._make_per_tensor_quantized_tensor(values, float(state["scale"]), int(state["zero_point"]))  # noqa: SLF001 - torch has no public way from integers
    axis = int(state["axis"])
    if not 0 <= axis < values.dim():
        raise ValueError(f"axis {axis} of {values.dim()} dimensions")
    return torch._make_per_channel_quantized_tensor(values, state["scales"], state["zero_points"], axis)  # noqa: SLF001 - as above


def _make_packed(builder: Builder, node: Described) -> object:
    return pack(builder.state_of(node))


MAKERS: dict[str, Callable[[Builder, Described], object]] = {
    "torch.dtype": _make_dtype,
    "torch.device": _make_device,
    "torch.Size": _make_size,
    "torch.sparse": _make_sparse,
    "torch.quantized": _make_quantized,
    "torch.packed": _make_packed,
    "numpy.ndarray": _make_array,
}
