"""What is frozen is looked at beside the training where nothing speaks against it; what is saved stays the same."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import torchkeep as tk
from torchkeep.errors import CheckpointError
from torchkeep.manager import preparing, saving
from torchkeep.policies import Staging


def build():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 60), nn.Linear(60, 60), nn.Linear(60, 4))
    model[:2].requires_grad_(False)
    return {"model": model, "optimizer": torch.optim.AdamW(tk.param_groups(model, {"*": {"lr": 0.1}}))}


def train(state):
    state["model"](torch.rand(8, 60)).sum().backward()
    state["optimizer"].step()
    state["optimizer"].zero_grad()


@pytest.fixture
def looks(monkeypatch):
    """The steps of which something was looked at late, and what such looks wait for."""
    found, may_look, look_late = [], threading.Event(), saving.look_late

    def waiting(copied, memory):
        found.append(copied.staged.draft.step)
        may_look.wait(100)
        return look_late(copied, memory)

    monkeypatch.setattr(saving, "look_late", waiting)
    may_look.set()
    return SimpleNamespace(steps=found, may_begin=may_look)


def assert_saved(path, weights):
    found = tk.load(path)["model"]
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())
    assert tk.verify(path)


def weights_of(state):
    return {name: weight.clone() for name, weight in state["model"].state_dict().items()}


def begin(manager, state, count):
    """So many saves, until what is frozen is known to be."""
    for number in range(count):
        train(state)
        manager.save(number).wait()


def test_a_save_returns_before_what_is_frozen_is_looked_at_and_only_the_step_waits_for_it(tmp_path, looks):
    state = build()
    with tk.CheckpointManager(tmp_path, state, staging=Staging.OVERLAPPED) as manager:
        begin(manager, state, 3)
        assert looks.steps == [2]  # first it is written, then looked at at once
        expected = weights_of(state)
        looks.may_begin.clear()
        handle = manager.save(3)
        assert not handle.staged()
        state["model"](torch.rand(8, 60)).sum().backward()
        threading.Timer(0.05, looks.may_begin.set).start()
        state["optimizer"].step()
        assert looks.may_begin.is_set()
        assert_saved(handle.wait(), expected)
    assert max(file.stat().st_nlink for file in (tmp_path / "step-00000003").glob("model-*.safetensors")) == 4
    assert manager.notes == []


def test_steps_are_held_for_looks_where_nothing_is_copied_late(tmp_path, looks):
    state = build()
    state["optimizer"] = torch.optim.SGD(state["model"][2].parameters(), lr=0.1)
    with tk.CheckpointManager(tmp_path, state, staging=Staging.OVERLAPPED) as manager:
        for number in range(4):
            looks.may_begin.clear()
            expected = weights_of(state)
            handle = manager.save(number)
            assert handle.staged() is (number < 2)
            looks.may_begin.set()
            assert_saved(handle.wait(), expected)
            with torch.no_grad():
                state["model"][2].weight.add_(1)  # not by a step, so that it is copied at once from then on
                state["model"][2].bias.add_(1)
            train(state)
    assert all("they are copied at once from now on" in note for note in manager.notes)


def change_counted(state):
    with torch.no_grad():
        state["model"][0].weight.add_(1)


def change_uncounted(state):
    state["model"][0].weight.data.add_(1)


def change_by_numpy(state):
    state["model"][1].weight.detach().numpy()[...] += 1


def exchange(state):
    state["model"][0].weight.data = torch.rand(60, 60)


def replace(state):
    state["model"][1] = nn.Linear(60, 60).requires_grad_(False)


def unfreeze(state):
    layer = state["model"][1]
    if not layer.weight.requires_grad:
        layer.requires_grad_(True)
        state["optimizer"].add_param_group({"params": list(layer.parameters()), "lr": 0.1})
    train(state)


def load_other_weights(state):
    state["model"].load_state_dict(build()["model"].state_dict() | {"0.bias": torch.rand(60)})


@pytest.mark.parametrize(
    "change",
    [change_counted, change_uncounted, change_by_numpy, exchange, replace, unfreeze, load_other_weights],
)
def test_what_is_frozen_and_changed_is_looked_at_at_once(change, tmp_path, looks):
    state = build()
    with tk.CheckpointManager(tmp_path, state, staging=Staging.OVERLAPPED) as manager:
        begin(manager, state, 4)
        looks.steps.clear()
        change(state)
        expected = weights_of(state)
        assert_saved(manager.save(4).wait(), expected)
        assert looks.steps == []
        change(state)
        expected = weights_of(state)
        assert_saved(manager.save(5).wait(), expected)


@pytest.mark.parametrize("change", [change_counted, change_uncounted])
def test_what_changes_while_it_is_looked_at_drops_the_save_and_is_looked_at_at_once_from_then_on(
    change, tmp_path, looks
):
    state = build()
    with tk.CheckpointManager(tmp_path, state, staging=Staging.OVERLAPPED) as manager:
        begin(manager, state, 4)
        looks.may_begin.clear()
        handle = manager.save(4)
        change(state)
        looks.may_begin.set()
        with pytest.raises(CheckpointError, match="frozen parameters changed while they were looked at beside the"):
            handle.wait()
        looks.steps.clear()
        for number in range(5, 9):
            train(state)
            expected = weights_of(state)
            assert_saved(manager.save(number).wait(), expected)
        assert looks.steps == []
    assert [each.step for each in tk.checkpoints(tmp_path)] == [0, 1, 2, 3, 5, 6, 7, 8]


def test_a_layer_that_is_unfrozen_while_it_is_looked_at_changes_after_that(tmp_path, looks):
    state = build()
    with tk.CheckpointManager(tmp_path, state, staging=Staging.OVERLAPPED) as manager:
        begin(manager, state, 4)
        looks.may_begin.clear()
        expected = weights_of(state)
        handle = manager.save(4)
        threading.Timer(0.1, looks.may_begin.set).start()
        unfreeze(state)
        assert_saved(handle.wait(), expected)
        expected = weights_of(state)
        assert_saved(manager.save(5).wait(), expected)


def test_what_cannot_be_linked_after_a_late_look_is_written_as_it_was_looked_at(tmp_path, looks):
    state = build()
    with tk.CheckpointManager(tmp_path, state, staging=Staging.OVERLAPPED) as manager:
        begin(manager, state, 4)
        looks.may_begin.clear()
        expected = weights_of(state)
        handle = manager.save(4)
        for file in (tmp_path / "step-00000003").glob("model-*.safetensors"):
            file.unlink()
        looks.may_begin.set()
        assert_saved(handle.wait(), expected)


def test_what_cannot_be_linked_and_changes_before_it_is_copied_drops_the_save(tmp_path, looks, monkeypatch):
    state = build()

    def refuse(*_, **__):
        change_counted(state)
        return "the file system refuses links today"

    with tk.CheckpointManager(tmp_path, state, staging=Staging.OVERLAPPED) as manager:
        begin(manager, state, 4)
        with monkeypatch.context() as patch:
            patch.setattr(preparing, "link_shard", refuse)
            with pytest.raises(CheckpointError, match="this save is dropped"):
                manager.save(4).wait()
        expected = weights_of(state)
        assert_saved(manager.save(5).wait(), expected)
