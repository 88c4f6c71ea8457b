"""What the next save will do while the caller waits, decided beforehand from what changed at the last one.

Shards in which nothing changed are looked at in place, and linked when they did not change again. All others are copied
into staging memory as a whole; which of their tensors did change is found there, in the background.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torchkeep.folder.digests import chunk_digests, chunk_ranges
from torchkeep.folder.draft import Draft, DraftTensor, Held
from torchkeep.folder.linking import link_shard
from torchkeep.folder.parallel import default_threads, in_parallel
from torchkeep.folder.partition import PlannedShard
from torchkeep.folder.record import Record
from torchkeep.folder.shards import file_order
from torchkeep.folder.write import Name, Saved, Staged, decide, link, write_now

if TYPE_CHECKING:
    import torch

    from torchkeep.live.staging import Copies, Region, StagingMemory


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor is copied to: from `offset` on in a region laid out like its shard's data."""

    region: Region
    offset: int

    def bytes_of(self, draft: DraftTensor) -> torch.Tensor:
        """The place as a tensor of bytes."""
        return self.region.tensor[self.offset : self.offset + draft.spec.nbytes]

    def memory_of(self, nbytes: int) -> memoryview:
        """The place as memory."""
        return self.region.memory[self.offset : self.offset + nbytes]


@dataclass(frozen=True, slots=True)
class Look:
    """A chunk to compare in place with its digest in the parent's record.

    Attributes:
        file: The parent's shard that holds it.
        name: Its tensor.
        first: Where it begins in the tensor.
        last: Where it ends.
        digest: What it was.
        memory: Where it lies, for a tensor that can be read without a copy.
    """

    file: str
    name: Name
    first: int
    last: int
    digest: str
    memory: memoryview | None

    def memory_in(self, draft: Draft, *, is_where_it_was: bool) -> memoryview:
        """The live bytes."""
        if self.memory is not None and is_where_it_was:
            return self.memory
        return draft.groups[self.name[0]][self.name[1]].read()[self.first : self.last]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is done while the caller waits for the next save, as long as what is saved is built as it was.

    Attributes:
        parent: The checkpoint to link to.
        record: Its record.
        groups: What was saved then.
        looks: What is looked at in place.
        places: Where what is copied goes.
        copies: By group, what copies it.
        late_copies: By group, what copies the rest of it, which may come late.
        late_names: The tensors that may come late.
    """

    parent: Path
    record: Record
    groups: Mapping[str, Mapping[str, DraftTensor]]
    looks: Sequence[Look]
    places: Mapping[Name, Place]
    copies: Mapping[str, Copies]
    late_copies: Mapping[str, Copies]
    late_names: AbstractSet[Name]

    def fits(self, draft: Draft) -> bool:
        """Whether a draft has the same tensors by name, dtype and shape."""
        return list(draft.groups) == list(self.groups) and all(
            _alike(tensors, self.groups[group]) for group, tensors in draft.groups.items()
        )

    def looked_at(self, draft: Draft) -> list[memoryview]:
        """What is looked at in a draft."""
        same = {group for group, tensors in draft.groups.items() if tensors is self.groups[group]}
        return [each.memory_in(draft, is_where_it_was=each.name[0] in same) for each in self.looks]

    def changed_files(self, digests: Sequence[str]) -> set[str]:
        """The parent's shards among those looked at in which something changed after all."""
        return {each.file for each, digest in zip(self.looks, digests, strict=True) if digest != each.digest}

    def copies_for(self, draft: Draft) -> tuple[Copies, Copies]:
        """What copies the tensors of a draft at once, and what copies those that may come late."""
        from torchkeep.live.staging import copies_of

        at_once, late = copies_of([]), copies_of([])
        for group, tensors in draft.groups.items():
            if tensors is self.groups[group]:
                at_once += self.copies[group]
                late += self.late_copies[group]
            else:
                places = {n: place for (g, n), place in self.places.items() if g == group}
                at_once += copies_of([(tensors[n], place.bytes_of(tensors[n])) for n, place in places.items()])
        return at_once, late


