"""Memory that saves in the background are copied into: kept between saves, so that it is touched once, and bounded."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from torchkeep.folder.aligned_file import map_pages
from torchkeep.folder.draft import DraftTensor
from torchkeep.live.gpus import copy_from_gpus, pin, unpin

# Copied by one thread without asking for others: torch shares out 32,768 elements or more, and waits for all of them,
# which on a busy machine costs more than the copy.
_PIECE_ELEMENTS = 30_720
_WORD = torch.complex128
_WORTH_A_THREAD_BYTES = 4 * 2**20
_SHARE_OF_FREE_MEMORY = 4


@dataclass(frozen=True, slots=True)
class Region:
    """A page-aligned part of staging memory."""

    memory: memoryview
    tensor: torch.Tensor
    is_pinned: bool = False


class StagingMemory:
    """Regions to copy tensors into, made when first needed and given again after `reset`.

    A forked process does not get the memory: the disk may be reading it, and a copy on write would take the page away.

    Args:
        budget_bytes: The most it may take.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._blocks: list[Region] = []
        self._used: list[int] = []
        self._process = os.getpid()

    @property
    def nbytes(self) -> int:
        """What it takes now."""
        return sum(len(block.memory) for block in self._blocks)

    def __del__(self) -> None:
        if os.getpid() == self._process:
            for index in reversed(range(len(self._blocks))):
                self._drop(index)

    def _drop(self, index: int) -> None:
        block = self._blocks.pop(index)
        if block.is_pinned:
            unpin(block.tensor)

    def reset(self) -> None:
        """Give all regions back; what was in them is lost."""
        if os.getpid() != self._process:  # forked: the memory is not here
            self._blocks, self._process = [], os.getpid()
        self._used = [0] * len(self._blocks)

    def take(self, nbytes: int) -> Region | None:
        """A region of `nbytes`; None where the budget does not allow it."""
        size = max(1, -(-nbytes // mmap.PAGESIZE)) * mmap.PAGESIZE
        for index, block in enumerate(self._blocks):
            begin = self._used[index]
            if begin + size <= len(block.memory):
                self._used[index] += size
                return Region(block.memory[begin : begin + nbytes], block.tensor[begin : begin + nbytes])
        if self.nbytes + size > self.budget_bytes:
            unused = [index for index, used in enumerate(self._used) if used == 0]
            for index in reversed(unused):
                self._drop(index)
                del self._used[index]
            if self.nbytes + size > self.budget_bytes:
                return None
        self._blocks.append(_new_block(size))
        self._used.append(size)
        return Region(self._blocks[-1].memory[:nbytes], self._blocks[-1].tensor[:nbytes])


def _new_block(nbytes: int) -> Region:
    pages = map_pages(nbytes)
    tensor = torch.frombuffer(pages, dtype=torch.uint8)
    return Region(memoryview(pages), tensor, is_pinned=torch.cuda.is_initialized() and pin(tensor))  # type: ignore[no-untyped-call]


def default_budget_bytes() -> int:
    """A quarter of the memory that is free: in this process's cgroup where that has a limit, else on the machine."""
    free = _free_bytes_of_machine()
    with suppress(OSError, ValueError):
        cgroup = Path("/sys/fs/cgroup")
        limit, taken = (cgroup / "memory.max").read_text().strip(), (cgroup / "memory.current").read_text().strip()
        free = min(free, max(0, int(limit) - int(taken)))
    return free // _SHARE_OF_FREE_MEMORY


def _free_bytes_of_machine() -> int:
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


@dataclass(frozen=True, slots=True)
class Copies:
    """Pairs of tensors, each to be copied from the second into the first.

    Attributes:
        into: Where those of the CPU go.
        sources: Those.
        nbytes: The bytes of all of them.
        from_gpus: Pairs, the second on a GPU.
    """

    into: tuple[torch.Tensor, ...]
    sources: tuple[torch.Tensor, ...]
    nbytes: int
    from_gpus: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()

    def __add__(self, other: Copies) -> Copies:
        return Copies(
            self.into + other.into,
            self.sources + other.sources,
            self.nbytes + other.nbytes,
            self.from_gpus + other.from_gpus,
        )

    def run(self, threads: int) -> None:
        """Copy, in at most `threads` threads that each take as many bytes; autograd sees nothing of it."""
        if self.from_gpus:
            copy_from_gpus(*zip(*self.from_gpus, strict=True))
        if not self.into:
            return
        parts = list(self._split(max(1, threads)))
        errors: list[BaseException] = []

        def copy(begin: int, end: int) -> None:
            try:
                with torch.no_grad():
                    torch._foreach_copy_(self.into[begin:end], self.sources[begin:end])
            except BaseException as error:  # noqa: BLE001 - it is raised in the calling thread
                errors.append(error)

        others = [threading.Thread(target=copy, args=part, name="torchkeep-stage") for part in parts[1:]]
        for each in others:
            each.start()
        copy(*parts[0])
        for each in others:
            each.join()
        if errors:
            raise errors[0]

    def _split(self, count: int) -> Iterable[tuple[int, int]]:
        count = count if self.nbytes > _WORTH_A_THREAD_BYTES else 1
        begin, copied, wanted = 0, 0, self.nbytes / count
        for index, tensor in enumerate(self.into):
            copied += tensor.nbytes
            if copied >= wanted or index == len(self.into) - 1:
                yield begin, index + 1
                begin, wanted = index + 1, wanted + self.nbytes / count


def copies_of(tensors: Sequence[tuple[DraftTensor, torch.Tensor]]) -> Copies:
    """What copies live tensors into staging memory, where each one's place is given as bytes."""
    into: list[torch.Tensor] = []
    sources: list[torch.Tensor] = []
    from_gpus: list[tuple[torch.Tensor, torch.Tensor]] = []
    for draft, place in tensors:
        source = draft.source
        if not isinstance(source, torch.Tensor):
            source = torch.frombuffer(bytearray(draft.read()), dtype=torch.uint8)
        if source.dtype is torch.uint8 and source.dim() == 1 and source.nbytes == place.nbytes:
            into += _pieces(place, int(source.storage_offset()))
            sources += _pieces(source, int(place.storage_offset()))
        elif place.nbytes:
            shaped = place.view(getattr(torch, draft.spec.dtype)).view(draft.spec.shape)
            if source.is_cuda:
                from_gpus.append((shaped, source))
                continue
            into.append(shaped)
            sources.append(source)
    return Copies(tuple(into), tuple(sources), sum(each.nbytes for each in into), tuple(from_gpus))


def _pieces(flat: torch.Tensor, other_offset: int) -> list[torch.Tensor]:
    """Bytes cut into pieces that one thread copies, as the widest words where both sides are aligned."""
    is_aligned = (flat.storage_offset() | other_offset) % _WORD.itemsize == 0
    whole = flat.nbytes - flat.nbytes % _WORD.itemsize if is_aligned else 0
    pieces = list(torch.split(flat[:whole].view(_WORD), _PIECE_ELEMENTS)) if whole else []
    rest = flat[whole:]
    return pieces + (list(torch.split(rest, _PIECE_ELEMENTS)) if rest.numel() else [])
