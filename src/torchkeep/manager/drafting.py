"""What one save of a manager holds: every rank's part of it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torchkeep.folder.digests import digest_of
from torchkeep.folder.draft import Draft, DraftTensor
from torchkeep.folder.record import Entry, Node, Record
from torchkeep.folder.references import reference_of, references_in
from torchkeep.folder.values import decode_plain
from torchkeep.manager.ranks import Ranks
from torchkeep.tensors import TensorSpec
from torchkeep.verbs.saving import draft_of_run

if TYPE_CHECKING:
    from torchkeep.live.recapture import Recapture

_OF_EACH_RANK = {"stateful", "value"}  # modules and optimizers are the same on all ranks


@dataclass(frozen=True, slots=True)
class Occasion:
    """What is remembered of one save beside the state."""

    step: int
    metrics: Mapping[str, float] | None = None
    tags: tuple[str, ...] = ()
    exception: str | None = None


def draft_of_state(
    held: Mapping[str, object],
    occasion: Occasion,
    provenance: Mapping[str, object],
    ranks: Ranks,
    recapture: Recapture | None = None,
) -> Draft:
    """The draft of a save: rank 0's state, and of the other ranks what differs, random states among it.

    `recapture` captures the same state again, where it was captured before.

    Raises:
        FormatError: A value has no encoding; all of them are listed.
        CheckpointError: That of another rank has none.
    """
    from torchkeep.live.capture import capture_entries
    from torchkeep.live.environment import capture_environment
    from torchkeep.live.rng import capture_rng

    members = {**provenance, "environment": capture_environment(ranks.size)}
    members |= {"tags": list(occasion.tags)} if occasion.tags else {}
    members |= {"exception": occasion.exception} if occasion.exception else {}
    draft = ranks.together(
        lambda: draft_of_run(
            capture_entries(held) if recapture is None else recapture.capture(),
            step=occasion.step,
            metrics=occasion.metrics,
            rng=capture_rng(),
            provenance=members,
        )
    )
    return draft if ranks.size == 1 else _with_other_ranks(draft, ranks)


def _with_other_ranks(draft: Draft, ranks: Ranks) -> Draft:
    """Add what other ranks hold and rank 0 does not; one exchange of digests, one of what differs."""
    own = {name: _packed(draft, entry.tree) for name, entry in draft.entries.items() if entry.kind in _OF_EACH_RANK}
    digests = {name: digest_of(text) for name, text in own.items()}
    heard = [json.loads(text) for text in ranks.gather(json.dumps(digests).encode())]
    differing = [name for name in own if any(each.get(name) != digests[name] for each in heard)]
    differing = json.loads(ranks.share(json.dumps(differing).encode()))
    part = {"rng": draft.rng, "entries": {name: own[name].decode() for name in differing if name in own}}
    parts = [json.loads(text) for text in ranks.gather(json.dumps(part).encode())]
    entries, groups = dict(draft.entries), {name: dict(of) for name, of in draft.groups.items()}
    for name in differing:
        others = {
            str(rank): _unpack(json.loads(each["entries"][name]), name, rank, groups)
            for rank, each in enumerate(parts)
            if rank and each["entries"].get(name, own.get(name, b"").decode()) != own.get(name, b"").decode()
        }
        entries[name] = replace(entries[name], facts={**entries[name].facts, "ranks": others})
    rng = {**_members(draft.rng), "ranks": [each["rng"] for each in parts[1:]]}
    return replace(draft, entries=entries, groups=groups, rng=rng)


def _members(node: Node) -> dict[str, Any]:
    return dict(node) if isinstance(node, Mapping) else {}


def _packed(draft: Draft, tree: Node) -> bytes:
    """A tree with its tensors, as text."""
    tensors = {}
    for group, name in dict.fromkeys(references_in(tree)):
        tensor = draft.groups[group][name]
        data = base64.b64encode(tensor.read()).decode("ascii")
        tensors[f"{group}\0{name}"] = [tensor.spec.dtype, list(tensor.spec.shape), data]
    return json.dumps({"tree": tree, "tensors": tensors}, sort_keys=False).encode()


def _unpack(packed: Any, entry: str, rank: int, groups: dict[str, dict[str, DraftTensor]]) -> Node:  # noqa: ANN401 - JSON
    """The tree of another rank, its tensors added to the entry's group under names of that rank."""
    names = {}
    for key, (dtype, shape, data) in packed["tensors"].items():
        name = f"rank{rank}/{key.partition(chr(0))[2]}"
        content = memoryview(bytearray(base64.b64decode(data)))
        spec = TensorSpec(dtype, tuple(shape))
        groups.setdefault(entry, {})[name] = DraftTensor(spec, may_change=True, reader=_itself, source=content)
        names[key] = [entry, name]
    return _renamed(packed["tree"], names)


def _itself(content: memoryview) -> memoryview:
    return content


def _renamed(node: Node, names: Mapping[str, list[str]]) -> Node:
    if isinstance(node, Mapping):
        reference = reference_of(node)
        if reference is not None:
            return {**node, "$tensor": names["\0".join(reference)]}
        return {key: _renamed(value, names) for key, value in node.items()}
    return [_renamed(value, names) for value in node] if isinstance(node, list) else node


def record_of_rank(record: Record, rank: int) -> Record:
    """A record as a rank reads it: entries of which it had its own, as it had them."""

    def own(entry: Entry) -> Entry:
        trees = entry.facts.get("ranks")
        tree = trees.get(str(rank), entry.tree) if isinstance(trees, Mapping) else entry.tree
        return replace(entry, tree=tree)

    return replace(record, entries={name: own(entry) for name, entry in record.entries.items()})


def rng_of_rank(record: Record, rank: int) -> Mapping[str, Any] | None:
    """The random states of a rank; those of rank 0 for one that was not there. None: they were not saved."""
    node = _members(record.rng)
    others = node.pop("ranks", [])
    if rank and rank <= len(others):
        node = others[rank - 1]
    rng = decode_plain(node) if node else None
    return rng if isinstance(rng, dict) else None
