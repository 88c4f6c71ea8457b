"""Bad pickle streams inside of torch files: described or refused, within bounds, and nothing is run."""

from __future__ import annotations

import os
import struct

import pytest
from tests.hostile import archives, pickles
from tests.hostile.pickles import named, stream, tensor, text
from tests.hostile.refusal import open_and_read, refused

from torchkeep.errors import CorruptError, FormatError, LimitError, UnsafeError
from torchkeep.tensors import Described

OPCODES = {
    "84 dotted name": stream(named("torch", "serialization.os.system") + text("true") + b"\x85R"),
    "82 os": pickles.calling("os", "system"),
    "82 posix": pickles.calling("posix", "system"),
    "82 nt": pickles.calling("nt", "system"),
    "82 eval": pickles.calling("builtins", "eval"),
    "82 exec of Python 2": pickles.calling("__builtin__", "execfile"),
    "82 import": pickles.calling("builtins", "__import__"),
    "82 open": pickles.calling("builtins", "open"),
    "82 subprocess": pickles.calling("subprocess", "Popen"),
    "82 runpy": pickles.calling("runpy", "_run_code"),
    "82 pickle": pickles.calling("pickle", "loads"),
    "82 marshal": pickles.calling("marshal", "loads"),
    "82 ctypes": pickles.calling("ctypes", "CDLL"),
    "82 webbrowser": pickles.calling("webbrowser", "open"),
    "82 torch.hub": pickles.calling("torch.hub", "load"),
    "82 torch.load": pickles.calling("torch", "load"),
    "82 attrgetter": pickles.calling("operator", "attrgetter"),
    "82 partial of system": stream(named("functools", "partial") + named("os", "system") + b"\x85R"),
    "83 STACK_GLOBAL": pickles.calling_by_stack_global("os", "system"),
    "83 INST": pickles.calling_by_inst("os", "system"),
    "83 OBJ": pickles.calling_by_obj("os", "system"),
    "83 NEWOBJ_EX": pickles.calling_by_newobj_ex("os", "system"),
    "getattr on a class": stream(
        named("builtins", "getattr") + named("torch", "serialization") + text("os.system") + b"\x86R"
    ),
}


@pytest.mark.parametrize("container", [archives.torch_zip, archives.legacy], ids=["zip", "legacy"])
@pytest.mark.parametrize("data_pkl", OPCODES.values(), ids=OPCODES)
def test_a_file_that_names_something_to_run_is_unsafe_and_runs_nothing(tmp_path, monkeypatch, data_pkl, container):
    ran = []
    monkeypatch.setattr(os, "system", ran.append)
    (tmp_path / "x").write_bytes(container(data_pkl))
    message = refused(tmp_path / "x", UnsafeError, "nothing of it was run")
    assert "byte " in message
    assert not ran


DESCRIBED = {
    "83 BUILD of an unknown class": (pickles.setting_state("some.module", "Class"), "some.module.Class"),
    "92 bytearray(2^40)": (pickles.allocating("builtins", "bytearray"), "builtins.bytearray"),
    "92 torch.Tensor(2^40)": (pickles.allocating("torch", "Tensor"), "torch.Tensor"),
    "98 OrderedDict of a number": (pickles.allocating("collections", "OrderedDict"), "collections.OrderedDict"),
    "98 Counter of a number": (pickles.allocating("collections", "Counter"), "collections.Counter"),
    "a deque of endless length": (pickles.allocating("collections", "deque"), "collections.deque"),
    "a datetime of eleven bytes": (pickles.calling("datetime", "datetime", "12345678901"), "datetime.datetime"),
    "a fraction of 10^9 digits": (pickles.calling("fractions", "Fraction", "1e999999999"), "fractions.Fraction"),
    "an unknown function": (pickles.calling("print_me", "now"), "print_me.now"),
}


@pytest.mark.parametrize(("data_pkl", "class_path"), DESCRIBED.values(), ids=DESCRIBED)
def test_what_no_constructor_of_ours_makes_is_described(tmp_path, data_pkl, class_path):
    (tmp_path / "x").write_bytes(archives.torch_zip(data_pkl))
    tree = open_and_read(tmp_path / "x")
    assert isinstance(tree, Described)
    assert tree.class_path == class_path


