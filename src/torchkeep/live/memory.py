"""The bytes of tensors: read from where they lie, and places to load into."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from torchkeep.errors import CheckpointError
from torchkeep.tensors import TensorSpec


def dtype_name(dtype: torch.dtype) -> str:
    """torch's name of a dtype without ``torch.``."""
    return str(dtype).removeprefix("torch.")


def spec_of(tensor: torch.Tensor) -> TensorSpec:
    """What a live tensor would be in a checkpoint; it has no key."""
    return TensorSpec(
        dtype_name(tensor.dtype),
        tuple(tensor.shape),
        device=str(tensor.device),
        parameter=isinstance(tensor, torch.nn.Parameter),
        requires_grad=tensor.requires_grad,
        memory_format=memory_format_of(tensor),
    )


def memory_format_of(tensor: torch.Tensor) -> str:
    """``"channels_last"`` or ``"channels_last_3d"`` for a tensor dense only in that order, else ``"contiguous"``."""
    if tensor.layout is torch.strided and not tensor.is_contiguous():
        for name, rank in (("channels_last", 4), ("channels_last_3d", 5)):
            if tensor.dim() == rank and tensor.is_contiguous(memory_format=getattr(torch, name)):
                return name
    return "contiguous"


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """A tensor's bytes in C order: its own memory where that is contiguous and on the CPU, else a copy."""
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return memory_of(plain)


def memory_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor as writable bytes."""
    return memory_of_flat(flat_bytes_of(tensor)) if tensor.numel() else memoryview(bytearray())


def flat_bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor's memory as a tensor of bytes."""
    return tensor.detach().reshape(-1).view(torch.uint8)


def memory_of_flat(flat: torch.Tensor) -> memoryview:
    """The memory that `flat_bytes_of` gave, if there is any."""
    return array_of_flat(flat).data


def array_of_flat(flat: torch.Tensor) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """The same as an array. ``flat.numpy()`` would forbid its owner to resize the storage ever again.

    Raises:
        CheckpointError: Somebody has freed the storage.
    """
    if flat.numel() and not flat.data_ptr():
        raise CheckpointError(
            f"the memory of a tensor of {flat.numel():,} bytes was freed before it was saved",
            remedy="resize storages after the save is staged, or save before they are freed",
        )
    return np.asarray(_Memory(flat))


class _Memory:
    """A tensor of bytes as numpy takes memory: it stays while an array of it does."""

    __slots__ = ("__array_interface__", "tensor")

    def __init__(self, flat: torch.Tensor) -> None:
        self.tensor = flat
        self.__array_interface__ = {
            "data": (flat.data_ptr(), False),
            "shape": (flat.numel(),),
            "typestr": "|u1",
            "version": 3,
        }


def is_fillable(tensor: torch.Tensor) -> bool:
    """Whether bytes can be read straight into a tensor: plain memory of the CPU, in C order, every element its own."""
    return (
        tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and not tensor.is_conj()
        and not tensor.is_neg()
        and not tensor.is_quantized
    )


@contextmanager
def writing_to(tensor: torch.Tensor) -> Iterator[None]:
    """Let torch write a tensor in place, in any thread: without autograd, and one made in inference mode in that."""
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        yield


def takes_bytes_of(spec: TensorSpec, tensor: torch.Tensor) -> bool:
    """Whether a tensor's memory can take the bytes of a spec as they are."""
    return is_fillable(tensor) and (dtype_name(tensor.dtype), tuple(tensor.shape)) == (spec.dtype, spec.shape)


def empty_for(spec: TensorSpec) -> torch.Tensor:
    """A new contiguous CPU tensor of a spec's dtype and shape, its values undefined."""
    return torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device="cpu")
