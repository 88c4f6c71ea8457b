"""Opening any path as a `Source`, and checking bytes before anything is touched."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from torchkeep import formats
from torchkeep.errors import CorruptError, FormatError
from torchkeep.folder.parallel import in_parallel
from torchkeep.folder.read import RECORD_KEY, FolderSource, open_file, open_folder
from torchkeep.folder.record import RECORD_NAME
from torchkeep.folder.runs import read_run
from torchkeep.tensors import Source, TensorSpec


def open_source(path: str | os.PathLike[str]) -> Source:
    """Open a file or folder of any known format, by its bytes.

    Raises:
        NotFoundError: There is nothing at the path.
        FormatError: It is of no known format, or a run folder, of which one checkpoint must be named.
        CorruptError, UnsafeError, LimitError: It is damaged, or asks for what a checkpoint may not.
    """
    location = Path(path)
    if os.path.lexists(location / RECORD_NAME):
        return open_folder(location)
    if location.is_dir():
        run = read_run(location)
        if run.checkpoints:
            raise FormatError(
                f"a run folder with {len(run.checkpoints)} checkpoints, not a checkpoint",
                where=location,
                remedy=f"name one, for example the newest: {run.checkpoints[-1].path}",
            )
    source = formats.open_source(location)
    record = _record_in(source)
    if record is None:
        return source
    source.close()
    return open_file(location, record)


def _record_in(source: Source) -> str | None:
    metadata = source.metadata.get("__metadata__")
    record = metadata.get(RECORD_KEY) if source.format == "safetensors" and isinstance(metadata, Mapping) else None
    return record if isinstance(record, str) else None


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
