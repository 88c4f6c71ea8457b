"""The processes of one training: what they agree on before each of them goes on.

Every rank of a `torch.distributed` group calls the same methods in the same order. Rank 0 alone writes. The group is
one of its own over gloo, so that nothing here meets the collectives of the training.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar, overload

from torchkeep.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

_T = TypeVar("_T")


class Ranks:
    """One process alone; `GroupRanks` is a process of a group.

    Attributes:
        rank: This process, from 0.
        size: How many there are.
    """

    rank = 0
    size = 1

    def most(self, values: Sequence[int]) -> list[int]:
        """The greatest of each value over all ranks."""
        return list(values)

    def gather(self, data: bytes) -> list[bytes]:
        """What each rank gave, in order of ranks, at every rank."""
        return [data]

    def share(self, data: bytes) -> bytes:
        """What rank 0 gave."""
        return data

    @overload
    def together(self, act: Callable[[], _T]) -> _T: ...

    @overload
    def together(self, act: Callable[[], _T], *, only_first: bool) -> _T | None: ...

    def together(self, act: Callable[[], _T], *, only_first: bool = False) -> _T | None:
        """Act on every rank, or on rank 0 alone, and raise on all when it fails on one.

        Raises:
            CheckpointError: It failed on another rank, whose own error says why.
        """
        try:
            result = act() if self.rank == 0 or not only_first else None
        except Exception:
            with suppress(CheckpointError):  # what failed here says more than that another rank is gone
                self.most([1])
            raise
        if self.most([0])[0]:
            raise CheckpointError("another rank failed; its own error says why", remedy="see the errors of all ranks")
        return result


class GroupRanks(Ranks):
    """A process of a `torch.distributed` group.

    Each method raises `CheckpointError` when another rank has ended, or does not answer within the group's timeout.
    """

    def __init__(self) -> None:
        import torch.distributed as dist

        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        with _answered():
            self._group: ProcessGroup = dist.new_group(backend="gloo")

    def most(self, values: Sequence[int]) -> list[int]:
        """The greatest of each value over all ranks."""
        import torch
        import torch.distributed as dist

        held = torch.tensor(list(values), dtype=torch.int64)
        with _answered():
            dist.all_reduce(held, dist.ReduceOp.MAX, group=self._group)
        return [int(value) for value in held.tolist()]

    def gather(self, data: bytes) -> list[bytes]:
        """What each rank gave, in order of ranks, at every rank."""
        import torch
        import torch.distributed as dist

        longest = self.most([len(data)])[0]
        sent = _padded(len(data).to_bytes(8, "little") + data, longest + 8)
        received = [torch.empty_like(sent) for _ in range(self.size)]
        with _answered():
            dist.all_gather(received, sent, group=self._group)
        texts = [each.numpy().tobytes() for each in received]
        return [text[8 : 8 + int.from_bytes(text[:8], "little")] for text in texts]

    def share(self, data: bytes) -> bytes:
        """What rank 0 gave."""
        import torch.distributed as dist

        length = self.most([len(data) if self.rank == 0 else 0])[0]
        sent = _padded(data if self.rank == 0 else b"", length)
        with _answered():
            dist.broadcast(sent, src=0, group=self._group)
        return sent.numpy().tobytes()


@contextmanager
def _answered() -> Iterator[None]:
    """Turn what gloo raises into a typed error."""
    try:
        yield
    except RuntimeError as error:
        raise CheckpointError(
            "another rank has ended or does not answer",
            remedy="its own output says why; every rank resumes from the newest committed checkpoint",
        ) from error


def _padded(data: bytes, length: int) -> torch.Tensor:
    import torch

    return torch.frombuffer(bytearray(data + bytes(length - len(data)) or b"\0"), dtype=torch.uint8)[:length]


def ranks_here() -> Ranks:
    """The group that this process is in, if there is one of several; every rank has to ask at the same time."""
    if "torch" not in sys.modules:
        return Ranks()
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return Ranks()
    return GroupRanks()
