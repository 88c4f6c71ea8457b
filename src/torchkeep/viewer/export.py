"""A page that stands alone: one file with everything it shows, to send to a colleague."""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torchkeep.errors import CheckpointError, ConflictError, NotFoundError, typed
from torchkeep.folder.parallel import default_threads, in_parallel
from torchkeep.viewer.answers import Line, answer, fault_of, key_of
from torchkeep.viewer.page import render
from torchkeep.viewer.subject import FILE, Subject

_BEGIN = b"<!doctype html"


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        path: The file.
        nbytes: Its size.
        at: The id of the checkpoint whose tensors it holds.
        compared_with: The id of the one it is compared with, or None.
    """

    path: Path
    nbytes: int
    at: str
    compared_with: str | None


def export_page(
    subject: Subject,
    path: str | os.PathLike[str],
    *,
    compare: tuple[str, str] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Exported:
    """Write the page as one file: the run, the tensors of one checkpoint with all histograms, one comparison, one plan.

    Args:
        subject: What is shown.
        path: The ``.html`` file; a page that is there is replaced in one step, anything else is not.
        compare: Ids of the checkpoint compared with and of the one shown. Without it the newest is shown, and compared
            with the first file beside the run, else with the run's first checkpoint.
        progress: Told how many tensors of all are done.

    Raises:
        NotFoundError: There is no checkpoint to show, or no folder to write into.
        ConflictError: Something else than a page is at `path`.
        CheckpointError: A checkpoint cannot be read, or the file not be written.
    """
    target = Path(path)
    _refuse_other(target)
    before, at = compare or _newest_pair(subject)
    page = render(_answers(subject, before, at, progress)).encode()
    _replace(target, page)
    return Exported(target, len(page), at, before)


def _newest_pair(subject: Subject) -> tuple[str | None, str]:
    listed = subject.listing()
    ids = [FILE] if listed is None else [each.path.name for each in listed]
    if not ids:
        raise NotFoundError("no committed checkpoint in this run", where=subject.path)
    others = [*subject.beside, *ids[:-1]]
    return (others[0] if others else None), ids[-1]


def _answers(
    subject: Subject, before: str | None, at: str, progress: Callable[[int, int], object] | None
) -> dict[str, Sequence[Line]]:
    """Every answer that the page will ask for. What one of them cannot say, the page will show in its place."""
    with subject.opened(at) as held:
        count = len(held.tensors)
    beside = {} if before is None else {"beside": before}
    done = itertools.count(1)
    found: dict[str, Sequence[Line]] = {}

    def ask(question: str, asked: Mapping[str, str]) -> None:
        try:
            found[key_of(question, asked)] = list(answer(subject, question, asked))
        except CheckpointError as error:  # a tensor is damaged, two entries tie
            found[key_of(question, asked)] = [{"fault": fault_of(error)}]

    def measure(position: int) -> None:
        ask("tensor", {"of": at, "at": str(position), **beside})
        if progress is not None:
            progress(next(done), count)

    ask("subject", {})
    ask("checkpoint", {"of": at})
    in_parallel(measure, range(count), default_threads())
    if before is not None:
        ask("movement", {"from": before, "to": at})
        ask("plan", {"from": at, "into": before})
        ask("plan", {"from": at, "into": before, "rules": "suggested"})
    return found


def _refuse_other(target: Path) -> None:
    """Refuse a path at which something is that is no page: a slip of the hand must not cost a checkpoint."""
    if not target.parent.is_dir():
        raise NotFoundError("there is no such folder", where=target.parent, remedy="make it first")
    if not os.path.lexists(target):
        return
    if not target.is_file():
        raise ConflictError("not a file; it was left as it is", where=target, remedy="name another file")
    with typed("cannot be read", target), target.open("rb") as file:
        begin = file.read(len(_BEGIN))
    if begin and begin.lower() != _BEGIN:
        raise ConflictError("not a page; it was left as it is", where=target, remedy="name another file")


def _replace(target: Path, content: bytes) -> None:
    staged = target.with_name(f".{target.name}-{secrets.token_hex(8)}")
    with typed("the page was not written", target):
        try:
            with staged.open("xb") as file:
                file.write(content)
            staged.replace(target)
        finally:
            staged.unlink(missing_ok=True)
