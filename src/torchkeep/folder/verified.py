"""`.verified.json` in a run folder: what the last whole verification of each checkpoint found. Information only."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torchkeep.folder.digests import digest_of

FILE_NAME = ".verified.json"
_MAX_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Verified:
    """The last verification of a checkpoint whose files are as they were then.

    Attributes:
        at_ns: When, in nanoseconds since 1970.
        ok: Whether nothing was wrong.
    """

    at_ns: int
    ok: bool


def remember(checkpoint: Path, identity: str, shards: Iterable[str], *, ok: bool, at_ns: int) -> None:
    """Note what a verification found; where the run folder cannot be written, nothing is noted."""
    with suppress(OSError):
        found = _read(checkpoint.parent)
        found = {name: entry for name, entry in found.items() if (checkpoint.parent / name).is_dir()}
        found[checkpoint.name] = {"id": identity, "files": _state_of(checkpoint, shards), "ok": ok, "at_ns": at_ns}
        temporary = checkpoint.parent / f"{FILE_NAME}-{secrets.token_hex(8)}"
        try:
            temporary.write_text(json.dumps(found, indent=0), encoding="utf-8")
            temporary.replace(checkpoint.parent / FILE_NAME)
        finally:
            temporary.unlink(missing_ok=True)


def recall(folder: Path, checkpoints: Mapping[str, tuple[str, Iterable[str]]]) -> dict[str, Verified]:
    """What was noted of checkpoints of a run, by name; one that was changed since is left out.

    Args:
        folder: The run folder.
        checkpoints: For each name the id in its record, and the names of its shards.
    """
    noted = _read(folder)
    found = {}
    for name, (identity, shards) in checkpoints.items():
        entry = noted.get(name)
        if not isinstance(entry, dict) or entry.get("id") != identity or not isinstance(entry.get("at_ns"), int):
            continue
        if entry.get("files") == _state_of(folder / name, shards):
            found[name] = Verified(entry["at_ns"], entry.get("ok") is True)
    return found


def _read(folder: Path) -> dict[str, object]:
    path = folder / FILE_NAME
    try:
        if path.stat().st_size > _MAX_BYTES:
            return {}
        noted = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return noted if isinstance(noted, dict) else {}


def _state_of(checkpoint: Path, shards: Iterable[str]) -> str:
    """Sizes and times of a checkpoint's shards in one digest."""
    lines = []
    for file in sorted(shards):
        try:
            status = os.stat(checkpoint / file)
        except OSError:
            continue
        lines.append(f"{file} {status.st_size} {status.st_mtime_ns}")
    return digest_of("\n".join(lines).encode("utf-8"))
