"""The commit record `checkpoint.json`: its fields as values, and the strict codec of docs/format.md."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TypeAlias, TypeVar

from torchkeep.errors import CorruptError, FormatError
from torchkeep.folder.digests import CHUNK_BYTES, chunk_ranges, digest_of, is_digest, shard_digest
from torchkeep.tensors import DTYPE_NAMES, TensorSpec

RECORD_NAME = "checkpoint.json"
VERSION = 1
KNOWN_FEATURES: frozenset[str] = frozenset()
ALIGNMENT_BYTES = 4096
Node: TypeAlias = object
_DIGEST_MEMBER = b',"digest":"'
_END = b'"}\n'
_as_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
RECORD_BEGIN = b'{"format":"torchkeep"'
_ENTRIES_MEMBER = b',"entries":{'
_SHARDS_MEMBER = b'},"shards":{'
_TENSORS_MEMBER = b',"tensors":{'
_TENSOR_MEMBERS = {"dtype", "shape", "shard", "begin", "end", "chunks"}
_SUMMARY_MEMBERS = {"id", "saved_at_ns", "step", "metrics", "provenance", "shards"}
CONTENT_NAME = re.compile(r".+-[0-9a-f]{16}\.safetensors")  # only torchkeep names a shard so
FILE_NAME = re.compile(r"[A-Za-z0-9_%~-][A-Za-z0-9_.%~-]{0,200}\.safetensors(\.index\.json)?")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies: `begin` and `end` count from the start of its shard's data, `chunks` are its digests."""

    dtype: str
    shape: tuple[int, ...]
    shard: str
    begin: int
    end: int
    chunks: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file of a group: its size in bytes, mtime, digests, and how often it was the part that stayed."""

    group: str
    nbytes: int
    mtime_ns: int
    header: str
    digest: str
    splits: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of what was saved: its kind, its tree as a JSON node, and what else its kind records."""

    kind: str
    tree: Node
    facts: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Record:
    """Everything `checkpoint.json` says; see docs/format.md for each member."""

    id: str
    saved_at_ns: int
    step: int | None
    metrics: Node
    provenance: Mapping[str, object]
    whole: str | None
    entries: Mapping[str, Entry]
    rng: Node
    tensors: Mapping[str, Mapping[str, StoredTensor]]
    shards: Mapping[str, Shard]
    indexes: Mapping[str, str]

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for group in self.tensors.values() for tensor in group.values())


@dataclass(frozen=True, slots=True)
class Summary:
    """What a record says beside its entries and tensors; members are named as in `Record`."""

    id: str
    saved_at_ns: int
    step: int | None
    metrics: Node
    provenance: Mapping[str, object]
    shards: Mapping[str, Shard]


def encode_record(record: Record) -> bytes:
    """The bytes of `checkpoint.json`, ended by their own digest."""
    members = {
        "format": "torchkeep",
        "version": VERSION,
        "requires": [],
        "id": record.id,
        "saved_at_ns": record.saved_at_ns,
        "step": record.step,
        "metrics": record.metrics,
        "provenance": dict(record.provenance),
        "whole": record.whole,
        "entries": {name: {"kind": e.kind, "tree": e.tree, **e.facts} for name, e in record.entries.items()},
        "rng": record.rng,
    }
    # A text for each tensor: all of them as objects would be many containers for the collector to walk.
    tensors = ",".join(
        f"{_as_json(group)}:{{{','.join(_tensor_member(name, tensor) for name, tensor in of.items())}}}"
        for group, of in record.tensors.items()
    )
    files = {
        "shards": {name: _shard_members(shard) for name, shard in record.shards.items()},
        "indexes": dict(record.indexes),
    }
    text = f'{_as_json(members)[:-1]},"tensors":{{{tensors}}},{_as_json(files)[1:-1]}'
    body = text.encode("ascii") + _DIGEST_MEMBER
    return body + digest_of(body).encode("ascii") + _END


