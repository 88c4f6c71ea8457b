"""What cannot be meant is refused with what was given and what to do, before anything is touched."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import torchkeep as tk
from torchkeep.errors import CheckpointError, ConflictError, CorruptError, FormatError, NotFoundError

RULES = [tk.Skip("fc")]
ADAM = torch.optim.Adam(nn.Linear(2, 3).parameters())


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Give a folder with a checkpoint, and torch files of nothing, of weights twice, and of a whole model."""
    monkeypatch.chdir(tmp_path)
    tk.save(nn.Linear(2, 3), "ckpt")
    torch.save({"a": 3}, "empty.pt")
    torch.save({name: nn.Linear(2, 3).state_dict() for name in ("G", "D")}, "gan.pt")
    torch.save({"net": nn.Sequential(nn.Linear(2, 3))}, "whole.pt")
    (tmp_path / "file").write_text("mine")
    return tmp_path


@pytest.mark.parametrize(
    ("act", "error", "text"),
    [
        (lambda: tk.load(3), TypeError, r"a str or a Path, not by an object of type int; the path comes first"),
        (lambda: tk.load(nn.Linear(2, 3), "ckpt"), TypeError, r"of type Linear; the path comes first, .* into="),
        (lambda: tk.open(("a", "b")), TypeError, r"one path, not the 2 of a tuple: take one, as \[0\]"),
        (lambda: tk.diff({}, "ckpt"), TypeError, r"named by its path, .* not by an object of type dict"),
        (lambda: tk.average("ckpt", "soup"), TypeError, r"a list of checkpoints, as \['ckpt', \.\.\.\], not one"),
        (lambda: tk.average(["gan.pt"], "soup"), CheckpointError, r'the one that is meant: entry="G"; .* --entry G$'),
        (lambda: tk.average(["empty.pt"], "soup"), NotFoundError, r"hint: torchkeep show lists what is in it; entry="),
        (lambda: tk.load("gan.pt", into=nn.Linear(2, 3)), CheckpointError, r"^gan\.pt: 2 entries could be the weights"),
        (lambda: tk.load("empty.pt", into=nn.Linear(2, 3)), NotFoundError, r"(?s)^empty\.pt: .* is this the file"),
        (lambda: tk.open("empty.pt").weights(), NotFoundError, r"^empty\.pt: no entry looks like weights"),
        (lambda: tk.diff("ckpt", "gan.pt", weights_only=True), CheckpointError, r"(?s)^gan\.pt: .* leave out weights"),
        (lambda: tk.load("ckpt", rules=RULES), ValueError, r"rules, strict and min_coverage say .* give them as into="),
        (lambda: tk.load("ckpt", strict=False), ValueError, r"say how objects are filled: give them as into="),
        (lambda: tk.load("ckpt", strict="no"), TypeError, r"strict is True or False, not 'no'"),
        (lambda: tk.load("ckpt", io_threads=0), ValueError, r"io_threads must be an integer of 1 or more, not 0"),
        (lambda: tk.verify("ckpt", io_threads=-1), ValueError, r"io_threads must be an integer of 1 or more, not -1"),
        (lambda: tk.diff("ckpt", "ckpt", io_threads="2"), TypeError, r"io_threads must be an integer .*, not '2'"),
        (lambda: tk.load("ckpt", mmap="yes"), TypeError, r"mmap is True or False, not 'yes'"),
        (lambda: tk.load("ckpt", map_location={"cuda": "cpu"}), TypeError, r"one device, as .*, not a dict: what"),
        (lambda: tk.load("ckpt", map_location=lambda s, _: s), TypeError, r"one device, as .*, not a function: what"),
        (lambda: tk.load_whole("whole.pt", trust=True), TypeError, r"a list of classes and dotted names, not True"),
        (lambda: tk.save(nn.Linear(2, 3), "w.safetensor"), FormatError, r"which is nearly \.safetensors"),
        (lambda: tk.convert("ckpt", "w.safetensor"), FormatError, r"which is nearly \.safetensors"),
        (lambda: tk.average(["ckpt"], "w.safetensor"), FormatError, r"which is nearly \.safetensors"),
        (lambda: tk.save(nn.Linear(2, 3), "file/sub"), ConflictError, r"a file is in the way: .*\n  hint: choose"),
        (lambda: tk.save({}, "file/a/b.safetensors"), ConflictError, r"/file: a file is in the way: .* of its name"),
        (lambda: tk.convert("ckpt", "file/a.pt"), ConflictError, r"/file: a file is in the way: .* of its name"),
        (lambda: tk.save_whole(nn.Linear(2, 3), "file/a"), ConflictError, r"/file: a file is in the way: .* its name"),
        (lambda: tk.save_whole(ADAM, "w"), TypeError, r"the model is Adam; save\(\.\.\.\) keeps all else"),
        (lambda: tk.replace_head(nn.Linear, 3), TypeError, r"type, which is a class: make a module of it first"),
        (lambda: tk.save(nn.Linear(2, 3), "w.SAFETENSORS"), FormatError, r"hint: end it in \.safetensors for one file"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_says_what_can(here, act, error, text):
    before = sorted(here.rglob("*"))
    with pytest.raises(error, match=text):
        act()
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    ("begin", "error", "text"),
    [
        (b"\x80", FormatError, "the first bytes of a safetensors file or of a pickle\n.*it was cut short"),
        ((0x280).to_bytes(8, "little"), FormatError, "the first bytes of a safetensors file or of a pickle"),
        (b"PK\3", FormatError, "the first bytes of a zip archive\n.*it was cut short: copy or download it again"),
        ((0x80).to_bytes(8, "little") + b'{"a": {', CorruptError, "safetensors"),
        (b"\x04\x22\x4d\x18@@", FormatError, "lz4-compressed data\n.*unpack it"),
        (b"\x08\x07\x12\x07pytorch", FormatError, "perhaps an ONNX graph\n.*for the weights as safetensors"),
    ],
)
def test_the_beginning_of_a_file_says_what_it_is(tmp_path, begin, error, text):
    path = tmp_path / "file"
    path.write_bytes(begin)
    with pytest.raises(error, match=text):
        tk.load(path)


def test_a_whole_model_in_a_file_names_what_would_build_it(here):
    loaded = tk.load("whole.pt")
    assert repr(loaded["net"]) == (
        "<torch.nn.modules.container.Sequential, not built: torchkeep.load_whole(path, trust=[...]) does>"
    )
    assert isinstance(tk.load_whole("whole.pt", entry="net"), nn.Sequential)


def test_a_check_without_checksums_says_so(here):
    save_file({"a": torch.ones(3)}, "plain.safetensors")
    found = str(tk.verify("plain.safetensors"))
    assert found == "plain.safetensors: ok, 1 tensor, 12 bytes read, which the format has no checksum for"