def _alike(tensors: Mapping[str, DraftTensor], before: Mapping[str, DraftTensor]) -> bool:
    if tensors is before:
        return True
    names_agree = list(tensors) == list(before)
    return names_agree and all(a.spec == b.spec for a, b in zip(tensors.values(), before.values(), strict=True))


def prepare(
    saved: Saved,
    groups: Mapping[str, Mapping[str, DraftTensor]],
    changed: AbstractSet[Name],
    memory: StagingMemory,
    late_names: AbstractSet[Name],
) -> Prepared | None:
    """Decide what the save after this one will look at and what it will copy; None where memory does not allow it.

    Args:
        saved: The save that has just ended.
        groups: What it was of: the live tensors.
        changed: Its tensors that were not as in its parent.
        memory: Where copies go; what was in it is lost.
        late_names: Tensors whose copies may come late.
    """
    from torchkeep.live.staging import copies_of

    memory.reset()
    looks: list[Look] = []
    places: dict[Name, Place] = {}
    for file, names in _names_by_file(saved.record).items():
        if changed.isdisjoint(names):
            looks += [look for name in names for look in _looks(file, name, saved.record, groups)]
            continue
        nbytes = sum(saved.record.tensors[group][name].nbytes for group, name in names)
        region = memory.take(nbytes)
        if region is None:
            return None
        places |= {(g, n): Place(region, saved.record.tensors[g][n].begin) for g, n in names}
    pairs: dict[bool, dict[str, list[tuple[DraftTensor, torch.Tensor]]]] = {
        is_late: {group: [] for group in groups} for is_late in (False, True)
    }
    for (group, name), place in places.items():
        draft = groups[group][name]
        pairs[(group, name) in late_names][group].append((draft, place.bytes_of(draft)))
    copies, late = ({group: copies_of(each) for group, each in pairs[is_late].items()} for is_late in (False, True))
    return Prepared(saved.path, saved.record, groups, looks, places, copies, late, late_names & places.keys())


def _names_by_file(record: Record) -> dict[str, list[Name]]:
    """The tensors of each shard, in its order."""
    inside: dict[str, list[Name]] = {file: [] for file in record.shards}
    of_record = [(group, name, each) for group, tensors in record.tensors.items() for name, each in tensors.items()]
    for group, name, each in sorted(of_record, key=lambda item: (item[2].begin, item[2].end)):
        inside[each.shard].append((group, name))
    return inside


def _looks(file: str, name: Name, record: Record, groups: Mapping[str, Mapping[str, DraftTensor]]) -> Iterator[Look]:
    stored, draft = record.tensors[name[0]][name[1]], groups[name[0]][name[1]]
    memory = draft.read() if draft.is_divisible else None
    for (first, last), digest in zip(chunk_ranges(stored.nbytes), stored.chunks, strict=True):
        yield Look(file, name, first, last, digest, None if memory is None else memory[first:last])


def stage_prepared(
    prepared: Prepared, target: Path, draft: Draft, memory: StagingMemory, doubtful: Mapping[str, str], threads: int
) -> Copied | None:
    """Do what was prepared: copy, look, link; None, with nothing left behind, where memory is short."""
    staged = Staged(target, draft, prepared.record, threads)
    with staged.undone_on_error():
        return _stage_prepared(prepared, staged, memory, doubtful)


