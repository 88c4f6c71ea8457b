"""`verify`: read every byte of a checkpoint and compare it with what was written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from torchkeep.errors import CorruptError
from torchkeep.folder.parallel import default_threads
from torchkeep.folder.read import FolderSource
from torchkeep.tensors import tensors_of
from torchkeep.verbs.sources import check_bytes, open_source

_STRENGTH = {"torchkeep": "digests", "torch-zip": "crc32", "torchscript": "crc32", "torch-dcp": "crc32"}


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found; true when nothing is wrong.

    Attributes:
        path: The file or folder.
        format: Its format; "" when it is too damaged to say.
        checked: What bytes were compared with: ``"digests"``, ``"crc32"``, or ``"structure"`` for want of a checksum.
        tensor_count: Tensors read.
        total_bytes: Bytes read.
        faults: One line each.
    """

    path: Path
    format: str
    checked: str
    tensor_count: int
    total_bytes: int
    faults: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        if self.ok:
            return (
                f"{self.path}: ok, {self.tensor_count:,} tensors, {self.total_bytes:,} bytes checked by {self.checked}"
            )
        return "\n".join([f"{self.path}: damaged", *(f"  {fault}" for fault in self.faults)])


def verify(path: str | os.PathLike[str], *, io_threads: int | None = None) -> Verification:
    """Read every byte of a checkpoint of any format and compare it with the checksums the format has.

    Args:
        path: As for `open`.
        io_threads: Threads that read and hash; by default one per processor, at most 8.

    Returns:
        What was checked and every fault found. Damage does not raise.

    Raises:
        NotFoundError: There is nothing at the path.
        FormatError: It is of no known format.
        UnsafeError, LimitError: It wants something run, or asks for too much.

    Example:
        >>> import tempfile, torch, torchkeep as tk
        >>> saved = tk.save({"w": torch.zeros(4)}, tempfile.mkdtemp() + "/ckpt")
        >>> result = tk.verify(saved.path)
        >>> result.ok, result.checked, result.tensor_count
        (True, 'digests', 1)
    """
    try:
        source = open_source(path)
    except CorruptError as error:
        return Verification(Path(path), "", "structure", 0, 0, error.faults or (error.what,))
    try:
        specs = {spec.key: spec for spec in tensors_of(source.tree).values()}.values()
        checked = _STRENGTH.get(source.format, "structure")
        total_bytes = sum(spec.nbytes for spec in specs)
        threads = io_threads or default_threads()
        if isinstance(source, FolderSource):
            source.check_all(threads)
        else:
            check_bytes(source, specs, threads)
    except CorruptError as error:
        return Verification(Path(path), source.format, checked, len(specs), total_bytes, error.faults or (error.what,))
    finally:
        source.close()
    return Verification(Path(path), source.format, checked, len(specs), total_bytes)
