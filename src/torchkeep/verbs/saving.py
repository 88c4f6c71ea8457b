"""`save`: anything that training holds, as one durable checkpoint."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torchkeep.errors import CorruptError, FormatError, NotFoundError
from torchkeep.folder.committed import read_record
from torchkeep.folder.draft import Draft
from torchkeep.folder.parallel import writing_threads
from torchkeep.folder.record import Node, Record
from torchkeep.folder.recovery import recover
from torchkeep.folder.refusals import refuse_foreign, refuse_inside_checkpoint
from torchkeep.folder.single_file import save_file
from torchkeep.folder.values import encode
from torchkeep.folder.write import Saved, not_saved, save_folder
from torchkeep.verbs.arguments import path_of, threads_of, whole_step
from torchkeep.verbs.new_files import ONE_FILE, refuse_file_above, refuse_slip

if TYPE_CHECKING:
    from torchkeep.live.capture import Captured

# What these names promise is not what torchkeep writes.
_OTHERS = {
    "a torch file": (".pt", ".pth", ".pth.tar", ".ckpt", ".bin"),
    "a pickle": (".pkl", ".pickle"),
    "another tool's file": (".npz", ".npy", ".h5", ".hdf5", ".onnx", ".gguf", ".zip", ".tar"),
}


def save(
    saved: object,
    path: str | os.PathLike[str],
    *,
    step: int | None = None,
    metrics: Mapping[str, float] | None = None,
    io_threads: int | None = None,
) -> Saved:
    """Save a model, a state dict, or a mapping of whatever training holds, durably; as ``torch.save(obj, path)``.

    Args:
        saved: A module (its state dict is kept), an optimizer, anything with ``state_dict``, tensors, plain values, or
            a mapping of these. An optimizer's state is kept by parameter name when its module is in the same mapping.
        path: A folder to make, with those above it; or a name that ends in ``.safetensors`` for one file. A torchkeep
            checkpoint that is there is replaced in one step, and what did not change since is linked, not written.
        step: The step last finished, 0 or more.
        metrics: Numbers to remember with it.
        io_threads: Threads that hash and write; by default four per processor, at most 8. 1 is the calling one.

    Returns:
        Where it is, the bytes written and linked, and notes (for example on files that could not be linked).

    Raises:
        FormatError: A value has no encoding (all of them are listed), or the path ends like a torch file.
        ConflictError: Something that torchkeep did not write, or a save that began later, is at the path; or a file
            is where it asks for a folder.
        CheckpointError: The operating system refused. In every case what was at the path is as before.

    Example:
        >>> import tempfile, torch, torchkeep as tk
        >>> model = torch.nn.Linear(2, 1)
        >>> saved = tk.save({"model": model, "epoch": 12}, tempfile.mkdtemp() + "/ckpt")
        >>> tk.load(saved.path)["epoch"]
        12
    """
    target = target_of(path)
    return write_draft(target, draft_of(saved, step=step, metrics=metrics), io_threads)


def write_draft(target: Path, draft: Draft, io_threads: int | None) -> Saved:
    """Save a draft where `target_of` said, durably; see `save` for what is raised."""
    threads = threads_of(io_threads, writing_threads)
    with not_saved(target):
        if target.suffix == ONE_FILE:
            return save_file(target, draft, threads)
        parent = None
        if os.path.lexists(target) and not _is_empty_folder(target):
            refuse_foreign(target)
            parent = readable_record(target)
        refuse_inside_checkpoint(target)
        if target.parent.is_dir():
            recover(target.parent)
        return save_folder(target, draft, target, parent, threads)


def target_of(path: str | os.PathLike[str]) -> Path:
    """The absolute path of a save; a TypeError, ValueError or FormatError for one that cannot be meant."""
    swapped = f"save(what, path): the path is {type(path).__name__}; are the two arguments swapped?"
    target = path_of(path, "a checkpoint", swapped)
    refuse_file_above(target)
    promises = next((what for what, ends in _OTHERS.items() if target.name.lower().endswith(ends)), None)
    if promises is not None:
        raise FormatError(
            f"the name promises {promises}, and torchkeep writes folders and .safetensors files",
            where=path,
            remedy="save to a folder or a .safetensors file; convert(path, file) makes a torch file of it",
        )
    refuse_slip(target)
    return target


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not os.listdir(path)


def readable_record(folder: Path) -> Record | None:
    """The record of a checkpoint whose shards could be linked; None where there is none to rely on."""
    try:
        return read_record(folder)
    except (NotFoundError, CorruptError, FormatError):
        return None


def draft_of(saved: object, *, step: int | None = None, metrics: Mapping[str, float] | None = None) -> Draft:
    """Everything about a save but where it goes; tensors are referenced, not read."""
    from torchkeep.live.capture import capture

    return draft_of_captured(capture(saved), step, metrics)


def draft_of_run(
    captured: Captured,
    *,
    step: int,
    metrics: Mapping[str, float] | None,
    rng: Mapping[str, object],
    provenance: Mapping[str, object],
) -> Draft:
    """Like `draft_of`, of what a run captured, with the random states and more provenance."""
    draft = draft_of_captured(captured, step, metrics, rng)
    return replace(draft, provenance={**draft.provenance, **provenance})


def draft_of_captured(
    captured: Captured,
    step: int | None,
    metrics: Mapping[str, float] | None,
    rng: Mapping[str, object] | None = None,
) -> Draft:
    """What was captured, with everything else that a record says."""
    return Draft(
        entries=captured.entries,
        groups=captured.groups,
        whole=captured.whole,
        step=None if step is None else whole_step(step),
        metrics=None if metrics is None else _metrics_node(metrics),
        rng=None if rng is None else encode(rng, _no_leaf),
        provenance=_provenance(),
    )


def _metrics_node(metrics: Mapping[str, float]) -> Node:
    if not isinstance(metrics, Mapping):
        raise TypeError(f'metrics is {type(metrics).__name__}: a mapping is wanted, as {{"loss": 0.3}}')
    numbers = {}
    for name, value in metrics.items():
        try:
            # A tensor's item() is its value; float() of one that requires a gradient warns.
            numbers[str(name)] = float(value.item() if hasattr(value, "item") else value)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise TypeError(f"metric {name!r} is {type(value).__name__}: one number is wanted") from error
    return encode(numbers, _no_leaf)


def _no_leaf(_path: object, _value: object) -> None:
    return None


def _provenance() -> dict[str, object]:
    import torch

    from torchkeep import __version__

    return {
        "torchkeep": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "git_commit": _git_commit(),
    }


@functools.cache
def _git_commit() -> str | None:
    """The commit that is checked out where the program runs, asked for once."""
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "rev-parse", "HEAD"]
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command
            command, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
