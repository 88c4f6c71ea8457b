"""Copying beside the next forward and backward: the checkpoint is that of the save, and only the step is ever held."""

from __future__ import annotations

import copy
import multiprocessing
import sys
import threading
import time

import pytest
import torch
from torch import nn

import torchkeep as tk
from torchkeep.errors import CheckpointError
from torchkeep.live import staging
from torchkeep.live.overlap import Overlap
from torchkeep.live.staging import Copies
from torchkeep.manager import saving
from torchkeep.policies import Staging
from torchkeep.verbs.background import SaveHandle


def build():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40), nn.BatchNorm1d(40), nn.Linear(40, 5))
    other = nn.Linear(5, 1)
    return {
        "model": model,
        "other": other,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=0.1),
        "other_optimizer": torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9),
        "ema": torch.optim.swa_utils.AveragedModel(model),
    }


def forward_and_backward(state):
    state["other"](state["model"](torch.rand(8, 30))).sum().backward()


def step(state):
    for name in ("optimizer", "other_optimizer"):
        state[name].step()
        state[name].zero_grad()
    state["ema"].update_parameters(state["model"])


def snapshot(state):
    return copy.deepcopy({name: value.state_dict() for name, value in state.items()})


def assert_saved(path, expected):
    found = tk.load(path)
    for name, values in expected.items():
        if "param_groups" in values:
            pairs = list(zip(found[name]["state"].values(), values["state"].values(), strict=True))
            assert all(torch.equal(a[key], b[key]) for a, b in pairs for key in b if b[key] is not None)
        else:
            assert all(torch.equal(found[name][key], value) for key, value in values.items())


@pytest.fixture
def slow_copies(monkeypatch):
    """Let copies in the background wait until something is known to have gone on meanwhile."""
    may_copy = threading.Event()
    run = Copies.run

    def waiting(self, threads, after=None, digested=()):
        if threading.current_thread().name.startswith("torchkeep-save"):
            may_copy.wait(100)
        return run(self, threads, after, digested)

    monkeypatch.setattr(Copies, "run", waiting)
    return may_copy


def test_a_save_that_overlaps_holds_what_was_there_when_it_was_called(tmp_path, slow_copies):
    state, expected, overlapped = build(), {}, []
    with tk.CheckpointManager(tmp_path, state, staging=Staging.OVERLAPPED) as manager:
        for number in range(5):
            forward_and_backward(state)
            step(state)
            slow_copies.clear()
            expected[number] = snapshot(state)
            handle = manager.save(number)
            overlapped.append(not handle.staged())
            for _ in range(2):  # gradients of two batches, and buffers that change in forward
                forward_and_backward(state)
            timer = threading.Timer(0.05, slow_copies.set)
            timer.start()
            step(state)
            timer.join()
            assert handle.staged()
            handle.wait()
        assert manager.notes == []
    assert overlapped == [False, True, True, True, True]  # the first is compared
    for number, each in expected.items():
        assert_saved(tmp_path / f"step-{number:08}", each)


def test_what_changes_without_a_step_is_found_at_the_first_save_and_copied_at_once(tmp_path):
    state, expected = build(), {}
    with tk.CheckpointManager(tmp_path, state, staging=Staging.OVERLAPPED) as manager:
        for number in range(5):
            forward_and_backward(state)
            step(state)
            expected[number] = snapshot(state)
            handle = manager.save(number)
            state["model"][0].weight.data.numpy()[:] *= 0.5  # nothing but its bytes tells
            step(state)
            handle.wait()
    [note] = set(manager.notes)
    assert note == (
        "1 tensors of optimizer changed before its step, model.0.weight among them: they are copied at once from now on"
    )
    for number, each in expected.items():
        assert_saved(tmp_path / f"step-{number:08}", each)


def test_a_change_while_copies_are_made_drops_the_save_and_never_commits_a_mix(tmp_path, slow_copies):
    state = build()
    with tk.CheckpointManager(tmp_path, state, staging=Staging.OVERLAPPED) as manager:
        for number in range(3):
            forward_and_backward(state)
            step(state)
            slow_copies.set()
            manager.save(number).wait()
        step(state)
        slow_copies.clear()
        handle = manager.save(3)
        with torch.no_grad():
            state["model"][0].weight.clamp_(-0.01, 0.01)
        slow_copies.set()
        with pytest.raises(
            CheckpointError, match="changed while they were copied beside the training, and not by a step"
        ):
            handle.wait()
        expected = snapshot(state)
        again = manager.save(4)
        assert again.staged()
        assert_saved(again.wait(), expected)
    assert [each.step for each in tk.checkpoints(tmp_path)] == [0, 1, 2, 4]


