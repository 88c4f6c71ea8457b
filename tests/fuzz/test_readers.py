"""Whatever bytes a reader is given, it reads them or raises a typed error; nothing else, ever.

Hypothesis changes good files in a few places, makes streams of pickle opcodes, and puts any JSON in any place of a
record whose digest is then made right. Atheris, where it is installed and only in the campaign, drives the readers of
pickles and headers by what their code covers.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fuzz.readers import READERS, read
from tests.hostile import pickles

SECONDS = 100
ODD = [b"\0" * 8, b"\xff" * 8, b"0", b"-1", b"1e999", b"{", b"[", b'"', b"null", b"9" * 20]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Give the folder of each reader, with the other files that it needs."""
    made = {}
    for name, reader in READERS.items():
        made[name] = tmp_path_factory.mktemp("fuzz")
        reader.prepare(made[name])
    return made


@pytest.mark.parametrize("name", READERS)
def test_what_is_good_is_read(name, folders):
    assert read(READERS[name].put(folders[name], READERS[name].good))


def edited(good: bytes) -> st.SearchStrategy[bytes]:
    """The bytes with up to six places changed: bytes taken out, others put in, or a piece of it repeated."""
    place = st.integers(0, len(good))
    piece = st.one_of(
        st.binary(max_size=8),
        st.builds(lambda begin, count: good[begin : begin + count], place, st.integers(0, 40)),
        st.sampled_from(
            [b"\0" * 8, b"\xff" * 8, b"0", b"-1", b"1e999", b"{", b"[", b'"', b"null", b"99999999999999999999"]
        ),
    )
    edit = st.tuples(place, st.integers(0, 12), piece)

    def apply(edits: list[tuple[int, int, bytes]]) -> bytes:
        data = good
        for at, count, new in edits:
            data = data[:at] + new + data[at + count :]
        return data

    return st.builds(apply, st.lists(edit, min_size=1, max_size=6))


@pytest.mark.slow
@pytest.mark.campaign
@pytest.mark.parametrize("name", READERS)
def test_a_good_file_with_anything_changed_is_read_or_refused(name, folders, campaign):
    reader, count, opened = READERS[name], campaign.size(100, 3_000), []

    @settings(max_examples=count, suppress_health_check=list(HealthCheck))
    @given(edited(reader.good))
    def check(data: bytes) -> None:
        opened.append(read(reader.put(folders[name], data)))

    check()
    campaign.report(f"{name}, changed in a few places", tried=len(opened), refused=opened.count(False), untyped=0)


OPCODES = [bytes([code]) for code in (*b"(0123FGIJKLMNPQRSTUVX]abcdeghijlopqrstu)}BC.", *range(0x80, 0x99))]
GLOBALS = {
    "collections": ["OrderedDict", "Counter", "deque"],
    "torch._utils": ["_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_qtensor", "_rebuild_sparse_tensor"],
    "torch": ["Size", "float32", "device", "FloatStorage"],
    "argparse": ["Namespace"],
    "numpy.core.multiarray": ["_reconstruct", "scalar"],
    "numpy": ["ndarray", "dtype"],
    "datetime": ["datetime", "timedelta"],
    "a": ["B"],
}
PARTS = [
    *(pickles.named(module, name) for module, names in GLOBALS.items() for name in names),
    *(pickles.storage(), pickles.numbers((4,)), pickles.numbers((1,)), pickles.integer(0), pickles.integer(1 << 40)),
    *(pickles.text("w"), pickles.tensor((4,), (1,))[2:-1], b")R", b"\x85R", b"}b", b"q\0", b"h\0", b"(", b"N"),
]


@pytest.mark.slow
@pytest.mark.campaign
@pytest.mark.parametrize("protocol", [2, 4])
def test_any_stream_of_opcodes_is_read_or_refused(protocol, folders, campaign):
    count, opened = campaign.size(200, 10_000), []
    parts = st.one_of(st.sampled_from(PARTS), st.sampled_from(OPCODES), st.binary(max_size=5))

    @settings(max_examples=count, suppress_health_check=list(HealthCheck))
    @given(st.lists(parts, max_size=25))
    def check(pieces: list[bytes]) -> None:
        opened.append(read(READERS["pickle"].put(folders["pickle"], pickles.stream(b"".join(pieces), protocol))))

    check()
    campaign.report("streams of opcodes", tried=len(opened), refused=opened.count(False), untyped=0)


TAGS = [
    f"${tag}"
    for tag in (
        *("tensor", "dict", "OrderedDict", "defaultdict", "Counter", "deque", "tuple", "set", "frozenset", "bytes"),
        *("bytearray", "float", "complex", "int", "range", "slice", "path", "datetime", "date", "time", "timedelta"),
        *("namespace", "simplenamespace", "enum", "dataclass", "namedtuple", "numpy.scalar", "numpy.array", "more"),
        *(
            "numpy.dtype",
            "numpy.tensor",
            "torch.dtype",
            "torch.device",
            "torch.Size",
            "torch.sparse",
            "torch.quantized",
        ),
    )
]
LEAVES = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.integers(-2, 2), st.text(max_size=5)),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["head", "w", "AAAA", "<f4", "os:system", "1e999", "2020-01-01", "0x10", "|O", "PosixPath"]),
)
NODES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(TAGS), st.text(max_size=3)), inner, max_size=3),
    ),
    max_leaves=8,
)


def places_of(value: object, at: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """Every place in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, each in items for place in places_of(each, (*at, key)))]


@pytest.mark.slow
@pytest.mark.campaign
def test_any_value_in_any_place_of_a_signed_record_is_read_or_refused(folders, campaign):
    reader, count, opened = READERS["our record"], campaign.size(200, 10_000), []
    places = [place for place in places_of(json.loads(reader.good)) if place]

    @settings(max_examples=count, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(st.sampled_from(places), NODES), min_size=1, max_size=3))
    def check(edits: list[tuple[tuple[object, ...], object]]) -> None:
        members = json.loads(reader.good)
        for place, value in edits:
            inside = members
            for key in place[:-1]:
                inside = inside[key] if isinstance(inside, dict) and key in inside else {}
            if isinstance(inside, dict):
                inside[place[-1]] = value
        opened.append(read(reader.put(folders["our record"], json.dumps(members).encode())))

    check()
    campaign.report("any value in a signed record", tried=len(opened), refused=opened.count(False), untyped=0)


@pytest.mark.campaign
@pytest.mark.parametrize("target", ["pickle", "safetensors header"])
def test_fuzzing_by_coverage_finds_nothing_untyped(target, campaign, tmp_path):
    if not campaign.is_full or importlib.util.find_spec("atheris") is None:
        pytest.skip("in the campaign, where atheris is installed")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, Path(__file__).with_name("by_coverage.py"), target, str(tmp_path), str(SECONDS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3_000:]
    runs = int(re.findall(r"Done (\d+) runs", done.stderr)[-1])
    campaign.report(f"{target}, by coverage for {SECONDS} seconds", tried=runs, refused="", untyped=0)