def _stage_prepared(
    prepared: Prepared, staged: Staged, memory: StagingMemory, doubtful: Mapping[str, str]
) -> Copied | None:
    from torchkeep.live.staging import copies_of

    draft, record = staged.draft, prepared.record
    looked_at = dict.fromkeys(look.file for look in prepared.looks)
    copies, late = prepared.copies_for(draft)
    digests = copies.run(default_threads(), digested=prepared.looked_at(draft))
    to_copy = prepared.changed_files(digests) | (looked_at.keys() & doubtful.keys())
    if looked_at:  # else the folder is made in the background
        staged.make_folder()
    linked: set[str] = set()
    for file in looked_at:
        if file not in to_copy:
            why = link_shard(prepared.parent / file, staged.staging.path / file, record, file, read_again=False)
            linked |= {file} if why is None else set()
            to_copy |= set() if why is None else {file}
    places = dict(prepared.places)
    copies = copies_of([])
    names = _names_by_file(record) if to_copy else {}
    for file in to_copy:
        region = memory.take(sum(record.tensors[g][n].nbytes for g, n in names[file]))
        if region is None:
            staged.discard()
            return None
        more = {(g, n): Place(region, record.tensors[g][n].begin) for g, n in names[file]}
        copies += copies_of([(draft.groups[g][n], p.bytes_of(draft.groups[g][n])) for (g, n), p in more.items()])
        places |= more
    return Copied(staged, places, copies, late, prepared.late_names, frozenset(linked), prepared.parent)


@dataclass(frozen=True, slots=True)
class Copied:
    """A save that is staged once its copies are made.

    Attributes:
        staged: The save.
        places: Where its tensors are kept.
        copies: What copies them there, as far as it is not done.
        late_copies: What copies the rest of them, which may come late.
        late_names: Those.
        linked: Links that are made, where shards are still to be decided; None when they are decided.
        parent: The checkpoint to link to, if there is one.
    """

    staged: Staged
    places: Mapping[Name, Place]
    copies: Copies
    late_copies: Copies
    late_names: AbstractSet[Name]
    linked: frozenset[str] | None
    parent: Path | None

    def settle(self, doubtful: Mapping[str, str]) -> None:
        """Hash what was copied, and decide the shards where that is still to be done; the live objects are not needed.

        Raises:
            OSError: The system refused.
        """
        staged = self.staged
        groups = staged.draft.groups
        kept = {(g, n): (place, groups[g][n].spec.nbytes) for (g, n), place in self.places.items()}
        hashed = in_parallel(lambda item: chunk_digests(item[0].memory_of(item[1])), kept.values(), staged.threads)
        digests = dict(zip(kept, hashed, strict=True))
        staged.hold({n: Held(p.region.memory, p.offset, digests[n]) for n, (p, _) in kept.items()})
        staged.make_folder()
        if self.linked is None or self.parent is None or staged.parent is None:
            return
        before = {(g, n): each.chunks for g, tensors in staged.parent.tensors.items() for n, each in tensors.items()}
        decide(staged, {**before, **digests})
        link(staged, self.parent, doubtful, self.linked)
        for file in self.linked - staged.linked.keys():
            (staged.staging.path / file).unlink()


def stage_anew(staged: Staged, parent: Path | None, memory: StagingMemory) -> Copied:
    """Say what to copy of a save whose shards are decided; what memory does not allow is written now.

    Raises:
        CheckpointError: The operating system refused; nothing is left behind.
    """
    from torchkeep.live.staging import copies_of

    memory.reset()
    places: dict[Name, Place] = {}
    over: dict[str, list[PlannedShard]] = {}
    for group, shards in staged.to_write.items():
        tensors = staged.draft.groups[group]
        for shard in shards:
            region = memory.take(shard.nbytes)
            if region is None:
                over.setdefault(group, []).append(shard)
                continue
            begin_bytes = 0
            for name in file_order({name: tensors[name].spec for name in shard.names}):
                places[group, name] = Place(region, begin_bytes)
                begin_bytes += tensors[name].spec.nbytes
    drafts = {(g, n): staged.draft.groups[g][n] for g, n in places}
    copies = copies_of([(draft, places[name].bytes_of(draft)) for name, draft in drafts.items()])
    with staged.undone_on_error():
        if over:
            count = sum(len(shards) for shards in over.values())
            staged.notes.append(f"{count} shards were written while the caller waited: staging_bytes allows no more")
            write_now(staged, over)
    return Copied(staged, places, copies, copies_of([]), frozenset(), None, parent)
