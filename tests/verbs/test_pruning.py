"""`prune`, tags, and optimizers that go from old checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import torchkeep as tk
from torchkeep.errors import ConflictError, CorruptError, NotFoundError, PlanError
from torchkeep.policies import KeepTagged, KeepWithin, OptimizerInLast


def training():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 2))
    model[0].requires_grad_(False)
    return model, torch.optim.Adam(tk.trainable(model), lr=0.1)


@pytest.fixture
def run(tmp_path):
    """Give a run of six checkpoints; the fourth is tagged."""
    model, optimizer = training()
    with tk.CheckpointManager(tmp_path / "run", {"model": model, "optimizer": optimizer}) as manager:
        for step in range(6):
            model(torch.randn(8, 64)).pow(2).mean().backward()
            optimizer.step()
            manager.save(step, metrics={"acc": step % 4}, tags=["paper"] if step == 3 else [])
    return tmp_path / "run"


def steps(run):
    return [each.step for each in tk.checkpoints(run)]


def damage(checkpoint):
    path = max(checkpoint.glob("model*.safetensors"))
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_prune_removes_what_is_not_kept_says_why_and_frees_what_it_says(run):
    before = tk.checkpoints(run).disk_bytes
    foretold = tk.prune(run, tk.KeepLast(2) | KeepTagged("paper"), dry_run=True)
    assert steps(run) == [0, 1, 2, 3, 4, 5]
    pruned = tk.prune(run, tk.KeepLast(2) | KeepTagged("paper"))
    assert steps(run) == [3, 4, 5]
    assert pruned.removed == foretold.removed == (0, 1, 2)
    assert pruned.freed_bytes == foretold.freed_bytes == before - tk.checkpoints(run).disk_bytes > 0
    assert str(pruned).splitlines()[:5] == [
        "0  remove  not in the last 2; not tagged paper",
        "1  remove  not in the last 2; not tagged paper",
        "2  remove  not in the last 2; not tagged paper",
        "3  keep    tagged paper",
        "4  keep    in the last 2",
    ]
    assert str(pruned).splitlines()[-1].startswith("3 of 6 checkpoints removed, ")
    assert all(tk.verify(each) for each in tk.checkpoints(run))
    assert sorted(p.name for p in run.iterdir() if p.name[0] != ".") == [f"step-0000000{step}" for step in (3, 4, 5)]


def test_the_newest_that_verifies_stays_whatever_the_policy_says(run):
    for step in (4, 5):
        damage(run / f"step-0000000{step}")
    pruned = tk.prune(run, tk.KeepLast(1))
    assert steps(run) == [3, 5]
    assert [each.reasons for each in pruned.decisions if each.step == 3] == [("the newest that verifies",)]
    assert [note.partition(":")[0] for note in pruned.notes] == ["step-00000005 is damaged", "step-00000004 is damaged"]
    damage(run / "step-00000003")
    with pytest.raises(CorruptError, match="no checkpoint of this run verifies; nothing was removed"):
        tk.prune(run, tk.KeepLast(1))
    assert steps(run) == [3, 5]


def test_optimizers_go_from_all_but_the_last_and_what_is_left_is_a_whole_checkpoint(run):
    before = tk.checkpoints(run).disk_bytes
    weights = [tk.load(each)["model"] for each in tk.checkpoints(run)]
    foretold = tk.prune(run, OptimizerInLast(2), dry_run=True)
    pruned = tk.prune(run, OptimizerInLast(2))
    assert pruned.freed_bytes == foretold.freed_bytes == before - tk.checkpoints(run).disk_bytes > 0
    assert "0  thin    without optimizer: not in the last 2" in str(pruned)
    for step, each in enumerate(tk.checkpoints(run)):
        assert tk.verify(each)
        state = tk.load(each)
        assert list(state) == (["model", "optimizer"] if step > 3 else ["model"])
        assert all(torch.equal(state["model"][name], value) for name, value in weights[step].items())
        assert any("optimizer" in name for name in os.listdir(each)) == (step > 3)
    assert tk.prune(run, OptimizerInLast(2)).freed_bytes == 0
    model, optimizer = training()
    with tk.CheckpointManager(run, {"model": model, "optimizer": optimizer}) as manager:
        with (
            pytest.warns(UserWarning, match="step 2 is resumed"),
            pytest.raises(PlanError, match=r"retention dropped optimizer of it; .* resume\(only=\[...\]\)"),
        ):
            manager.resume(2)
        with pytest.warns(UserWarning, match="step 2 is resumed"):
            assert manager.resume(2, only=["model"]) == 3


def test_a_manager_drops_optimizers_as_it_goes_on(tmp_path):
    model, optimizer = training()
    retain = tk.KeepLast(3) & OptimizerInLast(1)
    with tk.CheckpointManager(tmp_path, {"model": model, "optimizer": optimizer}, retain=retain) as manager:
        for step in range(5):
            model(torch.randn(8, 64)).pow(2).mean().backward()
            optimizer.step()
            manager.save(step)
    assert [list(tk.load(each)) for each in tk.checkpoints(tmp_path)] == [["model"], ["model"], ["model", "optimizer"]]
    assert not list(tmp_path.glob(".[!l]*"))


def test_the_newest_that_verifies_keeps_its_optimizers(run):
    damage(run / "step-00000005")
    pruned = tk.prune(run, OptimizerInLast(1))
    told = {each.step: (each.drops_optimizers, each.reasons) for each in pruned.decisions}
    assert told[4] == (False, ("the newest that verifies",))
    assert [step for step, (drops, _) in told.items() if drops] == [0, 1, 2, 3]
    model, optimizer = training()
    with pytest.warns(UserWarning, match="passed over step-00000005"):
        assert tk.CheckpointManager(run, {"model": model, "optimizer": optimizer}).resume() == 5


@pytest.mark.filterwarnings("ignore:step . is resumed")
def test_what_was_just_saved_keeps_its_optimizers_also_before_newer_steps(run):
    model, optimizer = training()
    state = {"model": model, "optimizer": optimizer}
    with tk.CheckpointManager(run, state, retain=tk.KeepLast(9) & OptimizerInLast(2)) as manager:
        manager.resume(1)
        manager.save(2)
    assert [each.step for each in tk.checkpoints(run) if "optimizer" in tk.open(each.path)] == [2, 4, 5]
    assert tk.CheckpointManager(run, state).resume(2) == 3


def test_a_tied_tensor_that_an_optimizer_wrote_first_stays_with_the_weights(tmp_path):
    model, optimizer = training()
    state = {"optimizer": optimizer, "average": {"of": None}}
    model(torch.randn(8, 64)).pow(2).mean().backward()
    optimizer.step()
    state["average"]["of"] = optimizer.state[model[1].weight]["exp_avg"]
    expected = state["average"]["of"].clone()
    with tk.CheckpointManager(tmp_path, state) as manager:
        with pytest.warns(UserWarning, match="2 of the parameters that 'optimizer' trains are in no module"):
            manager.save(0)
        manager.save(1)
    tk.prune(tmp_path, OptimizerInLast(1))
    assert list(tk.load(tmp_path / "step-00000000")) == ["average"]
    assert torch.equal(tk.load(tmp_path / "step-00000000")["average"]["of"], expected)


def test_a_tag_is_given_later_while_the_run_goes_on_and_keeps_the_checkpoint(tmp_path):
    model, optimizer = training()
    state = {"model": model, "optimizer": optimizer}
    with tk.CheckpointManager(tmp_path, state, retain=tk.KeepLast(1) | KeepTagged()) as manager:
        manager.save(0).wait()
        assert tk.checkpoints(tmp_path)[0].tag("good", "good", "paper") == ("good", "paper")
        for step in (1, 2, 3):
            manager.save(step)
    assert steps(tmp_path) == [0, 3]
    first = tk.checkpoints(tmp_path)[0]
    assert first.tags == ("good", "paper")
    assert tk.verify(first)
    assert first.untag("good", "paper") == ()
    assert tk.prune(tmp_path, tk.KeepLast(1) | KeepTagged()).removed == (0,)
    with pytest.raises(NotFoundError, match="no torchkeep checkpoint here"):
        first.tag("late")


def test_a_run_that_is_being_written_is_not_pruned_but_may_be_looked_at(run):
    code = "import sys, torchkeep as tk; m = tk.CheckpointManager(sys.argv[1], {'p': {}}); m._session.folder.own()"
    code += "; print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConflictError, match=rf"process {holder.pid} on .* is writing here"):
            tk.prune(run, tk.KeepLast(1))
        assert tk.prune(run, tk.KeepLast(1), dry_run=True).removed == (0, 1, 2, 3, 4)
    finally:
        holder.kill()
        holder.communicate()
    assert steps(run) == [0, 1, 2, 3, 4, 5]


def test_prune_within_a_size_measures_the_disk(run):
    total = tk.checkpoints(run).disk_bytes
    tk.prune(run, KeepWithin(total - 1))
    left = tk.checkpoints(run)
    assert 1 < len(left) < 6
    assert left.disk_bytes < total


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda run: tk.prune(run, 3), TypeError, r"prune\(run, policy\): the policy is 3"),
        (lambda run: tk.prune(run / "no", tk.KeepLast(1)), NotFoundError, "there is no run folder here"),
        (lambda run: tk.prune(run / "no", tk.KeepLast(1), dry_run=True), NotFoundError, "there is no run folder here"),
        (lambda run: tk.prune(run / "step-00000001", tk.KeepLast(1)), tk.errors.FormatError, "a checkpoint, not a run"),
    ],
)
def test_wrong_arguments_remove_nothing(run, call, error, text):
    with pytest.raises(error, match=text):
        call(run)
    assert steps(run) == [0, 1, 2, 3, 4, 5]
    assert json.loads((run / "step-00000001" / "checkpoint.json").read_text())["step"] == 1
