"""What lies in a run folder: its committed checkpoints by step, and what looks like one and is not."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torchkeep.errors import CheckpointError, CorruptError, FormatError, NotFoundError, typed
from torchkeep.folder.committed import read_summary
from torchkeep.folder.record import FILE_NAME, RECORD_NAME, Record, Summary
from torchkeep.folder.values import decode_plain

STEP_LIMIT = 10**18
DAMAGED = ".damaged-"  # set aside by a resume
_STEP_NAME = re.compile(r"step-(\d{8,18})")


def step_name(step: int) -> str:
    """The folder name of a step.

    Example:
        >>> step_name(1200)
        'step-00001200'
    """
    return f"step-{step:08d}"


def is_step_name(name: str) -> bool:
    """Whether a folder's name is that of a step."""
    return _STEP_NAME.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class Committed:
    """One committed checkpoint of a run."""

    path: Path
    step: int
    record: Record


def metrics_of(record: Record | Summary) -> dict[str, float]:
    """The metrics of a record; empty when it has none."""
    metrics = {} if record.metrics is None else decode_plain(record.metrics)
    return metrics if isinstance(metrics, dict) else {}


@dataclass(frozen=True, slots=True)
class Listed:
    """One committed checkpoint of a run, of whose record only the summary was read."""

    path: Path
    summary: Summary


@dataclass(frozen=True, slots=True)
class Listing:
    """The checkpoints of a run in order of their step, and the folders passed over, each with its error."""

    folder: Path
    checkpoints: tuple[Listed, ...]
    passed_over: tuple[tuple[Path, CheckpointError], ...]


def list_run(folder: Path) -> Listing:
    """List the committed checkpoints of a run folder by their summaries; digests of tensors are not checked here.

    A thousand checkpoints of ten thousand tensors take seconds; their whole records would take minutes.

    Raises:
        NotFoundError: There is no such folder.
        FormatError: It is a checkpoint or a file, not a run folder.
    """
    with typed("cannot be read", folder):
        return _list(folder)


def _list(folder: Path) -> Listing:
    if os.path.lexists(folder / RECORD_NAME):
        whose = f", and its run folder is {folder.parent}" if is_step_name(folder.name) else ""
        raise FormatError(f"a checkpoint, not a run folder{whose}", where=folder, remedy="name a folder of checkpoints")
    refuse_no_folder(folder)
    found: list[Listed] = []
    passed_over: list[tuple[Path, CheckpointError]] = []
    for step, path in sorted(_step_folders(folder)):
        try:
            summary = read_summary(path)
            if summary.step != step:
                raise CorruptError(
                    f"its record is of step {summary.step}: a folder was renamed or copied in", where=path
                )
        except (CorruptError, FormatError, NotFoundError) as error:
            passed_over.append((path, error))
            continue
        found.append(Listed(path, summary))
    return Listing(folder, tuple(found), tuple(passed_over))


def refuse_no_folder(folder: Path) -> None:
    """Refuse what can be no run.

    Raises:
        NotFoundError: Nothing is there.
        FormatError: A file is.
    """
    if folder.is_dir():
        return
    if os.path.lexists(folder):
        raise FormatError(
            "a file, not a run folder", where=folder, remedy=f"to look into a checkpoint: torchkeep show {folder}"
        )
    raise NotFoundError("there is no run folder here", where=folder, remedy="check the path")


def _step_folders(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.iterdir():
        match = _STEP_NAME.fullmatch(path.name)
        if match and step_name(int(match[1])) == path.name and path.is_dir() and _is_ours(path):
            yield int(match[1]), path


def _is_ours(folder: Path) -> bool:
    """Whether torchkeep made a folder: it has a record, or files that are named as shards are."""
    return any(name == RECORD_NAME or FILE_NAME.fullmatch(name) for name in os.listdir(folder))
