"""What lies in a run folder: its committed checkpoints by step, and what looks like one and is not."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torchkeep.errors import CheckpointError, CorruptError, FormatError, NotFoundError, typed
from torchkeep.folder.committed import read_record, read_summary
from torchkeep.folder.record import FILE_NAME, RECORD_NAME, Record, Summary
from torchkeep.folder.values import decode_plain

STEP_LIMIT = 10**18
DAMAGED = ".damaged-"  # set aside by a resume
_Either = TypeVar("_Either", Record, Summary)
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
class Run:
    """The checkpoints of a run in order of their step, and the folders passed over, each with its error."""

    folder: Path
    checkpoints: tuple[Committed, ...]
    passed_over: tuple[tuple[Path, CheckpointError], ...]


@dataclass(frozen=True, slots=True)
class Listed:
    """One committed checkpoint of a run, of whose record only the summary was read."""

    path: Path
    summary: Summary


@dataclass(frozen=True, slots=True)
class Listing:
    """As `Run`, for looking at a run whose records are too many to hold."""

    folder: Path
    checkpoints: tuple[Listed, ...]
    passed_over: tuple[tuple[Path, CheckpointError], ...]


def read_run(folder: Path) -> Run:
    """List the committed checkpoints of a run folder; the digests of their tensors are not checked here.

    Raises:
        NotFoundError: There is no such folder.
        FormatError: It is a checkpoint or a file, not a run folder.
    """
    with typed("cannot be read", folder):
        found, passed_over = _read(folder, read_record)
    return Run(folder, tuple(Committed(path, step, record) for step, path, record in found), passed_over)


def list_run(folder: Path) -> Listing:
    """`read_run` with summaries: a thousand checkpoints of ten thousand tensors take seconds, not minutes."""
    with typed("cannot be read", folder):
        found, passed_over = _read(folder, read_summary)
    return Listing(folder, tuple(Listed(path, summary) for _, path, summary in found), passed_over)


def _read(
    folder: Path, read: Callable[[Path], _Either]
) -> tuple[list[tuple[int, Path, _Either]], tuple[tuple[Path, CheckpointError], ...]]:
    if os.path.lexists(folder / RECORD_NAME):
        whose = f", and its run folder is {folder.parent}" if is_step_name(folder.name) else ""
        raise FormatError(f"a checkpoint, not a run folder{whose}", where=folder, remedy="name a folder of checkpoints")
    refuse_no_folder(folder)
    found: list[tuple[int, Path, _Either]] = []
    passed_over: list[tuple[Path, CheckpointError]] = []
    for step, path in sorted(_step_folders(folder)):
        try:
            record = read(path)
            if record.step != step:
                raise CorruptError(
                    f"its record is of step {record.step}: a folder was renamed or copied in", where=path
                )
        except (CorruptError, FormatError, NotFoundError) as error:
            passed_over.append((path, error))
            continue
        found.append((step, path, record))
    return found, tuple(passed_over)


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
