"""When a manager saves, what a failed save does to a training, and what NaN does to a checkpoint."""

from __future__ import annotations

import errno
import math
import os
import time

import pytest
import torch
from torch import nn

import torchkeep as tk
from torchkeep.errors import CheckpointError, FormatError
from torchkeep.policies import EveryMinutes, Moment, OnException


def steps(run):
    return [each.step for each in tk.checkpoints(run)]


@pytest.mark.parametrize("bad", [0, -1, True, "1", math.nan])
def test_every_minutes_takes_a_positive_number(bad):
    with pytest.raises(ValueError, match="EveryMinutes takes a number of minutes above 0"):
        EveryMinutes(bad)


def test_every_minutes_saves_at_the_first_step_after_that_time_and_a_clock_that_jumps_changes_nothing(
    tmp_path, monkeypatch
):
    clock = [1000.0]
    monkeypatch.setattr("torchkeep.manager.manager.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    jumps = iter([1e9, 5e9, 0.0] * 100)
    with tk.CheckpointManager(tmp_path, {"p": {}}, save_when=EveryMinutes(1) | tk.EverySteps(100)) as manager:
        for step in range(12):
            clock[0] += 25
            manager.after_step(step)
    assert steps(tmp_path) == [2, 5, 8, 11]


def test_policies_compose_in_any_order_and_only_with_policies():
    policy = OnException() | (tk.EverySteps(2) | EveryMinutes(1)) | tk.OnPreemption()
    assert [type(part).__name__ for part in policy.parts] == [
        "OnException",
        "EverySteps",
        "EveryMinutes",
        "OnPreemption",
    ]
    assert policy.is_due(Moment(4, 3, signal=15))
    assert not policy.is_due(Moment(4, 3))
    with pytest.raises(TypeError, match="unsupported operand"):
        tk.EverySteps(2) | 3
    for join in (lambda: tk.EverySteps(2) | tk.KeepLast(2), lambda: tk.KeepLast(2) | tk.EverySteps(2)):
        with pytest.raises(TypeError) as refused:
            join()
        assert str(refused.value) == (
            "EverySteps(steps=2) says when to save and KeepLast(2) what to keep: they do not join; "
            "give each its own name: save_when=EverySteps(steps=2), retain=KeepLast(2)"
        )
    with pytest.raises(TypeError, match="save_when is 3: a policy is wanted"):
        tk.CheckpointManager("x", {"p": {}}, save_when=3)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda m: m.save(0, tags="paper"), TypeError, r"tags is 'paper': a list of names is wanted, as \['paper'\]"),
        (lambda m: m.after_step(0, tags=["a", 3]), TypeError, "3 cannot be a tag: a tag is a name"),
        (lambda m: m.warm_start("old.pth"), TypeError, "takes what torchkeep.plan"),
        (lambda m: m.prove(3), TypeError, "prove takes a function of a step's index; not 3"),
        (
            lambda m: tk.CheckpointManager(m.folder, {"p": {}}, failed_saves_allowed=-1),
            ValueError,
            "failed_saves_allowed must be an integer of 0 or more, not -1",
        ),
    ],
)
def test_wrong_arguments_are_said_at_the_door_and_save_nothing(tmp_path, call, error, text):
    with tk.CheckpointManager(tmp_path, {"p": {}}) as manager, pytest.raises(error, match=text):
        call(manager)
    assert steps(tmp_path) == []


# A program that ends by an exception


def run_until_it_fails(run, error=ValueError, at=3):
    model, progress = nn.Linear(2, 2), {"done": 0}
    manager = tk.CheckpointManager(
        run, {"model": model, "progress": progress}, save_when=tk.EverySteps(3) | OnException()
    )
    with manager:
        for step in range(manager.resume(), 9):
            if step == at:
                raise error("loss is\nodd")
            progress["done"] = step + 1
            manager.after_step(step)


def test_an_exception_saves_the_last_step_and_a_resume_says_that_it_is_not_exact(tmp_path, caplog):
    with pytest.raises(ValueError, match="loss is"):
        run_until_it_fails(tmp_path, at=5)
    assert steps(tmp_path) == [2, 4]
    assert caplog.messages == [f"saved step 4 after ValueError: {tmp_path / 'step-00000004'}"]
    with pytest.warns(
        UserWarning, match=r"saved when a step failed \(ValueError: loss is\), so the resume is not exact"
    ):
        run_until_it_fails(tmp_path, at=99)
    assert steps(tmp_path) == [2, 4, 5, 8]


