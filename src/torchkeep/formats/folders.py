"""Which kind of checkpoint a folder is, by what is in it."""

from __future__ import annotations

import re
from pathlib import Path

from torchkeep.errors import CorruptError, FormatError
from torchkeep.formats.dcp_folder import METADATA_NAME, DistributedFolder
from torchkeep.formats.deepspeed_folder import LATEST_NAME, is_model_states, open_latest, open_model_states
from torchkeep.formats.hf_index import SINGLE, open_weights
from torchkeep.formats.training_folder import OpenFile, TrainingFolder, side_files
from torchkeep.tensors import Source

_CHECKPOINT_SUFFIXES = (".safetensors", ".safetensors.index.json", ".pt", ".pth", ".ckpt", ".bin", ".pkl", ".tar")
_MAX_LOOKED_AT = 1_000
_RANK_METADATA = re.compile(r"__\d+\.metadata")


def open_folder(folder: Path, open_file: OpenFile) -> Source:
    """Open the checkpoint in a folder.

    Raises:
        FormatError: There is none that is known, or more than one and none of the usual name.
        CorruptError, UnsafeError, LimitError: As the format that it is of.
    """
    names = {entry.name for entry in folder.iterdir()}
    shards = sorted(name for name in names if name.endswith(".distcp"))
    if METADATA_NAME in names and (shards or not _has_weights(names)):
        return DistributedFolder(folder)
    if any(is_model_states(name) for name in names):
        return open_model_states(folder, names, open_file)
    weights = open_weights(folder, names, open_file)
    if weights is not None:
        sides = side_files(names)
        return TrainingFolder(folder, weights, sides, open_file) if sides else weights
    if LATEST_NAME in names:
        return open_latest(folder, open_file)
    if shards:
        raise _without_metadata(folder, names)
    files = sorted(name for name in names if name.endswith(_CHECKPOINT_SUFFIXES))
    inside = [name for name in sorted(names)[:_MAX_LOOKED_AT] if (folder / name / METADATA_NAME).is_file()]
    known = ("checkpoint.json", METADATA_NAME, "*.safetensors.index.json", "one *.safetensors", *SINGLE)
    raise FormatError(
        "the folder holds no checkpoint that is known, or several",
        where=folder,
        faults=[f"looked for {name}" for name in (*known, "mp_rank_00_model_states.pt", LATEST_NAME)],
        remedy=f"name one that is in it: {', '.join((files + inside)[:5])}" if files + inside else "name a checkpoint",
    )


def _has_weights(names: set[str]) -> bool:
    return any(name.endswith((".safetensors", ".index.json")) or name in SINGLE for name in names)


def _without_metadata(folder: Path, names: set[str]) -> CorruptError | FormatError:
    if any(_RANK_METADATA.fullmatch(name) for name in names):
        return FormatError(
            "each rank saved for itself, without the metadata of all",
            where=folder,
            remedy="save it again with use_collectives=True",
        )
    return CorruptError(
        f"what is left of a distributed checkpoint: its {METADATA_NAME} is absent",
        where=folder,
        remedy="the save did not end, or the copy left out hidden files: copy it again, or use another checkpoint",
    )
