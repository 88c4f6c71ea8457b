"""Checkpoints of the Hugging Face Trainer and of Accelerate: weights in a folder with files of everything else."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from torchkeep.errors import CheckpointError, CorruptError, LimitError
from torchkeep.formats.folder_members import why_not_a_member
from torchkeep.formats.regular_file import READ_AGAIN, RegularFile
from torchkeep.formats.storage_views import StorageView
from torchkeep.formats.untangling import untangle
from torchkeep.tensors import Described, Source, TensorSpec, unused_name

_STATE = re.compile(
    r"(optimizer|scheduler|scaler|sampler|dl_state_dict|rng_state|random_states|custom_checkpoint)(_\d+)?"
    r"\.(pt|pth|bin|pkl)"
)
_TRAINER_STATE = "trainer_state.json"
_ARGUMENTS = "training_args.bin"
_MORE_WEIGHTS = re.compile(r"(model|pytorch_model)_\d+\.(safetensors|bin)")
_MAX_JSON_BYTES = 64 << 20
_MAX_SIDE_FILES = 256
UNREADABLE = "torchkeep.unreadable"


class OpenFile(Protocol):
    """Opens one file as what its bytes are; the keys of its tensors say `name`."""

    def __call__(self, file: RegularFile, name: str = "") -> Source:
        """Open it; it is closed with the source, or at once where it cannot be opened."""


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """The key of what stands for a file that could not be opened."""

    name: str


def side_files(names: Collection[str]) -> list[str]:
    """The files of a training checkpoint beside its weights; none where the folder is of a model alone.

    ``training_args.bin`` alone does not make one: a model that was only saved has it too.
    """
    found = sorted(name for name in names if _STATE.fullmatch(name) or name == _TRAINER_STATE)
    if not found:
        return []
    return [*found, *sorted(name for name in names if name == _ARGUMENTS or _MORE_WEIGHTS.fullmatch(name))]


class TrainingFolder:
    """A `Source` with an entry for each file: ``"model"`` for the weights, then ``"optimizer"``, ``"trainer_state"``...

    A file beside the weights that is damaged, unsafe or of no known format does not keep the rest from being opened:
    its entry describes it, the metadata says why under ``"unreadable"``, and reading that entry raises the error.

    Raises:
        CheckpointError: As the weights, when they are opened.
    """

    format = "training-folder"

    def __init__(self, folder: Path, weights: Source, names: Collection[str], open_file: OpenFile) -> None:
        self.path = folder
        self._weights = weights
        self._sides: dict[str, Source] = {}
        self._errors: dict[str, CheckpointError] = {}
        try:
            self.tree: dict[str, object] = {"model": weights.tree}
            for name in names:
                self.tree[unused_name(name.partition(".")[0], self.tree)] = self._entry(name, open_file)
        except BaseException:
            self.close()
            raise
        unreadable = {name: "; ".join((error.what, *error.faults)) for name, error in self._errors.items()}
        self.metadata: Mapping[str, object] = {
            "model": weights.path.name,
            "weights": weights.metadata,
            **({"unreadable": unreadable} if unreadable else {}),
        }

    def read_into(self, spec: TensorSpec, buffer: memoryview) -> None:
        """Read a tensor's bytes from its file, C order, native endian.

        Raises:
            CorruptError: Bytes are absent, short, or differ from the checksum that the file's format has.
            CheckpointError: The file could not be opened; the error that said so, again.
        """
        source, inside = self._in_file(spec)
        source.read_into(inside, buffer)

    def read_range_into(self, spec: TensorSpec, begin: int, buffer: memoryview) -> None:
        """Read a part of a tensor's bytes from its file; see `Source.read_range_into`.

        Raises:
            CorruptError, CheckpointError: As for `read_into`.
        """
        source, inside = self._in_file(spec)
        source.read_range_into(inside, begin, buffer)

    def _in_file(self, spec: TensorSpec) -> tuple[Source, TensorSpec]:
        key = spec.key
        if isinstance(key, _Unreadable):
            raise self._errors[key.name]
        if isinstance(key, StorageView) and key.file in self._sides:
            return self._sides[key.file], spec
        if isinstance(key, tuple) and key[0] in self._sides:
            return self._sides[key[0]], replace(spec, key=key[1])
        return self._weights, spec

    def close(self) -> None:
        """Let go of all files; harmless when called twice."""
        for source in (self._weights, *self._sides.values()):
            source.close()

    def _entry(self, name: str, open_file: OpenFile) -> object:
        try:
            return self._open(name, open_file)
        except CheckpointError as error:
            self._errors[name] = error
            # Without elements, so that nothing is taken for it; reading it raises, and verifying does.
            stand_in = TensorSpec("uint8", (0,), _Unreadable(name))
            return Described(UNREADABLE, (stand_in,), {"file": name, "why": error.what})

    def _open(self, name: str, open_file: OpenFile) -> object:
        path = self.path / name
        fault = why_not_a_member(self.path, name)
        if fault is not None:
            raise CorruptError(fault, where=path, remedy="copy the folder again, whole")
        if name == _TRAINER_STATE:
            return _read_json(path)
        if len(self._sides) >= _MAX_SIDE_FILES:
            raise LimitError(
                f"more than {_MAX_SIDE_FILES} files stand beside the weights", where=path, remedy="name the file itself"
            )
        source = open_file(RegularFile(path), name)
        self._sides[name] = source
        if isinstance(source.tree, dict) and source.format == "safetensors":
            return {key: replace(spec, key=(name, spec.key)) for key, spec in source.tree.items()}
        return source.tree


def _read_json(path: Path) -> object:
    file = RegularFile(path)
    try:
        if file.size > _MAX_JSON_BYTES:
            raise LimitError(f"it has {file.size:,} bytes", where=path, remedy="open the weights alone")
        parsed: object = json.loads(file.read(0, file.size).decode("utf-8"))
    except RecursionError:
        raise LimitError("it is nested too deeply", where=path, remedy="open the weights alone") from None
    except ValueError as fault:
        raise CorruptError("it is not JSON", where=path, faults=[str(fault)[:200]], remedy=READ_AGAIN) from None
    finally:
        file.close()
    untangle(parsed, path)
    return parsed
