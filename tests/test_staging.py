"""Saves beside training: what a checkpoint holds is what was there when `save` was called, whatever happened after."""

from __future__ import annotations

import copy
import multiprocessing
import random
import re
import subprocess
import sys
import threading
from collections import Counter

import pytest
import torch

import torchkeep as tk
from torchkeep.errors import CheckpointError
from torchkeep.folder import shard_files
from torchkeep.live.staging import Copies, StagingMemory, copies_of
from torchkeep.manager import saving

MIB = 2**20


def make_state():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(700, 700), torch.nn.BatchNorm1d(700), torch.nn.Linear(700, 600), torch.nn.Linear(600, 3)
    )
    model[0].requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    return {
        "model": model,
        "optimizer": optimizer,
        "ema": {"w": torch.zeros(500_000), "view": torch.zeros(700, 70).t()},
        "progress": {"epoch": 0, "loss": [1.0]},
    }


def live_tensors(state):
    tensors = [*state["model"].state_dict(keep_vars=True).values(), *state["ema"].values()]
    return tensors + [v for each in state["optimizer"].state.values() for v in each.values()]


def train(state, rounds):
    for parameter in state["model"].parameters():
        parameter.grad = torch.full_like(parameter, float(rounds + 1))
    state["optimizer"].step()


@torch.no_grad()
def scramble(state):
    for tensor in live_tensors(state):
        tensor.copy_(torch.rand_like(tensor, dtype=torch.float32) * 100)
    state["progress"]["loss"].append(-1)


def snapshot(state):
    return copy.deepcopy(
        {name: value.state_dict() if hasattr(value, "state_dict") else value for name, value in state.items()}
    )


def assert_saved(path, expected):
    found = tk.load(path)
    for name in ("model", "ema"):
        assert list(found[name]) == list(expected[name])
        assert all(torch.equal(found[name][key], value) for key, value in expected[name].items())
    moments = zip(found["optimizer"]["state"].values(), expected["optimizer"]["state"].values(), strict=True)
    assert all(torch.equal(a[key], b[key]) for a, b in moments for key in b)
    assert found["progress"] == expected["progress"]


@torch.no_grad()
def change_some(state, number):
    """Every save meets another mix: all, none, only what was still before, only one tensor of a big shard."""
    tensors = live_tensors(state)
    chosen = [tensors, [], tensors[:2], tensors[-1:], tensors[::3], tensors[3:4], tensors][number % 7]
    for tensor in chosen:
        tensor.add_(1)
    state["progress"]["epoch"] = number


@pytest.mark.parametrize("staging_bytes", [None, 0, 3 * MIB])
def test_each_checkpoint_holds_what_was_there_when_it_was_saved(staging_bytes, tmp_path):
    state = make_state()
    train(state, 0)
    expected, before = {}, []
    with tk.CheckpointManager(tmp_path, state, staging_bytes=staging_bytes) as manager:
        for number in range(9):
            if number:  # back to what was saved, so that changes are the ones meant
                for live, kept in zip(live_tensors(state), before, strict=True):
                    live.detach().copy_(kept)
                state["progress"]["loss"].pop()
            change_some(state, number)
            expected[number] = snapshot(state)
            before = [tensor.detach().clone() for tensor in live_tensors(state)]
            handle = manager.save(number)
            assert handle.staged()
            scramble(state)
            handle.wait()
    for number, each in expected.items():
        assert_saved(tmp_path / f"step-{number:08}", each)
        assert tk.verify(tmp_path / f"step-{number:08}")
    over = [note for note in manager.notes if "staging_bytes allows no more" in note]
    assert bool(over) == (staging_bytes is not None)


def test_what_did_not_change_is_linked_and_not_copied(tmp_path, monkeypatch):
    state = make_state()
    train(state, 0)
    copied = Counter()
    run = Copies.run

    def counting(self, *args, **options):
        copied[number] += self.nbytes
        return run(self, *args, **options)

    monkeypatch.setattr(Copies, "run", counting)
    with tk.CheckpointManager(tmp_path, state) as manager:
        for number in range(4):
            with torch.no_grad():
                state["model"][3].weight.add_(1)
            manager.save(number).wait()
    assert copied[0] > 4 * MIB
    assert copied[3] < MIB  # the head, which changes
    linked = (tmp_path / "step-00000003").glob("model-*.safetensors")
    assert max(file.stat().st_nlink for file in linked) == 4