@pytest.mark.parametrize(
    ("error", "at", "left"),
    [(ValueError, 3, [2]), (KeyboardInterrupt, 4, [2, 3]), (SystemExit, 4, [2]), (ValueError, 0, [])],
    ids=["already saved", "KeyboardInterrupt", "SystemExit", "no step yet"],
)
def test_an_exception_saves_nothing_that_is_saved_and_nothing_before_the_first_step(tmp_path, error, at, left):
    with pytest.raises(error):
        run_until_it_fails(tmp_path, error, at)
    assert steps(tmp_path) == left


def test_a_save_that_fails_then_does_not_hide_the_exception(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(errno.EIO, "bad")))
    with pytest.raises(ValueError, match="loss is"):
        run_until_it_fails(tmp_path, at=1)
    assert "nothing was saved after ValueError" in caplog.messages[0]


# A save that fails


class BadDisk:
    """Refuses to flush while `is_bad`."""

    def __init__(self, monkeypatch):
        self.is_bad = False
        flush = os.fsync
        monkeypatch.setattr(os, "fsync", lambda descriptor: self.fail() if self.is_bad else flush(descriptor))

    def fail(self):
        raise OSError(errno.ENOSPC, "No space left on device")


def train(manager, disk, bad):
    for step in range(10):
        disk.is_bad = step in bad
        handle = manager.after_step(step)
        while handle is not None and not handle.done:
            time.sleep(0.001)


def test_a_training_goes_on_after_as_many_failed_saves_as_are_allowed(tmp_path, monkeypatch):
    disk = BadDisk(monkeypatch)
    manager = tk.CheckpointManager(
        tmp_path / "run", {"p": {"a": 1}}, save_when=tk.EverySteps(1), retain=tk.KeepLast(2), failed_saves_allowed=2
    )
    told = r"save \d of 2 that may fail in a row failed: .*No space left"
    with manager, pytest.warns(UserWarning, match=told) as warned:
        train(manager, disk, bad={2, 3, 6})
    assert len(warned) == 3
    assert steps(tmp_path / "run") == [8, 9]
    assert sum("No space left" in note for note in manager.notes) == 3
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "step-00000008", "step-00000009"]


def test_one_more_is_raised_and_the_last_good_checkpoint_is_there(tmp_path, monkeypatch):
    disk = BadDisk(monkeypatch)
    manager = tk.CheckpointManager(
        tmp_path / "run", {"p": {"a": 1}}, save_when=tk.EverySteps(1), retain=tk.KeepLast(1), failed_saves_allowed=1
    )
    with pytest.warns(UserWarning, match="save 1 of 1"), pytest.raises(CheckpointError, match="No space left"):
        train(manager, disk, bad={4, 5, 6, 7})
    disk.is_bad = False
    manager.close()
    assert steps(tmp_path / "run") == [3]
    assert tk.CheckpointManager(tmp_path / "run", {"p": {"a": 0}}).resume() == 4


def test_a_save_that_cannot_be_begun_is_tried_again_when_the_next_is_due(tmp_path, monkeypatch):
    full, make = {3, 5}, os.mkdir  # the steps whose staging folder the disk has no room for

    def mkdir(path, *args, **options):
        if ".staging-" in str(path) and manager.last_step in full:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        make(path, *args, **options)

    manager = tk.CheckpointManager(tmp_path, {"p": {}}, save_when=tk.EverySteps(2), failed_saves_allowed=2)
    monkeypatch.setattr(os, "mkdir", mkdir)
    with manager, pytest.warns(UserWarning, match=r"save \d of 2 that may fail in a row") as warned:
        train(manager, BadDisk(monkeypatch), bad=())
    assert len(warned) == len(full)
    assert steps(tmp_path) == [1, 7, 9]


def test_an_exception_saves_the_last_step_again_when_its_save_failed(tmp_path, monkeypatch):
    disk = BadDisk(monkeypatch)

    def fail_once():
        with tk.CheckpointManager(tmp_path, {"p": {}}, save_when=tk.EverySteps(10) | OnException()) as manager:
            train(manager, disk, bad={9})
            disk.is_bad = False
            raise ValueError("odd")

    with pytest.raises(ValueError, match="odd"):
        fail_once()
    assert steps(tmp_path) == [9]


def test_what_only_the_program_can_mend_is_raised_at_once(tmp_path):
    state = {"p": {"a": print}}
    manager = tk.CheckpointManager(tmp_path, state, save_when=tk.EverySteps(1), failed_saves_allowed=9)
    with manager, pytest.raises(FormatError, match=r"p\.a: <class 'builtin_function_or_method'>"):
        manager.after_step(0)


