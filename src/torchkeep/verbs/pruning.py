"""`prune`: thin a run that is not being written, once a checkpoint that stays has been verified."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from torchkeep.errors import CorruptError, FormatError, NotFoundError, typed
from torchkeep.folder.amending import without_optimizers
from torchkeep.folder.committed import read_record
from torchkeep.folder.lock import RunLock
from torchkeep.folder.policy_code import code_of, policy_of_run
from torchkeep.folder.recovery import recover
from torchkeep.folder.retention import Candidate, Decision, RetentionPolicy, decide
from torchkeep.folder.runs import Listing, list_run, refuse_no_folder, step_name
from torchkeep.folder.thinning import candidate_of, files_of, thin
from torchkeep.tensors import format_bytes, printable
from torchkeep.verbs.verifying import verify


@dataclass(frozen=True, slots=True)
class Pruned:
    """What `prune` decided on every checkpoint of a run, and did.

    Attributes:
        folder: The run folder.
        decisions: One for each checkpoint, in order of rising steps, with its reasons.
        freed_bytes: Bytes on disk that went, or would go.
        is_dry_run: Whether nothing was removed.
        notes: What could not be removed, and which checkpoints are damaged.
        own_policy: The run's own policy as code, where that decided.
    """

    folder: Path
    decisions: tuple[Decision, ...]
    freed_bytes: int
    is_dry_run: bool
    notes: tuple[str, ...] = ()
    own_policy: str | None = None

    @property
    def removed(self) -> tuple[int, ...]:
        """The steps that went, or would go."""
        return tuple(each.step for each in self.decisions if not each.keep)

    def __str__(self) -> str:
        width = max((len(str(each.step)) for each in self.decisions), default=0)
        lines = [f"{each.step:>{width}}  {_verb(each)}  {'; '.join(each.reasons)}" for each in self.decisions]
        what = "would be freed" if self.is_dry_run else "freed"
        count = len(self.removed)
        removed = f"{count} of {len(self.decisions)} checkpoints {'would go' if self.is_dry_run else 'removed'}"
        by = [] if self.own_policy is None else [f"by the run's own policy: {self.own_policy}"]
        return "\n".join([*lines, f"{removed}, {format_bytes(self.freed_bytes)} {what}", *by])


def _verb(decision: Decision) -> str:
    return "thin  " if decision.drops_optimizers else "keep  " if decision.keep else "remove"


def prune(run: str | os.PathLike[str], policy: RetentionPolicy | None = None, *, dry_run: bool = False) -> Pruned:
    """Remove from a run what a policy does not keep; the newest checkpoint that verifies always stays.

    Args:
        run: The run folder. It is locked meanwhile.
        policy: What to keep, as for `CheckpointManager`; by default what the run's last save recorded as its own.
        dry_run: Decide and verify, and remove nothing; a run that is being written may be looked at.

    Returns:
        The decision on every checkpoint with its reasons, and the bytes freed.

    Raises:
        NotFoundError: There is no such folder, or no policy was given and the run recorded none.
        FormatError: No policy was given, and the run's own is not of torchkeep's classes alone. Nothing was removed.
        ConflictError: Another process writes in it. Nothing was removed.
        CorruptError: None of its checkpoints verifies. Nothing was removed.
        TypeError: `policy` is none.

    Example:
        >>> import tempfile, torch, torchkeep as tk
        >>> run = tempfile.mkdtemp()
        >>> with tk.CheckpointManager(run, {"model": torch.nn.Linear(2, 1)}) as manager:
        ...     for step in range(3):
        ...         handle = manager.save(step)
        >>> print(tk.prune(run, tk.KeepLast(1), dry_run=True))
        0  remove  not the last
        1  remove  not the last
        2  keep    the newest; the last
        2 of 3 checkpoints would go, 0 bytes would be freed
    """
    if not isinstance(policy, RetentionPolicy | None):
        raise TypeError(f"prune(run, policy): the policy is {policy!r}; one as KeepLast(3) is wanted")
    folder = Path(os.path.realpath(Path(run).expanduser()))
    if dry_run:
        return _prune(folder, policy, dry_run=True)
    refuse_no_folder(folder)
    with typed("the run cannot be locked; nothing was removed", folder):
        lock = RunLock(folder)
    try:
        recover(folder)
        return _prune(folder, policy, dry_run=False)
    finally:
        lock.release()


def _own_policy(run: Listing) -> RetentionPolicy:
    recorded = policy_of_run(run)
    remedy = "say what to keep, as KeepLast(3), or --keep-last 3 on the command line; nothing was removed"
    if recorded is None:
        raise NotFoundError("this run recorded no retention policy", where=run.folder, remedy=remedy)
    if recorded.policy is None:
        code, unknown = printable(recorded.code), printable(", ".join(recorded.unknown))
        raise FormatError(
            f"the run's own policy is {code}, and {unknown} is not torchkeep's: nothing of it is run",
            where=run.folder,
            remedy=remedy,
        )
    return recorded.policy


def _prune(folder: Path, given: RetentionPolicy | None, *, dry_run: bool) -> Pruned:
    listing = list_run(folder)
    before = listing.checkpoints
    policy = given or _own_policy(listing)
    candidates = [candidate_of(each) for each in before]
    kept = [each.step for each in decide(policy, candidates) if each.keep]
    # Those that stay anyway come first: one that would go is read only when none of them is good.
    others = [each.step for each in candidates if each.step not in kept]
    verified, notes = _newest_good(folder, [*reversed(kept), *reversed(others)])
    if candidates and verified is None:
        raise CorruptError("no checkpoint of this run verifies; nothing was removed", where=folder, faults=notes)
    drops = [each.step for each in decide(policy, candidates) if each.drops_optimizers]
    lessened = {step: without_optimizers(read_record(folder / step_name(step))) for step in drops}
    files = {step: files_of(folder / step_name(step), record.shards).keys() for step, record in lessened.items()}
    thinned = thin(folder, policy, keep=verified, reason="the newest that verifies", dry_run=dry_run)
    freed_bytes = _freed_bytes(candidates, thinned.decisions, files)
    own = code_of(policy) if given is None else None
    return Pruned(folder, thinned.decisions, freed_bytes, dry_run, (*notes, *thinned.notes), own)


def _freed_bytes(
    candidates: Sequence[Candidate], decisions: Sequence[Decision], lessened: Mapping[int, AbstractSet[Hashable]]
) -> int:
    """Bytes of the files that no checkpoint holds any more, those that lost their optimizers counted without them."""
    sizes = {file: size for each in candidates for file, size in each.files.items()}
    kept = {each.step: each.drops_optimizers for each in decisions if each.keep}
    left = {
        file
        for each in candidates
        if each.step in kept
        for file in (lessened[each.step] if kept[each.step] else each.files)
    }
    return sum(size for file, size in sizes.items() if file not in left)


def _newest_good(folder: Path, steps: list[int]) -> tuple[int | None, list[str]]:
    """The first of some steps whose every byte verifies, and what is wrong with those before it."""
    notes: list[str] = []
    for step in steps:
        found = verify(folder / step_name(step))
        if found:
            return step, notes
        notes.append(f"{step_name(step)} is damaged: {found.faults[0]}")
    return None, notes
