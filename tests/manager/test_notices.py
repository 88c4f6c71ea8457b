"""A warning points at the line of the program that made the call, however deep it arises."""

from __future__ import annotations

import linecache
import math
import subprocess
import sys
import textwrap
import warnings

import pytest
import torch
from torch import nn

import torchkeep as tk
from torchkeep.policies import Staging

BEST = tk.KeepBest(1, "acc", mode="max")


def saving(tmp_path):
    with tk.CheckpointManager(tmp_path, {"p": {}}, retain=BEST) as manager:
        manager.save(0)  # here


def saving_when_due(tmp_path):
    with tk.CheckpointManager(tmp_path, {"p": {}}, retain=BEST, save_when=tk.EverySteps(1)) as manager:
        manager.after_step(0)  # here


def saving_in_a_hook(tmp_path):
    model = nn.Linear(2, 1)
    with tk.CheckpointManager(tmp_path, {"model": model}, retain=BEST) as manager:
        model.register_forward_hook(lambda *_: manager.save(0) and None)  # here
        model(torch.ones(2))


def saving_in_a_hook_of_a_step_beside_which_copies_are_made(tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters())
    state = {"model": model, "optimizer": optimizer}
    with tk.CheckpointManager(tmp_path, state, retain=BEST, staging=Staging.OVERLAPPED) as manager:
        for step in range(3):
            optimizer.zero_grad()
            model(torch.ones(2)).sum().backward()
            optimizer.step()
            manager.save(step, metrics={"acc": 0.1})
        optimizer.register_step_post_hook(lambda *_: manager.save(3) and None)  # here
        optimizer.step()


def waiting_for_what_was_found_in_the_background(tmp_path):
    with tk.CheckpointManager(tmp_path, {"model": not_a_number()}) as manager:
        manager.save(0)
        manager.wait()  # here


def leaving_a_block(tmp_path):
    with tk.CheckpointManager(tmp_path, {"model": not_a_number()}) as manager:  # here
        manager.save(0)


def saving_what_a_resume_will_lack(tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters())
    with tk.CheckpointManager(tmp_path, {"model": model}) as manager:
        manager.save(0)  # here
    del optimizer


def ignoring_signals(tmp_path):
    manager = tk.CheckpointManager(tmp_path, {"p": {}}, save_when=tk.OnPreemption())
    manager.after_step(0)  # here


def resuming(tmp_path):
    with tk.CheckpointManager(tmp_path, {"p": {}, "q": {}}) as manager:
        manager.save(0)
    with tk.CheckpointManager(tmp_path, {"p": {}}) as manager:
        manager.resume()  # here


def passing_over_a_damaged_checkpoint(tmp_path):
    with tk.CheckpointManager(tmp_path, {"p": {}}) as manager:
        damaged = [manager.save(step).wait() for step in range(2)][1]
    (damaged / "checkpoint.json").write_text("{}")
    with tk.CheckpointManager(tmp_path, {"p": {}}) as manager:
        manager.resume()  # here


def not_a_number():
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.fill_(math.nan)
    return model


@pytest.mark.parametrize(
    "program",
    [
        saving,
        saving_when_due,
        saving_in_a_hook,
        saving_in_a_hook_of_a_step_beside_which_copies_are_made,
        waiting_for_what_was_found_in_the_background,
        leaving_a_block,
        saving_what_a_resume_will_lack,
        ignoring_signals,
        resuming,
        passing_over_a_damaged_checkpoint,
    ],
)
def test_a_warning_points_at_the_line_that_made_the_call(program, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        program(tmp_path)
    (told,) = caught
    assert told.filename == __file__
    assert linecache.getline(told.filename, told.lineno).rstrip().endswith("# here")


def test_a_program_in_a_folder_whose_name_begins_like_that_of_the_package_is_the_callers(tmp_path):
    (tmp_path / "torchkeep-runs").mkdir()
    (tmp_path / "torchkeep").symlink_to(tk.__path__[0])
    program = tmp_path / "torchkeep-runs" / "train.py"
    program.write_text(
        textwrap.dedent("""\
        import sys
        sys.path.insert(0, sys.argv[1])
        import torchkeep as tk
        with tk.CheckpointManager(sys.argv[1] + "/run", {"p": {}}, retain=tk.KeepBest(1, "acc", mode="max")) as manager:
            manager.save(0)
        """)
    )
    ended = subprocess.run([sys.executable, program, tmp_path], capture_output=True, text=True, check=True)
    assert f"{program}:5: UserWarning: step 0 is saved without the metric 'acc'" in ended.stderr