def _tensor_member(name: str, tensor: StoredTensor) -> str:
    sizes = ",".join(map(str, tensor.shape))
    ranges = zip(chunk_ranges(tensor.nbytes), tensor.chunks, strict=True)
    chunks = ",".join([f'[{begin},{end},"{digest}"]' for (begin, end), digest in ranges])
    where = f'"shard":{_as_json(tensor.shard)},"begin":{tensor.begin},"end":{tensor.end}'
    return f'{_as_json(name)}:{{"dtype":"{tensor.dtype}","shape":[{sizes}],{where},"chunks":[{chunks}]}}'


def _shard_members(shard: Shard) -> dict[str, object]:
    return {
        "group": shard.group,
        "bytes": shard.nbytes,
        "mtime_ns": shard.mtime_ns,
        "header": shard.header,
        "digest": shard.digest,
        "splits": shard.splits,
    }


def decode_record(data: bytes, where: str) -> Record:
    """Read a record's bytes back, after checking its digest.

    Args:
        data: All bytes of the record.
        where: The path that errors name.

    Raises:
        CorruptError: The digest is not that of the bytes, or a member is not what docs/format.md says.
        FormatError: It is a torchkeep record of a version or with a feature that this version does not know.
    """
    try:
        _check_digest(data)
        members = _members_with_tensors(data) or _members_of(data)
        _refuse_unknown(members, where)
        record = _record_of(members)
        _check_places(record)
    except _MalformedError as fault:
        raise CorruptError(f"the record is damaged: {fault}", where=where) from fault
    return record


def decode_summary(data: bytes, where: str) -> Summary:
    """Read back what lists a checkpoint, after checking the digest of the whole record.

    Entries and tensors, which are nearly all of a record, are not parsed where they stand in the order that
    `encode_record` writes: a record of 10,000 tensors takes a millisecond instead of 150.

    Raises:
        CorruptError, FormatError: As for `decode_record`.
    """
    try:
        _check_digest(data)
        members = _members_around(data) or _members_of(data)
        _refuse_unknown(members, where)
        return _summary_of(members)
    except _MalformedError as fault:
        raise CorruptError(f"the record is damaged: {fault}", where=where) from fault


class _MalformedError(ValueError):
    """A record that is not what docs/format.md says."""


_T = TypeVar("_T")


def _expect(value: object, kind: type[_T], at: str) -> _T:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _MalformedError(f"{at}: {kind.__name__} wanted, found {type(value).__name__}")
    return value


def _natural(value: object, at: str) -> int:
    number = _expect(value, int, at)
    if not 0 <= number < 2**63:
        raise _MalformedError(f"{at}: {number} is out of range")
    return number


def _digest(value: object, at: str) -> str:
    if not is_digest(value):
        raise _MalformedError(f"{at}: not a digest")
    return str(value)


def _check_digest(data: bytes) -> None:
    view = memoryview(data)
    body, digest, end = view[: -32 - len(_END)], data[-32 - len(_END) : -len(_END)], data[-len(_END) :]
    whole = end == _END and body[-len(_DIGEST_MEMBER) :] == _DIGEST_MEMBER
    if not whole or digest != digest_of(body).encode("ascii"):
        raise _MalformedError("it does not end in the digest of its bytes")


def _members_of(data: bytes) -> dict[str, object]:
    try:
        return _expect(json.loads(data, object_pairs_hook=_unique, parse_constant=_refuse_constant), dict, "the record")
    except (ValueError, RecursionError) as error:
        if isinstance(error, _MalformedError):
            raise
        raise _MalformedError(f"not the JSON it should be ({error})") from error