def test_weights_that_are_swapped_uncounted_while_copies_are_made_drop_the_save(tmp_path, slow_copies):
    state, expected = build(), {}
    with tk.CheckpointManager(tmp_path, state, staging=Staging.OVERLAPPED) as manager:
        for number in range(5):
            forward_and_backward(state)
            step(state)
            slow_copies.clear()
            expected[number] = snapshot(state)
            handle = manager.save(number)
            if number == 3:  # validate with the average, as EMA libraries do it
                own = [parameter.detach().clone() for parameter in state["model"].parameters()]
                for parameter, average in zip(state["model"].parameters(), state["ema"].parameters(), strict=True):
                    parameter.data.copy_(average.data)
            slow_copies.set()
            if number == 3:
                with pytest.raises(CheckpointError, match="this save is dropped"):
                    handle.wait()
                for parameter, before in zip(state["model"].parameters(), own, strict=True):
                    parameter.data.copy_(before)
            else:
                handle.wait()
    for each in tk.checkpoints(tmp_path):
        assert_saved(each.path, expected[each.step])
    assert [each.step for each in tk.checkpoints(tmp_path)] == [0, 1, 2, 4]


def test_saves_in_inference_mode_overlap_too(tmp_path, slow_copies):
    state, overlapped = build(), []
    with tk.CheckpointManager(tmp_path, state, staging=Staging.OVERLAPPED) as manager:
        for number in range(3):
            forward_and_backward(state)
            step(state)
            expected = snapshot(state)
            slow_copies.clear()
            with torch.inference_mode():
                handle = manager.save(number)
            overlapped.append(not handle.staged())
            slow_copies.set()
            assert_saved(handle.wait(), expected)
    assert overlapped == [False, True, True]


def test_an_optimizer_that_steps_late_is_compared_with_its_own_copies_only(tmp_path):
    def net():
        return nn.Linear(60, 60)

    state = {"critic": net(), "generator": net()}
    optimizers = {f"{name}_optimizer": torch.optim.Adam(model.parameters()) for name, model in state.items()}
    state |= optimizers
    with tk.CheckpointManager(tmp_path, state, staging=Staging.OVERLAPPED) as manager:
        for number in range(9):
            for name in ("critic", "generator"):
                if name == "generator" or number in {0, 4, 5, 6}:
                    state[name](torch.rand(2, 60)).sum().backward()
                    optimizers[f"{name}_optimizer"].step()
            expected = snapshot(state)
            assert_saved(manager.save(number).wait(), expected)
    assert manager.notes == []


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("begins", [False, True])
def test_an_interrupt_once_a_save_is_staged_leaves_no_step_held(begins, tmp_path, monkeypatch):
    state, begin = build(), SaveHandle.begin

    def begun(handle, thread):
        begin(handle, thread)
        handle.wait()

    with tk.CheckpointManager(tmp_path, state, staging=Staging.OVERLAPPED) as manager:
        for number in range(3):
            forward_and_backward(state)
            step(state)
            manager.save(number).wait()
        with monkeypatch.context() as patch:
            patch.setattr(SaveHandle, "begin", lambda handle, thread: (begins and begun(handle, thread), interrupt()))
            with pytest.raises(KeyboardInterrupt):
                manager.save(3)
        step(state)
        expected = snapshot(state)
        assert_saved(manager.save(4).wait(), expected)
    assert [each.step for each in tk.checkpoints(tmp_path)] == ([0, 1, 2, 3, 4] if begins else [0, 1, 2, 4])
    assert not list(tmp_path.glob(".staging-*"))


def no_thread(_):
    raise RuntimeError("can't start new thread")


def test_where_the_system_gives_no_thread_the_caller_saves(tmp_path, monkeypatch):
    state = build()
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    with tk.CheckpointManager(tmp_path, state, staging=Staging.OVERLAPPED) as manager:
        for number in range(3):
            forward_and_backward(state)
            step(state)
            expected = snapshot(state)
            handle = manager.save(number)
            assert handle.done
            assert_saved(handle.wait(), expected)


def test_a_forked_process_is_not_held_while_copies_are_made(tmp_path, slow_copies):
    state = build()
    with tk.CheckpointManager(tmp_path, state, staging=Staging.OVERLAPPED) as manager:
        for number in range(3):
            forward_and_backward(state)
            step(state)
            slow_copies.clear()
            handle = manager.save(number)
            if not handle.staged():
                child = multiprocessing.get_context("fork").Process(target=step, args=[state])
                child.start()
                child.join(30)
                child.kill()
                assert child.exitcode == 0
            slow_copies.set()


