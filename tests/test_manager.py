"""A run that saves by itself, is killed, and goes on exactly where it was."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from tests.hostile.checkpoints import signed
from torch import nn

import torchkeep as tk
from torchkeep.errors import CheckpointError, ConflictError, CorruptError, NotFoundError, PlanError
from torchkeep.folder import committed
from torchkeep.policies import Moment


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(8, 64)
        self.norm = nn.BatchNorm1d(64)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(64, 2)

    def forward(self, inputs):
        return self.head(self.drop(self.norm(self.backbone(inputs)).relu()))


class Training:
    """A training whose every step draws from all three generators."""

    def __init__(self, seed=0):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the global generator is what users seed
        random.seed(seed)
        self.model = Net()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.scheduler = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [3, 6])
        self.progress = {"losses": [], "nested": {"epoch": 0}}

    def state(self):
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "progress": self.progress,
        }

    def step(self):
        inputs = torch.randn(16, 8) + random.random() + np.random.rand()  # noqa: NPY002 - as above
        loss = self.model(inputs).pow(2).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.progress["losses"].append(loss.item())
        self.progress["nested"]["epoch"] += 1

    def run(self, folder, total, **options):
        with tk.CheckpointManager(folder, self.state(), **options) as manager:
            for step in range(manager.resume(), total):
                self.step()
                manager.after_step(step, metrics={"loss": self.progress["losses"][-1]})
        return self


def weights(training):
    return [*training.model.state_dict().values(), *[v for s in training.optimizer.state.values() for v in s.values()]]


def identical(one, other):
    same = all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))
    return same and one.progress == other.progress and one.scheduler.state_dict() == other.scheduler.state_dict()


def steps(folder):
    return [checkpoint.step for checkpoint in tk.checkpoints(folder)]


@pytest.mark.parametrize("stop", [3, 5, 7, 8])
def test_an_interrupted_run_ends_bit_for_bit_like_one_that_was_not(tmp_path, stop):
    whole = Training().run(tmp_path / "whole", 9, save_when=tk.EverySteps(2))
    Training().run(tmp_path / "cut", stop, save_when=tk.EverySteps(2))
    again = Training(seed=99).run(tmp_path / "cut", 9, save_when=tk.EverySteps(2))
    assert identical(whole, again)
    assert steps(tmp_path / "cut") == steps(tmp_path / "whole") == [1, 3, 5, 7]


def test_without_the_random_state_the_resume_would_differ(tmp_path, monkeypatch):
    whole = Training().run(tmp_path / "whole", 6, save_when=tk.EverySteps(2))
    Training().run(tmp_path / "cut", 4, save_when=tk.EverySteps(2))
    monkeypatch.setattr("torchkeep.live.rng.restore_rng", lambda state: None)
    assert not identical(whole, Training(seed=99).run(tmp_path / "cut", 6, save_when=tk.EverySteps(2)))


def test_a_new_run_starts_at_zero_and_touches_nothing(tmp_path):
    training = Training()
    before = [value.clone() for value in weights(training)]
    with tk.CheckpointManager(tmp_path / "run", training.state()) as manager:
        assert manager.last_step is None
        assert manager.resume() == 0
        assert manager.last_step is None
    assert all(torch.equal(a, b) for a, b in zip(before, weights(training), strict=True))


def test_last_step_is_the_step_last_finished(tmp_path):
    training = Training()
    with tk.CheckpointManager(tmp_path, training.state(), save_when=tk.EverySteps(3)) as manager:
        manager.resume()
        for step in range(4):
            manager.after_step(step)
            assert manager.last_step == step
    with tk.CheckpointManager(tmp_path, training.state()) as manager:
        assert manager.resume() == 3
        assert manager.last_step == 2


def test_save_is_of_the_moment_it_was_called_and_the_handle_gives_the_path(tmp_path):
    training = Training()
    training.step()
    before = training.model.head.weight.detach().clone()
    with tk.CheckpointManager(tmp_path, training.state()) as manager:
        handle = manager.save(0, metrics={"loss": torch.tensor(0.5)})
        with torch.no_grad():
            training.model.head.weight.zero_()
        assert handle.wait() == tmp_path / "step-00000000"
    saved = tk.load(handle.wait())
    assert torch.equal(saved["model"]["head.weight"], before)
    assert tk.open(handle.wait()).metrics == {"loss": 0.5}


@pytest.mark.parametrize(
    ("retain", "kept"),
    [
        (None, [0, 1, 2, 3, 4, 5]),
        (tk.KeepLast(2), [4, 5]),
        (tk.KeepBest(2, "score", mode="max"), [1, 3, 5]),
        (tk.KeepLast(1) | tk.KeepBest(1, "score", mode="min") | tk.KeepEvery(3), [0, 2, 5]),
    ],
    ids=repr,
)
def test_retention_keeps_what_any_policy_keeps_and_always_the_newest(tmp_path, retain, kept):
    with tk.CheckpointManager(tmp_path, {"progress": {"a": 1}}, retain=retain) as manager:
        for step, score in enumerate([0.1, 0.9, 0.2, 0.8, 0.3, 0.4]):
            manager.save(step, metrics={"score": score})
    assert steps(tmp_path) == kept
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == [".lock"]


def test_a_metric_that_retention_asks_for_and_a_save_lacks_is_a_warning(tmp_path):
    retain = tk.KeepBest(1, "val_acc", mode="max")
    with (
        tk.CheckpointManager(tmp_path, {"progress": {"a": 1}}, retain=retain) as manager,
        pytest.warns(UserWarning, match="step 3 is saved without the metric 'val_acc' that retention asks for"),
    ):
        manager.save(3)


def test_a_frozen_backbone_is_stored_once(tmp_path):
    model = nn.Sequential(nn.Linear(600, 1000), nn.Linear(1000, 2))
    tk.freeze(model, "0")
    with tk.CheckpointManager(tmp_path, {"model": model}) as manager:
        for step in range(5):
            with torch.no_grad():
                model[1].weight.add_(1)
            manager.save(step)
    run = tk.checkpoints(tmp_path)
    backbone, head = 4 * 601_000, 4 * 2_002
    assert run.disk_bytes == backbone + 4096 + 5 * (head + 4096)
    for checkpoint, expected in zip(run, range(5), strict=True):
        state = tk.load(checkpoint)["model"]
        assert torch.equal(state["0.weight"], model[0].weight)
        assert torch.allclose(state["1.weight"], model[1].weight - (4 - expected))


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"epoch": 3}, r"could not put these back: 'epoch' \(int\)"),
        ({"model": nn.Linear(1, 1), "a": 1.0, "b": (1, 2)}, r"'a' \(float\), 'b' \(tuple\)"),
    ],
)
def test_a_value_that_could_not_be_refilled_is_a_type_error_that_names_all(tmp_path, state, text):
    with pytest.raises(TypeError, match=text):
        tk.CheckpointManager(tmp_path, state)


def damage(folder):
    path = max(folder.glob("model*.safetensors"))
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_resume_passes_over_a_damaged_checkpoint_says_so_and_frees_its_step(tmp_path):
    whole = Training().run(tmp_path / "whole", 6, save_when=tk.EverySteps(2))
    Training().run(tmp_path / "cut", 6, save_when=tk.EverySteps(2))
    damage(tmp_path / "cut" / "step-00000005")
    (tmp_path / "cut" / "step-00000003" / "checkpoint.json").chmod(0o644)
    (tmp_path / "cut" / "step-00000003" / "checkpoint.json").write_text("{}")
    with pytest.warns(UserWarning, match="passed over step-0000000") as warned:
        again = Training(seed=1).run(tmp_path / "cut", 6, save_when=tk.EverySteps(2))
    assert len(warned) == 2
    assert identical(whole, again)
    assert steps(tmp_path / "cut") == [1, 3, 5]
    assert len(list((tmp_path / "cut").glob(".damaged-0000000[35]-*"))) == 2


def test_resume_raises_when_no_checkpoint_is_good(tmp_path):
    Training().run(tmp_path, 2, save_when=tk.EverySteps(2))
    damage(tmp_path / "step-00000001")
    with (
        pytest.warns(UserWarning, match="passed over step-00000001"),
        pytest.raises(CorruptError, match=r"no checkpoint of this run is good; .* may be partly overwritten"),
    ):
        Training().run(tmp_path, 4)


def test_a_run_whose_checkpoints_were_all_set_aside_does_not_silently_start_over(tmp_path):
    Training().run(tmp_path, 2, save_when=tk.EverySteps(2))
    damage(tmp_path / "step-00000001")
    with pytest.warns(UserWarning, match="passed over"), pytest.raises(CorruptError):
        Training().run(tmp_path, 4)
    with pytest.raises(CorruptError, match=r"\.damaged-00000001-.*: set aside before"):
        Training().run(tmp_path, 4)
    shutil.rmtree(next(tmp_path.glob(".damaged-*")))
    assert tk.CheckpointManager(tmp_path, Training().state()).resume() == 0


def test_a_state_that_the_checkpoints_hold_nothing_for_is_refused_and_the_run_is_kept(tmp_path):
    Training().run(tmp_path, 4, save_when=tk.EverySteps(2))
    other = Training(seed=5)
    before = other.model.head.weight.detach().clone()
    with tk.CheckpointManager(tmp_path, {**other.state(), "scaler": {"scale": 1}}) as manager:
        with pytest.raises(PlanError, match="step-00000003 holds nothing for 'scaler'; nothing was touched") as refused:
            manager.resume()
        assert torch.equal(other.model.head.weight, before)
        assert "in step-00000003: model, optimizer, scheduler, progress" in str(refused.value)
        with pytest.raises(TypeError, match=r"only is 'model': a list of names is wanted"):
            manager.resume(only="model")
        assert manager.resume(only=["model", "optimizer", "scheduler", "progress"]) == 4
    assert steps(tmp_path) == [1, 3]


def test_a_training_goes_back_to_the_save_that_is_still_in_flight(tmp_path, monkeypatch):
    progress, slow, flush = {"done": 0}, threading.Event(), os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (slow.wait(0.2), flush(descriptor)))
    with tk.CheckpointManager(tmp_path, {"progress": progress}, retain=tk.KeepLast(2)) as manager:
        for step in range(3):
            progress["done"] = step + 1
            handle = manager.save(step)
        assert not handle.done
        progress["done"] = math.nan
        assert (manager.resume(), manager.last_step, progress) == (3, 2, {"done": 3})


def test_a_save_in_flight_that_fails_stops_a_resume_once_and_touches_nothing(tmp_path, monkeypatch):
    progress, flush = {"done": 1}, os.fsync
    manager = tk.CheckpointManager(tmp_path, {"progress": progress})
    manager.save(0).wait()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "bad")))
    progress["done"] = 2
    manager.save(1)
    with pytest.raises(CheckpointError, match="step-00000001: the checkpoint was not saved"):
        manager.resume()
    assert progress["done"] == 2
    monkeypatch.setattr(os, "fsync", flush)
    assert (manager.resume(), progress) == (1, {"done": 1})
    manager.close()


def test_a_save_after_the_resume_of_an_earlier_step_is_not_removed_by_retention(tmp_path):
    Training().run(tmp_path, 8, save_when=tk.EverySteps(2))
    other = Training(seed=5)
    with tk.CheckpointManager(tmp_path, other.state(), retain=tk.KeepLast(2)) as manager:
        with pytest.warns(UserWarning, match="newest: 5, 7"):
            manager.resume(step=3)
        assert manager.save(4).wait().is_dir()
    assert steps(tmp_path) == [4, 5, 7]


def test_steps_that_go_back_are_said_once_and_saved_beside_and_the_highest_is_resumed(tmp_path):
    progress = {"done": 0}
    with tk.CheckpointManager(tmp_path, {"progress": progress}, save_when=tk.EverySteps(2)) as manager:
        for epoch in range(3):  # of six steps each, and counted anew in each
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                for step in range(6):
                    progress["done"] += 1
                    manager.after_step(step)
            assert [str(each.message).partition(":")[0] for each in caught] == (
                ["step 0 comes after step 5"] if epoch == 1 else []
            )
    assert [tk.load(each)["progress"]["done"] for each in tk.checkpoints(tmp_path)] == [14, 16, 18]

    with tk.CheckpointManager(tmp_path, {"progress": progress}, retain=tk.KeepLast(1)) as manager:
        manager.resume()
        progress["done"] = 99
        with pytest.warns(
            UserWarning, match=r"step 3 comes after step 5: .* to go back on purpose, resume\(step=...\)"
        ):
            handle = manager.save(3)
        assert tk.load(handle.wait())["progress"]["done"] == 99  # what was just saved stays too
        assert steps(tmp_path) == [3, 5]
        assert (manager.resume(), progress["done"]) == (6, 18)


def test_who_goes_back_on_purpose_is_told_at_the_resume_alone(tmp_path):
    with tk.CheckpointManager(tmp_path, {"progress": {"done": 0}}, save_when=tk.EverySteps(2)) as manager:
        for step in range(6):
            manager.after_step(step)
        with pytest.warns(UserWarning, match="step 1 is resumed; a later resume.* takes the newest: 3, 5") as told:
            assert manager.resume(step=1) == 2
        assert [manager.after_step(step) is not None for step in range(2, 6)] == [False, True, False, True]
    assert len(told) == 1


def test_names_with_dots_and_a_name_that_is_a_path_elsewhere_are_their_own(tmp_path):
    state = {"a": {"b": 1}, "a.b": {"c": 2}}
    with tk.CheckpointManager(tmp_path, state) as manager:
        manager.save(0)
    again = {"a": {"b": 0}, "a.b": {"c": 0}}
    with tk.CheckpointManager(tmp_path, again) as manager:
        manager.resume()
    assert again == state


def test_resume_of_a_model_that_does_not_fit_says_every_difference_and_touches_nothing(tmp_path):
    Training().run(tmp_path, 2, save_when=tk.EverySteps(2))
    other = Training(seed=5)
    other.model.head = nn.Linear(64, 3)
    before = other.model.backbone.weight.detach().clone()
    with (
        tk.CheckpointManager(tmp_path, {"model": other.model}) as manager,
        pytest.warns(UserWarning, match="not restored, since the state does not have them: optimizer, scheduler"),
        pytest.raises(PlanError, match=r"shape differs +head.weight +checkpoint \(2, 64\) +model \(3, 64\)"),
    ):
        manager.resume()
    assert torch.equal(other.model.backbone.weight, before)
    assert steps(tmp_path) == [1]


def test_an_earlier_step_and_only_some_of_the_state_can_be_resumed(tmp_path):
    Training().run(tmp_path, 6, save_when=tk.EverySteps(2))
    other = Training(seed=5)
    random_before = torch.get_rng_state()
    with tk.CheckpointManager(tmp_path, other.state()) as manager:
        with pytest.warns(
            UserWarning, match=r"step 3 is resumed; a later resume\(\) without a step takes the newest: 5"
        ):
            assert manager.resume(step=3, only=["model"]) == 4
        assert torch.equal(other.model.head.weight, tk.load(tmp_path / "step-00000003")["model"]["head.weight"])
        assert not other.optimizer.state
        assert torch.equal(torch.get_rng_state(), random_before)
        with pytest.raises(NotFoundError, match=r"no good checkpoint of step 4\n.*steps that are here: 1, 3, 5"):
            manager.resume(step=4)


def test_a_live_dict_is_refilled_in_place(tmp_path):
    inner = {"epoch": 3}
    ema = torch.ones(2)
    progress = {"inner": inner, "list": [1, 2], "ema": ema}
    with tk.CheckpointManager(tmp_path, {"progress": progress}) as manager:
        manager.save(0)
    inner.update(epoch=9, extra=1)
    progress["list"].append(3)
    ema.zero_()
    with tk.CheckpointManager(tmp_path, {"progress": progress}) as manager:
        manager.resume()
    assert progress["inner"] is inner
    assert inner == {"epoch": 3}
    assert progress["list"] == [1, 2]
    assert progress["ema"] is ema
    assert ema.tolist() == [1, 1]


def test_a_module_without_tensors_and_a_loss_with_parameters_resume(tmp_path):
    class Focal(nn.Module):
        def __init__(self, alpha):
            super().__init__()
            self.alpha = nn.Parameter(torch.tensor(alpha))

    with tk.CheckpointManager(tmp_path, {"plain": nn.CrossEntropyLoss(), "focal": Focal(0.25)}) as manager:
        manager.save(0)
    focal = Focal(0.5)
    with tk.CheckpointManager(tmp_path, {"plain": nn.CrossEntropyLoss(), "focal": focal}) as manager:
        assert manager.resume() == 1
    assert focal.alpha.item() == 0.25


def test_a_second_writer_is_refused_and_named_and_the_first_goes_on(tmp_path):
    code = textwrap.dedent(
        """
        import sys, torchkeep as tk
        manager = tk.CheckpointManager(sys.argv[1], {"progress": {"a": 1}})
        manager.resume()
        print("held", flush=True)
        sys.stdin.read()
        """
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        second = tk.CheckpointManager(tmp_path, {"progress": {"a": 1}})
        with pytest.raises(ConflictError, match=rf"process {holder.pid} on .* is writing here"):
            second.resume()
    finally:
        holder.kill()
        holder.communicate()
    assert second.resume() == 0
    second.close()


def test_a_failed_save_is_raised_at_the_next_call_and_the_run_goes_on(tmp_path, monkeypatch):
    manager = tk.CheckpointManager(tmp_path / "run", {"progress": {"a": 1}})
    manager.save(0).wait()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        handle = manager.save(1)
        with pytest.raises(CheckpointError, match="the checkpoint was not saved: Input/output error"):
            handle.wait()
        second = manager.save(1)
        while not second.done:
            time.sleep(0.01)
    with pytest.raises(CheckpointError, match="not saved"):
        manager.save(2)
    manager.save(2).wait()
    manager.close()
    assert steps(tmp_path / "run") == [0, 2]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "step-00000000", "step-00000002"]


def test_a_state_without_an_encoding_is_refused_at_save_and_nothing_is_left(tmp_path):
    with (
        tk.CheckpointManager(tmp_path, {"progress": {"callback": print}}) as manager,
        pytest.raises(CheckpointError, match=r"progress\.callback: <class 'builtin_function_or_method'>"),
    ):
        manager.save(0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock"]


def test_a_checkpoint_of_another_run_copied_in_under_another_step_is_not_resumed(tmp_path):
    Training().run(tmp_path, 2, save_when=tk.EverySteps(2))
    shutil.copytree(tmp_path / "step-00000001", tmp_path / "step-00000007")
    with pytest.warns(UserWarning, match="its record is of step 1: a folder was renamed or copied in"):
        Training().run(tmp_path, 2)


@pytest.mark.parametrize("bad", [0, -1, 2.0])
def test_every_steps_takes_a_positive_integer(bad):
    with pytest.raises(ValueError, match="EverySteps takes a number of steps of 1 or more"):
        tk.EverySteps(bad)


def test_a_run_that_was_not_resumed_is_not_mixed_with_another(tmp_path):
    Training().run(tmp_path, 4, save_when=tk.EverySteps(2))
    with tk.CheckpointManager(tmp_path, Training().state(), retain=tk.KeepLast(1)) as manager:
        with pytest.raises(ConflictError, match=r"holds checkpoints that were not resumed \(steps 1, 3\)"):
            manager.save(0)
        assert manager.resume() == 4
        manager.save(4)


def test_a_checkpoint_is_not_a_run_folder(tmp_path):
    Training().run(tmp_path, 2, save_when=tk.EverySteps(2))
    with pytest.raises(ConflictError, match="this would be inside a checkpoint"):
        tk.CheckpointManager(tmp_path / "step-00000001", Training().state()).resume()
    with pytest.raises(tk.errors.FormatError, match="a checkpoint, not a run folder, and its run folder is"):
        tk.checkpoints(tmp_path / "step-00000001")
    assert ".lock" not in os.listdir(tmp_path / "step-00000001")


def test_a_program_that_ends_without_closing_still_commits_its_last_save(tmp_path):
    code = """
