"""Tensors that lie in the files of a checkpoint: nothing is copied, and what is written into them stays in memory."""

from __future__ import annotations

import mmap

import torch

from torchkeep.errors import typed
from torchkeep.folder.parallel import in_parallel
from torchkeep.folder.read import FolderSource
from torchkeep.tensors import Mappable, Source, TensorSpec, bits_of

_BYTE_BITS = 8
_NORESERVE: int = getattr(mmap, "MAP_NORESERVE", 0)


class MappedFiles:
    """Private mappings of the files of one source, each made once; they outlive the source.

    Args:
        source: The opened checkpoint.
    """

    def __init__(self, source: Source) -> None:
        self._source: Mappable | None = source if isinstance(source, Mappable) else None
        self._path = source.path
        self._files: dict[int, mmap.mmap] = {}
        self._unchecked: list[TensorSpec] = []

    def tensor(self, spec: TensorSpec) -> torch.Tensor | None:
        """A tensor of the bytes in the file, for `check` to check; None for one that has to be read.

        Raises:
            CheckpointError: The system does not map the file.
            NotFoundError: The source was closed.
        """
        if self._source is None or not spec.nbytes or bits_of(spec.dtype) < _BYTE_BITS:
            return None
        extent, dtype = self._source.extent_of(spec), getattr(torch, spec.dtype)
        if extent is None or extent.begin % dtype.itemsize:
            return None
        file = self._files.get(extent.descriptor)
        if file is None:
            # Not reserved: a file may be larger than memory, of which nothing is taken until somebody writes.
            flags, access = mmap.MAP_PRIVATE | _NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
            with typed("cannot be mapped", self._path):
                file = self._files[extent.descriptor] = mmap.mmap(extent.descriptor, 0, flags=flags, prot=access)
        self._unchecked.append(spec)
        return torch.frombuffer(file, dtype=dtype, count=spec.numel, offset=extent.begin).view(spec.shape)

    def check(self, threads: int) -> None:
        """Check the bytes of every tensor that was given since the last time, without keeping them.

        Raises:
            CorruptError: They differ from their digests.
        """
        specs, source = self._unchecked, self._source
        self._unchecked = []
        if isinstance(source, FolderSource):
            source.check(specs, threads)
        elif source is not None:
            in_parallel(lambda spec: source.check([spec]), specs, threads)