def _members_with_tensors(data: bytes) -> dict[str, object] | None:
    """The members where they stand in the order that `encode_record` writes, those of `tensors` as `StoredTensor`.

    A quote inside a string is escaped, so what is found is a key. It is the record's own if what stands before it is
    whole but for a brace. None where it is not, or where there is anything to say about a tensor by its name.
    """
    begin = data.find(_TENSORS_MEMBER)
    if begin < 0:
        return None
    try:
        text = data[begin + len(_TENSORS_MEMBER) - 1 :].decode("ascii")
        tensors, end = json.JSONDecoder(object_pairs_hook=_tensor_or_members).raw_decode(text)
        if text[end] != ",":
            return None
        members = _members_of(data[:begin] + b"}") | {"tensors": tensors}
        after = _members_of(b"{" + text[end + 1 :].encode("ascii"))
    except (ValueError, RecursionError, IndexError):
        return None
    return members | after if members.keys().isdisjoint(after) else None


def _tensor_or_members(pairs: list[tuple[str, object]]) -> object:
    members = _unique(pairs)
    return _tensor_of(members) if members.keys() == _TENSOR_MEMBERS else members


def _members_around(data: bytes) -> dict[str, object] | None:
    """The members before `entries` and after `tensors`, without reading what lies between; None in another order.

    A quote inside a string is escaped, and no key after the last one found can be `shards`: they are file names.
    """
    entries, shards = data.find(_ENTRIES_MEMBER), data.rfind(_SHARDS_MEMBER)
    if not 0 < entries < shards:
        return None
    try:
        members = _members_of(data[:entries] + data[shards + 1 :])
    except _MalformedError:  # what was found first is a key inside the metrics, say
        return None
    return members if members.keys() >= _SUMMARY_MEMBERS else None


def _refuse_unknown(members: Mapping[str, object], where: str) -> None:
    if members.get("format") != "torchkeep":
        raise _MalformedError("it does not say that it is torchkeep's")
    version, requires = (
        _expect(members.get("version"), int, "version"),
        _expect(members.get("requires"), list, "requires"),
    )
    unknown = [name for name in map(str, requires) if name not in KNOWN_FEATURES]
    if version != VERSION or unknown:
        asks = f"format version {version}" if version != VERSION else f"the features {', '.join(unknown)}"
        what = f"the record needs {asks}; this torchkeep reads version {VERSION}"
        raise FormatError(what, where=where, remedy="upgrade torchkeep")


def _summary_of(members: Mapping[str, object]) -> Summary:
    step = members.get("step")
    return Summary(
        id=_digest(members.get("id"), "id"),
        saved_at_ns=_natural(members.get("saved_at_ns"), "saved_at_ns"),
        step=None if step is None else _natural(step, "step"),
        metrics=members.get("metrics"),
        provenance=_expect(members.get("provenance"), dict, "provenance"),
        shards={k: _shard_of(v, k) for k, v in _expect(members.get("shards"), dict, "shards").items()},
    )


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a key occurs twice")
    return members


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _record_of(members: Mapping[str, object]) -> Record:
    summary, whole = _summary_of(members), members.get("whole")
    groups = _expect(members.get("tensors"), dict, "tensors")
    return Record(
        id=summary.id,
        saved_at_ns=summary.saved_at_ns,
        step=summary.step,
        metrics=summary.metrics,
        provenance=summary.provenance,
        whole=None if whole is None else _expect(whole, str, "whole"),
        entries={k: _entry_of(v, k) for k, v in _expect(members.get("entries"), dict, "entries").items()},
        rng=members.get("rng"),
        tensors={
            group: {name: _named_tensor(value, f"{group}.{name}") for name, value in _expect(of, dict, group).items()}
            for group, of in groups.items()
        },
        shards=summary.shards,
        indexes={_file_name(k): _digest(v, k) for k, v in _expect(members.get("indexes"), dict, "indexes").items()},
    )


def _entry_of(value: object, name: str) -> Entry:
    facts = dict(_expect(value, dict, name))
    kind = _expect(facts.pop("kind", None), str, f"{name}.kind")
    if "tree" not in facts:
        raise _MalformedError(f"{name}: no tree")
    return Entry(kind, facts.pop("tree"), facts)


