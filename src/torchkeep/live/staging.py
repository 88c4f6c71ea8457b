"""Memory that saves in the background are copied into: kept between saves, so that it is touched once, and bounded."""

from __future__ import annotations

import mmap
import operator
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from torchkeep.folder.aligned_file import map_pages
from torchkeep.folder.digests import digest_of
from torchkeep.folder.draft import DraftTensor
from torchkeep.folder.parallel import in_parallel, threads_for
from torchkeep.live.gpus import Work, copy_from_gpus, pin, unpin, work_so_far
from torchkeep.live.memory import array_of_flat

if TYPE_CHECKING:
    from torchkeep.folder.aligned_file import Bytes

_PIECE_BYTES = 2**19  # fits the processor's caches, and threads end together
_FREE_MEMORY_DIVISOR = 4
_version = operator.attrgetter("_version")
_GLIMPSES, _GLIMPSE_BYTES = 64, 64


@dataclass(frozen=True, slots=True)
class Region:
    """A page-aligned part of staging memory."""

    memory: memoryview
    tensor: torch.Tensor
    is_pinned: bool = False

    def release(self) -> None:
        """Undo what was done to its pages, before they go."""
        if self.is_pinned:
            unpin(self.tensor)


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
            for block in self._blocks:
                block.release()

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
                self._blocks[index].release()
                del self._blocks[index], self._used[index]
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
    return free // _FREE_MEMORY_DIVISOR


def _free_bytes_of_machine() -> int:
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


@dataclass(frozen=True, slots=True)
class Glimpse:
    """What tensors are at a moment, as far as that is known without reading all of them.

    Attributes:
        versions: How often torch counted a change of each.
        begins: The first bytes of some, spread over all: a change of the whole is seen in them.
    """

    versions: Sequence[int]
    begins: Sequence[bytes]


def glimpse(tensors: Iterable[torch.Tensor], some: Iterable[Bytes | memoryview]) -> Glimpse:
    """What tensors are now; `some` of their bytes."""
    return Glimpse(list(map(_version, tensors)), [each[:_GLIMPSE_BYTES].tobytes() for each in some])


@dataclass(frozen=True, slots=True)
class Copies:
    """What copies tensors into staging memory, again and again.

    Attributes:
        sources: The tensors.
        nbytes: The bytes of all of them.
        plain: Memory that is copied as it is, in pieces: where it goes and where it lies.
        shaped: Tensors whose elements lie in another order, behind the places in C order that they go to.
        on_gpus: The same, of GPUs.
    """

    sources: tuple[torch.Tensor, ...] = ()
    nbytes: int = 0
    plain: tuple[tuple[Bytes, Bytes], ...] = ()
    shaped: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()
    on_gpus: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()

    def __add__(self, other: Copies) -> Copies:
        return Copies(
            self.sources + other.sources,
            self.nbytes + other.nbytes,
            self.plain + other.plain,
            self.shaped + other.shaped,
            self.on_gpus + other.on_gpus,
        )

    def begin_late(self) -> LateCopies:
        """Let another thread make these copies."""
        work = work_so_far(source for _, source in self.on_gpus)
        return LateCopies(self, glimpse(self.sources, [source for _, source in self._some()]), work)

    def are_of(self, seen: Glimpse) -> bool:
        """Whether what was copied, and has not changed since, is what there was a glimpse of."""
        return glimpse(self.sources, [place for place, _ in self._some()]) == seen

    def _some(self) -> Sequence[tuple[Bytes, Bytes]]:
        return self.plain[:: max(1, len(self.plain) // _GLIMPSES)]

    def run(self, threads: int, after: Work | None = None, digested: Sequence[memoryview] = ()) -> list[str]:
        """Copy; autograd sees nothing.

        Args:
            threads: The most threads that do it.
            after: Work of GPUs that comes first; by default that of this thread.
            digested: Memory to hash in the same pass.

        Returns:
            The digests of the latter.
        """
        copy_from_gpus(self.on_gpus, work_so_far(source for _, source in self.on_gpus) if after is None else after)
        with torch.no_grad():
            for place, source in self.shaped:
                place.copy_(source)
        # What is large goes first, and in an order that is kept, so that the threads end together.
        order = sorted(range(len(digested)), key=lambda index: -len(digested[index]))
        items: list[tuple[Bytes, Bytes] | memoryview] = [*(digested[index] for index in order), *self.plain]
        nbytes = self.nbytes + sum(map(len, digested))
        done = in_parallel(_copy_or_digest, items, threads_for(nbytes, threads))
        found = dict(zip(order, done, strict=False))
        return [str(found[index]) for index in range(len(digested))]


@dataclass(frozen=True, slots=True)
class LateCopies:
    """Copies that another thread makes while steps are held.

    Attributes:
        copies: Which.
        seen: What they are of, when they were asked for.
        work: What GPUs had been asked for by then.
    """

    copies: Copies
    seen: Glimpse
    work: Work

    def run(self, threads: int) -> bool:
        """Make them: whether they hold what there was when they were asked for, as far as is known."""
        self.copies.run(threads, self.work)
        return self.copies.are_of(self.seen)


def _copy_or_digest(item: tuple[Bytes, Bytes] | memoryview) -> str | None:
    if isinstance(item, memoryview):
        return digest_of(item)
    np.copyto(*item)  # without the interpreter's lock; torch's copy of the same takes a third more
    return None


def copies_of(tensors: Sequence[tuple[DraftTensor, torch.Tensor]]) -> Copies:
    """What copies live tensors into staging memory, where each one's place is given as bytes."""
    sources: list[torch.Tensor] = []
    plain: list[tuple[Bytes, Bytes]] = []
    shaped: list[tuple[torch.Tensor, torch.Tensor]] = []
    on_gpus: list[tuple[torch.Tensor, torch.Tensor]] = []
    for draft, place in tensors:
        if not place.nbytes:
            continue
        source = draft.source
        if not isinstance(source, torch.Tensor):
            source = torch.frombuffer(bytearray(draft.read()), dtype=torch.uint8)
        sources.append(source)
        is_flat = source.dtype is torch.uint8 and source.dim() == 1 and source.is_contiguous()
        if is_flat and not source.is_cuda:
            plain += zip(_pieces(place), _pieces(source), strict=True)
            continue
        pair = place.view(getattr(torch, draft.spec.dtype)).view(draft.spec.shape), source
        (on_gpus if source.is_cuda else shaped).append(pair)
    nbytes = sum(source.nbytes for source in sources)
    return Copies(tuple(sources), nbytes, tuple(plain), tuple(shaped), tuple(on_gpus))


def _pieces(flat: torch.Tensor) -> list[Bytes]:
    """Memory as arrays that threads share out."""
    array = array_of_flat(flat)
    return [array[begin : begin + _PIECE_BYTES] for begin in range(0, len(array), _PIECE_BYTES)]
