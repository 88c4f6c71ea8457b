"""Files that one file of a folder names: beside it, regular, and not led out of the folder by a link."""

from __future__ import annotations

import stat
from pathlib import Path


def why_not_a_member(folder: Path, name: str) -> str | None:
    """Why a name is not that of a readable file of a folder, or None."""
    if not is_plain_name(name):
        return "not the name of a file beside the index"
    path = folder / name
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return "not there"
    if not stat.S_ISREG(mode):
        return "not a regular file"
    if path.is_symlink() and not _stays_near(folder, path):
        return "a link that leads out of the folder"
    return None


def is_plain_name(name: str) -> bool:
    """Whether a text is a name alone, which leads nowhere else on any system."""
    return bool(name) and name not in {".", ".."} and not any(part in name for part in "/\\:\0")


def _stays_near(folder: Path, path: Path) -> bool:
    """Whether a link ends in its folder, or in the ``blobs`` of the hub's cache: models--x/snapshots/revision."""
    target, here = path.resolve(), folder.resolve()
    if here.parent.name == "snapshots" and target.parent == here.parent.parent / "blobs":
        return True
    return target.is_relative_to(here)
