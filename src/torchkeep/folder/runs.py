"""What lies in a run folder: its committed checkpoints by step, and what looks like one and is not."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torchkeep.errors import CheckpointError, CorruptError, FormatError, NotFoundError
from torchkeep.folder.committed import read_record
from torchkeep.folder.record import FILE_NAME, RECORD_NAME, Record
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


def metrics_of(record: Record) -> dict[str, float]:
    """The metrics of a record; empty when it has none."""
    metrics = {} if record.metrics is None else decode_plain(record.metrics)
    return metrics if isinstance(metrics, dict) else {}


@dataclass(frozen=True, slots=True)
class Run:
    """The checkpoints of a run in order of their step, and the folders passed over, each with its error."""

    folder: Path
    checkpoints: tuple[Committed, ...]
    passed_over: tuple[tuple[Path, CheckpointError], ...]


def read_run(folder: Path) -> Run:
    """List the committed checkpoints of a run folder; the digests of their tensors are not checked here.

    Raises:
        NotFoundError: There is no such folder.
        FormatError: It is a checkpoint, not a run folder.
    """
    if os.path.lexists(folder / RECORD_NAME):
        whose = f", and its run folder is {folder.parent}" if is_step_name(folder.name) else ""
        raise FormatError(f"a checkpoint, not a run folder{whose}", where=folder, remedy="name a folder of checkpoints")
    if not folder.is_dir():
        raise NotFoundError("there is no run folder here", where=folder, remedy="check the path")
    found, passed_over = [], []
    for step, path in sorted(_step_folders(folder)):
        try:
            record = read_record(path)
            if record.step != step:
                raise CorruptError(
                    f"its record is of step {record.step}: a folder was renamed or copied in", where=path
                )
        except (CorruptError, FormatError, NotFoundError) as error:
            passed_over.append((path, error))
            continue
        found.append(Committed(path, step, record))
    return Run(folder, tuple(found), tuple(passed_over))


def _step_folders(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.iterdir():
        match = _STEP_NAME.fullmatch(path.name)
        if match and step_name(int(match[1])) == path.name and path.is_dir() and _is_ours(path):
            yield int(match[1]), path


def _is_ours(folder: Path) -> bool:
    """Whether torchkeep made a folder: it has a record, or files that are named as shards are."""
    return any(name == RECORD_NAME or FILE_NAME.fullmatch(name) for name in os.listdir(folder))
