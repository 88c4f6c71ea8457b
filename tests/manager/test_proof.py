"""`prove` finds what a resume would lose and names it; `preflight` finds what would go wrong before it does."""

from __future__ import annotations

import os
import random
import re
import resource
import shutil
import subprocess

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import torchkeep as tk
from torchkeep.errors import CheckpointError
from torchkeep.policies import Also


class Training:
    """A step draws from all generators, and keeps a state in everything that can hold one."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Dropout(0.4), nn.Linear(32, 2))
        self.model.register_buffer("calls", torch.zeros(()), persistent=False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2)
        self.generator = torch.Generator()
        self.loader = DataLoader([torch.full((8,), float(i)) for i in range(40)], batch_size=4, shuffle=True)
        self.batches = None
        self.progress = {"losses": [], "seen": 0}

    def state(self, without=()):
        names = ("model", "optimizer", "scheduler", "generator", "loader", "progress")
        return {name: getattr(self, name) for name in names if name not in without}

    def step(self, step):
        self.batches = self.batches or iter(self.loader)
        self.model.calls += 1
        inputs = next(self.batches) + torch.randn(8, generator=self.generator) + random.random()
        inputs = inputs + np.random.rand() + self.model.calls  # noqa: NPY002 - the global generator
        loss = self.model(inputs.float()).pow(2).mean() * (1 + self.progress["seen"] / 100)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.progress["seen"] += 4
        self.progress["losses"].append(loss.item())
        return {"loss": loss.detach(), "step": step}


def manager_of(run, training, without=(), also=Also.NON_PERSISTENT_BUFFERS):
    return tk.CheckpointManager(run, training.state(without), also=also)


def test_an_exact_training_is_proved_and_left_where_it_was(tmp_path):
    training = Training()
    with manager_of(tmp_path, training) as manager:
        for step in range(3):
            training.step(step)
            manager.after_step(step)
        losses, weights = list(training.progress["losses"]), training.model[0].weight.clone()
        rng, following = torch.get_rng_state(), None
        proof = manager.prove(training.step, steps=4)
        assert proof
        assert proof.require() is proof
        assert re.fullmatch(
            r"4 steps replayed bit for bit: \d+ tensors, values and random states equal after each", str(proof)
        )
        assert proof.steps == (3, 4, 5, 6)
        assert manager.last_step == 2
        assert training.progress["losses"] == losses
        assert torch.equal(training.model[0].weight, weights)
        assert torch.equal(torch.get_rng_state(), rng)
        following = training.step(3)["loss"]
    fresh = Training()
    for step in range(4):
        last = fresh.step(step)["loss"]
    assert following.shape == last.shape
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("without", "also", "state", "hint"),
    [
        (["generator"], Also.NON_PERSISTENT_BUFFERS, r"model|progress|what the step returned", None),
        (["loader"], Also.NON_PERSISTENT_BUFFERS, r"model|progress", "a DataLoader is at batch"),
        (["scheduler"], Also.NON_PERSISTENT_BUFFERS, r"optimizer|model|progress", "the StepLR of 'optimizer'"),
        (["progress"], Also.NON_PERSISTENT_BUFFERS, r"model", None),
        (["optimizer", "scheduler"], Also.NON_PERSISTENT_BUFFERS, r"progress|model", "the AdamW that trains 'model'"),
        ([], Also.NOTHING, r"progress|model", None),
    ],
    ids=["a generator", "the loader", "the scheduler", "the progress", "the optimizer", "a buffer"],
)
def test_what_is_left_out_makes_the_replay_diverge(tmp_path, without, also, state, hint):
    training = Training()
    with manager_of(tmp_path, training, without, also) as manager:
        training.step(0)
        proof = manager.prove(training.step)
    assert not proof
    assert re.match(state, proof.state), proof
    assert str(proof).startswith(f"diverged after step {proof.diverged_at}, replayed: {proof.state}: ")
    if hint:
        assert any(hint in each for each in proof.hints)
    with pytest.raises(CheckpointError, match="a resume would not be exact\n  diverged after step"):
        proof.require()


@pytest.mark.parametrize("name", ["python", "numpy", "torch"])
def test_a_random_generator_that_does_not_come_back_is_named(tmp_path, monkeypatch, name):
    from torchkeep.live import rng

    restore = rng.restore_rng
    monkeypatch.setattr(rng, "restore_rng", lambda state: restore({k: v for k, v in state.items() if k != name}))
    training = Training()
    with manager_of(tmp_path, training) as manager:
        proof = manager.prove(training.step)
    owner = {"python": "Python's", "numpy": "numpy's", "torch": "torch's"}[name]
    assert proof.diverged_at == -1
    assert proof.state == f"{owner} random generator"
    assert str(proof).startswith(f"diverged right after the restore: {owner} random generator: other values")


def test_a_class_that_loses_part_of_its_state_is_named(tmp_path):
    class Forgetful:
        def __init__(self):
            self.seen, self.lost = 0, 0

        def state_dict(self):
            return {"seen": self.seen, "lost": self.lost}

        def load_state_dict(self, state):
            self.seen = state["seen"]

    meter = Forgetful()

    def step(_):
        meter.seen += 1
        meter.lost += 1

    with tk.CheckpointManager(tmp_path, {"meter": meter}) as manager:
        proof = manager.prove(step, steps=2)
        assert str(proof) == "diverged right after the restore: meter.lost: 0 and then 2"
        meter.lost = 5
        assert manager.preflight()  # nothing changes between its save and its load, so nothing can be lost


def test_a_step_that_is_not_deterministic_is_seen_by_what_it_returns(tmp_path):
    calls = iter(range(100))
    with tk.CheckpointManager(tmp_path, {"p": {}}) as manager:
        proof = manager.prove(lambda step: {"loss": step * 0.5, "call": next(calls)})
    assert (proof.diverged_at, proof.state, proof.also) == (0, "what the step returned", 0)


def test_nothing_is_saved_while_steps_are_replayed(tmp_path):
    model = nn.Linear(2, 2)
    with tk.CheckpointManager(tmp_path, {"model": model}, save_when=tk.EverySteps(1)) as manager:
        assert manager.prove(manager.after_step)
        with pytest.raises(RuntimeError, match="nothing can be saved while prove runs steps"):
            manager.prove(manager.save)
        with pytest.raises(ValueError, match="steps must be an integer of 1 or more, not 0"):
            manager.prove(manager.save, steps=0)
        assert manager.after_step(0) is not None


# Preflight


def test_preflight_estimates_what_the_run_will_take_and_leaves_nothing(tmp_path):
    model = nn.Sequential(nn.Linear(1000, 250, bias=False), nn.Linear(250, 100, bias=False))
    model[0].requires_grad_(False)
    optimizer = torch.optim.Adam(tk.trainable(model))
    retain = tk.KeepLast(2)
    with tk.CheckpointManager(tmp_path, {"model": model, "optimizer": optimizer}, retain=retain) as manager:
        found = manager.preflight()
        assert found.checkpoint_bytes == 4 * (250_000 + 3 * 25_000)
        assert found.peak_bytes == 4 * (250_000 + 3 * 3 * 25_000)
        assert str(found).startswith("1.3 MB per checkpoint, at most 1.9 MB at once, ")
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
        for step in range(4):
            model(torch.randn(4, 1000)).sum().backward()
            optimizer.step()
            manager.save(step)
        manager.wait()
        assert found.checkpoint_bytes == pytest.approx(tk.checkpoints(tmp_path).latest().total_bytes, rel=0.02)
    assert not any(np.isnan(each.total_bytes) for each in tk.checkpoints(tmp_path))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.1),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
        lambda p: torch.optim.Adam(p, amsgrad=True),
        lambda p: torch.optim.RMSprop(p, centered=True, momentum=0.1),
        torch.optim.Adagrad,
        torch.optim.Adadelta,
        torch.optim.NAdam,
        torch.optim.ASGD,
        torch.optim.Rprop,
        torch.optim.Muon,
    ],
)
def test_the_state_that_an_optimizer_will_have_is_known_before_its_first_step(make):
    from torchkeep.live.estimate import estimate

    model = nn.Linear(300, 200, bias=False)
    optimizer = make(model.parameters())
    before = estimate({"model": model, "optimizer": optimizer}).changing_bytes
    model(torch.randn(2, 300)).sum().backward()
    optimizer.step()
    assert estimate({"model": model, "optimizer": optimizer}).changing_bytes == pytest.approx(before, rel=0.001)


def test_everything_that_is_wrong_is_one_list(tmp_path):
    class Stubborn:
        calls = 0

        def state_dict(self):
            self.calls += 1
            return {"calls": self.calls}

        def load_state_dict(self, state):
            pass

    class Refusing:
        def state_dict(self):
            return {"a": 1}

        def load_state_dict(self, state):
            raise KeyError("b")

    for state, told in (
        ({"odd": Stubborn()}, r"could not save or resume\n  odd\.calls does not come back: \d and then \d"),
        ({"odd": Refusing()}, r"Refusing\) refuses its state\n  KeyError: 'b'"),
        ({"p": {"f": print, "g": open}}, r"  p\.f: .*builtin_function.*\n  p\.g: .*"),
    ):
        with tk.CheckpointManager(tmp_path, state) as manager, pytest.raises(CheckpointError, match=told):
            manager.preflight()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.fixture
def small_disk(tmp_path):
    """Give a file system of 4 MB, where this user may make one."""
    (tmp_path / "disk").mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(tmp_path / "disk")]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield tmp_path / "disk"
    subprocess.run(["umount", "--lazy", str(tmp_path / "disk")], check=True)


def test_a_disk_that_holds_one_checkpoint_and_not_the_peak_is_found_out_at_once(small_disk):
    model = nn.Linear(500, 500)
    with tk.CheckpointManager(small_disk / "run", {"model": model}, retain=tk.KeepLast(1)) as manager:
        assert manager.preflight().free_bytes < 4_200_000
    with (
        tk.CheckpointManager(small_disk / "run", {"model": model}, retain=tk.KeepLast(4)) as manager,
        pytest.raises(CheckpointError, match=r"checkpoints take 5\.0 MB, and \d\.\d MB are free"),
    ):
        manager.preflight()
    with tk.CheckpointManager(small_disk / "run", {"model": model}) as manager:
        assert "retention lets the run grow: 4 checkpoints fit" in manager.preflight().notes


def test_a_limit_on_the_size_of_files_and_a_folder_without_links_are_found_out(tmp_path, monkeypatch):
    model = nn.Linear(500, 500)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with tk.CheckpointManager(tmp_path, {"model": model}, retain=tk.KeepLast(2)) as manager:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, before[1]))
        try:
            with pytest.raises(CheckpointError, match=r"a file of 3\.0 MB is larger than this process may write"):
                manager.preflight()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        monkeypatch.setattr(os, "link", lambda *_, **__: (_ for _ in ()).throw(PermissionError(1, "no")))
        assert "this file system makes no hard links" in "\n".join(manager.preflight().notes)