import sys, torch, torchkeep as tk
state = {f"w{i}": torch.randn(500_000) for i in range(20)}
tk.CheckpointManager(sys.argv[1], {"x": state}, io_threads=2).save(0)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert steps(tmp_path) == [0]
    assert tk.verify(tmp_path / "step-00000000")


def test_a_state_of_tensors_alone_and_dicts_of_tensors_that_grow_resume(tmp_path):
    with tk.CheckpointManager(tmp_path, {"w": torch.arange(3.0), "cache": {0: torch.ones(2)}}) as manager:
        manager.save(0)
    w, cache = torch.zeros(3), {"b": torch.zeros(0)}
    with tk.CheckpointManager(tmp_path, {"w": w, "cache": cache}) as manager:
        manager.resume()
    assert w.tolist() == [0, 1, 2]
    assert list(cache) == [0]
    assert cache[0].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda p: tk.CheckpointManager(p, nn.Linear(1, 1)), "state is Linear: a mapping by name is wanted"),
        (lambda p: tk.CheckpointManager(p, {"e": {"net": nn.Linear(1, 1)}}), r"would not reach e\.net inside a dict"),
        (lambda p: tk.CheckpointManager(p, {"p": {}}, save_when=5), "save_when is 5: a policy is wanted"),
        (lambda p: tk.CheckpointManager(p, {"p": {}}, retain=3), "retain is 3: a policy is wanted"),
        (lambda p: tk.CheckpointManager(p, {"p": {}}).save(0, 0.5), "metrics is float: a mapping is wanted"),
        (
            lambda p: tk.CheckpointManager(p, {"p": {}}).save(0, {"a": [1, 2]}),
            "metric 'a' is list: one number is wanted",
        ),
    ],
    ids=range(6),
)
def test_wrong_arguments_are_type_errors_at_the_door(tmp_path, make, text):
    with pytest.raises(TypeError, match=text):
        make(tmp_path)


