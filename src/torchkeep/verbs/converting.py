"""`convert`: a checkpoint of any format as one of another, a piece at a time, with what is lost said before."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from torchkeep.errors import FormatError
from torchkeep.folder.parallel import default_threads
from torchkeep.folder.read import FolderSource
from torchkeep.folder.write import save_folder
from torchkeep.tensors import Source, TensorSpec, tensors_of
from torchkeep.verbs.arguments import threads_of
from torchkeep.verbs.contents import brief, contents_of, map_specs, rest_of, shared_memory, weights_in
from torchkeep.verbs.drafting import draft_of_record, draft_of_tree
from torchkeep.verbs.new_files import new_file, new_folder, refuse_slip, refuse_taken
from torchkeep.verbs.safetensors_files import untie, write_safetensors
from torchkeep.verbs.sources import open_source

if TYPE_CHECKING:
    from torchkeep.arithmetic.casting import Casting
    from torchkeep.arithmetic.ranges import Progress
    from torchkeep.verbs.distributed_folders import Flat

MAX_SHARD_BYTES = 5 * 10**9
Kind: TypeAlias = Literal["torchkeep", "safetensors", "torch", "huggingface", "dcp"]
_TORCH_NAMES = (".pt", ".pth", ".pth.tar", ".ckpt", ".bin")
_NOT_WRITTEN = (".pkl", ".pickle", ".npz", ".npy", ".h5", ".hdf5", ".onnx", ".gguf", ".zip", ".tar", ".pt2", ".json")
# What transformers and its kin keep beside weights; code is not copied.
_BESIDE_WEIGHTS = (".json", ".txt", ".model", ".jinja", ".spm", ".tiktoken")
_LARGEST_BESIDE_BYTES = 64 << 20


class Target(StrEnum):
    """What a checkpoint can be converted to."""

    TORCHKEEP = "torchkeep"
    SAFETENSORS = "safetensors"
    TORCH = "torch"
    HUGGING_FACE = "huggingface"
    DCP = "dcp"

    @property
    def holds_trees(self) -> bool:
        """Whether it holds more than one state dict."""
        return self not in {Target.SAFETENSORS, Target.HUGGING_FACE}


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion will do, or did.

    Attributes:
        source: The path of the checkpoint.
        target: Where it goes.
        to: What it becomes.
        entry: The entry that is taken; "" for the whole.
        tensor_count: Tensors by name; tied ones count once for each.
        total_bytes: Bytes that are written of them.
        losses: What of the source will not be there, one line each.
        files: The files that were made, or the folder; empty before.
        notes: What was found on the way: values that became infinite, files that were copied.
    """

    source: Path
    target: Path
    to: Target
    entry: str
    tensor_count: int
    total_bytes: int
    losses: tuple[str, ...]
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def convert(  # noqa: PLR0913 - each is a choice of its own
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    to: Kind | None = None,
    entry: str | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    dry_run: bool = False,
    io_threads: int | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Convert a checkpoint of any format to another, without holding a tensor whole and without running anything of it.

    Safetensors and Hugging Face folders hold one state dict: the weights, or `entry`. The others hold everything. Tied
    tensors are stored once and stay tied; safetensors has no ties, so the names left out stand in its ``__metadata__``,
    as safetensors' `save_model` writes it.

    Args:
        source: As for `open`.
        target: A new path; nothing is replaced.
        to: ``"safetensors"`` (one file, or shards by size with an index), ``"torch"`` (what `torch.load` reads),
            ``"huggingface"`` (a folder; a configuration and tokenizer beside the source are copied), ``"dcp"``
            (`torch.distributed.checkpoint`) or ``"torchkeep"``. By default the name decides; a folder is torchkeep's.
        entry: The path of the one entry to take.
        dtype: Cast the weights' floating-point tensors to it on the way: ``"bfloat16"``. Rounded as torch rounds.
        max_shard_bytes: The most bytes of tensors in one safetensors file.
        dry_run: Only say what it would do and what would be lost.
        io_threads: Threads that read and write; by default one per processor, at most 8.
        progress: Called with bytes done and bytes in all.

    Returns:
        What was written, what was lost, what was noticed.

    Raises:
        ConflictError: Something is at the target.
        FormatError: The target cannot hold a value or a dtype.
        NotFoundError, PlanError: There are no weights, or several that could be meant.
        CorruptError, UnsafeError, LimitError: As for `open`. In every case nothing is left at the target.

    Example:
        >>> import tempfile, torch, torchkeep as tk
        >>> folder = tempfile.mkdtemp()
        >>> torch.save({"state_dict": torch.nn.Linear(2, 1).state_dict(), "epoch": 3}, f"{folder}/a.ckpt")
        >>> done = tk.convert(f"{folder}/a.ckpt", f"{folder}/a.safetensors", dtype="float16")
        >>> done.entry, done.tensor_count, done.losses
        ('state_dict', 2, ('epoch: a value (int)',))
    """
    planned = plan_conversion(
        source, target, to=to, entry=entry, dtype=dtype, max_shard_bytes=max_shard_bytes, io_threads=io_threads
    )
    try:
        return planned.conversion if dry_run else planned.carry_out(progress)
    finally:
        planned.close()


def plan_conversion(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    to: Kind | None = None,
    entry: str | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    io_threads: int | None = None,
) -> PlannedConversion:
    """Decide a conversion; see `convert`. The source stays open until the plan is closed."""
    where = Path(target).expanduser()
    kind = target_of(where, to)
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes is {max_shard_bytes}: 1 or more is wanted")
    threads = threads_of(io_threads, default_threads)
    refuse_taken(where)
    opened = open_source(source)
    try:
        planned = PlannedConversion(opened, where, kind, max_shard_bytes, threads)
        planned.decide(entry, dtype)
        return planned
    except BaseException:
        opened.close()
        raise


def target_of(path: Path, to: str | None) -> Target:
    """What a path is to become: what is asked for, else what its name says.

    Raises:
        ValueError: There is no such kind.
        FormatError: The name does not go with it.
    """
    name = path.name.lower()
    if to is not None:
        if to not in set(Target):
            raise ValueError(f"to is one of {', '.join(Target)}; not {to!r}")
        kind = Target(to)
        if kind is Target.SAFETENSORS and not name.endswith(".safetensors"):
            raise FormatError("its name has to end in .safetensors", where=path, remedy="or choose a folder")
        return kind
    if name.endswith(".safetensors"):
        return Target.SAFETENSORS
    if name.endswith(_TORCH_NAMES):
        return Target.TORCH
    if name.endswith(_NOT_WRITTEN):
        raise FormatError(
            "the name promises a file that is not written here",
            where=path,
            remedy=f"name a folder, a .safetensors file or a torch file ({', '.join(_TORCH_NAMES)})",
        )
    refuse_slip(path)
    return Target.TORCHKEEP


class PlannedConversion:
    """A conversion that is decided, with its source open; nothing is written until `carry_out`.

    Attributes:
        conversion: What it will do.
    """

    conversion: Conversion

    def __init__(self, opened: Source, target: Path, kind: Target, max_shard_bytes: int, threads: int) -> None:
        self._opened = self._reader = opened
        self._casting: Casting | None = None
        self._target, self._kind = target, kind
        self._max_shard_bytes, self._threads = max_shard_bytes, threads
        self._tensors: Mapping[str, TensorSpec] = {}
        self._tree: object = None
        self._flat: Flat
        self._is_whole_record = False

    def decide(self, entry: str | None, dtype: str | None) -> None:
        """Choose what is written and find out what is lost."""
        if dtype is not None:
            self._cast(entry, dtype)
        opened = self._opened
        if self._kind.holds_trees:
            self._is_whole_record = (
                self._kind is Target.TORCHKEEP and isinstance(opened, FolderSource) and entry is None
            )
            losses = [] if self._is_whole_record else self._choose_tree(entry)
            where, tensors = entry or "", tensors_of(opened.tree if self._is_whole_record else self._tree)
        else:
            where, found = weights_in(opened, entry)
            tensors = self._tensors = {name: self._spec_of(spec) for name, spec in found.items()}
            losses = rest_of(opened, where, found)
        losses += [*_tie_losses(self._kind, tensors), *shared_memory(tensors)]
        specs = [self._spec_of(spec) for spec in tensors.values()]
        if self._kind is not Target.DCP:  # it stores tied tensors twice
            specs = list({(spec.key, spec.dtype, spec.shape): spec for spec in specs}.values())
        nbytes = sum(spec.nbytes for spec in specs)
        self.conversion = Conversion(opened.path, self._target, self._kind, where, len(tensors), nbytes, brief(losses))

    def carry_out(self, progress: Progress | None = None) -> Conversion:
        """Write it; see `convert`."""
        write = {
            Target.SAFETENSORS: self._write_safetensors,
            Target.HUGGING_FACE: self._write_hugging_face,
            Target.TORCH: self._write_torch,
            Target.DCP: self._write_dcp,
            Target.TORCHKEEP: self._write_torchkeep,
        }[self._kind]
        files, notes = write(progress)
        return replace(self.conversion, files=tuple(files), notes=(*notes, *self._overflows()))

    def close(self) -> None:
        """Let go of the source."""
        self._opened.close()

    def _cast(self, entry: str | None, dtype: str) -> None:
        from torchkeep.arithmetic.casting import Casting

        _, weights = weights_in(self._opened, entry)
        self._reader = self._casting = Casting(self._opened, dtype, list(weights.values()))

    def _spec_of(self, spec: TensorSpec) -> TensorSpec:
        return spec if self._casting is None else self._casting.spec_of(spec)

    def _choose_tree(self, entry: str | None) -> list[str]:
        contents = contents_of(self._opened, entry)
        self._tree = map_specs(contents.tree, self._spec_of)
        if self._kind is not Target.DCP:
            return contents.losses
        from torchkeep.verbs.distributed_folders import flatten

        self._flat = flatten(self._tree)
        return contents.losses + self._flat.losses

    def _write_safetensors(self, progress: Progress | None) -> tuple[list[Path], list[str]]:
        tensors = untie(self._tensors)
        shard_bytes, threads = self._max_shard_bytes, self._threads
        return write_safetensors(self._target, self._reader, tensors, shard_bytes, threads, progress), []

    def _write_hugging_face(self, progress: Progress | None) -> tuple[list[Path], list[str]]:
        tensors = untie(self._tensors)
        with new_folder(self._target) as folder:
            base = folder / "model.safetensors"
            write_safetensors(base, self._reader, tensors, self._max_shard_bytes, self._threads, progress)
            copied = _copy_beside(self._opened.path, folder)
        return [self._target], [f"copied {', '.join(copied)}"] if copied else []

    def _write_torch(self, progress: Progress | None) -> tuple[list[Path], list[str]]:
        from torchkeep.verbs.torch_files import open_for_writing, write_torch_file

        with new_file(self._target) as descriptor, open_for_writing(descriptor) as file:
            write_torch_file(file, self._tree, self._reader.read_range_into, self._counted(progress))
        return [self._target], []

    def _write_dcp(self, progress: Progress | None) -> tuple[list[Path], list[str]]:
        from torchkeep.verbs.distributed_folders import write_distributed

        with new_folder(self._target) as folder:
            write_distributed(folder, self._flat, self._reader, self._counted(progress))
        return [self._target], []

    def _write_torchkeep(self, progress: Progress | None) -> tuple[list[Path], list[str]]:
        told = self._counted(progress)
        if self._is_whole_record and isinstance(self._opened, FolderSource):
            draft = draft_of_record(self._opened, self._reader, self._spec_of, told)
        else:
            draft = draft_of_tree(self._tree, self._reader, _provenance(self._opened), told)
        save_folder(self._target, draft, None, None, self._threads)
        return [self._target], []

    def _counted(self, progress: Progress | None) -> Callable[[int], object] | None:
        """A count of bytes as progress of all of them."""
        if progress is None:
            return None
        done_bytes, counting, total_bytes = 0, threading.Lock(), self.conversion.total_bytes

        def more(count: int) -> None:
            nonlocal done_bytes
            with counting:
                done_bytes += count
                progress(min(done_bytes, total_bytes), total_bytes)

        return more

    def _overflows(self) -> list[str]:
        found = {} if self._casting is None else self._casting.overflowed
        names = {spec: name for name, spec in tensors_of(self._tensors or self._tree).items()}
        return [f"{names.get(spec, spec)}: {count:,} values became infinite" for spec, count in found.items()]


def _tie_losses(kind: Target, tensors: Mapping[str, TensorSpec]) -> list[str]:
    """What becomes of tied tensors where the format has no ties, and of complex ones where it has no code."""
    losses = []
    aliases = untie(tensors).aliases
    if kind is Target.DCP:
        losses += [f"{alias} is {kept}: stored twice, no longer tied" for alias, kept in aliases.items()]
    elif not kind.holds_trees:
        losses += [f"{alias} is {kept}: stored once, the name is in __metadata__" for alias, kept in aliases.items()]
        pairs = [name for name, spec in tensors.items() if spec.dtype in {"complex32", "complex128"}]
        losses += [f"{name}: {tensors[name].dtype} is stored as pairs of reals" for name in pairs]
    return losses


def _provenance(opened: Source) -> dict[str, object]:
    from torchkeep import __version__

    about = {"converted_from": opened.format} if opened.format != "average" else dict(opened.metadata)
    return {"torchkeep": __version__, **about}


def _copy_beside(source: Path, folder: Path) -> list[str]:
    """Copy what stands beside the weights of a Hugging Face folder: configuration, tokenizer, never code or weights."""
    beside = source if source.is_dir() else source.parent
    if not (beside / "config.json").is_file():
        return []
    copied = []
    for path in sorted(beside.iterdir()):
        is_wanted = path.suffix in _BESIDE_WEIGHTS and not path.name.endswith(".index.json")
        if is_wanted and path.is_file() and path.stat().st_size <= _LARGEST_BESIDE_BYTES:
            shutil.copyfile(path, folder / path.name)
            copied.append(path.name)
    return copied
