"""Which format a file is of, by its bytes and never by its name."""

from __future__ import annotations

import os
from pathlib import Path

from torchkeep.errors import FormatError
from torchkeep.formats.regular_file import RegularFile
from torchkeep.formats.safetensors_file import MAX_HEADER_BYTES, SafetensorsFile
from torchkeep.formats.torch_legacy import TorchLegacy, begins_as_legacy
from torchkeep.formats.torch_zip import TorchZip
from torchkeep.tensors import Source

_SNIFFED_BYTES = 512
_TAR_MAGIC_AT = 257
_SMALLEST_ZIP_BYTES = 22
_LENGTH_BYTES = 8  # of a safetensors header's length; no pickle of torch's is as short
_TEXT_MAGIC = b"L119547037146038801333356L\n."
_CUT = "it was cut short: copy or download it again"
_UNPACK = "unpack it and name the checkpoint inside"
# What other files begin with: (bytes, what it is, what to do).
_OTHERS: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "gzip-compressed data", _UNPACK),
    (b"BZh", "bzip2-compressed data", _UNPACK),
    (b"\xfd7zXZ", "xz-compressed data", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed data", _UNPACK),
    (b"7z\xbc\xaf", "a 7z archive", _UNPACK),
    (b"Rar!", "a rar archive", _UNPACK),
    (b"PK", "an empty or split zip archive", "name the checkpoint itself"),
    (b"\x89HDF", "an HDF5 file, as Keras writes it", "load it with h5py and save its arrays with torch"),
    (b"GGUF", "a GGUF file", "convert it back to safetensors first"),
    (b"\x93NUMPY", "a numpy array", "load it with numpy.load"),
    (b"\x04\x22\x4d\x18", "lz4-compressed data", _UNPACK),
    (b"\x7fELF", "a program", "name a checkpoint"),
    (b"version https://git-lfs", "a pointer of Git LFS in place of the file", "run `git lfs pull`"),
    (b"<!DOCTYPE", "an HTML page, perhaps an error page saved by a download", "download the file again"),
    (b"<html", "an HTML page, perhaps an error page saved by a download", "download the file again"),
    (b"<?xml", "an XML document, perhaps an error saved by a download", "download the file again"),
)


def open_source(path: str | os.PathLike[str]) -> Source:
    """Open a checkpoint of any known format but our own, lazily: its tree is there, and no tensor has been read.

    Nothing of the file is ever run or imported. The formats are torch's zip and legacy streams (with TorchScript
    archives), safetensors, Hugging Face folders and indexes, folders of ``torch.distributed.checkpoint``, checkpoints
    of the Hugging Face Trainer and of Accelerate, and the model states of DeepSpeed.

    Raises:
        NotFoundError: Nothing is at the path.
        FormatError: The bytes are of none of these formats; the message says what they look like.
        CorruptError: They are damaged.
        UnsafeError: A pickle names something whose only use is to run or reach something.
        LimitError: Reading on would need more than a file of this size may ask for.

    Example:
        >>> import json, pathlib, tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = pathlib.Path(folder.name, "weights")
        >>> header = json.dumps({"w": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}).encode()
        >>> _ = path.write_bytes(len(header).to_bytes(8, "little") + header + b"hi")
        >>> source = open_source(path)
        >>> buffer = bytearray(2)
        >>> source.read_into(source.tree["w"], memoryview(buffer))
        >>> source.format, buffer
        ('safetensors', bytearray(b'hi'))
        >>> source.close()
        >>> folder.cleanup()
    """
    where = Path(path)
    if not where.is_dir():
        return _open_file(RegularFile(where))
    # Most files are no folders: what reads those is imported with the first.
    from torchkeep.formats.folders import open_folder

    return open_folder(where, _open_shard)


def _open_file(file: RegularFile) -> Source:
    try:
        head = file.read(0, min(_SNIFFED_BYTES, file.size))
        if file.path.name.endswith(".index.json") and head.lstrip().startswith(b"{"):
            from torchkeep.formats.hf_index import HuggingFaceIndex

            return HuggingFaceIndex(file, _open_shard)
        return _source_of(file, head)
    except BaseException:
        file.close()
        raise


def _open_shard(file: RegularFile, name: str = "") -> Source:
    # A shard is a file of tensors and never another index, which could name itself.
    try:
        return _source_of(file, file.read(0, min(_SNIFFED_BYTES, file.size)), name)
    except BaseException:
        file.close()
        raise


def _source_of(file: RegularFile, head: bytes, name: str = "") -> Source:
    if head.startswith(b"PK\3\4"):
        return TorchZip(file, name)
    # A header's length may begin with the byte that pickles begin with; what follows tells them apart.
    if head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") <= file.size - 8:
        return SafetensorsFile(file)
    if head[4:9] == b"\0\0\0\0{":  # cut short: no pickle has these there
        return SafetensorsFile(file)
    if file.size > _LENGTH_BYTES and head.startswith((b"\x80", _TEXT_MAGIC)) and begins_as_legacy(file):
        return TorchLegacy(file, name)
    if _begins_as_safetensors(head, file.size):
        return SafetensorsFile(file)
    what, remedy = _describe(head)
    raise FormatError(f"not a checkpoint: {what}", where=file.path, remedy=remedy)


def _begins_as_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" or (0 < length <= min(size, MAX_HEADER_BYTES) and len(head) > 8 and not head.isascii())


def _describe(head: bytes) -> tuple[str, str]:
    if not head:
        return "the file is empty", "write or download it again"
    if head[_TAR_MAGIC_AT : _TAR_MAGIC_AT + 5] == b"ustar":
        return (
            "a tar archive, perhaps of torch before 0.1.10",
            "unpack it; a torch tar must be loaded by the torch that wrote it, where you trust it, and saved anew",
        )
    if len(head) < _SMALLEST_ZIP_BYTES and head.startswith(b"PK"):
        return "the first bytes of a zip archive", _CUT
    if len(head) <= _LENGTH_BYTES and head.startswith(b"\x80"):
        return "the first bytes of a safetensors file or of a pickle", _CUT
    for magic, what, remedy in _OTHERS:
        if head[: len(magic)].lower() == magic.lower():
            return what, remedy
    if head.startswith(b"\x80"):
        return (
            "a plain pickle, not written by torch.save",
            "load it where you trust it, and save its tensors with torch",
        )
    if not head.strip(b"\0"):
        return "it begins with zero bytes only, as after an interrupted download", "download it again"
    # A protobuf that begins with a small version and the name of what wrote it.
    if head[:1] == b"\x08" and head[1:2] < b"\x20" and head[2:3] in b"\x12\x3a":
        return "perhaps an ONNX graph", "ask the tool that exported it for the weights as safetensors"
    if head.lstrip().startswith((b"{", b"[")):
        return "a JSON text", "name the checkpoint that it belongs to"
    return f"it begins with {head[:8]!r}", "name a file of torch.save or safetensors"
