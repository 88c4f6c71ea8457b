"""`checkpoints`: what a run folder holds, the newest, and the best by a metric."""

from __future__ import annotations

import math
import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, overload

from torchkeep.errors import NotFoundError, typed
from torchkeep.folder.amending import change_tags
from torchkeep.folder.committed import first_nonfinite, tags_of
from torchkeep.folder.policy_code import RecordedPolicy, policy_of_run
from torchkeep.folder.retention import Decision, RetentionPolicy, decide
from torchkeep.folder.runs import list_run, metrics_of
from torchkeep.folder.thinning import candidate_of, files_of
from torchkeep.folder.verified import Verified, recall


@dataclass(frozen=True, slots=True)
class RunCheckpoint(os.PathLike[str]):
    """One committed checkpoint of a run; usable wherever a path is.

    Attributes:
        path: Its folder.
        step: The step last finished.
        metrics: Numbers remembered with it.
        saved_at: When the save began.
        total_bytes: Bytes of its shards.
        own_bytes: Bytes of the shards that no other checkpoint shares: what removing this one would free.
        added_bytes: Bytes of the shards that no earlier step holds: what this save added to those that are here.
        tags: Its tags when the run was listed.
        nonfinite: The first parameter or optimizer state that holds NaN or inf, or None.
        verified_at: When every byte of it was last read and compared, and was good; None where that is not known.
        is_damaged: Whether that was the last thing that reading it found.
    """

    path: Path
    step: int
    metrics: Mapping[str, float]
    saved_at: datetime
    total_bytes: int
    own_bytes: int
    added_bytes: int
    tags: tuple[str, ...] = ()
    nonfinite: str | None = None
    verified_at: datetime | None = None
    is_damaged: bool = False

    def tag(self, *tags: str) -> tuple[str, ...]:
        """Give it tags, durably, also while its run is being written; all it has then.

        Raises:
            ValueError: One is empty, or holds a slash or what does not print; nothing was changed.
            NotFoundError: It was removed meanwhile.
            CheckpointError: The operating system refused; its tags are as before.

        Example:
            >>> import tempfile, torch, torchkeep as tk
            >>> run = tempfile.mkdtemp()
            >>> with tk.CheckpointManager(run, {"model": torch.nn.Linear(2, 1)}) as manager:
            ...     handle = manager.save(0, tags=["first"])
            >>> tk.checkpoints(run)[0].tag("paper"), tk.checkpoints(run)[0].untag("first")
            (('first', 'paper'), ('paper',))
        """
        return change_tags(self.path, add=tags)

    def untag(self, *tags: str) -> tuple[str, ...]:
        """Take tags away; all it has then. Raises as `tag` does."""
        return change_tags(self.path, remove=tags)

    def __fspath__(self) -> str:
        return str(self.path)


class RunCheckpoints(Sequence[RunCheckpoint]):
    """The committed checkpoints of a run in order of their step.

    Attributes:
        folder: The run folder.
        disk_bytes: Bytes of all shards on disk; one that several checkpoints share counts once.
        passed_over: Folders that look like checkpoints and are not, each with the reason.
        retain: The retention policy that the last save of the run recorded; None where it recorded none.
    """

    def __init__(
        self,
        folder: Path,
        members: Sequence[RunCheckpoint],
        disk_bytes: int,
        passed_over: Mapping[str, str],
        retain: RecordedPolicy | None = None,
    ) -> None:
        self.folder = folder
        self.disk_bytes = disk_bytes
        self.passed_over = dict(passed_over)
        self.retain = retain
        self._members = tuple(members)

    @overload
    def __getitem__(self, index: int) -> RunCheckpoint: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[RunCheckpoint]: ...

    def __getitem__(self, index: int | slice) -> RunCheckpoint | Sequence[RunCheckpoint]:
        return self._members[index]

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[RunCheckpoint]:
        return iter(self._members)

    def __repr__(self) -> str:
        steps = [each.step for each in self._members]
        return f"<run {str(self.folder)!r} of {len(steps)} checkpoints: steps {steps}>"

    def latest(self) -> RunCheckpoint:
        """The one of the highest step. Its tensors are checked when it is loaded, not here.

        Raises:
            NotFoundError: There is none.
        """
        if not self._members:
            raise NotFoundError("no committed checkpoint in this run", where=self.folder)
        return self._members[-1]

    def best(self, metric: str, *, mode: Literal["min", "max"], n: int = 1) -> tuple[RunCheckpoint, ...]:
        """The best by a metric, best first; of equal ones the newer first.

        One whose metric is NaN, or whose parameters hold NaN or inf, is never among them.


        Args:
            metric: Its name.
            mode: Whether more (``"max"``) or less (``"min"``) is better.
            n: How many at most.

        Raises:
            ValueError: `mode` is neither, or `n` is below 1.
            NotFoundError: No checkpoint has the metric; the message names those that exist.
        """
        if mode not in {"min", "max"} or n < 1:
            raise ValueError(f'best takes mode "min" or "max" and n of 1 or more; not {mode!r} and {n!r}')
        having = [
            each
            for each in self._members
            if not math.isnan(each.metrics.get(metric, math.nan)) and each.nonfinite is None
        ]
        if not having:
            known = ", ".join(sorted({name for each in self._members for name in each.metrics})) or "none"
            raise NotFoundError(
                f"no checkpoint has the metric {metric!r}", where=self.folder, remedy=f"metrics: {known}"
            )
        sign = -1 if mode == "max" else 1
        return tuple(sorted(having, key=lambda each: (sign * each.metrics[metric], -each.step))[:n])


