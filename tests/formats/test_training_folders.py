"""Checkpoints of the Hugging Face Trainer, of Accelerate and of DeepSpeed: an entry for each file, weights first."""

from __future__ import annotations

import json
import os
import random
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.hostile import archives, pickles
from tests.hostile.refusal import open_and_read, refused

import torchkeep as tk
from torchkeep.errors import CorruptError, FormatError, LimitError, UnsafeError
from torchkeep.formats import open_source, training_folder
from torchkeep.planning.weights import find_weights
from torchkeep.tensors import Described, TensorSpec


class TrainingArguments:
    """Stands for a class that is not installed where the folder is read."""

    def __init__(self):
        self.learning_rate = 0.1
        self.device = torch.device("cpu")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2)


@pytest.fixture
def optimizer(model):
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return optimizer


@pytest.fixture
def trainer(tmp_path, model, optimizer, monkeypatch):
    """What a Trainer leaves in ``checkpoint-500``."""
    away = types.ModuleType("away")
    monkeypatch.setitem(sys.modules, "away", away)
    monkeypatch.setattr(TrainingArguments, "__module__", "away")
    away.TrainingArguments = TrainingArguments
    folder = tmp_path / "checkpoint-500"
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    torch.save({"last_epoch": 500}, folder / "scheduler.pt")
    torch.save(
        {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()},  # noqa: NPY002
        folder / "rng_state.pth",
    )
    torch.save(TrainingArguments(), folder / "training_args.bin")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 500, "log_history": [{"loss": 0.5}]}))
    return folder


def tensor_of(source, spec):
    made = torch.empty(spec.shape, dtype=getattr(torch, spec.dtype))
    source.read_into(spec, memoryview(made.view(-1).numpy()))
    return made


def test_a_trainers_checkpoint_has_an_entry_for_each_file(trainer, model, optimizer):
    source = open_source(trainer)
    assert source.format == "training-folder"
    assert list(source.tree) == [
        "model", "optimizer", "rng_state", "scheduler", "trainer_state", "training_args"
    ]  # fmt: skip
    assert torch.equal(tensor_of(source, source.tree["model"]["weight"]), model.weight)
    first = source.tree["optimizer"]["state"][0]["exp_avg"]
    assert torch.equal(tensor_of(source, first), optimizer.state_dict()["state"][0]["exp_avg"])
    assert torch.equal(tensor_of(source, source.tree["rng_state"]["cpu"]), torch.get_rng_state())
    assert source.tree["scheduler"] == {"last_epoch": 500}
    assert source.tree["trainer_state"] == {"global_step": 500, "log_history": [{"loss": 0.5}]}
    assert isinstance(source.tree["training_args"], Described)
    assert source.tree["training_args"].state["learning_rate"] == 0.1
    assert "unreadable" not in source.metadata
    source.close()


def test_the_weights_of_a_trainers_checkpoint_are_found_and_load_with_its_optimizer(trainer, model, optimizer):
    fresh = torch.nn.Linear(3, 2)
    fresh_optimizer = torch.optim.AdamW(fresh.parameters())
    rest = tk.load(trainer, into={"model": fresh, "optimizer": fresh_optimizer})
    assert torch.equal(fresh.weight, model.weight)
    saved, loaded = optimizer.state_dict()["state"], fresh_optimizer.state_dict()["state"]
    assert all(torch.equal(loaded[index]["exp_avg_sq"], saved[index]["exp_avg_sq"]) for index in (0, 1))
    assert rest["trainer_state"]["global_step"] == 500
    with tk.open(trainer) as checkpoint:
        assert (checkpoint.weights().entry, checkpoint.weights().others) == ("model", ())
    assert tk.verify(trainer)


def test_an_index_and_shards_beside_training_files_are_the_weights(trainer):
    (trainer / "model.safetensors").rename(trainer / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(["weight", "bias"], "model-00001-of-00001.safetensors")}
    (trainer / "model.safetensors.index.json").write_text(json.dumps(index))
    assert list(open_and_read(trainer)["model"]) == ["weight", "bias"]


