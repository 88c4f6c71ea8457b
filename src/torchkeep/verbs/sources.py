"""Opening any path as a `Source`, and checking bytes before anything is touched."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from torchkeep import formats
from torchkeep.errors import CorruptError, FormatError, NotFoundError, typed
from torchkeep.folder.parallel import in_parallel
from torchkeep.folder.read import RECORD_KEY, FolderSource, open_file, open_folder
from torchkeep.folder.record import CONTENT_NAME, RECORD_BEGIN, RECORD_NAME
from torchkeep.folder.recovery import restore_aside
from torchkeep.folder.runs import is_step_name, list_run
from torchkeep.tensors import Source, TensorSpec


def open_source(path: str | os.PathLike[str]) -> Source:
    """Open a file or folder of any known format, by its bytes.

    Raises:
        NotFoundError: There is nothing at the path.
        FormatError: It is of no known format, or a run folder, of which one checkpoint must be named.
        CorruptError, UnsafeError, LimitError: It is damaged, or asks for what a checkpoint may not.
        TypeError: It is no path.
    """
    if isinstance(path, (list, tuple)):
        raise TypeError(f"a checkpoint is one path, not the {len(path)} of a {type(path).__name__}: take one, as [0]")
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(
            f"a checkpoint is named by its path, a str or a Path, not by an object of type {type(path).__name__}; "
            "the path comes first, objects to load into are given as into="
        )
    if not os.fspath(path):
        raise NotFoundError("the path is empty", remedy="name a checkpoint")
    with typed("cannot be read", path):
        return _open(Path(path).expanduser())


def _open(location: Path) -> Source:
    restore_aside(location)
    if os.path.lexists(location / RECORD_NAME):
        return open_folder(location)
    if location.is_dir():
        _refuse_run_or_remains(location)
    source = formats.open_source(location)
    record = _record_in(source)
    if record is None:
        return source
    source.close()
    return open_file(source.path, record)


def _refuse_run_or_remains(folder: Path) -> None:
    """A run folder is not one checkpoint, and what is left of one without its record is none."""
    run = list_run(folder)
    if run.checkpoints:
        count = f"{len(run.checkpoints)} checkpoint{'' if len(run.checkpoints) == 1 else 's'}"
        remedy = f"name one, for example the newest: {run.checkpoints[-1].path}"
        raise FormatError(f"a run folder with {count}, not a checkpoint", where=folder, remedy=remedy)
    if is_step_name(folder.name) or any(CONTENT_NAME.fullmatch(file) for file in os.listdir(folder)):
        raise CorruptError(
            f"what is left of a checkpoint: its {RECORD_NAME} is absent",
            where=folder,
            remedy="use another checkpoint; each .safetensors file in it can be opened alone, unchecked",
        )


def _record_in(source: Source) -> str | None:
    """The record in a safetensors file's metadata, also under a key that damage has changed."""
    metadata = source.metadata.get("__metadata__")
    if source.format != "safetensors" or not isinstance(metadata, Mapping):
        return None
    texts = [text for text in (metadata.get(RECORD_KEY), *metadata.values()) if isinstance(text, str)]
    named = isinstance(metadata.get(RECORD_KEY), str)
    return texts[0] if named else next((text for text in texts if text.startswith(RECORD_BEGIN.decode())), None)


def check_bytes(source: Source, specs: Iterable[TensorSpec], threads: int) -> None:
    """Read tensors and drop them, so that damage is found while nothing has been touched.

    Formats without checksums are read as well: a disk error or a short file must not stop a load half-way.

    Raises:
        CorruptError: It lists every tensor that is damaged.
    """
    if isinstance(source, FolderSource):
        source.check(specs, threads)
        return
    distinct = list({spec.key: spec for spec in specs}.values())
    faults = [fault for fault in in_parallel(lambda spec: _fault_of(source, spec), distinct, threads) if fault]
    if faults:
        raise CorruptError(
            f"{len(faults)} of its tensors are damaged", where=source.path, faults=faults, remedy="get the file again"
        )


def _fault_of(source: Source, spec: TensorSpec) -> str | None:
    try:
        source.read_into(spec, memoryview(bytearray(spec.nbytes)))
    except CorruptError as error:
        return error.what
    return None