def test_state_that_appears_while_the_next_save_is_prepared_is_no_error():
    interval_seconds = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    parameters = [nn.Parameter(torch.rand(2)) for _ in range(3000)]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    overlap, has_ended = Overlap({"optimizer": optimizer}), threading.Event()

    def train():
        while not has_ended.is_set():
            optimizer.state.clear()
            for parameter in parameters:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros(2)

    thread = threading.Thread(target=train)
    thread.start()
    try:
        for _ in range(60):
            overlap.late_names({})
    finally:
        has_ended.set()
        thread.join()
        sys.setswitchinterval(interval_seconds)


def step_at_once(parameter):
    parameter.data.sub_(parameter.grad)


def step_in_backward(state):
    for parameter in state["other"].parameters():
        parameter.register_post_accumulate_grad_hook(step_at_once)


def capture_steps(state):
    state["other_optimizer"].param_groups[0]["capturable"] = True


class Wrapped(torch.optim.Optimizer):
    """An optimizer around another, as training libraries make them: its base class was never initialised."""

    def __init__(self, optimizer):
        self.__dict__["optimizer"] = optimizer

    def __getattr__(self, name):
        if name in {"param_groups", "state", "defaults"}:
            return getattr(self.optimizer, name)
        raise AttributeError(name)

    def state_dict(self):
        return self.optimizer.state_dict()

    def step(self, closure=None):
        self.optimizer.step(closure)

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)


def wrap_the_other(state):
    state["other_optimizer"] = Wrapped(state["other_optimizer"])


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (
            wrap_the_other,
            "other_optimizer is not overlapped: Wrapped takes no hooks, since it does not call",
        ),
        (step_in_backward, "other_optimizer is not overlapped: its parameters have hooks that step in the backward"),
        (capture_steps, "other_optimizer is not overlapped: capturable=True is for CUDA graphs"),
    ],
)
def test_where_a_step_cannot_be_held_it_copies_at_once_and_says_so(change, note, tmp_path):
    state = build()
    change(state)
    with tk.CheckpointManager(tmp_path, state, staging=Staging.OVERLAPPED) as manager:
        for number in range(4):
            forward_and_backward(state)
            state["optimizer"].step()
            expected = snapshot(state)
            manager.save(number).wait()
    assert manager.notes[0].startswith(note)
    assert_saved(tmp_path / "step-00000003", expected)


def test_what_an_interrupted_save_overwrote_is_not_taken_for_what_moved_before_the_step(tmp_path, monkeypatch):
    def move(model):  # as in every forward, and counted by nothing
        model.weight.data[3, 3] += 1

    def copy_and_be_interrupted(_, copied, __):
        copied.late_copies.run(1)
        raise KeyboardInterrupt

    model = nn.Linear(80, 80)
    state = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    with tk.CheckpointManager(tmp_path, state, staging=Staging.OVERLAPPED) as manager:
        manager.save(0).wait()
        move(model)
        with monkeypatch.context() as patched:
            patched.setattr(saving.Saver, "_copy_late", copy_and_be_interrupted)
            with pytest.raises(KeyboardInterrupt):
                manager.save(1)
        for number in range(2, 6):
            model(torch.rand(2, 80)).sum().backward()
            state["optimizer"].step()
            expected = snapshot({"model": model})
            with monkeypatch.context() as patched:
                patched.setattr(staging.LateCopies, "run", slowly(staging.LateCopies.run))
                handle = manager.save(number)
                move(model)
                assert_saved(handle.wait(), expected)


def slowly(act):
    def later(*arguments):
        time.sleep(0.1)
        return act(*arguments)

    return later


def test_hooks_that_come_later_end_the_overlap_of_their_optimizer(tmp_path, slow_copies):
    state = build()
    with tk.CheckpointManager(tmp_path, state, staging=Staging.OVERLAPPED) as manager:
        slow_copies.set()
        for number in range(3):
            forward_and_backward(state)
            step(state)
            manager.save(number).wait()
        step_in_backward(state)
        handle = manager.save(3)
        with pytest.raises(CheckpointError, match="this save is dropped"):
            handle.wait()
        slow_copies.clear()
        expected = snapshot(state)
        handle = manager.save(4)
        forward_and_backward(state)
        slow_copies.set()
        assert_saved(handle.wait(), expected)
        manager.save(5).wait()
        manager.save(6)
    assert "other_optimizer is not overlapped: its parameters have hooks that step in the backward" in manager.notes


def test_without_an_optimizer_nothing_overlaps_and_a_note_says_so(tmp_path):
    with tk.CheckpointManager(tmp_path, {"w": torch.zeros(3)}, staging=Staging.OVERLAPPED) as manager:
        assert manager.save(0).staged()
    assert manager.notes == ["nothing is overlapped: no optimizer is in the state"]


def test_no_step_is_held_once_the_manager_is_closed(tmp_path):
    state = build()
    with tk.CheckpointManager(tmp_path, state, staging=Staging.OVERLAPPED) as manager:
        manager.save(0)
    assert not state["optimizer"]._optimizer_step_pre_hooks
