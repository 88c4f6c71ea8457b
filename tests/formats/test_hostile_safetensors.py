"""Bad safetensors files: a typed error that says what and where; odd ones open."""

from __future__ import annotations

import pytest
from tests.hostile.refusal import open_and_read, refused
from tests.hostile.safetensors_headers import GOOD, entry, file_of, framed, raw_entry

from torchkeep.errors import CorruptError, FormatError, LimitError

SAFETENSORS = {
    "2 shorter than its length": (b"abc", FormatError, "not a checkpoint"),
    "3 length 0": (framed(b"", b"{}", 0), CorruptError, "header should have 0 bytes"),
    "4 length 2^64-1": (framed("{}", b"", (1 << 64) - 1), CorruptError, "18,446,744,073,709,551,615"),
    "5 length over the file": (framed("{}", b"", 1000), CorruptError, "header should have 1,000 bytes"),
    "7 length to the end, no data": (framed("{" + f'"w":{{{GOOD}}}' + "}"), CorruptError, "the file has 0"),
    "8 not UTF-8": (framed(b'{"\xff":1}'), CorruptError, "not the JSON"),
    "9 not JSON": (framed("{nonsense}"), CorruptError, "not the JSON"),
    "10 JSON array": (framed("[1, 2]\xff", b"\xff"), CorruptError, "begins with b'[1, "),
    "11 byte order mark": (framed("\ufeff{}"), CorruptError, "begins with b'\\xef"),
    "13 key twice": (framed(f'{{"w":{{{GOOD}}},"w":{{{GOOD}}}}}', bytes(8)), CorruptError, "'w' is there twice"),
    "15 metadata twice": (framed('{"__metadata__":{},"__metadata__":{}}'), CorruptError, "twice"),
    "16 metadata key twice": (framed('{"__metadata__":{"a":"1","a":"2"}}'), CorruptError, "'a' is there twice"),
    "17 field twice": (raw_entry(GOOD + ',"dtype":"F32"'), CorruptError, "'dtype' is there twice"),
    "18 unknown field": (raw_entry(GOOD + ',"more":1'), CorruptError, "more"),
    "19 field absent": (raw_entry('"dtype":"F32","shape":[2]'), CorruptError, "not data_offsets, dtype and shape"),
    "20 unknown dtype": (raw_entry(GOOD.replace("F32", "Q9")), FormatError, "unknown dtype 'Q9'"),
    "21 dtype in lower case": (raw_entry(GOOD.replace("F32", "f32")), FormatError, "unknown dtype 'f32'"),
    "21 dtype a number": (raw_entry(GOOD.replace('"F32"', "32")), FormatError, "unknown dtype '32'"),
    "22 negative size": (raw_entry(GOOD.replace("[2]", "[-2]")), CorruptError, "shape [-2]"),
    "23 size 2.0": (raw_entry(GOOD.replace("[2]", "[2.0]")), CorruptError, "shape [2.0]"),
    "23 size true": (raw_entry(GOOD.replace("[2]", "[true]")), CorruptError, "shape [True]"),
    "24 size 2^64-1 with 0": (file_of({"w": entry([2**64 - 1, 0], 0, 0)}, b""), CorruptError, "shape [1844"),
    "26 product overflows": (file_of({"w": entry([2**61, 2**61])}), CorruptError, "takes"),
    "28 rank 65": (file_of({"w": entry([1] * 65, 0, 4)}, bytes(4)), CorruptError, "shape [1, 1"),
    "29 begin after end": (file_of({"w": entry([2], 8, 0)}), CorruptError, "offsets 8 to 0"),
    "30 negative offset": (file_of({"w": entry([2], -8, 0)}), CorruptError, "offsets [-8, 0]"),
    "31 NaN offset": (raw_entry(GOOD.replace("[0,8]", "[NaN,8]")), CorruptError, "NaN is no JSON"),
    "31 infinite offset": (raw_entry(GOOD.replace("[0,8]", "[0,1e999]")), CorruptError, "offsets [0, inf]"),
    "32 overlap": (
        file_of({"a": entry(), "b": entry([2], 4, 12)}, bytes(12)),
        CorruptError,
        "'b' begins at 4 and overlaps",
    ),
    "33 hole": (
        file_of({"a": entry(), "b": entry([2], 9, 17)}, bytes(17)),
        CorruptError,
        "'b' begins at 9 and leaves a hole",
    ),
    "34 trailing bytes": (
        file_of({"w": entry()}, bytes(9)),
        CorruptError,
        "end at byte 8 of the data and the file has 9",
    ),
    "35 two bytes short": (
        file_of({"w": entry()}, bytes(6)),
        CorruptError,
        "end at byte 8 of the data and the file has 6",
    ),
    "36 size differs": (file_of({"w": entry([3])}), CorruptError, "takes 12 bytes"),
    "37 half a byte": (file_of({"w": entry([3], 0, 2, "F4")}, bytes(2)), CorruptError, "does not fill whole bytes"),
    "38 nested 100,000 deep": (framed('{"a":' * 100_000 + "1" + "}" * 100_000), CorruptError, "too deeply"),
    "40 lone surrogate": (framed(r'{"\ud800":{' + GOOD + "}}", bytes(8)), CorruptError, "surrogates not allowed"),
    "46 metadata null": (framed('{"__metadata__":null}'), CorruptError, "not an object of texts"),
    "46 metadata of numbers": (framed('{"__metadata__":{"a":1}}'), CorruptError, "not an object of texts"),
    "48 boolean of 2": (file_of({"w": entry([2], 0, 2, "BOOL")}, b"\1\2"), CorruptError, "holds the byte 2"),
    "123 number of 10,000 digits": (raw_entry(GOOD.replace("[2]", f"[{'9' * 10_000}]")), CorruptError, "not the JSON"),
}
GOOD_SAFETENSORS = {
    "41 NUL in a name": file_of({"a\0b": entry()}),
    "42 names of paths": file_of({"../../x": entry(), "CON": entry([0], 8, 8)}),
    "43 empty name": file_of({"": entry()}),
    "44 name of 1 MB": file_of({"n" * (1 << 20): entry()}),
    "45 names equal when folded": file_of({"é": entry([1], 0, 4), "e\u0301": entry([1], 4, 8)}),
    "49 odd offset": file_of({"a": entry([1], 0, 1, "U8"), "b": entry([2], 1, 9)}, bytes(9)),
    "51 a header of spaces": framed("{" + f'"w":{{{GOOD}}}' + "}" + " " * (60 << 20), bytes(8)),
}


