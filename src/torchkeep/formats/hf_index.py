"""Hugging Face folders: an index that says which shard holds which tensor, and the shards beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from torchkeep.errors import CheckpointError, CorruptError, LimitError
from torchkeep.formats.folder_members import why_not_a_member
from torchkeep.formats.regular_file import READ_AGAIN, RegularFile
from torchkeep.tensors import Source, TensorSpec

_MAX_INDEX_BYTES = 64 << 20
_MAX_SHARDS = 10_000
_MAX_TENSORS = 262_144
_MAX_FAULTS = 20
SINGLE = ("model.safetensors", "pytorch_model.bin")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")

OpenFile = Callable[[RegularFile], Source]


def open_weights(folder: Path, names: Collection[str], open_file: OpenFile) -> Source | None:
    """Open the weights in a folder of those names: an index, else one file; None where neither can be told."""
    indexes = sorted(name for name in names if name.endswith(".safetensors.index.json"))
    files = sorted(name for name in names if name.endswith(".safetensors"))
    for name in (*(known for known in _INDEXES if known in names), *(indexes if len(indexes) == 1 else ())):
        return HuggingFaceIndex(RegularFile(folder / name), open_file)
    for name in (*(known for known in SINGLE if known in names), *(files if len(files) == 1 else ())):
        return open_file(RegularFile(folder / name))
    return None


class HuggingFaceIndex:
    """A `Source` of the shards that an index names.

    Raises:
        CorruptError: The index is damaged, names a file outside of its folder or one that is not there, or shards hold
            other tensors than it says; all faults at once.
        LimitError: The index is over 64 MiB or names more than 10,000 shards or 262,144 tensors.
    """

    format = "huggingface"

    def __init__(self, index: RegularFile, open_file: OpenFile) -> None:
        self.path: Path = index.path
        self._shards: dict[str, Source] = {}
        try:
            weight_map, self.metadata = _read_index(index)
        finally:
            index.close()
        try:
            self.tree: dict[str, TensorSpec] = self._open_shards(weight_map, open_file)
        except BaseException:
            self.close()
            raise

    def read_into(self, spec: TensorSpec, buffer: memoryview) -> None:
        """Read a tensor's bytes from its shard, C order, native endian.

        Raises:
            CorruptError: Bytes are absent, short, or differ from the checksum that the shard's format has.
        """
        shard, inside = self._in_shard(spec)
        shard.read_into(inside, buffer)

    def read_range_into(self, spec: TensorSpec, begin: int, buffer: memoryview) -> None:
        """Read a part of a tensor's bytes from its shard; see `Source.read_range_into`.

        Raises:
            CorruptError: As for `read_into`.
        """
        shard, inside = self._in_shard(spec)
        shard.read_range_into(inside, begin, buffer)

    def _in_shard(self, spec: TensorSpec) -> tuple[Source, TensorSpec]:
        if not isinstance(spec.key, tuple) or spec.key[0] not in self._shards:
            raise ValueError(f"{spec} is not of this source")
        return self._shards[spec.key[0]], replace(spec, key=spec.key[1])

    def close(self) -> None:
        """Let go of all shards; harmless when called twice."""
        for shard in self._shards.values():
            shard.close()

    def _open_shards(self, weight_map: Mapping[str, str], open_file: OpenFile) -> dict[str, TensorSpec]:
        folder = self.path.parent
        faults: list[str] = []
        held: dict[str, Mapping[object, object]] = {}
        for name in dict.fromkeys(weight_map.values()):
            fault = why_not_a_member(folder, name)
            if fault is None:
                try:
                    self._shards[name] = open_file(RegularFile(folder / name))
                except CheckpointError as error:
                    fault = "; ".join((error.what, *error.faults))
            if fault is not None:
                faults.append(f"{name[:80]!r}: {fault}")
                continue
            tree = self._shards[name].tree
            held[name] = tree if isinstance(tree, Mapping) else {}
        specs = {}
        for tensor, name in weight_map.items():
            spec = held[name].get(tensor) if name in held else None
            if isinstance(spec, TensorSpec):
                specs[tensor] = replace(spec, key=(name, spec.key))
            elif name in held:
                faults.append(f"{tensor[:80]!r} is not in {name!r}")
        faults.extend(_not_in_index(weight_map, held))
        if faults:
            more = [f"and {len(faults) - _MAX_FAULTS:,} more"] if len(faults) > _MAX_FAULTS else []
            raise CorruptError(
                "the index and its shards disagree",
                where=self.path,
                faults=[*faults[:_MAX_FAULTS], *more],
                remedy="download the folder again, whole",
            )
        return specs


def _not_in_index(weight_map: Mapping[str, str], held: Mapping[str, Mapping[object, object]]) -> Iterator[str]:
    for name, tensors in held.items():
        for tensor in tensors:
            if not isinstance(tensor, str) or weight_map.get(tensor) != name:
                yield f"{str(tensor)[:80]!r} in {name!r} is not in the index"


def _read_index(index: RegularFile) -> tuple[dict[str, str], Mapping[str, object]]:
    if index.size > _MAX_INDEX_BYTES:
        raise LimitError(f"the index has {index.size:,} bytes", where=index.path, remedy="name one shard instead")
    try:
        content = index.read(0, index.size)
        if content.count(b":") > _MAX_TENSORS:  # each name stands before one
            what = f"the index names more than {_MAX_TENSORS:,} tensors"
            raise LimitError(what, where=index.path, remedy="name one shard instead")
        parsed = json.loads(content.decode("utf-8"), object_pairs_hook=_unique)
    except RecursionError:
        raise _damaged(index, "it is nested too deeply") from None
    except ValueError as fault:
        raise _damaged(index, str(fault)[:200]) from None
    weight_map = parsed.get("weight_map") if isinstance(parsed, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise _damaged(index, "it has no weight_map of tensors to file names")
    if len(set(weight_map.values())) > _MAX_SHARDS:
        raise LimitError(f"the index names more than {_MAX_SHARDS:,} shards", where=index.path, remedy="name one shard")
    metadata = parsed.get("metadata")
    return weight_map, metadata if isinstance(metadata, dict) else {}


def _damaged(index: RegularFile, fault: str) -> CorruptError:
    return CorruptError("the index is damaged", where=index.path, faults=[fault], remedy=READ_AGAIN)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name is there twice")
    return made
