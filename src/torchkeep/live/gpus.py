"""Copies between GPUs and the CPU through pages that are pinned, which the GPU reaches without a copy in between."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import torch

from torchkeep.folder.digests import CHUNK_BYTES
from torchkeep.live.memory import dtype_name, flat_bytes_of, memory_of
from torchkeep.tensors import Source, TensorSpec

Work: TypeAlias = Mapping[torch.device, torch.cuda.Event]


def pin(memory: torch.Tensor) -> bool:
    """Pin the pages of a CPU tensor, until `unpin`; False where the driver refuses: copies are slower and the same."""
    return int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)) == 0  # type: ignore[no-untyped-call]


def unpin(memory: torch.Tensor) -> None:
    """Undo `pin`, before the memory goes."""
    torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())  # type: ignore[no-untyped-call]


def work_so_far(tensors: Iterable[torch.Tensor]) -> Work:
    """What the current streams still have to do, on every GPU that some tensors are on: it may write them."""
    devices = {each.device for each in tensors if each.is_cuda}
    return {device: torch.cuda.current_stream(device).record_event() for device in devices}


def copy_from_gpus(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], after: Work) -> None:
    """Copy tensors of GPUs, the second of each pair, into CPU memory on streams of their own, and wait for it.

    The copies wait for `work_so_far`, asked for by the thread whose work it is; no stream waits for them.
    """
    streams: dict[torch.device, torch.cuda.Stream] = {}
    for place, source in pairs:
        if source.device not in streams:
            streams[source.device] = torch.cuda.Stream(source.device)  # type: ignore[no-untyped-call]
            streams[source.device].wait_event(after[source.device])
        with torch.no_grad(), torch.cuda.stream(streams[source.device]):
            place.copy_(source, non_blocking=True)
    for stream in streams.values():
        stream.synchronize()


def takes_pieces(spec: TensorSpec, target: torch.Tensor) -> bool:
    """Whether a tensor of a GPU can be filled piece by piece with the bytes of a spec."""
    is_plain = target.layout is torch.strided and target.is_contiguous() and not (target.is_conj() or target.is_neg())
    same = (dtype_name(target.dtype), tuple(target.shape)) == (spec.dtype, spec.shape)
    return target.is_cuda and is_plain and same and spec.nbytes > 0


def fill_gpu(source: Source, spec: TensorSpec, target: torch.Tensor) -> None:
    """Read a tensor into that of a GPU, through one pinned piece that has a digest of its own after the other.

    Raises:
        CorruptError: As for `Source.read_range_into`; the tensor holds some of the bytes.
    """
    torch.cuda.synchronize(target.device)  # this thread may stand on another stream than who works with the tensor
    flat = flat_bytes_of(target)
    piece = torch.empty(min(CHUNK_BYTES, spec.nbytes), dtype=torch.uint8, pin_memory=True)
    for begin in range(0, spec.nbytes, CHUNK_BYTES):
        part = piece[: spec.nbytes - begin]
        source.read_range_into(spec, begin, memory_of(part))
        flat[begin : begin + part.nbytes].copy_(part)  # has ended when it returns: the piece is used again
    torch.autograd.graph.increment_version(target)
