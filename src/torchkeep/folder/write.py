"""Writing a checkpoint: find what changed, link what did not, write the rest with a digest on every chunk, commit.

`stage` decides and links; it is the part during which the caller's tensors must not change. `finish` writes what is
left and commits; by then a caller may have replaced the readers by ones over memory of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from torchkeep.errors import typed
from torchkeep.folder.commit import commit
from torchkeep.folder.committed import identity_at
from torchkeep.folder.digests import chunk_digests, digest_of
from torchkeep.folder.draft import Draft, Held, Name
from torchkeep.folder.durable import fsync_path, make_parents, write_durably
from torchkeep.folder.linking import link_shard, parent_shards, sequence_of
from torchkeep.folder.parallel import in_parallel
from torchkeep.folder.partition import PlannedShard, partition
from torchkeep.folder.record import RECORD_NAME, Record, Shard, StoredTensor, encode_record
from torchkeep.folder.shard_files import Progress, ShardFile, WrittenShard, write_shards
from torchkeep.folder.shards import index_of, stems_of
from torchkeep.folder.staging import StagingFolder
from torchkeep.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class Saved:
    """What a save did: where it is, its record, bytes written and linked, and what a person should know."""

    path: Path
    record: Record = field(repr=False)
    written_bytes: int
    linked_bytes: int
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Staged:
    """A save on its way to `finish`: its folder is made, then its shards are decided, and links made.

    Attributes:
        target: The final path.
        draft: What to save.
        parent: The record of the checkpoint whose shards may be linked.
        threads: Threads that hash and write.
    """

    target: Path
    draft: Draft
    parent: Record | None
    threads: int
    linked: dict[str, Shard] = field(default_factory=dict)
    linked_tensors: dict[Name, StoredTensor] = field(default_factory=dict)
    to_write: dict[str, list[PlannedShard]] = field(default_factory=dict)
    replaces: str | None = None
    notes: list[str] = field(default_factory=list)
    progress: Progress = field(default_factory=Progress)
    written: list[WrittenShard] = field(default_factory=list)
    changed: frozenset[Name] = frozenset()
    _staging: StagingFolder | None = None

    def make_folder(self) -> None:
        """Make the staging folder, with those above it, where that is not done.

        Raises:
            OSError: The system refused.
        """
        if self._staging is None:
            make_parents(self.target.parent)
            self.replaces = identity_at(self.target)
            self._staging = StagingFolder(self.target.parent)

    @property
    def staging(self) -> StagingFolder:
        """The staging folder, once it is made."""
        if self._staging is None:
            raise ValueError("the staging folder is not made yet")
        return self._staging

    def discard(self) -> None:
        """Leave nothing behind."""
        if self._staging is not None:
            self._staging.discard()

    def names_to_write(self) -> list[Name]:
        """The tensors whose bytes `finish` will read."""
        return [(group, name) for group, shards in self.to_write.items() for shard in shards for name in shard.names]

    @contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """Leave nothing behind when the block fails, and let what the system refused be a typed error."""
        try:
            with not_saved(self.target):
                yield
        except BaseException:
            self.discard()
            raise

    def hold(self, held: Mapping[Name, Held]) -> None:
        """Let `finish` read these tensors from where they are kept."""
        groups = {
            group: {n: t.hold(held[group, n]) if (group, n) in held else t for n, t in tensors.items()}
            for group, tensors in self.draft.groups.items()
        }
        self.draft = replace(self.draft, groups=groups)


def save_folder(target: Path, draft: Draft, parent: Path | None, parent_record: Record | None, threads: int) -> Saved:
    """Save a draft as a checkpoint folder, durably, in this thread; see `stage` and `finish`."""
    return finish(stage(target, draft, parent, parent_record, threads))


def stage(
    target: Path,
    draft: Draft,
    parent: Path | None,
    parent_record: Record | None,
    threads: int,
    doubtful: Mapping[str, str] | None = None,
) -> Staged:
    """Decide the shards of a save and link those that did not change since the parent.

    Args:
        target: The final path; the folders above it are made.
        draft: What to save.
        parent: The checkpoint whose shards may be linked, and its record; None to write everything.
        parent_record: The record of `parent`.
        threads: Threads that hash and write; 1 does everything in the calling one.
        doubtful: The parent's files that must not be linked, and why, where one of them was read again before. Without
            it one is read now.

    Raises:
        CheckpointError: The operating system refused; nothing is left behind.
    """
    staged = Staged(target, draft, parent_record, threads)
    with staged.undone_on_error():
        staged.make_folder()
        decide(staged, _digests(draft, threads) if parent_record is not None else {})
        if parent is not None:
            link(staged, parent, doubtful)
    return staged


def decide(staged: Staged, digests: Mapping[Name, tuple[str, ...]]) -> None:
    """Plan the shards of a save from the digests of its tensors; without a parent, none are needed."""
    changed: set[Name] = set()
    draft, parent, checkpoint_bytes = staged.draft, staged.parent, staged.draft.tensor_bytes
    for group, tensors in draft.groups.items():
        before = {} if parent is None else parent.tensors.get(group, {})
        new = {n for n, t in tensors.items() if not _is_unchanged(t.spec, digests.get((group, n)), before.get(n))}
        sizes = {name: tensor.spec.nbytes for name, tensor in tensors.items()}
        frozen = {name for name, tensor in tensors.items() if not tensor.may_change}
        shards = partition(sizes, parent_shards(parent, group), new, checkpoint_bytes, frozen)
        staged.to_write[group] = shards
        changed |= {(group, name) for name in new if before or tensors[name].may_change}
    staged.changed = frozenset(changed)


def link(
    staged: Staged, parent: Path, doubtful: Mapping[str, str] | None, made: AbstractSet[str] = frozenset()
) -> None:
    """Link every planned shard that can be; what cannot stays in `to_write`, with a note that says why.

    Args:
        staged: A save whose shards are decided.
        parent: The checkpoint it links to.
        doubtful: As for `stage`.
        made: Links that are there already.
    """
    record = staged.parent
    if record is None:
        return
    wanted = [(group, shard) for group, shards in staged.to_write.items() for shard in shards if shard.link]
    turn = sequence_of(record) % len(wanted) if wanted and doubtful is None else -1
    for position, (group, shard) in enumerate(wanted):
        file = str(shard.link)
        why = (doubtful or {}).get(file)
        if why is None and file not in made:
            target = staged.staging.path / file
            why = link_shard(parent / file, target, record, file, read_again=position == turn)
        if why is not None:
            staged.notes.append(f"{file}: written again, not linked: {why}")
            continue
        staged.to_write[group].remove(shard)
        staged.linked[file] = record.shards[file]
        staged.linked_tensors |= {(group, name): record.tensors[group][name] for name in shard.names}


def _digests(draft: Draft, threads: int) -> dict[Name, tuple[str, ...]]:
    names = [(group, name) for group, tensors in draft.groups.items() for name in tensors]
    results = in_parallel(lambda name: chunk_digests(draft.groups[name[0]][name[1]].read()), names, threads)
    return dict(zip(names, results, strict=True))


def _is_unchanged(spec: TensorSpec, digests: tuple[str, ...] | None, before: StoredTensor | None) -> bool:
    return before is not None and (spec.dtype, spec.shape, digests) == (before.dtype, before.shape, before.chunks)


def finish(staged: Staged, before_commit: Callable[[], None] | None = None) -> Saved:
    """Write the remaining shards, the indexes and the record, flush all of it, and commit.

    Args:
        staged: What `stage` gave.
        before_commit: Called when all is written; the save is given up if it raises.

    Raises:
        ConflictError: Something that torchkeep did not write, or a newer save, is at the target.
        CheckpointError: The operating system refused. Whatever was at the target is as before; nothing is left behind.
    """
    with not_saved(staged.target):
        try:
            record, written_bytes = _write_all(staged)
            if before_commit is not None:
                before_commit()
            commit(staged.staging, staged.target, record, staged.replaces)
        finally:
            staged.discard()
    linked_bytes = sum(shard.nbytes for shard in staged.linked.values())
    return Saved(staged.target, record, written_bytes, linked_bytes, tuple(staged.notes))


def not_saved(target: Path) -> AbstractContextManager[None]:
    """Turn what the operating system refuses during a save into a typed error."""
    remedy = "what was there before is unchanged; free space or mend access, then save again"
    return typed("the checkpoint was not saved", target, remedy)


def _write_all(staged: Staged) -> tuple[Record, int]:
    folder, stems = staged.staging.path, stems_of(staged.draft.groups)
    tensors: dict[str, dict[str, StoredTensor]] = {}
    shards: dict[str, Shard] = {}
    indexes: dict[str, str] = {}
    write_now(staged, dict(staged.to_write))
    in_parallel(lambda file: fsync_path(folder / file), staged.linked, staged.threads)  # never flushed before, perhaps
    in_linked: dict[str, dict[str, StoredTensor]] = defaultdict(dict)
    for (_, name), tensor in staged.linked_tensors.items():
        in_linked[tensor.shard][name] = tensor
    for group, drafts in staged.draft.groups.items():
        linked = {file: shard for file, shard in staged.linked.items() if shard.group == group}
        written = [each for each in staged.written if each.shard.group == group]
        count = len(linked) + len(written)
        placed: dict[str, StoredTensor] = {}
        for file, shard in linked.items():
            final = _shard_name(stems[group], shard.digest, count)
            if final != file:
                (folder / file).rename(folder / final)
            shards[final] = replace(shard, mtime_ns=(folder / final).stat().st_mtime_ns)
            placed |= {name: replace(tensor, shard=final) for name, tensor in in_linked[file].items()}
        for each in written:
            final = _shard_name(stems[group], each.shard.digest, count)
            each.path.rename(folder / final)
            shards[final] = each.shard
            placed |= each.layout.stored(final)
        tensors[group] = {name: placed[name] for name in drafts}
        if count > 1:
            data = index_of({n: t.shard for n, t in placed.items()}, sum(t.nbytes for t in placed.values()))
            write_durably(folder / f"{stems[group]}.safetensors.index.json", data)
            indexes[f"{stems[group]}.safetensors.index.json"] = digest_of(data)
    record = _record(staged, tensors, shards, indexes)
    write_durably(folder / RECORD_NAME, encode_record(record))
    return record, sum(each.shard.nbytes for each in staged.written)


def write_now(staged: Staged, shards: Mapping[str, Sequence[PlannedShard]]) -> None:
    """Write and flush some of the shards to write; their final names, which say their digests, come later.

    Raises:
        OSError: The system refused.
    """
    files: list[ShardFile] = []
    for group, planned in shards.items():
        for shard in planned:
            drafts = {name: staged.draft.groups[group][name] for name in shard.names}
            part = staged.staging.path / f"{len(staged.written) + len(files)}.part"
            files.append(ShardFile(part, group, drafts, shard.splits))
            staged.to_write[group] = [each for each in staged.to_write[group] if each is not shard]
    staged.written += write_shards(files, staged.threads, staged.progress)


def _shard_name(stem: str, digest: str, count: int) -> str:
    return f"{stem}.safetensors" if count == 1 else f"{stem}-{digest[:16]}.safetensors"


def _record(
    staged: Staged,
    tensors: Mapping[str, Mapping[str, StoredTensor]],
    shards: Mapping[str, Shard],
    indexes: Mapping[str, str],
) -> Record:
    draft, parent = staged.draft, staged.parent
    sequence = 0 if parent is None else sequence_of(parent) + 1
    return Record(
        id=staged.staging.id,
        saved_at_ns=draft.saved_at_ns,
        step=draft.step,
        metrics=draft.metrics,
        provenance={**draft.provenance, "parent": None if parent is None else parent.id, "sequence": sequence},
        whole=draft.whole,
        entries=draft.entries,
        rng=draft.rng,
        tensors=tensors,
        shards=shards,
        indexes=indexes,
    )