@pytest.mark.parametrize("kept", [(), ("training_args.bin",)], ids=["nothing else", "the arguments"])
def test_a_folder_of_a_model_alone_stays_flat(trainer, kept):
    for file in trainer.iterdir():
        if file.name not in {"model.safetensors", "config.json", *kept}:
            file.unlink()
    source = open_source(trainer)
    assert (source.format, set(source.tree)) == ("safetensors", {"weight", "bias"})
    source.close()


def test_accelerates_files_are_entries_and_each_model_is_one(tmp_path, model, optimizer):
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    save_file({"weight": torch.full((2,), 7.0)}, tmp_path / "model_1.safetensors")
    for number, name in enumerate(["optimizer.bin", "optimizer_1.bin", "scheduler.bin", "custom_checkpoint_0.pkl"]):
        torch.save({"tensor": torch.full((2,), float(number))}, tmp_path / name)
    torch.save({"random_state": random.getstate()}, tmp_path / "random_states_0.pkl")
    source = open_source(tmp_path)
    assert list(source.tree) == [
        "model", "custom_checkpoint_0", "optimizer", "optimizer_1", "random_states_0", "scheduler", "model_1"
    ]  # fmt: skip
    values = {
        name: tensor_of(source, source.tree[name]["tensor"])[0]
        for name in ("optimizer", "optimizer_1", "scheduler", "custom_checkpoint_0")
    }
    assert values == {"optimizer": 0, "optimizer_1": 1, "scheduler": 2, "custom_checkpoint_0": 3}
    assert tensor_of(source, source.tree["model_1"]["weight"])[0] == 7
    assert find_weights(source.tree).name == "model"
    source.close()


def test_the_weights_as_a_torch_file_are_kept_apart_from_the_optimizers(tmp_path):
    torch.save({"w": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    torch.save({"w": torch.ones(2)}, tmp_path / "optimizer.bin")
    torch.save({"w": torch.full((2,), 2.0)}, tmp_path / "scheduler.bin", _use_new_zipfile_serialization=False)
    source = open_source(tmp_path)
    assert [tensor_of(source, entry["w"])[0] for entry in source.tree.values()] == [0, 1, 2]
    source.close()


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-30])


def replaced_by_a_pipe(path):
    path.unlink()
    os.mkfifo(path)


def linked_out(path):
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


