"""``torchkeep ls``: the checkpoints of a run."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from torchkeep.cli.console import Verbs, add_verb, say, say_json, tell
from torchkeep.cli.prune import add_keeps, policy_of
from torchkeep.cli.tables import Column, say_table
from torchkeep.errors import FormatError
from torchkeep.tensors import format_bytes, printable

if TYPE_CHECKING:
    from torchkeep.folder.policy_code import RecordedPolicy
    from torchkeep.policies import Decision
    from torchkeep.verbs.listing import RunCheckpoint, RunCheckpoints

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


def add_to(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "ls",
        run,
        about="List the checkpoints of a run with metrics, tags, sizes and what keeps them. No tensor is read.",
        examples=[
            "torchkeep ls runs/exp1",
            "torchkeep ls runs/exp1 --keep-last 3 --keep-best 2:val_acc:max      (what would stay by that, and why)",
            "torchkeep ls runs/exp1 --json",
        ],
        notes="Without --keep-... it says what keeps each by the policy that the run's last save recorded.\n"
        "own is what removing that one checkpoint would free; the rest is shared with others of the run.\n"
        "verified is when torchkeep verify last read all of it, if its files are as they were then.",
    )
    parser.add_argument("run_folder", metavar="RUN", help="a run folder, which holds checkpoints by step")
    add_keeps(parser.add_argument_group("what a policy would keep, and why"))
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """List them; folders that look like checkpoints and are not go to stderr."""
    from torchkeep.folder.record import RECORD_NAME
    from torchkeep.policies import KeepAll
    from torchkeep.verbs.listing import checkpoints, decisions_of

    if os.path.lexists(os.path.join(arguments.run_folder, RECORD_NAME)):
        raise FormatError(
            "a checkpoint, not a run folder",
            where=arguments.run_folder,
            remedy=f"look into it: torchkeep show {arguments.run_folder}",
        )
    listed = checkpoints(arguments.run_folder)
    given = policy_of(arguments)
    policy = given or (listed.retain.policy if listed.retain else None)
    decisions = {} if policy is None else {each.step: each for each in decisions_of(arguments.run_folder, policy)}
    if arguments.json:
        say_json(describe(listed, decisions))
    elif listed:
        # A run that keeps all needs no column to say so of each.
        _say_table(listed, {} if policy == KeepAll() else decisions, datetime.now(UTC))
        if given is None and listed.retain is not None:
            say(_own_policy(listed.retain))
    else:
        tell(f"{listed.folder}: no committed checkpoint")
    for name, reason in listed.passed_over.items():
        tell(f"passed over {listed.folder / name}: {reason}")
    return 0


def _own_policy(retain: RecordedPolicy) -> str:
    unknown = printable(", ".join(retain.unknown))
    not_run = f"; {unknown} is not torchkeep's, so what it keeps is not known here" if unknown else ""
    return f"the run's own policy: {printable(retain.code)}{not_run}"


def describe(listed: RunCheckpoints, decisions: Mapping[int, Decision]) -> dict[str, object]:
    """A run as plain values for JSON; times are ISO 8601 in UTC."""
    return {
        "path": str(listed.folder),
        "disk_bytes": listed.disk_bytes,
        "own_policy": None if listed.retain is None else listed.retain.code,
        "unknown_policies": [] if listed.retain is None else list(listed.retain.unknown),
        "checkpoints": [_checkpoint(each, decisions.get(each.step)) for each in listed],
        "passed_over": listed.passed_over,
    }


def _checkpoint(each: RunCheckpoint, decision: Decision | None) -> dict[str, object]:
    values: dict[str, object] = {
        "step": each.step,
        "path": str(each.path),
        "saved_at": each.saved_at.isoformat(),
        "metrics": each.metrics,
        "tags": list(each.tags),
        "nonfinite": each.nonfinite,
        "total_bytes": each.total_bytes,
        "own_bytes": each.own_bytes,
        "added_bytes": each.added_bytes,
        "verified_at": None if each.verified_at is None else each.verified_at.isoformat(),
        "damaged": each.is_damaged,
    }
    if decision is None:
        return values
    return {**values, "keep": decision.keep, "reasons": list(decision.reasons)}


def _say_table(listed: RunCheckpoints, decisions: Mapping[int, Decision], now: datetime) -> None:
    """One line per checkpoint, one column per metric, and what all of it takes on disk."""
    metrics = list(dict.fromkeys(name for each in listed for name in each.metrics))
    columns = [
        Column("step"),
        Column("age"),
        # The first metric stays longest: it is the one that people name first.
        *(Column(name, spare=10 + at) for at, name in enumerate(metrics)),
        Column("size", spare=2),
        Column("own"),
        Column("verified", "left", spare=3),
        Column("tags", "left", folds=True, least=8, spare=1),
        Column("kept by" if decisions else "", "left", folds=True, least=16, spare=1),
    ]
    say_table(columns, [_row(each, metrics, decisions, now) for each in listed])
    count = f"{len(listed):,} checkpoint{'' if len(listed) == 1 else 's'}"
    say(f"{count}, {format_bytes(listed.disk_bytes)} on disk")
    for each in listed:
        if each.nonfinite is not None:
            say(f"step {each.step}: {each.nonfinite} holds NaN or inf")


def _row(each: RunCheckpoint, metrics: Sequence[str], decisions: Mapping[int, Decision], now: datetime) -> list[str]:
    values = [f"{each.metrics[name]:.6g}" if name in each.metrics else "-" for name in metrics]
    sizes = [format_bytes(each.total_bytes), format_bytes(each.own_bytes)]
    verified = "" if each.verified_at is None else f"{age_text(now - each.verified_at)} ago"
    verified = "damaged" if each.is_damaged else verified or "-"
    kept = ""
    decision = decisions.get(each.step)  # None for one that came meanwhile
    if decision is not None:
        kept = "; ".join(decision.reasons) if decision.keep else f"goes: {'; '.join(decision.reasons)}"
    return [str(each.step), age_text(now - each.saved_at), *values, *sizes, verified, ", ".join(each.tags), kept]


def age_text(age: timedelta) -> str:
    """An age in its largest whole unit.

    Example:
        >>> age_text(timedelta(hours=3, minutes=59)), age_text(timedelta(seconds=-5))
        ('3 h', '0 s')
    """
    seconds = max(0, int(age.total_seconds()))
    return next((f"{seconds // size} {unit}" for size, unit in _UNITS if seconds >= size), f"{seconds} s")
