"""What torch writes into pickles: storages by persistent id, and tensors as calls that cut them from storages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from torchkeep.formats.faults import MalformedError
from torchkeep.formats.pickle_values import PlainVocabulary
from torchkeep.formats.storage_views import StorageView, memory_format_of
from torchkeep.tensors import DTYPE_NAMES, Described, Named, TensorSpec, bits_of

_STORAGE_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "QInt8Storage": "int8",
    "QUInt8Storage": "uint8",
    "QInt32Storage": "int32",
    "UntypedStorage": "uint8",
    "_UntypedStorage": "uint8",
}
_QUANTIZED = {"QInt8Storage": "qint8", "QUInt8Storage": "quint8", "QInt32Storage": "qint32"}
_DTYPE_ALIASES = {
    "float": "float32", "double": "float64", "half": "float16", "long": "int64", "int": "int32", "short": "int16",
    "cfloat": "complex64", "cdouble": "complex128", "chalf": "complex32",
}  # fmt: skip
_OTHER_DTYPES = frozenset(
    ["qint8", "quint8", "qint32", "quint4x2", "quint2x4", "bits8", "bits16", "bits1x8", "bits2x4", "bits4x2"]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)]
)
_MAX_SIZE = 1 << 62
_MAX_RANK = 64
_MAX_TAG_CHARACTERS = 100
_MAX_FREE_BYTES = 64 << 20
_MAX_EXPANSION = 1_024


class StorageTable(Protocol):
    """Where the storages of a stream are."""

    def declare(self, key: str, nbytes: int, item_bytes: int) -> None:
        """Say that a storage of that many bytes must be there; raises `MalformedError` when it cannot be."""


@dataclass(frozen=True, slots=True, eq=False)
class StorageRef(Described):
    """A storage that the stream names; as a value of its own it describes itself with one flat tensor."""

    storage: str = ""
    dtype: str = "uint8"
    first: int = 0
    numel: int = 0
    device: str = "cpu"


class TorchVocabulary(PlainVocabulary):
    """Plain values and torch's: tensors become `TensorSpec`, what torch alone can hold becomes `Described`.

    Raises:
        MalformedError: A tensor reaches outside of its storage, or its call is not of a form that torch writes.
    """

    def __init__(self, storages: StorageTable, file: str = "") -> None:
        self._storages = storages
        self._file = file

    def name(self, module: str, name: str) -> Named:
        """The global of that name; ``torch.float32`` is ``Described("torch.dtype", ("float32",))``."""
        dtype = _DTYPE_ALIASES.get(name, name)
        if module == "torch" and (dtype in DTYPE_NAMES or dtype in _OTHER_DTYPES):
            return Named("torch.dtype", (dtype,))
        return super().name(module, name)

    def construct(self, callee: Described, args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
        """A tensor, a plain value, or a description."""
        make = _MAKERS.get(callee.class_path) if isinstance(callee, Named) and not kwargs else None
        if make is not None:
            try:
                return make(self, *args)
            except TypeError:
                raise MalformedError(f"{callee.class_path} has {len(args)} arguments") from None
        return super().construct(callee, args, kwargs)

    def resolve(self, persistent_id: object) -> object:
        """The storage, or the class of a module, that torch's persistent id is of."""
        match persistent_id:
            case ("module", Named() as owner, *_):
                return owner
            case ("storage", Named() as kind, key, str(device), int(numel)):
                return self._storage(kind, key, device, numel, None)
            case ("storage", Named() as kind, key, str(device), int(numel), view):
                return self._storage(kind, key, device, numel, view)
        raise MalformedError(f"a persistent id that torch does not write: {_brief(persistent_id)}")

    def _storage(self, kind: Named, key: object, device: str, numel: int, view: object) -> StorageRef:
        name = kind.class_path.rpartition(".")[2]
        dtype = _STORAGE_DTYPES.get(name)
        if dtype is None or not kind.class_path.startswith("torch."):
            raise MalformedError(f"a storage of an unknown type {_brief(kind.class_path)}")
        if not isinstance(key, (str, int)) or len(str(key)) > _MAX_TAG_CHARACTERS:
            raise MalformedError(f"a storage has the key {_brief(key)}")
        if not 0 <= numel < _MAX_SIZE:
            raise MalformedError(f"storage {key} has {numel} elements")
        if len(device) > _MAX_TAG_CHARACTERS:
            raise MalformedError(f"storage {key} has a device tag of {len(device):,} characters")
        item_bytes = bits_of(dtype) // 8
        self._storages.declare(str(key), numel * item_bytes, item_bytes)
        first, count = 0, numel
        if view is not None:
            match view:
                case (_, int(first), int(count)) if 0 <= first <= numel and 0 <= count <= numel - first:
                    pass
                case _:
                    raise MalformedError(f"a part of storage {key} lies outside of it")
        ref = StorageRef(kind.class_path, storage=str(key), dtype=dtype, first=first, numel=count, device=device)
        flat = self._tensor(ref, 0, (count,), (1,), requires_grad=False, metadata=None)
        return replace(ref, state={"values": flat, "name": name})

    def _tensor(
        self,
        storage: object,
        offset: object,
        size: object,
        stride: object,
        *,
        requires_grad: object,
        metadata: object,
        dtype: str | None = None,
    ) -> TensorSpec:
        if not isinstance(storage, StorageRef):
            raise MalformedError("a tensor has no storage")
        shape, steps = sizes(size), sizes(stride)
        if len(shape) != len(steps) or type(offset) is not int or not 0 <= offset < _MAX_SIZE:
            raise MalformedError(f"a tensor of shape {shape} has the strides {steps} and offset {_brief(offset)}")
        held_bytes = storage.numel * (bits_of(storage.dtype) // 8)
        first_bytes = storage.first * (bits_of(storage.dtype) // 8)
        dtype = dtype or storage.dtype
        item_bytes = bits_of(dtype) // 8
        if first_bytes % item_bytes:
            raise MalformedError(f"a part of storage {storage.storage} is not aligned to {dtype}")
        flags = metadata if isinstance(metadata, dict) else {}
        view = StorageView(
            storage.storage, dtype, offset, shape, steps, bool(flags.get("conj")), bool(flags.get("neg")), self._file
        )
        if view.end_bytes > held_bytes:
            raise MalformedError(
                f"a tensor of shape {shape} ends at byte {view.end_bytes:,} of storage {storage.storage}, "
                f"which has {held_bytes:,}"
            )
        spec = TensorSpec(
            dtype,
            shape,
            replace(view, offset=offset + first_bytes // item_bytes),
            storage.device,
            requires_grad=bool(requires_grad),
            memory_format=memory_format_of(shape, steps),
        )
        if spec.nbytes > max(_MAX_FREE_BYTES, held_bytes * _MAX_EXPANSION):
            raise MalformedError(f"a tensor of shape {shape} repeats {held_bytes:,} stored bytes {spec.nbytes:,} times")
        return spec

    def tensor_v2(
        self, storage: object, offset: object, size: object, stride: object, grad: object, _hooks: object,
        metadata: object = None,
    ) -> TensorSpec:  # fmt: skip
        """``torch._utils._rebuild_tensor_v2``."""
        return self._tensor(storage, offset, size, stride, requires_grad=grad, metadata=metadata)

    def tensor_v1(self, storage: object, offset: object, size: object, stride: object) -> TensorSpec:
        """``torch._utils._rebuild_tensor``."""
        return self._tensor(storage, offset, size, stride, requires_grad=False, metadata=None)

    def tensor_v3(self, *args: object) -> object:
        """``torch._utils._rebuild_tensor_v3``: as the second form, with the dtype at the end."""
        storage, offset, size, stride, grad, _hooks, dtype = args[:7] if len(args) >= 7 else (None,) * 7
        name = dtype_name(dtype)
        if name not in DTYPE_NAMES or bits_of(name) % 8:
            return Described("torch._utils._rebuild_tensor_v3", args)
        metadata = args[7] if len(args) > 7 else None
        return self._tensor(storage, offset, size, stride, requires_grad=grad, metadata=metadata, dtype=name)

    def parameter(self, data: object, requires_grad: object = 1, _hooks: object = None, state: object = None) -> object:
        """``torch._utils._rebuild_parameter``, with or without a state of attributes."""
        if isinstance(data, TensorSpec):
            return replace(data, parameter=True, requires_grad=bool(requires_grad))
        return Described("torch.nn.parameter.Parameter", (data, requires_grad), {}, state)

    def typed(self, function: object, owner: object, args: object, state: object) -> object:
        """``torch._tensor._rebuild_from_type_v2``: a tensor of a subclass, or with attributes."""
        if not isinstance(function, Named) or not isinstance(owner, Named) or type(args) is not tuple:
            raise MalformedError("a tensor of a subclass has no class")
        tensor = self.construct(function, args, {})
        if owner.class_path == "torch.nn.parameter.Parameter" and isinstance(tensor, TensorSpec):
            return replace(tensor, parameter=True)
        if owner.class_path in {"torch.Tensor", "torch._tensor.Tensor"}:
            return tensor
        return Described(owner.class_path, (tensor,), {}, state)

    def on_device(self, data: object, _dtype: object, device: object, requires_grad: object) -> object:
        """``torch._utils._rebuild_device_tensor_from_cpu_tensor``."""
        if not isinstance(data, TensorSpec) or not isinstance(device, str) or len(device) > _MAX_TAG_CHARACTERS:
            return Described(
                "torch._utils._rebuild_device_tensor_from_cpu_tensor", (data, _dtype, device, requires_grad)
            )
        return replace(data, device=device, requires_grad=bool(requires_grad))

    def sparse(self, layout: object, data: object) -> object:
        """``torch._utils._rebuild_sparse_tensor``."""
        name = _layout_name(layout)
        match name, data:
            case "sparse_coo", (TensorSpec() as indices, TensorSpec() as values, size, *rest):
                parts = {"indices": indices, "values": values, "coalesced": bool(rest and rest[0])}
            case "sparse_csr" | "sparse_csc" | "sparse_bsr" | "sparse_bsc", (
                TensorSpec() as compressed, TensorSpec() as plain, TensorSpec() as values, size, *_
            ):  # fmt: skip
                parts = {"compressed": compressed, "plain": plain, "values": values}
            case _:
                raise MalformedError(f"a sparse tensor of layout {_brief(name)} in a form that torch does not write")
        return Described("torch.sparse", (), {}, {"layout": name, "shape": list(sizes(size)), **parts})

    def quantized(
        self, storage: object, offset: object, size: object, stride: object, quantizer: object, _grad: object,
        _hooks: object,
    ) -> object:  # fmt: skip
        """``torch._utils._rebuild_qtensor``."""
        if not isinstance(storage, StorageRef):
            raise MalformedError("a quantised tensor has no storage")
        dtype = _QUANTIZED.get(storage.class_path.rpartition(".")[2])
        values = self._tensor(storage, offset, size, stride, requires_grad=False, metadata=None)
        match quantizer:
            case (Named("torch.per_tensor_affine"), int() | float() as scale, int(zero_point)):
                parts = {"scheme": "per_tensor_affine", "scale": float(scale), "zero_point": zero_point}
            case (Named(class_path=scheme), TensorSpec() as scales, TensorSpec() as zero_points, int(axis)) if (
                scheme.startswith("torch.per_channel_affine")
            ):
                parts = {"scheme": scheme[6:], "scales": scales, "zero_points": zero_points, "axis": axis}
            case _:
                raise MalformedError("a quantised tensor has no scale that torch writes")
        return Described("torch.quantized", (), {}, {**parts, "dtype": dtype, "values": values})

    def device(self, kind: object, index: object = None) -> object:
        """``torch.device``."""
        return Described("torch.device", (f"{kind}" if index is None else f"{kind}:{index}",))

    def script_list(self, values: object) -> object:
        """``torch.jit._pickle.build_intlist`` and its kin."""
        return values


def sizes(value: object) -> tuple[int, ...]:
    """Sizes or strides as a tuple.

    Raises:
        MalformedError: They are not whole numbers from 0 to below 2^62, or more than 64.
    """
    if isinstance(value, Described) and value.class_path == "torch.Size" and len(value.args) == 1:
        value = value.args[0]
    if not isinstance(value, (tuple, list)) or len(value) > _MAX_RANK:
        raise MalformedError(f"a shape is {_brief(value)}")
    if not all(type(size) is int and 0 <= size < _MAX_SIZE for size in value):
        raise MalformedError(f"a shape is {_brief(value)}")
    return tuple(value)


def dtype_name(value: object) -> str:
    """The dtype's name where a stream names a dtype, else an empty text."""
    if isinstance(value, Described) and value.class_path == "torch.dtype":
        return str(value.args[0]) if value.args else ""
    return ""


def _layout_name(layout: object) -> str:
    if isinstance(layout, Described) and layout.class_path == "torch.serialization._get_layout" and layout.args:
        return str(layout.args[0]).removeprefix("torch.")
    return layout.class_path.removeprefix("torch.") if isinstance(layout, Described) else ""


def _brief(value: object) -> str:
    # repr of a container from a file may be endless.
    if isinstance(value, (str, int)):
        return repr(value[:80]) if isinstance(value, str) else repr(value)
    return repr(value) if isinstance(value, Described) else f"a {type(value).__name__}"


_MAKERS: Mapping[str, Callable[..., object]] = {
    "torch._utils._rebuild_tensor": TorchVocabulary.tensor_v1,
    "torch._utils._rebuild_tensor_v2": TorchVocabulary.tensor_v2,
    "torch._utils._rebuild_tensor_v3": TorchVocabulary.tensor_v3,
    "torch._utils._rebuild_parameter": TorchVocabulary.parameter,
    "torch._utils._rebuild_parameter_with_state": TorchVocabulary.parameter,
    "torch.nn.parameter.Parameter": TorchVocabulary.parameter,
    "torch._tensor._rebuild_from_type_v2": TorchVocabulary.typed,
    "torch._utils._rebuild_sparse_tensor": TorchVocabulary.sparse,
    "torch._utils._rebuild_qtensor": TorchVocabulary.quantized,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": TorchVocabulary.on_device,
    "torch.device": TorchVocabulary.device,
    **dict.fromkeys(
        [f"torch.jit._pickle.build_{kind}list" for kind in ("int", "double", "bool", "tensor")],
        TorchVocabulary.script_list,
    ),
}
