"""Retention carried out on a run folder: what is there is looked at, decided on by `retention`, and then removed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from torchkeep.errors import CheckpointError
from torchkeep.folder.amending import drop_optimizers
from torchkeep.folder.committed import first_nonfinite, tags_of
from torchkeep.folder.removal import remove
from torchkeep.folder.retention import Candidate, Decision, RetentionPolicy, decide
from torchkeep.folder.runs import Listed, list_run, metrics_of, step_name
from torchkeep.folder.turns import alone_in


@dataclass(frozen=True, slots=True)
class Thinned:
    """The decision on every checkpoint of a run, in order of rising steps, and what could not be carried out."""

    decisions: tuple[Decision, ...]
    notes: tuple[str, ...]


def candidate_of(listed: Listed) -> Candidate:
    """A committed checkpoint as retention sees it."""
    summary = listed.summary
    return Candidate(
        step=summary.step or 0,
        metrics=metrics_of(summary),
        tags=tags_of(summary),
        nonfinite=first_nonfinite(summary) is not None,
        files=files_of(listed.path, summary.shards),
        has_optimizers="without" not in summary.provenance,
    )


def files_of(checkpoint: Path, shards: Iterable[str]) -> dict[Hashable, int]:
    """Bytes of shards by device and inode; a shard that is gone takes none."""
    found: dict[Hashable, int] = {}
    for file in shards:
        try:
            status = (checkpoint / file).stat()
        except FileNotFoundError:
            continue
        found[status.st_dev, status.st_ino] = status.st_size
    return found


def thin(
    folder: Path, policy: RetentionPolicy, *, keep: int | None = None, reason: str = "just saved", dry_run: bool = False
) -> Thinned:
    """Decide on every checkpoint that is in a run folder, and remove what does not stay.

    A checkpoint that cannot be removed is a note: what had to be written is committed by now.

    Args:
        folder: The run folder, owned by the caller unless nothing is to be removed.
        policy: What to keep.
        keep: A step that stays whatever the policy says, with its optimizers: a resume may have nothing else.
        reason: Why it does.
        dry_run: Decide only.
    """
    with alone_in(folder):  # nobody gives a tag between the look and the removal
        decisions = tuple(
            _kept(decision, reason) if decision.step == keep else decision
            for decision in decide(policy, [candidate_of(each) for each in list_run(folder).checkpoints])
        )
        gone = [each for each in decisions if not each.keep and not dry_run]
        notes = _carry_out(folder, gone, "was not removed", remove)
    drops = [each for each in decisions if each.drops_optimizers and not dry_run]
    notes += _carry_out(folder, drops, "kept its optimizer", drop_optimizers)
    return Thinned(decisions, tuple(notes))


def _kept(decision: Decision, reason: str) -> Decision:
    if decision.keep and not decision.drops_optimizers:
        return decision
    return replace(decision, keep=True, reasons=(reason,), drops_optimizers=False)


def _carry_out(folder: Path, decisions: list[Decision], failed: str, act: Callable[[Path], object]) -> list[str]:
    notes = []
    for decision in decisions:
        path = folder / step_name(decision.step)
        try:
            act(path)
        except (OSError, CheckpointError) as error:
            notes.append(f"{path.name} {failed}: {error}")
    return notes