# NaN and inf


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 2)
        self.register_buffer("mask", torch.full((3,), -math.inf))
        self.register_buffer("mean", torch.zeros(2))


@pytest.fixture
def run(tmp_path):
    """Give a manager that keeps the best and the last, with its model and optimizer."""
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    retain = tk.KeepLast(1) | tk.KeepBest(1, "acc", mode="max")
    with tk.CheckpointManager(tmp_path, {"model": model, "optimizer": optimizer}, retain=retain) as manager:
        yield manager, model, optimizer


@pytest.mark.parametrize(
    ("spoil", "first"),
    [
        (lambda model, _: model.b.weight[1, 1].fill_(math.nan), r"model\.b\.weight \(NaN\)"),
        (lambda model, _: model.a.bias[0].fill_(math.inf), r"model\.a\.bias \(inf\)"),
        (lambda model, _: model.mean[0].fill_(math.nan), r"model\.mean \(NaN\)"),
        (
            lambda model, optimizer: optimizer.state[model.a.weight]["exp_avg"].fill_(-math.inf),
            r"optimizer\.a.*\(inf\)",
        ),
    ],
    ids=["a parameter", "inf", "a buffer", "a moment"],
)
def test_a_checkpoint_with_nan_is_said_and_never_best_and_never_the_only_one(run, spoil, first):
    manager, model, optimizer = run
    manager.save(0, metrics={"acc": 0.5}).wait()
    with torch.no_grad():
        spoil(model, optimizer)
    manager.save(1, metrics={"acc": 0.9})
    with pytest.warns(UserWarning, match=rf"step 1: 1 of the tensors that train hold NaN or inf, first {first}"):
        manager.wait()
    manager.save(2, metrics={"acc": 0.99}).wait()
    found = tk.checkpoints(manager.folder)
    assert [each.step for each in found] == [0, 2]
    assert found.best("acc", mode="max")[0].step == 0
    assert [each.nonfinite is None for each in found] == [True, False]


def test_nan_that_does_not_change_any_more_is_known_from_the_parent_and_a_resume_says_so(run):
    manager, model, optimizer = run
    with torch.no_grad():
        model.b.weight.fill_(math.nan)
    manager.save(3, metrics={"acc": 0.1})
    with pytest.warns(UserWarning, match="step 3: 1 of the tensors"):
        manager.wait()
    with torch.no_grad():
        model.a.weight.add_(1)
    manager.save(4, metrics={"acc": 0.1}).wait()
    manager.close()
    told = "1 of its tensors hold NaN or inf, first model.b.weight .NaN., since step 3"
    again = tk.CheckpointManager(manager.folder, {"model": model, "optimizer": optimizer})
    with pytest.warns(UserWarning, match=told):
        assert again.resume() == 5
    with torch.no_grad():
        model.b.weight.fill_(0)
    again.save(5).wait()
    assert tk.checkpoints(manager.folder).latest().nonfinite is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.float8_e4m3fn])
def test_nan_is_found_in_every_dtype_and_large_numbers_are_none(tmp_path, dtype):
    module = nn.Module()
    module.w = nn.Parameter(torch.full((1000,), 400.0).to(dtype), requires_grad=False)
    with tk.CheckpointManager(tmp_path, {"model": module}) as manager:
        manager.save(0).wait()
        module.w.data[-1] = math.nan
        manager.save(1)
        with pytest.warns(UserWarning, match=r"first model\.w \(NaN\)"):
            manager.wait()
    assert [each.nonfinite is None for each in tk.checkpoints(tmp_path)] == [True, False]


def test_nan_is_found_in_a_layer_that_came_between_two_saves(tmp_path):
    module = nn.Sequential(nn.Linear(4, 4))
    with tk.CheckpointManager(tmp_path, {"model": module}) as manager:
        for step in range(2):  # the second is prepared from the first
            manager.save(step).wait()
        module.append(nn.Linear(4, 2))
        module[1].weight.data.fill_(math.nan)
        manager.save(2)
        with pytest.warns(UserWarning, match=r"first model\.1\.weight \(NaN\)"):
            manager.wait()


def test_a_mask_of_inf_is_no_fault(run):
    manager, model, _ = run
    manager.save(0, metrics={"acc": 1}).wait()
    assert model.mask[0] == -math.inf
    assert tk.checkpoints(manager.folder).latest().nonfinite is None