UNREADABLE = {
    "truncated": ("optimizer.pt", cut_short, CorruptError, "no directory at its end"),
    "empty": ("optimizer.pt", lambda path: path.write_bytes(b""), FormatError, "the file is empty"),
    "unsafe": (
        "training_args.bin",
        lambda path: path.write_bytes(archives.torch_zip(pickles.calling("os", "system"))),
        UnsafeError, "os.system"),
    "118: a pipe": ("scheduler.pt", replaced_by_a_pipe, CorruptError, "not a regular file"),
    "129: a link that leads out": ("scheduler.pt", linked_out, CorruptError, "a link that leads out"),
    "not JSON": ("trainer_state.json", cut_short, CorruptError, "it is not JSON"),
    "not UTF-8": ("trainer_state.json", lambda path: path.write_bytes(b'{"\xff": 1}'), CorruptError, "it is not JSON"),
    "JSON nested deeply": (
        "trainer_state.json", lambda path: path.write_bytes(b"[" * 100_000), LimitError, "nested too deeply"),
    "enormous JSON": (
        "trainer_state.json", lambda path: os.truncate(path, 1 << 40), LimitError, "it has 1,099,511,627,776 bytes"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "damage", "kind", "words"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_bad_file_beside_the_weights_is_described_and_raises_when_it_is_read(trainer, name, damage, kind, words):
    damage(trainer / name)
    fresh = torch.nn.Linear(3, 2)
    rest = tk.load(trainer, into={"model": fresh})
    entry = name.partition(".")[0]
    assert rest[entry].class_path == training_folder.UNREADABLE
    source = open_source(trainer)
    assert words in source.metadata["unreadable"][name]
    assert source.tree[entry].kwargs["file"] == name
    with pytest.raises(kind, match=words) as raised:
        open_and_read(trainer)
    assert str(trainer / name) in str(raised.value)
    source.close()


def test_verifying_finds_a_bad_file_beside_the_weights(trainer):
    cut_short(trainer / "optimizer.pt")
    assert not tk.verify(trainer)


def test_a_damaged_file_of_weights_is_an_error_of_its_own(trainer):
    cut_short(trainer / "model.safetensors")
    refused(trainer, CorruptError, "model.safetensors")


def test_files_of_more_ranks_than_a_folder_may_have_are_named_and_not_opened(trainer, monkeypatch):
    monkeypatch.setattr(training_folder, "_MAX_SIDE_FILES", 2)
    source = open_source(trainer)
    assert source.metadata["unreadable"]["scheduler.pt"] == "more than 2 files stand beside the weights"
    source.close()


@pytest.fixture
def deepspeed(tmp_path):
    """What DeepSpeed's ZeRO stage 2 leaves."""
    folder = tmp_path / "global_step10"
    folder.mkdir()
    torch.save({"module": {"weight": torch.ones(2)}, "global_steps": 10}, folder / "mp_rank_00_model_states.pt")
    for rank in range(2):
        name = f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": {"rank": rank}}, folder / name)
    (tmp_path / "latest").write_text("global_step10")
    (tmp_path / "zero_to_fp32.py").write_text("raise SystemExit")
    return tmp_path


@pytest.mark.parametrize("name", ["", "global_step10"])
def test_deepspeeds_folder_opens_its_model_states_also_by_way_of_latest(deepspeed, name):
    source = open_source(deepspeed / name)
    assert source.path == deepspeed / "global_step10" / "mp_rank_00_model_states.pt"
    assert find_weights(source.tree).name == "module"
    assert source.tree["global_steps"] == 10
    assert source.tree["module"]["weight"].shape == (2,)
    source.close()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mp_rank_01_model_states.pt", "2 shards of tensor parallelism are not merged"),
        ("zero_pp_rank_0_mp_rank_00_model_states.pt", "1 partitions of ZeRO stage 3 are not merged"),
        ("layer_00-model_00-model_states.pt", "1 stages of pipeline parallelism are not merged"),
    ],
)
def test_a_model_that_is_cut_over_files_of_deepspeed_is_refused(deepspeed, name, words):
    torch.save({"module": {}}, deepspeed / "global_step10" / name)
    refused(deepspeed / "global_step10", FormatError, words)


LATEST = {
    "not there": ("global_step11", "'global_step11': not a folder"),
    "a file": ("zero_to_fp32.py", "not a folder"),
    "empty": ("", "'': not the name of a folder beside it"),
    "leading out": ("../elsewhere", "not the name of a folder beside it"),
    "absolute": ("/etc", "not the name of a folder beside it"),
    "itself": (".", "not the name of a folder beside it"),
    "enormous": ("x" * 100_000, "not there"),
    "a link that leads out": ("out", "a link that leads out of the folder"),
    "a folder of something else": ("other", "it holds no mp_rank_00_model_states.pt"),
}


@pytest.mark.parametrize(("tag", "words"), LATEST.values(), ids=LATEST)
def test_a_latest_that_leads_nowhere_is_corrupt(deepspeed, tag, words, tmp_path_factory):
    (deepspeed / "latest").write_text(tag)
    (deepspeed / "other").mkdir()
    (deepspeed / "out").symlink_to(tmp_path_factory.mktemp("elsewhere"))
    refused(deepspeed, CorruptError, words)


def test_latest_as_a_pipe_is_refused_without_waiting(deepspeed):
    (deepspeed / "latest").unlink()
    os.mkfifo(deepspeed / "latest")
    refused(deepspeed, FormatError, "this is not a regular file")


def test_a_spec_of_no_file_is_an_error_of_the_caller(trainer):
    source = open_source(trainer)
    with pytest.raises(ValueError, match="is not of this source"):
        source.read_into(TensorSpec("uint8", (1,), ("x", "y")), memoryview(bytearray(1)))
    source.close()