def _named_tensor(value: object, name: str) -> StoredTensor:
    """A tensor; a fault is told with its name."""
    try:
        return value if isinstance(value, StoredTensor) else _tensor_of(value)
    except _MalformedError as fault:
        raise _MalformedError(f"{name}{fault}") from None


def _tensor_of(value: object) -> StoredTensor:
    members = _expect(value, dict, "")
    dtype = _expect(members.get("dtype"), str, ".dtype")
    if dtype not in DTYPE_NAMES:
        raise _MalformedError(f": no dtype is called {dtype!r}")
    shape = tuple([_natural(size, ".shape") for size in _expect(members.get("shape"), list, ".shape")])
    begin, end = _natural(members.get("begin"), ".begin"), _natural(members.get("end"), ".end")
    if end - begin != TensorSpec(dtype, shape).nbytes:
        raise _MalformedError(f": {end - begin} bytes do not hold {dtype} {shape}")
    ranges = _expect(members.get("chunks"), list, ".chunks")
    wanted = chunk_ranges(end - begin)
    if len(ranges) * CHUNK_BYTES >= end - begin + CHUNK_BYTES:
        raise _MalformedError(": more chunks than bytes to digest")
    chunks = []
    for chunk, (first, last) in zip_longest(ranges, wanted):
        if not isinstance(chunk, list) or chunk[:2] != [first, last] or len(chunk) != 3:  # noqa: PLR2004 - begin, end, digest
            raise _MalformedError(f".chunks: [{first}, {last}, digest] wanted")
        chunks.append(_digest(chunk[2], ".chunks"))
    return StoredTensor(dtype, shape, _expect(members.get("shard"), str, ".shard"), begin, end, tuple(chunks))


def _shard_of(value: object, name: str) -> Shard:
    members = _expect(value, dict, name)
    _file_name(name)
    return Shard(
        group=_expect(members.get("group"), str, f"{name}.group"),
        nbytes=_natural(members.get("bytes"), f"{name}.bytes"),
        mtime_ns=_natural(members.get("mtime_ns"), f"{name}.mtime_ns"),
        header=_digest(members.get("header"), f"{name}.header"),
        digest=_digest(members.get("digest"), f"{name}.digest"),
        splits=_natural(members.get("splits"), f"{name}.splits"),
    )


def _file_name(name: str) -> str:
    if not FILE_NAME.fullmatch(name):
        raise _MalformedError(f"{name!r} is not a file name of this format")
    return name


def _check_places(record: Record) -> None:
    """Tensors fill each shard's data from 0 without a gap or an overlap, and shard digests follow from theirs."""
    inside: dict[str, list[StoredTensor]] = {name: [] for name in record.shards}
    for group, tensors in record.tensors.items():
        for name, tensor in tensors.items():
            shard = record.shards.get(tensor.shard)
            if record.shards and (shard is None or shard.group != group):
                raise _MalformedError(f"{group}.{name}: its shard {tensor.shard!r} is not a shard of {group!r}")
            inside.setdefault(tensor.shard, []).append(tensor)
    for file, members in inside.items():
        members.sort(key=lambda tensor: (tensor.begin, tensor.end))
        position = 0
        for tensor in members:
            if tensor.begin != position:
                raise _MalformedError(f"{file}: its tensors leave a gap or overlap at byte {position}")
            position = tensor.end
        shard = record.shards.get(file)
        if shard is None:
            continue
        if shard.digest != shard_digest(shard.header, (chunk for tensor in members for chunk in tensor.chunks)):
            raise _MalformedError(f"{file}: its digest does not follow from its chunks")
        if shard.nbytes - position < 0 or (shard.nbytes - position) % ALIGNMENT_BYTES:
            raise _MalformedError(f"{file}: {shard.nbytes} bytes do not hold {position} bytes of tensors")
    if record.whole is not None and record.whole not in record.entries:
        raise _MalformedError(f"whole: there is no entry {record.whole!r}")