def test_steps_may_be_numpys_integers_and_must_be_countable(tmp_path):
    with tk.CheckpointManager(tmp_path, {"p": {"a": 1}}) as manager:
        assert manager.save(np.int64(3)).wait().name == "step-00000003"
        with pytest.raises(ValueError, match="steps are counted from 0"):
            manager.save(10**18)


def test_a_run_folder_that_was_removed_meanwhile_is_said(tmp_path):
    manager = tk.CheckpointManager(tmp_path / "run", {"p": {"a": 1}})
    manager.save(0).wait()
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(ConflictError, match="the run folder was removed or replaced while it was in use"):
        manager.save(1)
    manager.close()


def test_an_interrupt_while_a_save_is_waited_for_keeps_the_folder_locked_until_it_has_ended(tmp_path, monkeypatch):
    flush, may_flush = os.fsync, threading.Event()
    monkeypatch.setattr(os, "fsync", lambda descriptor: (may_flush.wait(), flush(descriptor)))
    manager = tk.CheckpointManager(tmp_path, {"p": {"a": 1}})
    handle = manager.save(0)
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))

    def wait_and_be_interrupted() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        manager.wait()

    with pytest.raises(KeyboardInterrupt):
        wait_and_be_interrupted()
    with pytest.raises(ConflictError, match="another manager of this process is writing here"):
        tk.CheckpointManager(tmp_path, {"p": {"a": 1}}).resume()
    may_flush.set()
    manager.close()
    assert handle.done
    assert steps(tmp_path) == [0]


