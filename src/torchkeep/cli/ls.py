"""``torchkeep ls``: the checkpoints of a run."""

from __future__ import annotations

import argparse
import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from torchkeep.cli.console import Verbs, add_verb, columns, say, say_json, tell
from torchkeep.errors import FormatError
from torchkeep.tensors import format_bytes

if TYPE_CHECKING:
    from torchkeep.verbs.listing import RunCheckpoints

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


def add_to(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "ls",
        run,
        about="List the checkpoints of a run with their metrics and sizes. No tensor is read.",
        examples=["torchkeep ls runs/exp1", "torchkeep ls runs/exp1 --json"],
        notes="own is what removing that one checkpoint would free; the rest is shared with others of the run.",
    )
    parser.add_argument("run_folder", metavar="RUN", help="a run folder, which holds checkpoints by step")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """List them; folders that look like checkpoints and are not go to stderr."""
    from torchkeep.folder.record import RECORD_NAME
    from torchkeep.verbs.listing import checkpoints

    if os.path.lexists(os.path.join(arguments.run_folder, RECORD_NAME)):
        raise FormatError(
            "a checkpoint, not a run folder",
            where=arguments.run_folder,
            remedy=f"look into it: torchkeep show {arguments.run_folder}",
        )
    listed = checkpoints(arguments.run_folder)
    if arguments.json:
        say_json(describe(listed))
    elif listed:
        say(table(listed, datetime.now(UTC)))
    else:
        tell(f"{listed.folder}: no committed checkpoint")
    for name, reason in listed.passed_over.items():
        tell(f"passed over {listed.folder / name}: {reason}")
    return 0


def describe(listed: RunCheckpoints) -> dict[str, object]:
    """A run as plain values for JSON; times are ISO 8601 in UTC."""
    return {
        "path": str(listed.folder),
        "disk_bytes": listed.disk_bytes,
        "checkpoints": [
            {
                "step": each.step,
                "path": str(each.path),
                "saved_at": each.saved_at.isoformat(),
                "metrics": each.metrics,
                "total_bytes": each.total_bytes,
                "own_bytes": each.own_bytes,
            }
            for each in listed
        ],
        "passed_over": listed.passed_over,
    }


def table(listed: RunCheckpoints, now: datetime) -> str:
    """One line per checkpoint, one column per metric, and what all of it takes on disk."""
    metrics = list(dict.fromkeys(name for each in listed for name in each.metrics))
    rows = [["step", "age", *metrics, "size", "own"]]
    for each in listed:
        values = [f"{each.metrics[name]:.6g}" if name in each.metrics else "-" for name in metrics]
        sizes = [format_bytes(each.total_bytes), format_bytes(each.own_bytes)]
        rows.append([str(each.step), age_text(now - each.saved_at), *values, *sizes])
    count = f"{len(listed):,} checkpoint{'' if len(listed) == 1 else 's'}"
    return f"{columns(rows)}\n{count}, {format_bytes(listed.disk_bytes)} on disk"


def age_text(age: timedelta) -> str:
    """An age in its largest whole unit.

    Example:
        >>> age_text(timedelta(hours=3, minutes=59)), age_text(timedelta(seconds=-5))
        ('3 h', '0 s')
    """
    seconds = max(0, int(age.total_seconds()))
    return next((f"{seconds // size} {unit}" for size, unit in _UNITS if seconds >= size), f"{seconds} s")
