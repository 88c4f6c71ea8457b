"""What a manager, a save and a policy cannot mean is refused at the door, all of it at once, with what to do."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import torchkeep as tk
from torchkeep.policies import KeepTagged, Staging

STATE = {"p": {"epoch": 0}}


@pytest.mark.parametrize(
    ("state", "options", "error", "text"),
    [
        ({}, {}, ValueError, 'state is empty: name what to keep, as {"model": model}'),
        (
            {"model": nn.Linear, "o": torch.optim.Adam},
            {},
            TypeError,
            "a class has no state of its own: 'model' (Linear), 'o' (Adam); give an object of it",
        ),
        (STATE, {"folder": ""}, ValueError, "the path of a run folder is empty: name one, or"),
        (STATE, {"folder": 3}, TypeError, "folder is 3: the path of a run folder is wanted"),
        (
            STATE,
            {"staging": "overlapped"},
            TypeError,
            "staging is 'overlapped': Staging.AT_ONCE or Staging.OVERLAPPED is wanted, from torchkeep.policies",
        ),
        (STATE, {"staging_bytes": "1GB"}, TypeError, "staging_bytes must be an integer of 0 or more, not '1GB'"),
        (STATE, {"staging_bytes": -5}, ValueError, "staging_bytes must be an integer of 0 or more, not -5"),
        (STATE, {"io_threads": -3}, ValueError, "io_threads must be an integer of 1 or more, not -3"),
        (STATE, {"io_threads": 0}, ValueError, "io_threads must be an integer of 1 or more, not 0"),
        (STATE, {"io_threads": True}, TypeError, "io_threads must be an integer of 1 or more, not True"),
        (STATE, {"failed_saves_allowed": 0.5}, TypeError, "failed_saves_allowed must be an integer of 0 or more"),
    ],
)
def test_a_manager_that_cannot_be_meant_is_refused(tmp_path, state, options, error, text):
    folder = options.pop("folder", tmp_path / "run")
    with pytest.raises(error, match=re.escape(text)):
        tk.CheckpointManager(folder, state, **options)
    assert not (tmp_path / "run").exists()


def test_all_that_is_wrong_with_a_manager_is_said_at_once():
    with pytest.raises(TypeError) as refused:
        tk.CheckpointManager(
            "",
            {"model": nn.Linear, "epoch": 3, "e": {"net": nn.Linear(1, 1)}},
            save_when=500,
            retain=3,
            io_threads=0,
            staging="overlapped",
            staging_bytes="1GB",
            failed_saves_allowed=-1,
        )
    lines = str(refused.value).splitlines()
    assert lines[0] == "8 arguments cannot be meant:"
    assert [line.split()[0] for line in lines[1:]] == [
        "the",  # path of a run folder
        *("a", "a", "a"),  # of the state: what is out of reach, the class, the number
        "save_when",
        "retain",
        "failed_saves_allowed",
        "io_threads",
        "staging",
        "staging_bytes",
    ]


def test_the_greatest_and_the_least_that_can_be_meant_are_taken(tmp_path):
    options = {"staging": Staging.OVERLAPPED, "staging_bytes": 0, "io_threads": 1, "failed_saves_allowed": 0}
    with tk.CheckpointManager(tmp_path, STATE, **options) as manager:
        assert manager.save(0).wait().is_dir()


@pytest.mark.parametrize(
    ("path", "options", "error", "text"),
    [
        ("", {}, ValueError, "the path of a checkpoint is empty: name one, or"),
        ("ckpt", {"io_threads": -3}, ValueError, "io_threads must be an integer of 1 or more, not -3"),
        ("ckpt", {"io_threads": "4"}, TypeError, "io_threads must be an integer of 1 or more, not '4'"),
        ("ckpt", {"step": 1.5}, TypeError, "step must be an integer of 0 or more, not 1.5"),
        ("ckpt", {"step": True}, TypeError, "step must be an integer of 0 or more, not True"),
    ],
)
def test_a_save_that_cannot_be_meant_is_refused_and_writes_nothing(tmp_path, monkeypatch, path, options, error, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=re.escape(text)):
        tk.save({"epoch": 3}, path, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("io_threads", [0, "4"])
def test_a_conversion_takes_threads_as_a_save_does(tmp_path, io_threads):
    torch.save({"a": torch.ones(3)}, tmp_path / "a.pt")
    with pytest.raises((TypeError, ValueError), match="io_threads must be an integer of 1 or more"):
        tk.convert(tmp_path / "a.pt", tmp_path / "b.safetensors", io_threads=io_threads)


@pytest.mark.parametrize("method", ["save", "after_step"])
def test_a_step_is_not_left_out(tmp_path, method):
    manager = tk.CheckpointManager(tmp_path / "run", STATE)
    with pytest.raises(TypeError, match="step must be an integer of 0 or more, not None"):
        getattr(manager, method)(None)


@pytest.mark.parametrize("step", [True, 1.5, "3", -1])
@pytest.mark.parametrize("method", ["save", "after_step", "resume", "branch"])
def test_a_step_is_an_integer(tmp_path, method, step):
    with tk.CheckpointManager(tmp_path / "other", STATE) as other:
        other.save(1)
    with tk.CheckpointManager(tmp_path / "run", STATE, save_when=tk.EverySteps(1)) as manager:
        before = [tmp_path / "other"] if method == "branch" else []
        with pytest.raises((TypeError, ValueError), match="step must be an integer of 0 or more, not"):
            getattr(manager, method)(*before, step)
    assert not list(tmp_path.glob("run/step-*"))


@pytest.mark.parametrize("bad", ["", "a/b", "two\nlines", " paper", "paper\t", "\x1b[31m", "\udcff"])
def test_a_tag_is_a_name_wherever_it_is_given(tmp_path, bad):
    with tk.CheckpointManager(tmp_path, STATE, save_when=tk.EverySteps(2)) as manager:
        manager.save(0, tags=["fine", "with spaces, and a comma", "β"]).wait()
        saved = tk.checkpoints(tmp_path)[0]
        for give in (
            lambda: saved.tag("paper", bad),
            lambda: manager.save(1, tags=["paper", bad]),
            lambda: manager.after_step(1, tags=["paper", bad]),
            lambda: KeepTagged("paper", bad),
        ):
            with pytest.raises(ValueError, match=re.escape(f"{bad!r} cannot be a tag: a tag is a name of printing")):
                give()
    found = tk.checkpoints(tmp_path)
    assert [each.step for each in found] == [0]
    assert found[0].tags == ("fine", "with spaces, and a comma", "β")
    assert found[0].untag(bad, "fine") == ("with spaces, and a comma", "β")  # what is not wanted may be anything


def test_several_that_cannot_be_tags_are_named_together_and_a_list_is_no_tag():
    with pytest.raises(ValueError, match="'a/b', '' cannot be tags: a tag is"):
        KeepTagged("a/b", "paper", "")
    with pytest.raises(TypeError, match=re.escape("['a', 'b'], 3 cannot be tags: a tag is a name")):
        KeepTagged(["a", "b"], "paper", 3)


def test_an_error_after_which_nothing_is_saved_asks_no_other_rank(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("torchkeep.manager.session.ranks_here", lambda: asked.append(1))
    manager = tk.CheckpointManager(tmp_path, STATE, save_when=tk.EverySteps(5))

    def train():
        with manager:
            manager.after_step(0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert asked == []