def test_somebodys_folder_with_a_steps_name_is_left_alone(tmp_path):
    (tmp_path / "step-00000005").mkdir()
    (tmp_path / "step-00000005" / "mine.txt").write_text("mine")
    with tk.CheckpointManager(tmp_path, {"p": {"a": 1}}) as manager:
        assert manager.resume() == 0
    assert (tmp_path / "step-00000005" / "mine.txt").exists()


def test_save_policies_compose():
    policy = tk.EverySteps(2) | tk.EverySteps(3)
    assert [step for step in range(8) if policy.is_due(Moment(step, step - 1))] == [1, 2, 3, 5, 7]


def test_a_resume_reads_no_whole_record_but_that_of_what_it_takes(tmp_path, monkeypatch):
    with tk.CheckpointManager(tmp_path, {"p": {"a": 1}}) as manager:
        for step in range(5):
            manager.save(step)
    places, decode = [], committed.decode_record
    monkeypatch.setattr(committed, "decode_record", lambda data, place: places.append(place) or decode(data, place))
    with tk.CheckpointManager(tmp_path, {"p": {"a": 0}}, retain=tk.KeepLast(5)) as manager:
        assert manager.resume() == 5
        manager.save(5)
    assert set(places) == {str(tmp_path / "step-00000004" / "checkpoint.json")}


def test_a_record_that_is_whole_and_makes_no_sense_is_passed_over(tmp_path):
    with tk.CheckpointManager(tmp_path, {"p": {"a": 1}}) as manager:
        for step in range(2):
            manager.save(step)
    path = tmp_path / "step-00000001" / "checkpoint.json"
    members = json.loads(path.read_text())
    path.write_bytes(signed({**members, "entries": 5}))
    held = {"a": 0}
    with tk.CheckpointManager(tmp_path, {"p": held}) as manager:
        with pytest.warns(UserWarning, match=r"passed over step-00000001, kept as \.damaged-00000001-"):
            assert manager.resume() == 1
        assert held == {"a": 1}
        manager.save(1)
    assert steps(tmp_path) == [0, 1]
