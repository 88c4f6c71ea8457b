"""What the next save will do while the caller waits, decided beforehand from what changed at the last one.

Shards in which nothing changed are looked at in place, and linked when they did not change again. All others are copied
into staging memory as a whole; which of their tensors did change is found there, in the background.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torchkeep.folder.digests import chunk_digests, chunk_ranges, digest_of
from torchkeep.folder.draft import Draft, DraftTensor, Groups, Held, Name
from torchkeep.folder.linking import link_shard
from torchkeep.folder.parallel import default_threads, in_parallel, threads_for
from torchkeep.folder.partition import PlannedShard
from torchkeep.folder.record import Record
from torchkeep.folder.shards import file_order
from torchkeep.folder.write import Saved, Staged, decide, link, write_now

if TYPE_CHECKING:
    import torch

    from torchkeep.live.staging import Copies, Glimpse, Region, StagingMemory

_GLIMPSES = 512


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

    def memory_in(self, draft: Draft, groups: Groups) -> memoryview:
        """The bytes in a draft; they are where they were in `groups` if its mapping is the same."""
        tensors = draft.groups[self.name[0]]
        if self.memory is not None and tensors is groups[self.name[0]]:
            return self.memory
        return tensors[self.name[1]].read()[self.first : self.last]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is done while the caller waits for the next save, as long as what is saved is built as it was.

    Attributes:
        parent: The checkpoint to link to.
        record: Its record.
        groups: What was saved then.
        looks: What is looked at in place.
        frozen: The same, of shards in which nothing trains, which may come late.
        frozen_sources: The tensors of the latter.
        places: Where what is copied goes.
        copies: By group, what copies it.
        late_copies: By group, what copies the rest of it, which may come late.
        late_names: The tensors that may come late.
    """

    parent: Path
    record: Record
    groups: Groups
    looks: Sequence[Look]
    frozen: Sequence[Look]
    frozen_sources: Sequence[torch.Tensor]
    places: Mapping[Name, Place]
    copies: Mapping[str, Copies]
    late_copies: Mapping[str, Copies]
    late_names: AbstractSet[Name]

    def fits(self, draft: Draft) -> bool:
        """Whether a draft has the same tensors by name, dtype and shape."""
        return list(draft.groups) == list(self.groups) and all(
            _alike(tensors, self.groups[group]) for group, tensors in draft.groups.items()
        )

    def glimpse_of_frozen(self, draft: Draft) -> Glimpse | None:
        """What the frozen tensors of a draft are now; None where they cannot be looked at late."""
        from torchkeep.live.staging import glimpse

        is_where_it_was = all(draft.groups[each.name[0]] is self.groups[each.name[0]] for each in self.frozen)
        if not self.frozen or not is_where_it_was:
            return None
        step = max(1, len(self.frozen) // _GLIMPSES)
        return glimpse(self.frozen_sources, [each.memory for each in self.frozen[::step] if each.memory is not None])

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
    groups: Groups,
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
    import torch

    from torchkeep.live.staging import copies_of

    memory.reset()
    looks: list[Look] = []
    frozen: list[Look] = []
    places: dict[Name, Place] = {}
    for file, names in _names_by_file(saved.record).items():
        if changed.isdisjoint(names):
            of_file = [look for name in names for look in _looks(file, name, saved.record, groups)]
            (frozen if all(_is_frozen(groups[g][n]) for g, n in names) else looks).extend(of_file)
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
    sources = [groups[group][name].source for group, name in dict.fromkeys(look.name for look in frozen)]
    return Prepared(
        parent=saved.path,
        record=saved.record,
        groups=groups,
        looks=looks,
        frozen=frozen,
        frozen_sources=[each for each in sources if isinstance(each, torch.Tensor)],
        places=places,
        copies=copies,
        late_copies=late,
        late_names=late_names & places.keys(),
    )


def _is_frozen(draft: DraftTensor) -> bool:
    """Whether a tensor may be looked at late: no training changes it, and it lies in memory as it is saved."""
    import torch

    return isinstance(draft.source, torch.Tensor) and draft.is_divisible and not draft.may_change


def _names_by_file(record: Record) -> dict[str, list[Name]]:
    """The tensors of each shard, in its order."""
    inside: dict[str, list[Name]] = {file: [] for file in record.shards}
    of_record = [(group, name, each) for group, tensors in record.tensors.items() for name, each in tensors.items()]
    for group, name, each in sorted(of_record, key=lambda item: (item[2].begin, item[2].end)):
        inside[each.shard].append((group, name))
    return inside


def _looks(file: str, name: Name, record: Record, groups: Groups) -> Iterator[Look]:
    stored, draft = record.tensors[name[0]][name[1]], groups[name[0]][name[1]]
    memory = draft.read() if draft.is_divisible else None
    for (first, last), digest in zip(chunk_ranges(stored.nbytes), stored.chunks, strict=True):
        yield Look(file, name, first, last, digest, None if memory is None else memory[first:last])


def stage_prepared(
    prepared: Prepared,
    target: Path,
    draft: Draft,
    memory: StagingMemory,
    doubtful: Mapping[str, str],
    threads: int,
    *,
    frozen_late: bool,
) -> Copied | None:
    """Do what was prepared: copy, look, link; None, with nothing left behind, where memory is short."""
    from torchkeep.live.staging import copies_of

    staged = Staged(target, draft, prepared.record, threads)
    with staged.undone_on_error():
        at_once, late = prepared.copies_for(draft)
        nothing = copies_of([])
        places, late_names, looks = prepared.places, prepared.late_names, prepared.frozen if frozen_late else ()
        copied = Copied(staged, places, nothing, late, late_names, looks, frozenset(), prepared.parent)
        at_once_looks = prepared.looks if frozen_late else [*prepared.looks, *prepared.frozen]
        memories = [each.memory_in(draft, prepared.groups) for each in at_once_looks]
        digests = at_once.run(default_threads(), digested=memories)
        return _link_unchanged(copied, at_once_looks, digests, memory, doubtful)


def look_late(copied: Copied, memory: StagingMemory) -> Copied | None:
    """Look at what was left for later, and link it; None where it is not what the parent holds, or memory is short."""
    draft, looks = copied.staged.draft, copied.late_looks
    memories = [each.memory_in(draft, draft.groups) for each in looks]
    digests = in_parallel(digest_of, memories, threads_for(sum(map(len, memories)), default_threads()))
    linked = _link_unchanged(copied, looks, digests, memory, {})
    if linked is None:
        return None
    linked.copies.run(default_threads())
    again = [(each, linked.places[each.name]) for each in looks if each.name in linked.places]  # not linked, or changed
    is_same = all(digest_of(place.memory_of(each.last)[each.first :]) == each.digest for each, place in again)
    return linked if is_same else None


def _link_unchanged(
    copied: Copied, looks: Sequence[Look], digests: Sequence[str], memory: StagingMemory, doubtful: Mapping[str, str]
) -> Copied | None:
    """Link the shards in which every look gave the digest that was, and say how to copy the others looked at."""
    from torchkeep.live.staging import copies_of

    staged, record = copied.staged, copied.staged.parent
    if not looks or record is None or copied.parent is None or copied.linked is None:
        return copied
    staged.make_folder()
    to_copy = {each.file for each, digest in zip(looks, digests, strict=True) if digest != each.digest}
    to_copy |= {each.file for each in looks} & doubtful.keys()
    linked: set[str] = set()
    for file in dict.fromkeys(each.file for each in looks):
        if file not in to_copy:
            why = link_shard(copied.parent / file, staged.staging.path / file, record, file, read_again=False)
            (linked if why is None else to_copy).add(file)
    places: dict[Name, Place] = {}
    names = _names_by_file(record) if to_copy else {}
    for file in to_copy:
        region = memory.take(sum(record.tensors[g][n].nbytes for g, n in names[file]))
        if region is None:
            staged.discard()
            return None
        places |= {(g, n): Place(region, record.tensors[g][n].begin) for g, n in names[file]}
    drafts = [(staged.draft.groups[g][n], place) for (g, n), place in places.items()]
    return replace(
        copied,
        places={**copied.places, **places},
        copies=copies_of([(draft, place.bytes_of(draft)) for draft, place in drafts]),
        linked=copied.linked | linked,
    )


@dataclass(frozen=True, slots=True)
class Copied:
    """A save that is staged once its copies are made.

    Attributes:
        staged: The save.
        places: Where its tensors are kept.
        copies: What copies them there, as far as it is not done.
        late_copies: What copies the rest of them, which may come late.
        late_names: Those.
        late_looks: What is still to be looked at.
        linked: Links that are made, where shards are still to be decided; None when they are decided.
        parent: The checkpoint to link to, if there is one.
    """

    staged: Staged
    places: Mapping[Name, Place]
    copies: Copies
    late_copies: Copies
    late_names: AbstractSet[Name]
    late_looks: Sequence[Look]
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
    return Copied(staged, places, copies, copies_of([]), frozenset(), (), None, parent)
