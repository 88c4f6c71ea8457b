"""Where a run begins: at an earlier step, in another run, with some of the state, with what a plan loads."""

from __future__ import annotations

import copy
import os
import shutil

import pytest
import torch
from torch import nn

import torchkeep as tk
from torchkeep.errors import CorruptError, NotFoundError, PlanError
from torchkeep.folder.committed import read_record


class Training:
    def __init__(self, seed, classes=3):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, classes))
        self.model[0].requires_grad_(False)
        self.optimizer = torch.optim.Adam(tk.trainable(self.model))
        self.state = {"model": self.model, "optimizer": self.optimizer}

    def steps(self, manager, first, last):
        for step in range(first, last):
            self.model(torch.randn(4, 64)).pow(2).mean().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            manager.after_step(step)
        return [parameter.clone() for parameter in self.model.parameters()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture
def source(tmp_path):
    """Give a run of six steps, and its weights at the end."""
    training = Training(0)
    with tk.CheckpointManager(tmp_path / "one", training.state, save_when=tk.EverySteps(1)) as manager:
        end = training.steps(manager, 0, 6)
    return tmp_path / "one", end


@pytest.mark.parametrize("how", ["a run and a step", "a checkpoint", "a run"])
def test_a_branch_goes_on_exactly_from_another_run_and_says_so_in_every_checkpoint(tmp_path, source, how):
    run, end = source
    arguments = {"a run and a step": (run, 2), "a checkpoint": (run / "step-00000002",), "a run": (run,)}[how]
    parent = 5 if how == "a run" else 2
    before = sorted(os.listdir(run))
    training = Training(1)
    with tk.CheckpointManager(tmp_path / "two", training.state, save_when=tk.EverySteps(1)) as manager:
        assert manager.branch(*arguments) == parent + 1
        assert manager.last_step == parent
        weights = training.steps(manager, parent + 1, 6 if parent == 2 else 8)
    if parent == 2:
        assert same(weights, end)
    assert sorted(os.listdir(run)) == before
    of_parent = read_record(run / f"step-{parent:08d}")
    for each in tk.checkpoints(tmp_path / "two"):
        origin = read_record(each.path).provenance["origin"]
        assert origin == {"how": "branch", "path": f"../one/step-{parent:08d}", "step": parent, "id": of_parent.id}
    frozen = [path for path in (tmp_path / "two").rglob("model-*.safetensors") if path.stat().st_nlink > 3]
    assert frozen, "what does not change is linked to the other run's file"
    shutil.rmtree(run)
    assert all(tk.verify(each) for each in tk.checkpoints(tmp_path / "two"))


def test_the_same_command_goes_on_in_the_branch_once_it_has_checkpoints(tmp_path, source):
    run, _ = source
    for first, last in ((3, 5), (5, 7)):
        training = Training(1)
        with tk.CheckpointManager(tmp_path / "two", training.state, save_when=tk.EverySteps(1)) as manager:
            assert manager.branch(run, 2) == first
            training.steps(manager, first, last)
    assert [each.step for each in tk.checkpoints(tmp_path / "two")] == [3, 4, 5, 6]
    origins = [read_record(each.path).provenance["origin"]["step"] for each in tk.checkpoints(tmp_path / "two")]
    assert origins == [2, 2, 2, 2]


def test_a_branch_passes_over_what_is_damaged_there_and_renames_nothing(tmp_path, source):
    run, _ = source
    path = max((run / "step-00000005").glob("optimizer*.safetensors"))
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with tk.CheckpointManager(tmp_path / "two", Training(1).state) as manager:
        with pytest.warns(UserWarning, match="passed over step-00000005"):
            assert manager.branch(run) == 5
        assert (run / "step-00000005").exists()
    with (
        tk.CheckpointManager(tmp_path / "three", Training(1).state) as manager,
        pytest.warns(UserWarning, match="passed over step-00000005"),
        pytest.raises(CorruptError, match="this checkpoint of this run is not good"),
    ):
        manager.branch(run, 5)


@pytest.mark.parametrize(
    ("where", "step", "error", "text"),
    [
        ("one", 9, NotFoundError, r"no good checkpoint of step 9\n.*steps that are here: 0, 1, 2, 3, 4, 5"),
        ("empty", None, NotFoundError, "there is no checkpoint to branch from"),
        ("nowhere", None, NotFoundError, "there is no run folder here"),
    ],
)
def test_a_branch_from_nothing_is_said(tmp_path, source, where, step, error, text):
    (tmp_path / "empty").mkdir()
    with tk.CheckpointManager(tmp_path / "two", Training(1).state) as manager, pytest.raises(error, match=text):
        manager.branch(tmp_path / where, step)


def test_a_branch_takes_some_of_the_state_and_rules(tmp_path, source):
    run, end = source
    other = Training(1, classes=7)
    with tk.CheckpointManager(tmp_path / "two", other.state) as manager:
        with pytest.raises(PlanError, match=r"shape differs +1\.weight"):
            manager.branch(run, only=["model"])
        assert manager.branch(run, only=["model"], rules=[tk.Skip("1")]) == 6
        assert torch.equal(other.model[0].weight, end[0])
        assert not other.optimizer.state


def test_a_resume_that_does_not_fit_says_the_rules_that_it_takes_itself(source):
    run, _ = source
    with (
        tk.CheckpointManager(run, Training(1, classes=7).state) as manager,
        pytest.raises(PlanError, match=r'\n  hint: rules=\[Skip\("1"\)\]$'),
    ):
        manager.resume()


def test_a_warm_start_begins_at_step_0_with_what_the_plan_loads(tmp_path, source):
    run, end = source
    for first, last in ((0, 3), (3, 5)):
        training = Training(7, classes=9)
        plan = tk.plan(tk.checkpoints(run).latest(), into={"model": training.model}, rules=[tk.Skip("1")])
        with tk.CheckpointManager(tmp_path / "two", training.state, save_when=tk.EverySteps(1)) as manager:
            assert manager.warm_start(plan) == first
            assert torch.equal(training.model[0].weight, end[0])
            training.steps(manager, first, last)
    assert [each.step for each in tk.checkpoints(tmp_path / "two")] == [0, 1, 2, 3, 4]
    origin = read_record(tmp_path / "two" / "step-00000004").provenance["origin"]
    assert (origin["how"], origin["path"], origin["step"]) == ("warm start", "../one/step-00000005", 5)


def test_a_warm_start_that_does_not_fit_is_refused_and_one_may_take_what_fits(tmp_path, source):
    run, end = source
    training = Training(7, classes=9)
    with tk.CheckpointManager(tmp_path / "two", training.state) as manager:
        plan = tk.plan(run / "step-00000005", into={"model": training.model})
        with pytest.raises(PlanError, match="2 of 4 tensors do not fit"):
            manager.warm_start(plan)
        assert manager.warm_start(plan, strict=False) == 0
        assert torch.equal(training.model[0].weight, end[0])


def unlike(training):
    return torch.nn.Sequential(*(copy.deepcopy(each) for each in training.model))


@pytest.mark.parametrize(
    ("into", "fault"),
    [
        (unlike, "into: Sequential"),
        (lambda training: {"model": training.model, "model.0": unlike(training)[0]}, "model.0: Linear"),
        (lambda training: {"model": unlike(training).state_dict()}, "model: OrderedDict"),
        (
            lambda training: {"model": training.model, "optimizer": torch.optim.Adam(training.model.parameters())},
            "optimizer: Adam",
        ),
    ],
)
def test_a_warm_start_into_what_the_manager_does_not_hold_is_refused_and_nothing_is_touched(
    tmp_path, source, into, fault
):
    run, _ = source
    for goes_on in (False, True):  # the program is wrong either way
        training = Training(7)
        if goes_on:
            with tk.CheckpointManager(tmp_path / "two", training.state) as manager:
                manager.save(0)
        before = [each.clone() for each in training.model.parameters()]
        with tk.CheckpointManager(tmp_path / "two", training.state) as manager:
            plan = tk.plan(run / "step-00000005", into=into(training))
            with pytest.raises(PlanError) as refused:
                manager.warm_start(plan)
            assert "loads into what this manager does not hold; nothing was touched" in refused.value.what
            assert refused.value.faults == (fault, f"in the state: {', '.join(training.state)}")
            assert same(training.model.parameters(), before)


@pytest.mark.parametrize(
    "into",
    [
        lambda training: training.model.state_dict(),
        lambda training: {"model": torch.nn.DataParallel(training.model)},
        lambda training: {"model": training.model, "optimizer": training.state["optimizer"]},
        lambda training: {"model.0": training.model[0]},
        lambda training: {"model.0": training.model[0].state_dict()},
        lambda training: {"model": torch.nn.Sequential(*training.model)},
    ],
    ids=[
        "a state dict",
        "a wrapper",
        "an optimizer",
        "a part",
        "a state dict of a part",
        "another module of the same tensors",
    ],
)
def test_a_warm_start_into_part_of_what_the_manager_holds_is_one(tmp_path, source, into):
    run, end = source
    training = Training(7)
    with tk.CheckpointManager(tmp_path / "two", training.state) as manager:
        assert manager.warm_start(tk.plan(run / "step-00000005", into=into(training))) == 0
    assert torch.equal(training.model[0].weight, end[0])


def test_a_warm_start_reads_other_peoples_files(tmp_path):
    torch.save({"state_dict": Training(3).model.state_dict(), "epoch": 9}, tmp_path / "old.pth")
    training = Training(4)
    with tk.CheckpointManager(tmp_path / "run", training.state) as manager:
        assert manager.warm_start(tk.plan(tmp_path / "old.pth", into=training.model)) == 0
        assert same(training.model.parameters(), Training(3).model.parameters())
        manager.save(0)
    assert read_record(tmp_path / "run" / "step-00000000").provenance["origin"]["path"] == "../old.pth"


def test_a_resume_elsewhere_says_what_differs_and_what_that_means(tmp_path):
    threads = torch.get_num_threads()
    with tk.CheckpointManager(tmp_path, Training(0).state) as manager:
        manager.save(0)
    torch.set_num_threads(threads + 1)
    torch.use_deterministic_algorithms(True)
    try:
        with tk.CheckpointManager(tmp_path, Training(1).state) as manager:
            with pytest.warns(UserWarning, match="the environment differs") as warned:
                assert manager.resume() == 1
            assert any("the environment differs" in note for note in manager.notes)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
    told = str(warned[0].message).splitlines()[1:]
    assert told == [
        f"  threads: {threads} then, {threads + 1} here: sums are split differently, so last bits may differ",
        "  deterministic_algorithms: False then, True here: operations may give another result each time",
    ]
