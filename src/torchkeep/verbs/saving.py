"""`save`: anything that training holds, as one durable checkpoint."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from torchkeep.errors import CheckpointError, CorruptError, FormatError, NotFoundError
from torchkeep.folder.commit import read_record, recover, refuse_foreign
from torchkeep.folder.parallel import default_threads
from torchkeep.folder.record import Node, Record
from torchkeep.folder.single_file import save_file
from torchkeep.folder.values import encode
from torchkeep.folder.write import Draft, Saved, save_folder

_TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".tar")


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
        io_threads: Threads that hash and write; by default one per processor, at most 8.

    Returns:
        Where it is, the bytes written and linked, and notes (for example on files that could not be linked).

    Raises:
        FormatError: A value has no encoding (all of them are listed), or the path ends like a torch file.
        ConflictError: Something that torchkeep did not write, or a save that began later, is at the path.
        CheckpointError: The operating system refused. In every case what was at the path is as before.

    Example:
        >>> import tempfile, torch, torchkeep as tk
        >>> model = torch.nn.Linear(2, 1)
        >>> saved = tk.save({"model": model, "epoch": 12}, tempfile.mkdtemp() + "/ckpt")
        >>> tk.load(saved.path)["epoch"]
        12
    """
    target = _target(path)
    draft = draft_of(saved, step=step, metrics=metrics)
    threads = io_threads or default_threads()
    if target.suffix == ".safetensors":
        return save_file(target, draft, threads)
    parent = None
    if os.path.lexists(target):
        refuse_foreign(target)
        parent = readable_record(target)
    if target.parent.is_dir():
        recover(target.parent)
    return save_folder(target, draft, target, parent, threads)


def _target(path: str | os.PathLike[str]) -> Path:
    target = Path(os.path.realpath(path))
    if target.suffix in _TORCH_SUFFIXES:
        raise FormatError(
            f"a name that ends in {target.suffix} promises a torch file, and torchkeep writes no pickle",
            where=path,
            remedy="save to a folder or a .safetensors file; torch.save(tk.load(path), file) makes a torch file of it",
        )
    return target


def readable_record(folder: Path) -> Record | None:
    """The record of a checkpoint whose shards could be linked; None where there is none to rely on."""
    try:
        return read_record(folder)
    except (NotFoundError, CorruptError, FormatError):
        return None


def draft_of(
    saved: object,
    *,
    step: int | None = None,
    metrics: Mapping[str, float] | None = None,
    rng: Mapping[str, object] | None = None,
) -> Draft:
    """Everything about a save but where it goes; tensors are referenced, not read."""
    from torchkeep.live.capture import capture

    if step is not None and (type(step) is not int or step < 0):
        raise CheckpointError(f"step is {step!r}: an integer of 0 or more is wanted")
    captured = capture(saved)
    return Draft(
        entries=captured.entries,
        groups=captured.groups,
        whole=captured.whole,
        step=step,
        metrics=None if metrics is None else _metrics_node(metrics),
        rng=None if rng is None else encode(rng, _no_leaf),
        provenance=_provenance(),
    )


def _metrics_node(metrics: Mapping[str, float]) -> Node:
    numbers = {}
    for name, value in metrics.items():
        try:
            numbers[str(name)] = float(value)
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"metric {name!r} is {type(value).__name__}: a number is wanted", remedy="pass float(value)"
            ) from error
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
        "git_commit": _git_commit(os.getcwd()),
    }


@functools.cache
def _git_commit(folder: str) -> str | None:
    """The commit that is checked out where the program runs, asked for once."""
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "rev-parse", "HEAD"]
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command
            command, cwd=folder, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