@pytest.mark.parametrize(("content", "kind", "words"), SAFETENSORS.values(), ids=SAFETENSORS)
def test_a_bad_safetensors_file_is_refused(tmp_path, content, kind, words):
    (tmp_path / "x").write_bytes(content)
    refused(tmp_path / "x", kind, words)


@pytest.mark.parametrize("content", GOOD_SAFETENSORS.values(), ids=GOOD_SAFETENSORS)
def test_an_odd_safetensors_file_opens(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    assert open_and_read(tmp_path / "x")


def test_all_faults_of_a_header_are_told_at_once(tmp_path):
    (tmp_path / "x").write_bytes(file_of({"a": entry([3]), "b": entry([-1])}))
    message = refused(tmp_path / "x", CorruptError, "damaged")
    assert "'a' takes 12 bytes" in message
    assert "'b' has the shape [-1]" in message


@pytest.mark.parametrize(("length", "kind"), [(100_000_001, LimitError), (1 << 30, LimitError)])
def test_6_39_50_a_header_over_100_megabytes_is_refused_unread(tmp_path, length, kind):
    with (tmp_path / "x").open("wb") as sparse:
        sparse.write(length.to_bytes(8, "little") + b"{")
        sparse.truncate(length + 8)
    refused(tmp_path / "x", kind, "100,000,000 are allowed")
