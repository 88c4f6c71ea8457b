"""New files and folders of any format: staged beside their place, flushed, named in one step; nothing is replaced."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchkeep.errors import ConflictError, FormatError
from torchkeep.folder.durable import fsync_path, make_parents
from torchkeep.folder.refusals import refuse_inside_checkpoint
from torchkeep.folder.renames import NOREPLACE, rename
from torchkeep.folder.staging import StagingFolder
from torchkeep.folder.write import not_saved

ONE_FILE = ".safetensors"
_LIKENESS_OF_SLIPS = 0.8


@contextmanager
def new_file(target: Path) -> Iterator[int]:
    """Open a file to be filled; it is flushed and gets its name when the block ends without an error.

    Raises:
        ConflictError: Something is at the path, or came while the file was written; it is as before.
        CheckpointError: The operating system refused; nothing is left behind.
    """
    with _staged(target, as_file=True) as staging:
        yield staging.descriptor
        os.fsync(staging.descriptor)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Make a folder to be filled; it is flushed and gets its name when the block ends without an error.

    Raises:
        ConflictError, CheckpointError: As for `new_file`.
    """
    with _staged(target, as_file=False) as staging:
        yield staging.path
        for folder, _, names in os.walk(staging.path):
            for name in names:
                fsync_path(Path(folder, name))
            fsync_path(Path(folder))


def refuse_taken(target: Path) -> None:
    """Refuse a path at which something is, or that lies in a torchkeep checkpoint or below a file.

    Raises:
        ConflictError: So it is.
    """
    if os.path.lexists(target):
        raise ConflictError("something is there already", where=target, remedy="choose another name, or remove it")
    refuse_file_above(target)
    refuse_inside_checkpoint(target)


def refuse_slip(target: Path) -> None:
    """Refuse a name that would be a folder's, and of which one slip made it no safetensors file's.

    Raises:
        FormatError: So it is.
    """
    from difflib import SequenceMatcher

    written = target.suffix
    likeness = SequenceMatcher(None, ONE_FILE, written.lower(), autojunk=False).ratio()
    if written != ONE_FILE and likeness >= _LIKENESS_OF_SLIPS:
        raise FormatError(
            f"the name ends in {written}, which is nearly {ONE_FILE}",
            where=target,
            remedy=f"end it in {ONE_FILE} for one file; to make a folder, choose a name that is not so near",
        )


def refuse_file_above(target: Path) -> None:
    """Refuse a path that leads through what is no folder; what the system does not tell, the save itself will say.

    Raises:
        ConflictError: It names that.
    """
    for above in target.absolute().parents:
        try:
            is_folder = stat.S_ISDIR(above.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            return
        if not is_folder:
            raise ConflictError(
                "a file is in the way: what is to be saved would be in a folder of its name",
                where=above,
                remedy="choose another path, or move it away",
            )
        return


@contextmanager
def _staged(target: Path, *, as_file: bool) -> Iterator[StagingFolder]:
    refuse_taken(target)
    with not_saved(target):
        make_parents(target.parent)
        staging = StagingFolder(target.parent, as_file=as_file)
        try:
            yield staging
            if not rename(staging.path, target, NOREPLACE):
                refuse_taken(target)
            fsync_path(target.parent)
        finally:
            staging.discard()