def test_staging_memory_is_used_again_and_bounded():
    memory = StagingMemory(10 * MIB)
    first = [memory.take(3 * MIB) for _ in range(3)]
    assert all(first)
    assert memory.take(3 * MIB) is None
    memory.reset()
    again = memory.take(2 * MIB)
    assert again.tensor.data_ptr() == first[0].tensor.data_ptr()
    memory.reset()
    assert memory.take(9 * MIB)  # what is not used goes where that makes room
    assert memory.nbytes <= 10 * MIB


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.float32, torch.complex128, torch.bool, torch.bfloat16, torch.float8_e4m3fn]
)
@pytest.mark.parametrize("shape", [(0,), (), (3,), (30_720 * 8 + 1,), (5, 7)])
@pytest.mark.parametrize("threads", [1, 2])
def test_copies_are_byte_for_byte(dtype, shape, threads):
    from torchkeep.live.capture import capture

    tensors = [torch.rand(shape).mul(3).to(dtype) for _ in range(3)]
    tensors.append(torch.rand(*shape, 2)[..., 0].mul(3).to(dtype).expand(shape) if shape else torch.rand(()).to(dtype))
    drafts = capture(tensors).groups["value"] if any(t.numel() for t in tensors) else {}
    memory = StagingMemory(100 * MIB)
    places = [memory.take(draft.spec.nbytes).tensor for draft in drafts.values()]
    copies_of(list(zip(drafts.values(), places, strict=True))).run(threads)
    assert [bytes(place.numpy()) for place in places] == [bytes(draft.read()) for draft in drafts.values()]


def manager_saves(state, path):
    with tk.CheckpointManager(path, state) as manager:
        for step in range(3):
            manager.save(step).wait()
            state["w"] += 1
        return manager.save(3).wait()


@pytest.mark.parametrize("save", [lambda s, path: tk.save(s, path).path, manager_saves])
def test_what_is_saved_and_loaded_can_still_be_resized_by_its_owner(save, tmp_path):
    state = {"w": torch.rand(5000), "transposed": torch.rand(30, 20).t()}
    path = save(state, tmp_path / "saved")
    tk.load(path, into=state)
    state["w"].resize_(9000)
    state["transposed"].untyped_storage().resize_(0)


def test_the_next_save_waits_for_the_one_in_flight_and_says_how_long(tmp_path, monkeypatch):
    may_write = threading.Event()
    write = shard_files.write_span

    def slow(*args):
        may_write.wait(100)
        return write(*args)

    monkeypatch.setattr(shard_files, "write_span", slow)
    with tk.CheckpointManager(tmp_path, {"w": torch.zeros(9)}) as manager:
        first = manager.save(0)
        assert not first.done
        assert first.staged()
        threading.Timer(0.8, may_write.set).start()
        second = manager.save(1)
        assert first.done
        assert second.stall_seconds >= second.waited_seconds > 0.2
        second.wait()
        assert first.progress.done_bytes == first.progress.total_bytes == 36
        assert second.progress.total_bytes == 0  # linked
    [note] = manager.notes
    told = r"step 1 waited \d+\.\d s for the save before it: saves are due more often than the disk takes them"
    assert re.fullmatch(told, note)


def test_an_error_in_the_background_surfaces_once_and_the_next_save_works(tmp_path, monkeypatch):
    state = {"w": torch.zeros(9)}
    with tk.CheckpointManager(tmp_path, state) as manager:
        with monkeypatch.context() as patch:
            patch.setattr(shard_files.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(5, "Input/output error")))
            manager.save(0)
            with pytest.raises(CheckpointError, match="the checkpoint was not saved: Input/output error"):
                manager.wait()
        manager.save(1).wait()
    assert [each.step for each in tk.checkpoints(tmp_path)] == [1]


