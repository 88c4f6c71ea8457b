"""Writing the tensors of a Source as safetensors: one file, or shards by size with the index of Hugging Face."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torchkeep.errors import FormatError
from torchkeep.folder.draft import PIECE_BYTES
from torchkeep.folder.shards import file_order, header_of, index_of
from torchkeep.tensors import Source, TensorSpec
from torchkeep.verbs.new_files import new_file

if TYPE_CHECKING:
    from torchkeep.arithmetic.ranges import Progress

MAX_HEADER_BYTES = 100_000_000  # what safetensors readers accept


@dataclass(frozen=True, slots=True)
class Untied:
    """Tensors of which each is stored once.

    Attributes:
        stored: Name to spec, the first name of those that are tied.
        aliases: Every other name, and the one it is stored under.
    """

    stored: Mapping[str, TensorSpec]
    aliases: Mapping[str, str]


def untie(tensors: Mapping[str, TensorSpec]) -> Untied:
    """Keep the first name of tensors that are one; safetensors cannot say that two names are.

    Example:
        >>> spec = TensorSpec("float32", (2,), "storage 0")
        >>> untie({"wte": spec, "lm_head": spec}).aliases
        {'lm_head': 'wte'}
    """
    first: dict[object, str] = {}
    stored: dict[str, TensorSpec] = {}
    aliases: dict[str, str] = {}
    for name, spec in tensors.items():
        kept = first.setdefault((spec.key, spec.dtype, spec.shape), name) if spec.numel else name
        if kept == name:
            stored[name] = spec
        else:
            aliases[name] = kept
    return Untied(stored, aliases)


def cut_into_shards(tensors: Mapping[str, TensorSpec], max_shard_bytes: int) -> list[dict[str, TensorSpec]]:
    """Tensors in their order, in as few shards as that order allows; one that is larger has a shard of its own. Pure.

    Example:
        >>> spec = TensorSpec("uint8", (4,))
        >>> [list(shard) for shard in cut_into_shards({"a": spec, "b": spec, "c": spec}, 8)]
        [['a', 'b'], ['c']]
    """
    shards: list[dict[str, TensorSpec]] = [{}]
    held_bytes = 0
    for name, spec in tensors.items():
        if shards[-1] and held_bytes + spec.nbytes > max_shard_bytes:
            shards.append({})
            held_bytes = 0
        shards[-1][name] = spec
        held_bytes += spec.nbytes
    return shards


def write_safetensors(
    base: Path,
    source: Source,
    tensors: Untied,
    max_shard_bytes: int,
    threads: int,
    progress: Progress | None = None,
) -> list[Path]:
    """Write ``base``, or ``<base>-00001-of-00003.safetensors`` ... and ``base.index.json``, the index last.

    Args:
        base: Ends in ``.safetensors``.
        source: Where the tensors are.
        tensors: What to write. ``__metadata__`` tells the aliases, as safetensors' `save_model` does.
        max_shard_bytes: The most bytes of tensors in one file.
        threads: How many ranges are read and written at once.
        progress: Told the bytes that are done.

    Returns:
        The files, the index last.

    Raises:
        ConflictError: One of the files is there.
        FormatError: A shard has too many tensors for its header.
        CheckpointError: The operating system refused.
    """
    shards = cut_into_shards(tensors.stored, max_shard_bytes)
    names = shard_names(base.name, len(shards))
    metadata = {**tensors.aliases, "format": "pt"}
    total_bytes = sum(spec.nbytes for spec in tensors.stored.values())
    done_bytes = 0
    for name, shard in zip(names, shards, strict=True):

        def told(done: int, _total: int, before: int = done_bytes) -> None:
            if progress is not None:
                progress(before + done, total_bytes)

        _write_shard(base.with_name(name), source, shard, metadata, threads, told)
        done_bytes += sum(spec.nbytes for spec in shard.values())
    files = [base.with_name(name) for name in names]
    if len(shards) > 1:
        where = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        with new_file(base.with_name(f"{base.name}.index.json")) as descriptor:
            os.write(descriptor, index_of(where, total_bytes))
        files.append(base.with_name(f"{base.name}.index.json"))
    return files


def shard_names(base: str, count: int) -> Sequence[str]:
    """The file names of shards, as transformers gives them.

    Example:
        >>> shard_names("model.safetensors", 2)
        ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
    """
    stem = base.removesuffix(".safetensors")
    return [base] if count == 1 else [f"{stem}-{at:05}-of-{count:05}.safetensors" for at in range(1, count + 1)]


def _write_shard(
    path: Path,
    source: Source,
    tensors: Mapping[str, TensorSpec],
    metadata: Mapping[str, str],
    threads: int,
    progress: Progress,
) -> None:
    from torchkeep.arithmetic.ranges import in_ranges

    order = file_order(tensors)
    header = header_of(tensors, order, metadata)
    if len(header) > MAX_HEADER_BYTES:
        raise FormatError("too many tensors for one file", where=path, remedy="choose smaller shards")
    begins, end = {}, len(header)
    for name in order:
        begins[name] = end
        end += tensors[name].nbytes
    with new_file(path) as descriptor:
        _write_fully(descriptor, memoryview(header), 0)
        os.truncate(descriptor, end)

        def copy(name: str, begin: int, stop: int) -> None:
            buffer = memoryview(bytearray(min(PIECE_BYTES, stop - begin)))
            for at in range(begin, stop, PIECE_BYTES):
                piece = buffer[: min(PIECE_BYTES, stop - at)]
                source.read_range_into(tensors[name], at, piece)
                _write_fully(descriptor, piece, begins[name] + at)

        in_ranges({name: tensors[name] for name in order}, copy, threads, progress)


def _write_fully(descriptor: int, data: memoryview, at: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, at)
        data, at = data[count:], at + count
