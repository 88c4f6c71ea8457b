"""DeepSpeed's folders: the model states of ZeRO stages 1 and 2, which one file holds whole."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from torchkeep.errors import CorruptError, FormatError
from torchkeep.formats.folder_members import is_plain_name
from torchkeep.formats.regular_file import RegularFile
from torchkeep.formats.training_folder import OpenFile
from torchkeep.tensors import Source

LATEST_NAME = "latest"
_MODEL_STATES = re.compile(r"mp_rank_\d+_model_states\.pt")
_PARTITIONED = re.compile(r"zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt")
_LAYER_STATES = re.compile(r"layer_\d+-model_\d+-model_states\.pt")
_MAX_LATEST_BYTES = 1_000


def is_model_states(name: str) -> bool:
    """Whether a file holds model states, or a partition of them, by DeepSpeed's names."""
    return any(kind.fullmatch(name) for kind in (_MODEL_STATES, _PARTITIONED, _LAYER_STATES))


def open_model_states(folder: Path, names: Collection[str], open_file: OpenFile) -> Source:
    """Open the one file that holds the whole model; the optimizer's partitions beside it are not read.

    Raises:
        FormatError: The model is cut over several files: by ZeRO stage 3, tensor or pipeline parallelism.
    """
    cut_by = {
        "partitions of ZeRO stage 3": [name for name in names if _PARTITIONED.fullmatch(name)],
        "stages of pipeline parallelism": [name for name in names if _LAYER_STATES.fullmatch(name)],
        "shards of tensor parallelism": [name for name in names if _MODEL_STATES.fullmatch(name)],
    }
    for kind, files in cut_by.items():
        if kind.startswith("shards") and len(files) == 1:
            return open_file(RegularFile(folder / files[0]))
        if files:
            raise FormatError(
                f"{len(files):,} {kind} are not merged",
                where=folder,
                faults=sorted(files)[:5],
                remedy="merge them with DeepSpeed's zero_to_fp32.py or ds_to_universal.py, and open the result",
            )
    raise FormatError("the folder holds no model states", where=folder, remedy="name a checkpoint")


def open_latest(folder: Path, open_file: OpenFile) -> Source:
    """Open the checkpoint that the ``latest`` file of a folder names.

    Raises:
        CorruptError: It does not name a folder beside it that holds model states.
        FormatError: As for `open_model_states`.
    """
    file = RegularFile(folder / LATEST_NAME)
    try:
        tag = file.read(0, min(file.size, _MAX_LATEST_BYTES)).decode("utf-8", "replace").strip()
    finally:
        file.close()
    target = folder / tag
    fault = _why_no_tag(folder, tag)
    names = {entry.name for entry in target.iterdir()} if fault is None else set()
    if fault is None and not any(is_model_states(name) for name in names):
        fault = "it holds no mp_rank_00_model_states.pt"
    if fault is not None:
        raise CorruptError(
            "its file latest does not lead to a checkpoint of DeepSpeed",
            where=folder,
            faults=[f"{tag[:80]!r}: {fault}"],
            remedy="name the checkpoint itself",
        )
    return open_model_states(target, names, open_file)


def _why_no_tag(folder: Path, tag: str) -> str | None:
    if not is_plain_name(tag):
        return "not the name of a folder beside it"
    try:
        inside = (folder / tag).resolve().is_relative_to(folder.resolve())
        is_folder = (folder / tag).is_dir()
    except (OSError, ValueError, RuntimeError):
        return "not there"
    if not is_folder:
        return "not a folder"
    return None if inside else "a link that leads out of the folder"