def checkpoints(run: str | os.PathLike[str]) -> RunCheckpoints:
    """List the committed checkpoints of a run folder; their records are checked, their tensors are not read.

    Raises:
        NotFoundError: There is no such folder.

    Example:
        >>> import tempfile, torch, torchkeep as tk
        >>> folder = tempfile.mkdtemp()
        >>> with tk.CheckpointManager(folder, {"model": torch.nn.Linear(2, 1)}, retain=tk.KeepLast(9)) as manager:
        ...     for step, accuracy in enumerate([0.5, 0.9, 0.7]):
        ...         _ = manager.save(step, metrics={"accuracy": accuracy})
        >>> run = tk.checkpoints(folder)
        >>> [each.step for each in run], run.latest().step, run.best("accuracy", mode="max")[0].step
        ([0, 1, 2], 2, 1)
        >>> run.retain.policy
        KeepLast(9)
    """
    found = list_run(Path(run))
    with typed("cannot be read", run):
        inodes = {each.path: files_of(each.path, each.summary.shards) for each in found.checkpoints}
    holders: dict[Hashable, int] = {}
    added_bytes: dict[Path, int] = {}
    for path, of_one in inodes.items():
        added_bytes[path] = sum(size for inode, size in of_one.items() if inode not in holders)
        for inode in of_one:
            holders[inode] = holders.get(inode, 0) + 1
    noted = recall(found.folder, {each.path.name: (each.summary.id, each.summary.shards) for each in found.checkpoints})
    members = [
        RunCheckpoint(
            path=each.path,
            step=each.summary.step or 0,
            metrics=metrics_of(each.summary),
            saved_at=datetime.fromtimestamp(each.summary.saved_at_ns / 1e9, UTC),
            total_bytes=sum(inodes[each.path].values()),
            own_bytes=sum(size for inode, size in inodes[each.path].items() if holders[inode] == 1),
            added_bytes=added_bytes[each.path],
            tags=tags_of(each.summary),
            nonfinite=first_nonfinite(each.summary),
            verified_at=_when(noted.get(each.path.name)),
            is_damaged=each.path.name in noted and not noted[each.path.name].ok,
        )
        for each in found.checkpoints
    ]
    sizes = {inode: size for of_one in inodes.values() for inode, size in of_one.items()}
    passed_over = {path.name: error.what for path, error in found.passed_over}
    return RunCheckpoints(found.folder, members, sum(sizes.values()), passed_over, policy_of_run(found))


def _when(noted: Verified | None) -> datetime | None:
    return datetime.fromtimestamp(noted.at_ns / 1e9, UTC) if noted is not None and noted.ok else None


def decisions_of(run: str | os.PathLike[str], policy: RetentionPolicy) -> tuple[Decision, ...]:
    """What a retention policy would decide on each checkpoint of a run, and why; nothing is removed or read.

    Raises:
        NotFoundError: There is no such folder.
    """
    return decide(policy, [candidate_of(each) for each in list_run(Path(run)).checkpoints])
