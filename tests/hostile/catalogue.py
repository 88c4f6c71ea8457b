"""Every bad input that a loader must survive, by number: what it is, who makes it, and what must come of it.

Most cases stand in tables beside the tests of their format, where the words of their errors are asserted too; here they
are gathered, with those of our own folders, and `test_catalogue.py` holds each of them to the same limits.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.formats import (
    test_dcp_folders,
    test_hf_folders,
    test_hostile_archives,
    test_hostile_files,
    test_hostile_pickles,
    test_hostile_safetensors,
)
from tests.hostile import archives, checkpoints, dcp_folders, pickles
from tests.hostile.checkpoints import GOOD_MAP, hugging_face, hugging_face_with, in_a_folder, with_record, with_shard
from tests.hostile.pickles import named, stream, tensor, text
from tests.hostile.safetensors_headers import GOOD, entry, file_of, framed, many_entries

from torchkeep.errors import CheckpointError, CorruptError, FormatError, LimitError, NotFoundError, UnsafeError

Outcome = type[CheckpointError] | None


@dataclass(frozen=True)
class Case:
    """One bad input: its title begins with the numbers of its items; it is refused with this class, or opens."""

    title: str
    make: Callable[[Path], Path]
    outcome: Outcome

    @property
    def items(self) -> list[int]:
        """The numbers of the items that it is a case of."""
        numbers = re.match(r"\d+(_\d+)*(?=[ :])", self.title)
        return [int(number) for number in numbers[0].split("_")] if numbers else []


def _zip(data_pkl: bytes, *others: tuple[str, bytes]) -> Callable[[Path], Path]:
    return in_a_folder(archives.torch_zip(data_pkl, archives.FOUR_FLOATS, *others))


def _of_tables() -> list[Case]:
    """The cases of the tables beside the tests of formats."""
    cases = []
    for table in (test_hostile_safetensors.SAFETENSORS, test_hostile_archives.ZIPS, test_hostile_archives.LEGACY):
        cases += [Case(title, in_a_folder(content), kind) for title, (content, kind, _) in table.items()]
    for table in (test_hostile_safetensors.GOOD_SAFETENSORS, test_hostile_archives.GOOD_FILES):
        cases += [Case(title, in_a_folder(content), None) for title, content in table.items()]
    for title, data_pkl in test_hostile_pickles.OPCODES.items():
        cases += [
            Case(title, _zip(data_pkl), UnsafeError),
            Case(f"{title}, legacy", in_a_folder(archives.legacy(data_pkl)), UnsafeError),
        ]
    cases += [Case(title, _zip(data), None) for title, (data, _) in test_hostile_pickles.DESCRIBED.items()]
    cases += [Case(title, _zip(data), kind) for title, (data, kind, _) in test_hostile_pickles.BAD_PICKLES.items()]
    cases += [Case(title, in_a_folder(data), FormatError) for title, (data, _) in test_hostile_files.OTHERS.items()]
    cases += [
        Case(title, lambda folder, edit=edit: dcp_folders.write_folder(folder / "dcp", edit), CorruptError)
        for title, (edit, _) in test_dcp_folders.LIES.items()
    ]
    cases += [
        Case(f"122 {title}", hugging_face({}, index=content), kind)
        for title, (content, kind, _) in test_hf_folders.INDEXES.items()
    ]
    cases += [Case(f"117 {name!r}", hugging_face({"a": name}), CorruptError) for name in test_hf_folders.OUTSIDE]
    return cases


HEADERS: Mapping[str, tuple[bytes, Outcome]] = {
    "6 length 100,000,001": (framed("{}", b"", 100_000_001), CorruptError),
    "10 JSON number": (framed("12345678"), FormatError),
    "10 JSON text": (framed('"abcdefg"'), FormatError),
    "12 leading space": (framed(" {" + f'"w":{{{GOOD}}}' + "}", bytes(8)), FormatError),
    "14 key twice, other dtype": (
        framed('{"w":{' + GOOD + '},"w":{' + GOOD.replace("F32", "I32") + "}}", bytes(8)), CorruptError),
    "25 size 2^62 with 0": (file_of({"w": entry([2**62, 0], 0, 0)}, b""), CorruptError),
    "27 bytes overflow": (file_of({"w": entry([2**61], 0, 8)}), CorruptError),
    "28 rank 100,000": (file_of({"w": entry([1] * 100_000, 0, 4)}, bytes(4)), CorruptError),
    "39 300,000 tensors": (many_entries(300_000), LimitError),
    "113 NaN payloads": (archives.torch_zip(tensor((4,), (1,)), b"\x01\x00\xa0\x7f" * 4), None),
    "56 data.pkl twice": (archives.twice("a/data.pkl"), CorruptError),
    "57 data/0 twice": (archives.twice("a/data/0"), CorruptError),
    "47 a script in the metadata": (
        framed('{"__metadata__":{"format":"<script>alert(1)</script>","u":"file:///etc/passwd"}}'), None),
}  # fmt: skip
ARCHIVES: Mapping[str, tuple[bytes, Outcome]] = {
    "52 truncated in the middle": (archives.good_zip()[:200], CorruptError),
    "65 lzma": (archives.central(archives.good_zip(), 10, b"\x0e"), FormatError),
    "65 zstd": (archives.central(archives.good_zip(), 10, b"\x5d"), FormatError),
    "68 20,000 members": (archives.many_members(20_000), None),
    "69 absolute name": (archives.torch_zip(tensor((4,), (1,)), archives.FOUR_FLOATS, ("/etc/x", b"")), None),
    "69 backslash": (archives.torch_zip(tensor((4,), (1,)), archives.FOUR_FLOATS, ("a\\..\\x", b"")), None),
    "70 symbolic link": (archives.symlinked(), None),
    "72 rar": (b"Rar!\x1a\x07\x01\x00" + bytes(100), FormatError),
    "73 zip in a zip": (archives.zipped([("inner.zip", archives.good_zip())]), FormatError),
    "74 TorchScript without its code": (
        archives.zipped([("a/constants.pkl", b"\x80\x02)."), ("a/data.pkl", stream(b"N"))]), None),
    "75 no storage": (archives.zipped([("a/data.pkl", tensor((4,), (1,))), ("a/version", b"3\n")]), CorruptError),
    "76 byteorder big": (archives.torch_zip(tensor((4,), (1,)), archives.FOUR_FLOATS, ("a/byteorder", b"big")), None),
    "77 alignment a word": (archives.torch_zip(stream(b"N"), b"", ("a/.storage_alignment", b"wide")), None),
    "77 alignment 0": (archives.torch_zip(stream(b"N"), b"", ("a/.storage_alignment", b"0")), None),
    "78 format version 99": (archives.torch_zip(stream(b"N"), b"", ("a/.format_version", b"99")), None),
}  # fmt: skip
PICKLES: Mapping[str, tuple[bytes, Outcome]] = {
    "83 EXT2": (stream(b"\x83\x01\x00"), FormatError),
    "83 EXT4": (stream(b"\x84\x01\x00\x00\x00"), FormatError),
    "87 truncated": (tensor((4,), (1,))[:-9], CorruptError),
    "88 memo 2^32": (stream(b"Nr\xff\xff\xff\xff"), None),
    "89 DUP expansion": (stream(b"]" + b"2\x86" * 60), LimitError),
    "90 tuple in itself": (stream(b"](h\x00" + b"q\x00" + b"t"), CorruptError),
    "92 texts by codecs": (stream(named("_codecs", "encode") + text("a" * 1000) + text("utf-32") + b"\x86R"), None),
    "99 NaN as a key": (stream(b"}G\x7f\xf8\x00\x00\x00\x00\x00\x00NsG\x7f\xf8\x00\x00\x00\x00\x00\x00Ns"), None),
    "99 key twice": (stream(b"}" + text("a") + b"K\x01s" + text("a") + b"K\x02s"), None),
    "100 protocol 0": (pickle.dumps({"a": [1, 2.5, "x"]}, 0), None),
    "100 protocol 1": (pickle.dumps({"a": [1, 2.5, "x"]}, 1), None),
    "100 protocol 5": (pickle.dumps({"a": [1, 2.5, "x"]}, 5), None),
    "101 cloudpickle": (pickles.calling("cloudpickle.cloudpickle", "_make_function"), None),
    "105 one storage, two dtypes": (
        stream(
            b"("
            + tensor((4,), (1,))[2:-1]
            + tensor((4,), (1,), of=pickles.storage(kind="IntStorage"))[2:-1] + b"l"),
        None),
    "108 sizes 2^40 with a 0": (tensor((1 << 40, 0, 1 << 40), (1, 1, 1)), None),
    "116 cuda:99": (tensor((4,), (1,), of=pickles.storage(device="cuda:99")), None),
    "116 meta": (tensor((4,), (1,), of=pickles.storage(device="meta")), None),
}  # fmt: skip


def _tensor(members: dict[str, object]) -> dict[str, object]:
    return members["tensors"]["head"]["w"]


def _shard(members: dict[str, object]) -> dict[str, object]:
    return members["shards"]["head.safetensors"]


FOLDERS: Mapping[str, tuple[Callable[[Path], Path], Outcome]] = {
    "50 a header of 101 MB": (checkpoints.sparse((101 << 20).to_bytes(8, "little") + b"{", 102 << 20), LimitError),
    "71 a wrong extension": (in_a_folder(file_of({"w": entry()}), "model.pt"), None),
    "117 1,000,000 names": (hugging_face({}, index=checkpoints.index_of(1_000_000)), LimitError),
    "118 a pipe": (hugging_face_with(checkpoints.piped), CorruptError),
    "118 a device": (hugging_face_with(checkpoints.linked("/dev/zero")), CorruptError),
    "118 a folder": (hugging_face_with(lambda shard, _: (shard.unlink(), shard.mkdir())), CorruptError),
    "119 a shard that is gone": (hugging_face_with(lambda shard, _: shard.unlink()), CorruptError),
    "119 an empty shard": (hugging_face_with(lambda shard, _: shard.write_bytes(b"")), CorruptError),
    "120 a tensor in the wrong shard": (hugging_face({"a": "1.safetensors", "b": "0.safetensors"}), CorruptError),
    "120 a tensor in none": (hugging_face({**GOOD_MAP, "c": "0.safetensors"}), CorruptError),
    "121 total_size lies": (
        hugging_face({}, index=json.dumps({"metadata": {"total_size": 1 << 60}, "weight_map": GOOD_MAP}).encode()),
        None),
    "123 a number of 1e999": (checkpoints.with_record_text('"step":3', '"step":1e999'), CorruptError),
    "123 a step of -0": (with_record(lambda members: members.update(step=-0.0)), CorruptError),
    "123 a step of 10^400": (with_record(lambda members: members.update(step=10**400)), CorruptError),
    "123 a key twice": (checkpoints.with_record_text('"step":3', '"step":3,"step":4'), CorruptError),
    "124 truncated": (checkpoints.with_record_bytes(lambda data: data[:-10]), CorruptError),
    "124 empty": (checkpoints.with_record_bytes(lambda _: b""), CorruptError),
    "125 record of another save": (checkpoints.with_record_of_another, CorruptError),
    "126 digest in upper case": (
        with_record(lambda members: _shard(members).update(digest=_shard(members)["digest"].upper())), CorruptError),
    "126 short digest": (with_record(lambda members: _shard(members).update(header="abc")), CorruptError),
    "126 digest of other letters": (with_record(lambda members: _shard(members).update(header="z" * 32)), CorruptError),
    "127 right size, wrong bytes": (
        with_shard(lambda shard, _: shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")), CorruptError),
    "128 two shards exchanged": (with_shard(checkpoints.swapped), CorruptError),
    "128 another content": (
        with_shard(lambda shard, _: shard.write_bytes(shard.read_bytes().replace(b"w", b"v"))), CorruptError),
    "129 a link to /etc/passwd": (with_shard(checkpoints.linked("/etc/passwd")), CorruptError),
    "129 a link to itself": (with_shard(checkpoints.linked("{shard}")), CorruptError),
    "129 a link out": (with_shard(checkpoints.linked("{folder}/ckpt/model.safetensors")), CorruptError),
    "130 a hard link to somebody's file": (with_shard(checkpoints.hard_linked), CorruptError),
    "132 a crowded run": (checkpoints.run_of(checkpoints.crowded), None),
    "133 a step in two cases": (
        checkpoints.run_of(lambda folder: checkpoints.write_checkpoint(folder / "STEP-00000004", 4)), None),
    "134 version 2": (with_record(lambda members: members.update(version=2)), FormatError),
    "135 an unknown feature": (with_record(lambda members: members.update(requires=["zstd"])), FormatError),
    "135 a feature that is a list": (with_record(lambda members: members.update(requires=[[]])), FormatError),
    "119 a record of no shards": (with_record(lambda members: members.update(shards={})), CorruptError),
    "137 a parent that is itself": (
        with_record(lambda members: members["provenance"].update(parent=members["id"])), None),
    "138 a hole": (with_record(lambda members: _tensor(members).update(begin=8, end=24)), CorruptError),
    "138 beyond the file": (
        with_record(lambda members: _tensor(members).update(shape=[1 << 40], end=1 << 40)), CorruptError),
    "139 chunks that are too short": (
        with_record(lambda members: _tensor(members)["chunks"][0].__setitem__(1, 8)), CorruptError),
    "139 no chunks": (with_record(lambda members: _tensor(members).update(chunks=[])), CorruptError),
    "141 absent": (lambda folder: folder / "absent", NotFoundError),
    "141 a file as a folder": (lambda folder: in_a_folder(b"x")(folder) / "ckpt", NotFoundError),
    "142 metadata of no bytes": (
        lambda folder: checkpoints._replaced(dcp_folders.write_folder(folder / "dcp"), ".metadata", b""), CorruptError),
    "142 metadata that runs something": (
        lambda folder: checkpoints._replaced(
            dcp_folders.write_folder(folder / "dcp"), ".metadata", pickles.calling("os", "system")), UnsafeError),
    "142 metadata of another class": (
        lambda folder: checkpoints._replaced(
            dcp_folders.write_folder(folder / "dcp"), ".metadata", pickles.calling("some", "Class")), FormatError),
}  # fmt: skip

ELSEWHERE = {
    52: "tests/formats/test_damage.py: at every byte",
    110: "tests/formats/test_against_torch.py: described by its parts, and checked when it is built",
    111: "tests/formats/test_against_torch.py: classes are described",
    114: "tests/hostile: as 48",
    115: "tests/live/test_round_trips.py, tests/formats/test_against_torch.py: every dtype",
    124: "tests/folder/test_bit_flips.py: at every byte and bit",
    131: "tests/formats/test_hostile_files.py; reads are by position, so nothing is mapped that could be cut off",
    136: "tests/formats/test_dcp_folders.py: chunks of ranks that are absent or doubled, as 138",
}
NOT_THERE = {
    102: "not in the list",
    140: "no compressed frames in this format",
    143: "Orbax trees are not read",
    144: "GGUF is named and refused, not read",
    145: "no object stores",
}
CASES = [
    *_of_tables(),
    *(Case(title, in_a_folder(content), outcome) for title, (content, outcome) in {**HEADERS, **ARCHIVES}.items()),
    *(Case(title, _zip(data), outcome) for title, (data, outcome) in PICKLES.items()),
    *(Case(title, make, outcome) for title, (make, outcome) in FOLDERS.items()),
]