def test_what_ends_a_block_goes_on_when_the_save_in_flight_fails_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_files.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(5, "Input/output error")))

    def train():
        with tk.CheckpointManager(tmp_path, {"w": torch.zeros(9)}) as manager:
            manager.save(0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        train()
    (note,) = caught.value.__notes__
    assert note.startswith(f"the save in flight failed as well: {tmp_path}")
    assert "the checkpoint was not saved: Input/output error" in note


def test_a_fork_while_a_save_is_under_way_changes_nothing(tmp_path):
    """Data loaders fork at any time; the staging memory does not go with them."""
    state = {"w": torch.rand(4 * MIB)}
    with tk.CheckpointManager(tmp_path, state) as manager:
        for number in range(3):
            state["w"].add_(1)
            handle = manager.save(number)
            child = multiprocessing.get_context("fork").Process(target=random.random)
            child.start()
            expected = state["w"].clone()
            state["w"].zero_()
            child.join()
            assert child.exitcode == 0
            handle.wait()
            assert torch.equal(tk.load(handle.wait())["w"], expected)
            state["w"].copy_(expected)


def test_a_forked_process_does_not_wait_for_a_save_that_goes_on_in_another(tmp_path, monkeypatch):
    fork, may_finish, finish = multiprocessing.get_context("fork"), threading.Event(), saving.finish
    monkeypatch.setattr(saving, "finish", lambda *arguments: may_finish.wait(100) and finish(*arguments))
    state, told = {"w": torch.rand(64)}, fork.SimpleQueue()

    def save():
        try:
            manager.save(1)
        except CheckpointError as error:
            told.put(str(error))

    with tk.CheckpointManager(tmp_path, state) as manager:
        handle = manager.save(0)
        child = fork.Process(target=save, daemon=True)
        child.start()
        child.join(20)
        may_finish.set()
        assert not told.empty()
        assert "the save of step 0 goes on in the process that this one was forked from" in told.get()
        assert handle.wait()


def test_a_forked_process_does_not_wait_for_what_follows_a_commit_in_another(tmp_path, monkeypatch):
    fork, may_end, read = multiprocessing.get_context("fork"), threading.Event(), saving.read_one_again
    monkeypatch.setattr(saving, "read_one_again", lambda *arguments: may_end.wait(100) and read(*arguments))
    manager = tk.CheckpointManager(tmp_path, {"w": torch.rand(64)})
    manager.save(0).wait()
    child = fork.Process(target=manager.close)
    child.start()
    child.join(60)
    may_end.set()
    assert child.exitcode == 0
    manager.close()


SAVE_AND_END = """
import sys, threading, torch, torchkeep as tk
manager = tk.CheckpointManager(sys.argv[1], {"w": torch.zeros(8_000_000)})
thread = threading.Thread(target=manager.save, args=[0], daemon=sys.argv[2] == "daemon")
thread.start()
thread.join()
"""


@pytest.mark.parametrize("kind", ["daemon", "plain"])
def test_a_program_that_ends_while_a_save_is_under_way_commits_it_first(kind, tmp_path):
    subprocess.run([sys.executable, "-c", SAVE_AND_END, tmp_path, kind], check=True, timeout=100)
    assert [each.step for each in tk.checkpoints(tmp_path)] == [0]


INTERRUPTED_AND_END = """
import sys, threading, torch, torchkeep as tk
wait = threading.Event.wait

def interrupted(event, timeout=None):
    if sys._getframe(1).f_code.co_name != "start" or threading.current_thread() is not threading.main_thread():
        return wait(event, timeout)
    threading.Event.wait = wait
    wait(event, timeout)
    raise KeyboardInterrupt  # where a signal's handler raises it, while the thread of the first save starts

threading.Event.wait = interrupted
tk.CheckpointManager(sys.argv[1], {"w": torch.zeros(8)}).save(0)
"""


def test_a_program_that_an_interrupt_ends_while_a_save_begins_ends(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_AND_END, tmp_path],
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr.splitlines()[-1] == "KeyboardInterrupt"
    assert tk.verify(tmp_path / "step-00000000")


def test_memory_that_is_freed_before_it_is_saved_is_said(tmp_path):
    weights = torch.zeros(8)
    weights.untyped_storage().resize_(0)
    with pytest.raises(CheckpointError, match=r"the memory of a tensor of 32 bytes was freed before it was saved"):
        tk.save({"w": weights}, tmp_path / "saved")
