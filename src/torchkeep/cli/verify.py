"""``torchkeep verify``: read every byte and compare it with what was written."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from torchkeep.cli.console import Verbs, add_verb, say, say_json, tell
from torchkeep.cli.progress import ProgressBar
from torchkeep.errors import CorruptError

if TYPE_CHECKING:
    from torchkeep.verbs.verifying import Verification

REMEDY = "hint: use another checkpoint, or copy this one again from where it came; torchkeep ls RUN lists a run's"


def add_to(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "verify",
        run,
        about="Verify every byte of a checkpoint of any format, or of all checkpoints of a run.",
        examples=[
            "torchkeep verify runs/exp1/step-00001200",
            "torchkeep verify runs/exp1",
            "torchkeep verify runs/exp1 --quick",
            "torchkeep verify runs/exp1 --share 5%             (others each time)",
            "torchkeep verify resnet50-0676ba61.pth            (its name has its sha256)",
        ],
        notes="Formats without checksums are checked as far as their structure goes; the line says which it was.",
    )
    parser.add_argument("path", metavar="PATH", help="a checkpoint, or a run folder")
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help="records, headers, sizes and structure; no tensor is read")
    extent.add_argument(
        "--share", metavar="SHARE", type=share_of, default=1.0, help="read a share by chance: 5%% or 0.05"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Verify, report each; 0 or the exit code of damage."""
    checks = []
    for path, reason in targets(Path(arguments.path)).items():
        with ProgressBar(f"verifying {path.name}") as bar:
            check = check_one(path, reason, 0.0 if arguments.quick else arguments.share, bar)
        checks.append(check)
        if not arguments.json:
            say(str(check))
    ok = all(check.ok for check in checks)
    if arguments.json:
        faults = [f"{check.path}: {fault}" for check in checks for fault in check.faults]
        checkpoints = [describe(check) for check in checks]
        say_json({"path": arguments.path, "ok": ok, "faults": faults, "checkpoints": checkpoints})
    elif not ok:
        tell(REMEDY)
    return 0 if ok else CorruptError.exit_code


def share_of(text: str) -> float:
    """A share as people write it.

    Example:
        >>> share_of("5%"), share_of("0.25"), share_of("1")
        (0.05, 0.25, 1.0)
    """
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"a share is wanted, as 5% or 0.05, not {text!r}")
    return share


def targets(path: Path) -> dict[Path, str | None]:
    """The path itself, or the checkpoints of a run; each with the reason why the run passed it over, else None."""
    from torchkeep.folder.record import RECORD_NAME
    from torchkeep.verbs.listing import checkpoints

    if path.is_dir() and not (path / RECORD_NAME).exists():
        run = checkpoints(path)
        found: dict[Path, str | None] = {each.path: None for each in run}
        found.update({path / name: reason for name, reason in run.passed_over.items()})
        if found:
            return dict(sorted(found.items()))
    return {path: None}


def check_one(path: Path, reason: str | None, share: float, progress: ProgressBar) -> Verification:
    """Verify one checkpoint; one that its run passed over is wrong for that reason already."""
    from torchkeep.verbs.verifying import Verification, verify

    return (
        verify(path, share=share, progress=progress)
        if reason is None
        else Verification(path, "", "structure", 0, 0, (reason,))
    )


def describe(check: Verification) -> dict[str, object]:
    """What was found as plain values for JSON."""
    return {
        "path": str(check.path),
        "ok": check.ok,
        "format": check.format,
        "checked": check.checked,
        "share": check.share,
        "tensor_count": check.tensor_count,
        "total_bytes": check.total_bytes,
        "faults": list(check.faults),
    }