BAD_PICKLES = {
    "83 EXT1": (pickles.extension(), FormatError, "registry"),
    "85 frame too long": (stream(b"\x95" + struct.pack("<Q", 1 << 40) + b"N", 4), CorruptError, "frame"),
    "86 underflow": (stream(b"a"), CorruptError, "empty stack"),
    "86 no mark": (stream(b"t"), CorruptError, "a mark is taken"),
    "86 too few for a tuple": (stream(b"N\x87"), CorruptError, "empty stack"),
    "87 empty": (b"", CorruptError, "1 bytes should follow"),
    "87 second pickle": (stream(b"N") + stream(b"N"), CorruptError, "goes on for 4 bytes"),
    "88 unknown memo": (stream(b"h\x05"), CorruptError, "value 5 is used"),
    "88 memo with gaps": (pickles.remembering_with_gaps(100_010), LimitError, "gaps"),
    "89 billion laughs": (pickles.laughing(20), LimitError, "repeats itself"),
    "89 laughing key": (pickles.laughing_key(40), CorruptError, "key holds more than"),
    "90 list in itself": (pickles.containing_itself("list"), LimitError, "contains itself"),
    "90 dict in itself": (pickles.containing_itself("dict"), LimitError, "contains itself"),
    "91 100,000 lists": (pickles.deep(100_000), LimitError, "nested deeper"),
    "91 100,000 tuples": (pickles.deep_tuple(100_000), LimitError, "nested deeper"),
    "91 100,000 tuples as a key": (pickles.deep_tuple_key(100_000), CorruptError, "key holds more than"),
    "91 100,000 marks": (stream(b"(" * 100_000), LimitError, "marks"),
    "93 LONG4 of 2^31": (stream(b"\x8b" + struct.pack("<I", 1 << 31)), LimitError, "integer of 2,147,483,648 bytes"),
    "94 BINUNICODE8 of 2^63": (stream(b"\x8d" + struct.pack("<Q", 1 << 63), 4), CorruptError, "bytes should follow"),
    "94 BYTEARRAY8 of 2^63": (stream(b"\x96" + struct.pack("<Q", 1 << 63), 5), CorruptError, "bytes should follow"),
    "95 10,000 digits": (stream(b"I" + b"9" * 10_000 + b"\n"), LimitError, "integer of 10,000 digits"),
    "95 no number": (stream(b"Ix\n"), CorruptError, "not an integer"),
    "95 no float": (stream(b"Fx\n"), CorruptError, "not a number"),
    "96 id a number": (pickles.persistent(b"K\x05"), CorruptError, "persistent id"),
    "96 id of a wrong kind": (pickles.persistent(b"(" + text("weights") + b"t"), CorruptError, "persistent id"),
    "96 id a text": (stream(b"Pabc\n"), CorruptError, "persistent id"),
    "97 item of a list": (stream(b"]" + text("a") + b"Ns"), CorruptError, "set in a list"),
    "97 item of a tensor": (tensor((4,), (1,))[:-1] + text("a") + b"Ns.", CorruptError, "set in a TensorSpec"),
    "98 Namespace with a method replaced": (
        stream(named("argparse", "Namespace") + b")\x81}" + text("_get_kwargs") + b"Nsb"), CorruptError, "_get_kwargs"),
    "99 list as a key": (stream(b"}]Ns"), CorruptError, "list is used as a key"),
    "100 out-of-band buffer": (stream(b"\x97", 5), FormatError, "buffers outside"),
    "100 protocol 6": (stream(b"N", 6), FormatError, "protocol 6"),
    "not UTF-8": (stream(b"X\x01\x00\x00\x00\xff"), CorruptError, "not UTF-8"),
    "unknown opcode": (stream(b"\xff"), CorruptError, "no pickle opcode"),
    "a number is called": (stream(b"K\x01)R"), CorruptError, "is called"),
    "103 numel too large": (tensor((4,), (1,), of=pickles.storage(numel=5)), CorruptError, "20 bytes and has 16"),
    "103 numel too small": (tensor((3,), (1,), of=pickles.storage(numel=3)), CorruptError, "12 bytes and has 16"),
    "103 numel negative": (tensor((0,), (1,), of=pickles.storage(numel=-1)), CorruptError, "-1 elements"),
    "104 storage absent": (tensor((4,), (1,), of=pickles.storage("7")), CorruptError, "storage '7'"),
    "104 storage ../data/0": (tensor((4,), (1,), of=pickles.storage("../data/0")), CorruptError, "storage '../data/0'"),
    "104 key of 10^5 characters": (tensor((4,), (1,), of=pickles.storage("k" * 100_000)), CorruptError, "key"),
    "unknown storage": (tensor((4,), (1,), of=pickles.storage(kind="Storage9")), CorruptError, "unknown type"),
    "106 shape outside": (tensor((5,), (1,)), CorruptError, "ends at byte 20"),
    "106 offset outside": (tensor((4,), (1,), 1), CorruptError, "ends at byte 20"),
    "106 negative offset": (tensor((1,), (1,), -1), CorruptError, "offset -1"),
    "106 stride outside": (tensor((4,), (2,)), CorruptError, "ends at byte 28"),
    "106 negative stride": (tensor((4,), (-1,)), CorruptError, "shape"),
    "106 shape 2^62": (tensor((1 << 62,), (1,)), CorruptError, "shape"),
    "106 overflowing stride": (tensor((2, 2), ((1 << 61), 1)), CorruptError, "ends at byte"),
    "107 expanded to 2^40": (tensor((1 << 40,), (0,)), CorruptError, "repeats"),
    "109 quantised outside": (pickles.quantized(100), CorruptError, "ends at byte"),
    "116 device tag of 1 MB": (tensor((4,), (1,), of=pickles.storage(device="x" * 10**6)), CorruptError, "device tag"),
}  # fmt: skip


@pytest.mark.parametrize(("data_pkl", "kind", "words"), BAD_PICKLES.values(), ids=BAD_PICKLES)
def test_a_bad_pickle_is_refused(tmp_path, data_pkl, kind, words):
    (tmp_path / "x").write_bytes(archives.torch_zip(data_pkl))
    refused(tmp_path / "x", kind, words)
