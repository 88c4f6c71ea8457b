"""`export`: a model as torch.export's `.pt2`, for use without its class."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torchkeep.errors import CorruptError, FormatError
from torchkeep.folder.commit import publish_file
from torchkeep.folder.committed import Identity
from torchkeep.folder.durable import make_parents
from torchkeep.folder.parallel import default_threads
from torchkeep.folder.record import decode_record, encode_record
from torchkeep.folder.single_file import place, record_of
from torchkeep.folder.staging import StagingFolder
from torchkeep.folder.write import Saved, not_saved
from torchkeep.verbs.saving import draft_of_captured

if TYPE_CHECKING:
    from torch import nn

    from torchkeep.live.capture import Captured


def export(
    model: nn.Module,
    example_inputs: object,
    path: str | os.PathLike[str],
    *,
    dynamic_shapes: object = None,
    step: int | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Saved:
    """Export a model in evaluation mode to a ``.pt2`` file that runs without its class, durably.

    ``torch.export.load(path).module()`` gives the program. Among the archive's extra files is the record that
    `save_whole` writes, with a digest of every tensor. The program is run once and gives what the model gives.

    Args:
        model: The module.
        example_inputs: What to call it with, as for `save_whole`; shapes are fixed unless `dynamic_shapes` frees them.
        path: A name that ends in ``.pt2``. A file that `export` wrote is replaced in one step.
        dynamic_shapes: As for ``torch.export.export``, for example ``({0: torch.export.Dim("batch")},)``.
        step: As for `save`.
        metrics: As for `save`.

    Returns:
        As `save`.

    Raises:
        FormatError: torch cannot export the model, or the path ends otherwise.
        PlanError: The program gives other outputs than the model.
        ConflictError, CheckpointError: As for `save`. In every case what was at the path is as before.

    Example:
        >>> import tempfile, torch, torchkeep as tk
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
        >>> saved = tk.export(model, torch.ones(1, 2), tempfile.mkdtemp() + "/model.pt2")
        >>> torch.export.load(saved.path).module()(torch.ones(1, 2)).shape
        torch.Size([1, 3])
    """
    from torchkeep.live.exporting import exported, write_archive
    from torchkeep.live.fingerprint import as_call
    from torchkeep.live.modules import unwrap

    target = Path(os.path.realpath(Path(path).expanduser()))
    if target.suffix != ".pt2":
        raise FormatError("an exported program is a .pt2 file", where=path, remedy=f"name it {target.stem}.pt2")
    inner = unwrap(model)
    args, kwargs = as_call(example_inputs)
    draft = draft_of_captured(_captured(inner), step, metrics)
    program = exported(inner, args, kwargs, dynamic_shapes)
    with not_saved(target):
        there = _identify(target) if target.is_file() else None
        make_parents(target.parent)
        staging = StagingFolder(target.parent, as_file=True)
        try:
            named = {(group, name): tensor for group, of in draft.groups.items() for name, tensor in of.items()}
            placed = place({"/".join(key): tensor for key, tensor in named.items()}, default_threads())
            record = record_of(draft, {key: placed["/".join(key)] for key in named}, staging.id)
            with os.fdopen(os.dup(staging.descriptor), "wb") as file:
                write_archive(program, file, encode_record(record).decode("ascii"))
            os.fsync(staging.descriptor)
            size = os.fstat(staging.descriptor).st_size
            identity = Identity(record.id, record.saved_at_ns)
            publish_file(staging.path, target, identity, None if there is None else there.id, _identify)
        finally:
            staging.discard()
    return Saved(target, record, size, 0)


def _captured(model: nn.Module) -> Captured:
    from torchkeep.live.capture import capture
    from torchkeep.live.describe import capture_whole

    try:
        return capture_whole(model, None, include_source=False)[0]
    except FormatError:  # What has no description can be exported all the same.
        return capture(model)


def _identify(path: Path) -> Identity | None:
    from torchkeep.live.exporting import record_in

    data = record_in(path)
    if data is None:
        return None
    try:
        record = decode_record(data, str(path))
    except CorruptError:
        return Identity("", 0)
    return Identity(record.id, record.saved_at_ns)
