"""What the page asks, answered as plain values for JSON: one line for most, many for what is read bit by bit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

from torchkeep.errors import CheckpointError, NotFoundError, PlanError
from torchkeep.folder.read import FolderSource
from torchkeep.tensors import TensorSpec, walk
from torchkeep.verbs.opening import Checkpoint
from torchkeep.verbs.outline import printable, value_text
from torchkeep.viewer.fit import fit_of
from torchkeep.viewer.measures import movement_of, tensor_of
from torchkeep.viewer.numbers import number_of
from torchkeep.viewer.subject import FILE, Held, Subject

Line: TypeAlias = Mapping[str, object]
MOST_VALUES = 500
_LONGEST_NAME = 200
_VERSIONS = ("torchkeep", "torch", "python", "git_commit")
_NUMBER = re.compile("[0-9]{1,18}")


def answer(subject: Subject, question: str, asked: Mapping[str, str]) -> Iterator[Line]:
    """Answer one question, a line at a time.

    Args:
        subject: What is looked at.
        question: A key of `QUESTIONS`.
        asked: Its parameters by name.

    Raises:
        NotFoundError: There is no such question, it has other parameters, or they name what is not here.
        CheckpointError: What it asks about cannot be read.
    """
    known = QUESTIONS.get(question)
    if known is None or not known.required <= asked.keys() <= known.required | known.optional:
        raise NotFoundError(f"there is no such question: {question}")
    return known.lines(subject, asked)


def key_of(question: str, asked: Mapping[str, str]) -> str:
    """A question with its parameters as one text, as `answers.js` makes it too.

    Example:
        >>> key_of("movement", {"to": "step-00000002", "from": "step-00000001"})
        'movement from=step-00000001 to=step-00000002'
    """
    return " ".join([question, *(f"{name}={value}" for name, value in sorted(asked.items()))])


def fault_of(error: CheckpointError) -> dict[str, object]:
    """An error as the page shows it."""
    texts = {"what": error.what, "where": error.where, "remedy": error.remedy}
    return {"faults": list(map(printable, error.faults)), **{key: of and printable(of) for key, of in texts.items()}}


def describe_subject(subject: Subject) -> Line:
    """The run or file: its checkpoints with metrics and sizes, what was passed over, what else there is to compare."""
    from torchkeep import __version__

    listed = subject.listing()
    beside = [{"id": beside_id, "name": printable(str(path))} for beside_id, path in subject.beside.items()]
    values: dict[str, object] = {
        "version": __version__,
        "path": printable(str(subject.path)),
        "is_run": subject.is_run,
        "beside": beside,
        "disk_bytes": None,
        "passed_over": {},
        "checkpoints": [{"id": FILE, "step": None}],
    }
    if listed is not None:
        values["disk_bytes"] = listed.disk_bytes
        values["passed_over"] = {printable(name): printable(why) for name, why in listed.passed_over.items()}
        values["checkpoints"] = [
            {
                "id": each.path.name,
                "step": each.step,
                "saved_at": each.saved_at.isoformat(),
                "metrics": _metrics(each.metrics),
                "total_bytes": each.total_bytes,
                "own_bytes": each.own_bytes,
                "added_bytes": each.added_bytes,
                "tags": [printable(tag) for tag in each.tags],
                "nonfinite": each.nonfinite and printable(each.nonfinite),
            }
            for each in listed
        ]
    return values


def describe_checkpoint(held: Held) -> Line:
    """One checkpoint: facts, plain values, the entry taken for the weights, and its tensors by columns."""
    checkpoint = held.checkpoint
    weights, note = _weights(checkpoint)
    return {
        "path": printable(str(checkpoint.path)),
        "format": checkpoint.format,
        "step": checkpoint.step,
        "metrics": _metrics(checkpoint.metrics),
        "facts": facts_of(held),
        "values": values_of(checkpoint.tree),
        "weights": weights,
        "weights_note": note,
        "tensors": columns_of(held),
    }


def _weights(checkpoint: Checkpoint) -> tuple[Line | None, str | None]:
    """The entry taken for the weights, or why there is none."""
    try:
        found = checkpoint.weights()
    except (NotFoundError, PlanError) as error:
        return None, printable("; ".join([error.what, *error.faults]))
    counts = {"tensor_count": len(found), "parameter_count": found.parameter_count}
    return {"entry": printable(found.entry), **counts}, None


def _metrics(metrics: Mapping[str, float]) -> dict[str, object]:
    return {printable(str(name)): number_of(value) for name, value in metrics.items()}


def facts_of(held: Held) -> list[tuple[str, str]]:
    """Where a checkpoint comes from, as far as it says: versions and commit, or the metadata of its file."""
    metadata = held.source.metadata
    provenance = metadata.get("provenance")
    given = metadata.get("__metadata__", metadata)
    facts = given if isinstance(given, Mapping) else {}
    if isinstance(provenance, Mapping):
        facts = {name.replace("_", " "): provenance.get(name) for name in _VERSIONS}
    texts = {str(name): str(value) for name, value in facts.items() if isinstance(value, (str, int, float))}
    return [(printable(name[:_LONGEST_NAME]), printable(text[:_LONGEST_NAME])) for name, text in texts.items()]


def values_of(tree: object) -> list[tuple[str, str]]:
    """The plain values of a tree by dotted name, as many as people look through; a last line counts the rest."""
    found: list[tuple[str, str]] = []
    more = 0
    for path, leaf in walk(tree):
        if isinstance(leaf, TensorSpec):
            continue
        if len(found) >= MOST_VALUES:
            more += 1
            continue
        name = ".".join(str(key)[:_LONGEST_NAME] for key in path)
        found.append((printable(name[:_LONGEST_NAME]), printable(value_text(leaf)[:_LONGEST_NAME])))
    return [*found, ("...", f"{more:,} more values")] if more else found


def columns_of(held: Held) -> dict[str, object]:
    """All tensors, by column: a thousand rows of objects would say each key a thousand times.

    `tied` is the position of the first tensor that is the same one, -1 for none.
    """
    specs = list(held.tensors.values())
    first: dict[object, int] = {}
    tied = [first.setdefault((spec.key, spec.shape), here) for here, spec in enumerate(specs)]
    return {
        "name": [printable(name) for name in held.tensors],
        "shape": [spec.shape for spec in specs],
        "nbytes": [spec.nbytes for spec in specs],
        "tied": [-1 if at == here else at for here, at in enumerate(tied)],
        "trains": [int(spec.requires_grad) for spec in specs],
        "dtype": coded([spec.dtype for spec in specs]),
        "device": coded([spec.device or "" for spec in specs]),
        "shard": coded(list(_shards(held))),
    }


def _shards(held: Held) -> Iterator[str]:
    record = held.source.record if isinstance(held.source, FolderSource) else None
    for spec in held.tensors.values():
        stored = None
        if record is not None and isinstance(spec.key, tuple):
            group, name = spec.key
            stored = record.tensors[group].get(name)
        yield "" if stored is None else stored.shard


def coded(texts: list[str]) -> dict[str, object]:
    """A column of few different texts.

    Example:
        >>> coded(["float32", "float32", "int64"])
        {'of': ['float32', 'int64'], 'at': [0, 0, 1]}
    """
    places: dict[str, int] = {}
    at = [places.setdefault(text, len(places)) for text in texts]
    return {"of": list(places), "at": at}


class Question:
    """One thing that the page may ask: the parameters it has, and what answers it."""

    def __init__(
        self,
        lines: Callable[[Subject, Mapping[str, str]], Iterator[Line]],
        required: str = "",
        optional: str = "",
    ) -> None:
        self.lines = lines
        self.required = frozenset(required.split())
        self.optional = frozenset(optional.split())


def _subject(subject: Subject, _: Mapping[str, str]) -> Iterator[Line]:
    yield describe_subject(subject)


def _checkpoint(subject: Subject, asked: Mapping[str, str]) -> Iterator[Line]:
    with subject.opened(asked["of"]) as held:
        yield describe_checkpoint(held)


def _tensor(subject: Subject, asked: Mapping[str, str]) -> Iterator[Line]:
    with subject.opened(asked["of"]) as held:
        position = int(asked["at"]) if _NUMBER.fullmatch(asked["at"]) else -1
        if asked.get("beside"):
            with subject.opened(asked["beside"]) as other:
                yield tensor_of(held, position, other)
        else:
            yield tensor_of(held, position, None)


def _movement(subject: Subject, asked: Mapping[str, str]) -> Iterator[Line]:
    with subject.opened(asked["from"]) as first, subject.opened(asked["to"]) as second:
        limit = asked.get("limit_bytes", "")
        yield from movement_of(first, second, int(limit) if _NUMBER.fullmatch(limit) else None)


def _plan(subject: Subject, asked: Mapping[str, str]) -> Iterator[Line]:
    with subject.opened(asked["from"]) as source, subject.opened(asked["into"]) as target:
        yield fit_of(source, target, with_suggested=asked.get("rules") == "suggested")


QUESTIONS: Mapping[str, Question] = {
    "subject": Question(_subject),
    "checkpoint": Question(_checkpoint, "of"),
    "tensor": Question(_tensor, "of at", "beside"),
    "movement": Question(_movement, "from to", "limit_bytes"),
    "plan": Question(_plan, "from into", "rules"),
}
