"""A checkpoint for the moment: saved, restored from as often as asked, and gone; and what a state is, leaf by leaf."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torchkeep.folder.digests import chunk_digests
from torchkeep.folder.draft import Draft
from torchkeep.folder.record import Node
from torchkeep.folder.references import reference_of
from torchkeep.folder.removal import TRASH, delete_tree
from torchkeep.folder.runs import Committed, step_name
from torchkeep.folder.write import Saved, save_folder
from torchkeep.manager.drafting import Occasion, draft_of_state
from torchkeep.manager.ranks import Ranks
from torchkeep.manager.resuming import Resume
from torchkeep.manager.session import Session

_RANDOM = {"python": "Python's", "numpy": "numpy's", "torch": "torch's", "cuda": "CUDA's"}
_PAIRS = {"$dict", "$OrderedDict", "$Counter", "$defaultdict"}
_TENSOR = "tensor "
_ORDER = {"value": 0, "stateful": 0, "module": 1, "optimizer": 2}


@dataclass(frozen=True, slots=True)
class Scratch:
    """A checkpoint of a state in a run folder, under a name that the next writer cleans if this process dies."""

    session: Session
    saved: Saved

    def restore(self) -> None:
        """Put everything back as it was saved, random states included.

        Raises:
            CheckpointError: It could not be put back.
        """
        session = self.session
        resume = Resume(session.folder, session.held, None, (), session.threads, may_set_aside=False)
        resume.restore(Committed(self.saved.path, self.saved.record.step or 0, self.saved.record))


@contextmanager
def scratch(session: Session) -> Iterator[Scratch]:
    """Save a state for the time of a block."""
    step = session.last_step or 0
    place = session.folder.path / f"{TRASH}{secrets.token_hex(8)}"
    try:
        draft = draft_of_state(session.held, Occasion(step), {}, Ranks())
        yield Scratch(session, save_folder(place / step_name(step), draft, None, None, session.threads))
    finally:
        if place.exists():
            delete_tree(place)


def leaves_of(held: Mapping[str, object]) -> dict[str, str]:
    """Every leaf of a state by name, as text that is equal only for equal bits: what steers a step first.

    That is random generators, then what is neither module nor optimizer, modules, and optimizers.
    """
    return leaves_of_draft(draft_of_state(held, Occasion(0), {}, Ranks()))


def leaves_of_draft(draft: Draft) -> dict[str, str]:
    """The same of a draft."""
    rng = draft.rng if isinstance(draft.rng, Mapping) else {}
    leaves = {f"{_RANDOM.get(name, name)} random generator": json.dumps(state) for name, state in rng.items()}
    for name, entry in sorted(draft.entries.items(), key=lambda item: _ORDER.get(item[1].kind, 0)):
        leaves |= {f"{name}{path}": text for path, text in _leaves(entry.tree, draft, "")}
    return leaves


def _leaves(node: Node, draft: Draft, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping):
        reference = reference_of(node)
        if reference is not None:
            tensor = draft.groups[reference[0]][reference[1]]
            spec = tensor.spec
            yield path, f"{_TENSOR}{spec.dtype} {spec.shape} {' '.join(chunk_digests(tensor.read()))}"
            return
        for key, value in node.items():
            if key in _PAIRS and isinstance(value, list):
                for name, each in value[-1] if key == "$defaultdict" else value:
                    yield from _leaves(each, draft, f"{path}.{name if isinstance(name, str) else json.dumps(name)}")
            else:
                yield from _leaves(value, draft, path if key.startswith("$") else f"{path}.{key}")
    elif isinstance(node, list) and any(isinstance(each, (Mapping, list)) for each in node):
        for index, value in enumerate(node):
            yield from _leaves(value, draft, f"{path}.{index}")
    else:
        yield path, json.dumps(node)


def first_difference(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[str, str] | None:
    """The first leaf that differs, and how; None when all are equal."""
    for name in dict.fromkeys((*before, *after)):
        if before.get(name) != after.get(name):
            return name, _how(before.get(name), after.get(name))
    return None


def _how(before: str | None, after: str | None) -> str:
    if before is None or after is None:
        return "was not there" if before is None else "is not there any more"
    if max(len(before), len(after)) > 40 or before.startswith(_TENSOR):  # noqa: PLR2004 - more than anybody would read
        return "other values"
    return f"{before} and then {after}"
