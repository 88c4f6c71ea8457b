"""torch.export of a live module, run once beside it, and its archive with a record inside."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from torchkeep.errors import FormatError, PlanError
from torchkeep.live.fingerprint import differences, outputs_of, tensors_given_by
from torchkeep.live.modules import class_path

RECORD_MEMBER = "torchkeep.json"


def exported(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic_shapes: object
) -> torch.export.ExportedProgram:
    """The program of a module in evaluation mode; its flags are put back.

    Raises:
        FormatError: torch cannot export the module.
        PlanError: The program gives other outputs than the module.
    """
    flags = {module: module.training for module in model.modules()}
    try:
        model.eval()
        program = torch.export.export(model, args, dict(kwargs), dynamic_shapes=dynamic_shapes)  # type: ignore[arg-type]
    except Exception as error:
        raise FormatError(
            f"torch.export cannot export {class_path(model)}",
            faults=[f"{type(error).__name__}: {line}" for line in str(error).splitlines()[:5]],
            remedy="make its forward free of what depends on values; save_whole(model, path) keeps it as it is",
        ) from error
    finally:
        for module, training in flags.items():
            module.training = training
    faults = differences(outputs_of(model, args, kwargs), tensors_given_by(program.module(), args, kwargs), None)
    if faults:
        remedy = "what it computes depends on more than its inputs; nothing was written"
        raise PlanError("the exported program gives other outputs than the model", faults=faults, remedy=remedy)
    return program


def write_archive(program: torch.export.ExportedProgram, file: IO[bytes], record: str) -> None:
    """Write torch's ``.pt2`` archive, with our record among its extra files."""
    torch.export.save(program, file, extra_files={RECORD_MEMBER: record})


def record_in(path: Path) -> bytes | None:
    """Our record in an archive; None in one that torchkeep did not write, and in what is no archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(f"/extra/{RECORD_MEMBER}")]
            return archive.read(names[0]) if len(names) == 1 else None
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError):
        return None
