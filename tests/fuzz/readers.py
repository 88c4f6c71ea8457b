"""What is fuzzed: a reader for each format, over bytes of which a good example is known."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.hostile import archives, checkpoints, dcp_folders
from tests.hostile.pickles import stream, tensor, text
from tests.hostile.safetensors_headers import entry, file_of, framed

from torchkeep.errors import CheckpointError
from torchkeep.folder.record import RECORD_NAME
from torchkeep.tensors import tensors_of
from torchkeep.verbs.sources import open_source

LEAST = stream(b"}" + text("w") + tensor((4,), (1,))[2:-1] + b"s" + text("n") + b"K\x05s")


@dataclass(frozen=True)
class Reader:
    """A format: bytes that are good, and where bytes are put to be read, in a folder that may hold other files."""

    good: bytes
    put: Callable[[Path, bytes], Path]
    prepare: Callable[[Path], object] = lambda _folder: None


def _as_file(folder: Path, data: bytes) -> Path:
    (folder / "x").write_bytes(data)
    return folder / "x"


def _in_archive(folder: Path, data: bytes) -> Path:
    return _as_file(folder, archives.torch_zip(data))


def _beside(name: str, *, opened: str = "") -> Callable[[Path, bytes], Path]:
    def put(folder: Path, data: bytes) -> Path:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(data)
        return folder / opened

    return put


def _signed(folder: Path, data: bytes) -> Path:
    """A record of any JSON with a digest that is right for it: what follows the digest's check is what is fuzzed."""
    try:
        members = json.loads(data)
    except ValueError:
        members = {}
    data = checkpoints.signed(members) if isinstance(members, dict) else data
    return _beside("ckpt/" + RECORD_NAME, opened="ckpt")(folder, data)


def _record() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return (checkpoints.write_checkpoint(Path(folder, "ckpt")) / RECORD_NAME).read_bytes()


def _metadata() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return (dcp_folders.write_folder(Path(folder, "dcp")) / ".metadata").read_bytes()


def _trainer(folder: Path) -> None:
    (folder / "optimizer.pt").write_bytes(archives.torch_zip(stream(b"}")))
    (folder / "model.safetensors").write_bytes(file_of({"w": entry()}))


READERS = {
    "safetensors": Reader(file_of({"a": entry([1], 0, 4), "b": entry([1], 4, 8)}), _as_file),
    "safetensors header": Reader(
        json.dumps({"__metadata__": {"format": "pt"}, "a": entry()}).encode(),
        lambda folder, data: _as_file(folder, framed(data, bytes(8))),
    ),
    "zip archive": Reader(archives.torch_zip(LEAST), _as_file),
    "legacy stream": Reader(archives.legacy(LEAST), _as_file),
    "pickle": Reader(LEAST, _in_archive),
    "pickle of a training state": Reader(
        pickle.dumps({"epoch": 3, "names": ["a", ("b", None)], "lr": 0.1, "s": {1, 2}}, 4), _in_archive
    ),
    "our record": Reader(_record(), _signed, lambda folder: checkpoints.write_checkpoint(folder / "ckpt")),
    "index of Hugging Face": Reader(
        json.dumps({"metadata": {}, "weight_map": checkpoints.GOOD_MAP}).encode(),
        _beside("model.safetensors.index.json"),
        checkpoints.hugging_face(checkpoints.GOOD_MAP),
    ),
    "metadata of DCP": Reader(_metadata(), _beside(".metadata"), dcp_folders.write_folder),
    "state of the Trainer": Reader(
        b'{"global_step": 5, "log_history": [{"loss": 0.5}]}', _beside("trainer_state.json"), _trainer
    ),
}


def read(path: Path) -> bool:
    """Open a path and read every tensor: whether that worked; what is not a typed error goes through."""
    try:
        source = open_source(path)
    except CheckpointError:
        return False
    try:
        for spec in tensors_of(source.tree).values():
            source.read_into(spec, memoryview(bytearray(spec.nbytes)))
    except CheckpointError:
        return False
    finally:
        source.close()
    return True
