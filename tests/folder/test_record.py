"""The record `checkpoint.json`: what is written is read back, and nothing else is taken for it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

import torchkeep as tk
from torchkeep.errors import CorruptError, FormatError
from torchkeep.folder.digests import digest_of
from torchkeep.folder.record import RECORD_NAME, Summary, decode_record, decode_summary, encode_record


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    tk.freeze(model, "0")
    held = {
        "model": model,
        "loss": [math.inf, math.nan],
        "w": torch.zeros(5, dtype=torch.uint8),
        "none": torch.empty(0, 3),
    }
    path = tk.save(held, tmp_path_factory.mktemp("record") / "ckpt", step=3, metrics={"accuracy": math.nan}).path
    return (path / RECORD_NAME).read_bytes()


def signed(body: str) -> bytes:
    """A record with any body and a digest that is right for it."""
    raw = body.encode() + b',"digest":"'
    return raw + digest_of(raw).encode() + b'"}\n'


COMPACT, SPACED = (",", ":"), (", ", ": ")  # as it is written, and as other JSON writers do


def changed(data: bytes, change: Callable[[Any], object], separators: tuple[str, str] = COMPACT) -> bytes:
    members = json.loads(data)
    del members["digest"]
    change(members)
    return signed(json.dumps(members, separators=separators)[:-1])


def tensor(members: Any, name: str = "0.weight") -> Any:
    return members["tensors"]["model"][name]


def shard(members: Any) -> Any:
    return members["shards"][tensor(members)["shard"]]


def test_a_record_is_one_line_of_ascii_that_reads_back_as_it_was(data):
    assert data.isascii()
    assert data == json.dumps(json.loads(data), separators=(",", ":")).encode() + b"\n"
    record = decode_record(data, "here")
    assert encode_record(record) == data
    assert record.step == 3
    assert list(record.entries) == ["model", "loss", "w", "none"]


def test_the_digest_is_that_of_all_bytes_before_it(data):
    assert data[-35:-3].decode() == digest_of(data[:-35])
    assert json.loads(data)["digest"] == digest_of(data[:-35])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.update(version=2), "the record needs format version 2; this torchkeep reads version 1"),
        (
            lambda m: m.update(version=2, tensors="new"),
            "the record needs format version 2; this torchkeep reads version 1",
        ),
        (lambda m: m.update(version=0), "the record needs format version 0; this torchkeep reads version 1"),
        (
            lambda m: m.update(requires=["delta", "zip"]),
            "needs the features delta, zip; this torchkeep reads version 1",
        ),
        (lambda m: m.update(requires=[3]), "needs the features 3; this torchkeep reads version 1"),
    ],
)
def test_a_record_of_the_future_asks_for_a_newer_torchkeep(data, change, says):
    with pytest.raises(FormatError, match=says) as caught:
        decode_record(changed(data, change), "here")
    assert caught.value.remedy == "upgrade torchkeep"
    assert caught.value.where == "here"


MUST_BE = [
    (lambda m: m.update(format="torch"), "it does not say that it is torchkeep's"),
    (lambda m: m.pop("version"), "version: int wanted, found NoneType"),
    (lambda m: m.update(version=True), "version: int wanted, found bool"),
    (lambda m: m.update(version=1.0), "version: int wanted, found float"),
    (lambda m: m.update(requires={}), "requires: list wanted, found dict"),
    (lambda m: m.update(id="A" * 32), "id: not a digest"),
    (lambda m: m.update(id=None), "id: not a digest"),
    (lambda m: m.update(saved_at_ns=-1), "saved_at_ns: -1 is out of range"),
    (lambda m: m.update(saved_at_ns=2**63), f"saved_at_ns: {2**63} is out of range"),
    (lambda m: m.update(step="3"), "step: int wanted, found str"),
    (lambda m: m.update(whole="absent"), "whole: there is no entry 'absent'"),
    (lambda m: m.update(entries=[]), "entries: dict wanted, found list"),
    (lambda m: m["entries"]["model"].pop("tree"), "model: no tree"),
    (lambda m: m["entries"]["model"].pop("kind"), "model.kind: str wanted, found NoneType"),
    (lambda m: tensor(m).update(dtype="float128"), "model.0.weight: no dtype is called 'float128'"),
    (lambda m: tensor(m).update(dtype=["float32"]), "model.0.weight.dtype: str wanted, found list"),
    (lambda m: tensor(m).update(shape=[2, 4]), r"model.0.weight: 24 bytes do not hold float32 \(2, 4\)"),
    (lambda m: tensor(m).update(shape=[2**40, 2**40]), "model.0.weight: 24 bytes do not hold float32"),
    (lambda m: tensor(m).update(shape=[-2, -3]), "model.0.weight.shape: -2 is out of range"),
    (lambda m: tensor(m).update(begin=4, end=28), "its tensors leave a gap or overlap at byte"),
    (lambda m: tensor(m).update(shard="w.safetensors"), "its shard 'w.safetensors' is not a shard of 'model'"),
    (lambda m: tensor(m).update(shard="../w.safetensors"), "its shard '../w.safetensors' is not a shard of 'model'"),
    (lambda m: tensor(m).update(chunks=[]), r"model.0.weight.chunks: \[0, 24, digest\] wanted"),
    (lambda m: tensor(m)["chunks"].append([24, 24, "0" * 32]), "more chunks than bytes to digest"),
    (lambda m: tensor(m)["chunks"][0].__setitem__(1, 23), r"model.0.weight.chunks: \[0, 24, digest\] wanted"),
    (lambda m: tensor(m)["chunks"][0].__setitem__(2, "0" * 31), "model.0.weight.chunks: not a digest"),
    (lambda m: tensor(m)["chunks"][0].__setitem__(2, "0" * 32), "its digest does not follow from its chunks"),
    (lambda m: shard(m).update(header="0" * 32), "its digest does not follow from its chunks"),
    (lambda m: shard(m).update(digest="G" * 32), "digest: not a digest"),
    (lambda m: shard(m).update(group="w"), "is not a shard of 'model'"),
    (lambda m: shard(m).update(bytes=shard(m)["bytes"] + 1), "bytes do not hold 32 bytes of tensors"),
    (lambda m: shard(m).update(bytes=31), "31 bytes do not hold 32 bytes of tensors"),
    (lambda m: shard(m).update(splits=-1), "splits: -1 is out of range"),
    (
        lambda m: m["shards"].update({"../x.safetensors": shard(m)}),
        "'../x.safetensors' is not a file name of this format",
    ),
    (lambda m: m["shards"].update({"/x.safetensors": shard(m)}), "'/x.safetensors' is not a file name of this format"),
    (lambda m: m["shards"].update({".x.safetensors": shard(m)}), "'.x.safetensors' is not a file name of this format"),
    (lambda m: m["shards"].update({"x\0.safetensors": shard(m)}), "is not a file name of this format"),
    (
        lambda m: m["indexes"].update({"checkpoint.json": "0" * 32}),
        "'checkpoint.json' is not a file name of this format",
    ),
]


@pytest.mark.parametrize(("change", "says"), MUST_BE)
@pytest.mark.parametrize("separators", [COMPACT, SPACED])
def test_a_member_that_is_not_what_it_should_be_is_a_corrupt_error(data, change, says, separators):
    with pytest.raises(CorruptError, match=f"here: the record is damaged: .*{says}"):
        decode_record(changed(data, change, separators), "here")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: b"", "it does not end in the digest of its bytes"),
        (lambda d: d[:-1], "it does not end in the digest of its bytes"),
        (lambda d: d + b"\n", "it does not end in the digest of its bytes"),
        (lambda d: d + d, "it does not end in the digest of its bytes"),
        (lambda d: b" " + d, "it does not end in the digest of its bytes"),
        (lambda d: d[:-35] + d[-35:-3].upper() + d[-3:], "it does not end in the digest of its bytes"),
        (lambda d: b"\xef\xbb\xbf" + d, "it does not end in the digest of its bytes"),
        (lambda _: signed("[1"), "not the JSON it should be"),
        (lambda _: signed('{"format":"torchkeep","format":"torchkeep"'), "a key occurs twice"),
        (lambda _: signed('{"format":"torchkeep","a":{"b":1,"b":1}'), "a key occurs twice"),
        (lambda _: signed('{"format":"torchkeep","metrics":NaN'), "NaN is not JSON"),
        (lambda _: signed('{"format":"torchkeep","metrics":-Infinity'), "-Infinity is not JSON"),
        (lambda _: signed('{"format":"torchkeep","a":' + "[" * 10**5), "not the JSON it should be"),
        (lambda _: signed('{"format":"torchkeep","a":' + "9" * 10**5), "not the JSON it should be"),
        (lambda _: signed('{"format":"torchkeep","a":"\xff"').replace(b"\xc3", b""), "it does not end in the digest"),
        (lambda _: signed("{}{"), "not the JSON it should be"),
        (lambda d: signed(d[:-46].decode().replace('},"shards"', '};"shards"')), "not the JSON it should be"),
        (lambda d: signed(d[:-46].decode().replace('},"shards"', '},"tensors":{},"shards"')), "a key occurs twice"),
        (lambda d: signed(d[:-46].decode().replace('"shape":', '"shape":[],"shape":')), "a key occurs twice"),
    ],
)
def test_bytes_that_are_no_record_are_a_corrupt_error(data, change, says):
    with pytest.raises(CorruptError, match=f"here: the record is damaged: .*{says}"):
        decode_record(change(data), "here")


def test_json_that_is_not_text_is_a_corrupt_error():
    raw = b'{"format":"torchkeep","a":"\xff","digest":"'
    with pytest.raises(CorruptError, match="the record is damaged: not the JSON it should be"):
        decode_record(raw + digest_of(raw).encode() + b'"}\n', "here")


def test_members_that_nobody_knows_are_passed_over(data):
    record = decode_record(changed(data, lambda members: members.update(comment="from a newer one")), "here")
    assert record == decode_record(data, "here")


def test_a_checkpoint_of_the_future_is_neither_read_nor_replaced(tmp_path: Path):
    path = tk.save({"epoch": 1}, tmp_path / "ckpt").path
    record = path / RECORD_NAME
    future = changed(record.read_bytes(), lambda members: members.update(version=2))
    record.chmod(0o644)
    record.write_bytes(future)
    for act in (lambda: tk.load(path), lambda: tk.save({"epoch": 2}, path)):
        with pytest.raises(FormatError, match="the record needs format version 2"):
            act()
    assert record.read_bytes() == future
    assert [each.name for each in tmp_path.iterdir()] == ["ckpt"]


NASTY_NAMES = {
    "metrics that are named as members": lambda m: m.update(metrics={"entries": {"x": 1}, "shards": {}, "tensors": 1}),
    "a group called shards": lambda m: (
        m["tensors"].update(shards=m["tensors"].pop("tensors")),
        m["shards"]["tensors.safetensors"].update(group="shards"),
    ),
    "an entry with members in its text": lambda m: m["entries"].update(
        odd={"kind": "value", "tree": '},"shards":{},"entries":{'}
    ),
    "members in another order": lambda m: m.update(entries=m.pop("entries"), id=m.pop("id")),
    "no tensors": lambda m: m.update(tensors={}, shards={}, entries={}),
    "a value called tensors": lambda m: m["entries"].update(
        odd={"kind": "value", "tree": {"a": 1, "tensors": {"shape": [1]}}}
    ),
    "a value like a tensor's members": lambda m: m["entries"].update(odd={"kind": "value", "tree": dict(tensor(m))}),
    "a tensor with a member more": lambda m: tensor(m).update(comment="from a newer one"),
}


@pytest.mark.parametrize("nasty", NASTY_NAMES)
@pytest.mark.parametrize("separators", [COMPACT, SPACED])
def test_a_summary_says_what_the_record_says_whatever_its_members_are_called(data, nasty, separators):
    raw = changed(data, NASTY_NAMES[nasty], separators)
    record, summary = decode_record(raw, "here"), decode_summary(raw, "here")
    assert summary == Summary(**{each.name: getattr(record, each.name) for each in fields(Summary)})


@pytest.mark.parametrize("nasty", NASTY_NAMES)
def test_a_record_is_the_same_however_its_text_is_spaced_and_whatever_its_members_are_called(data, nasty):
    compact, spaced = (decode_record(changed(data, NASTY_NAMES[nasty], each), "here") for each in (COMPACT, SPACED))
    assert compact == spaced
    trees = json.loads(changed(data, NASTY_NAMES[nasty]))["entries"]
    assert {name: entry.tree for name, entry in compact.entries.items()} == {n: e["tree"] for n, e in trees.items()}


def test_a_summary_parses_neither_entries_nor_tensors_and_yet_checks_every_byte(data):
    whole = changed(data, lambda members: members.update(entries={"x": 1}, tensors={"x": 1}))
    whole = whole.replace(b", ", b",").replace(b": ", b":")
    body = whole[: whole.rindex(b',"digest"')].decode()
    assert decode_summary(signed(body), "here").step == 3

    with pytest.raises(CorruptError, match="the record is damaged: it does not end in the digest of its bytes"):
        decode_summary(data.replace(b"0.weight", b"0.weighs"), "here")
    with pytest.raises(FormatError, match="the record needs format version 2"):
        decode_summary(changed(data, lambda members: members.update(version=2)), "here")
