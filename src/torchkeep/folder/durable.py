"""Flushing to the disk: an error is final, since a second try can report success for bytes that are lost."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def fsync_path(path: Path) -> None:
    """Flush a file or folder to the disk; an error is final, since a second try can report success for lost bytes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Write a small new file and fsync it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_parents(folder: Path) -> None:
    """Make a folder and those above it, each durable in the one that holds it."""
    absent = []
    while not folder.is_dir():
        absent.append(folder)
        if folder.parent == folder:
            break
        folder = folder.parent
    for made in reversed(absent):
        with suppress(FileExistsError):
            made.mkdir()
        fsync_path(made.parent)
