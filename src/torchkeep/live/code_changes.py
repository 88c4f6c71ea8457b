"""Classes of today beside what they were when a model was saved: attributes gone and new, texts that differ."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torchkeep.folder.structure import ClassSource
from torchkeep.live.class_sources import SourceReader, bases_of
from torchkeep.live.module_tables import TABLES, added_by_torch
from torchkeep.live.trust import path_of
from torchkeep.live.wanted import attributes_in
from torchkeep.tensors import Described, printable

_SHOWN_LINES = 40
_ABSENT = object()


@dataclass(slots=True)
class Changes:
    """How the code differs from that of the save.

    Attributes:
        faults: Attributes that a class sets now and the file does not have, and those it does not know any more.
        notes: Classes whose text differs, with what is known of the difference.
    """

    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def changes_of(
    objects: Iterable[Described], classes: Mapping[int, type], sources: Mapping[str, ClassSource]
) -> Changes:
    """Compare the classes of described objects with their sources at the save; a foreign file has none of these.

    Args:
        objects: Descriptions of objects.
        classes: The class of each today, by identity of its description.
        sources: Classes at the save, by the name that the file has for them.
    """
    found, reader = Changes(), SourceReader()
    attributes: dict[tuple[str, type], set[str]] = {}
    for node in objects:
        cls = classes[id(node)]
        if isinstance(node.state, Mapping):
            names = {*_names_in(node.state), *added_by_torch(cls, node.state)}
            attributes.setdefault((node.class_path, cls), set()).update(names)
    today = {path_of(each): each for each in bases_of(cls for _, cls in attributes)}
    today |= {name.replace(":", "."): cls for name, cls in attributes}
    then = {today[path]: each for name, each in sources.items() if (path := name.replace(":", ".")) in today}
    same = {cls for cls, each in then.items() if each.file_digest and each.file_digest == reader.file_digest_of(cls)}
    for (name, cls), names in attributes.items():
        if not same.issuperset(bases_of([cls])):
            found.faults += map(printable, _attribute_faults(cls, names, sources.get(name), reader))
    for cls, each in then.items():
        found.notes += _text_notes(cls, each, reader) if cls not in same else []
    return found


def _names_in(state: Mapping[str, object]) -> set[str]:
    names = set(attributes_in(state))
    for table in TABLES:
        held = state.get(table)
        names |= {str(name) for name in held} if isinstance(held, Mapping) else set()
    return names


def _attribute_faults(cls: type, names: set[str], then: ClassSource | None, reader: SourceReader) -> list[str]:
    known = names | set(then.attributes if then is not None else ())
    fresh = [
        name for name in sorted(reader.set_always(cls) - known) if inspect.getattr_static(cls, name, _ABSENT) is _ABSENT
    ]
    mentioned = reader.mentions(cls)
    gone = [] if then is None or mentioned is None else sorted((set(then.attributes) & names) - mentioned)
    path = path_of(cls)
    return [f"{path}.{name}   only in the class: it sets it now, the file has none" for name in fresh] + [
        f"{path}.{name}   only in the checkpoint: the class does not know it any more" for name in gone
    ]


def _text_notes(cls: type, then: ClassSource, reader: SourceReader) -> list[str]:
    now = reader.source_of(cls, include_text=True)
    if then.digest is None or now.digest is None or now.digest == then.digest:
        return []
    versions = "" if now.version == then.version else printable(f", version {then.version} -> {now.version}")
    note = f"{path_of(cls)} is not the class that was saved ({now.file}{versions})"
    if then.text is None or now.text is None:
        return [note]
    before, after = then.text.splitlines(), now.text.splitlines()
    differences = difflib.unified_diff(before, after, "saved", "now", lineterm="", n=1)
    lines = [printable(line) for line in differences]
    more = [f"... {len(lines) - _SHOWN_LINES} more lines"] if len(lines) > _SHOWN_LINES else []
    return ["\n    ".join([note, *lines[:_SHOWN_LINES], *more])]
