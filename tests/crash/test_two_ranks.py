"""Two ranks save together and one dies at any of its calls: the newest committed step is resumed, and nobody hangs.

What is killed is the thread that writes, of rank 0 of a gloo group of two; the other dies with it. Then two new ones
resume the run and save its next step. Rank 1 writes nothing: it dies at each call that the ranks make together, and
rank 0 gets a typed error.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.crash.versions import NEW, NEXT, OLD, leftovers, save_step, version_of
from tests.crash.victim import at_start_of_background
from tests.crash.watched import CHANGES, KILLED, Scenario, make_run

SCENARIO = Scenario(make_run, "run", (), "step, on two ranks", at_start_of_background)


@pytest.mark.slow
@pytest.mark.campaign
def test_a_save_of_two_ranks_killed_at_any_call_leaves_the_old_or_the_new_step(victim, tmp_path, campaign):
    before = tmp_path / "before"
    before.mkdir()
    make_run(before)
    calls = victim.calls_of(SCENARIO, shutil.copytree(before, tmp_path / "traced") / "run")
    assert {"renameat2", "fsync", "pwrite64", "unlink"} <= set(calls)
    last = max(at for at, call in enumerate(calls) if call != "write")  # then ranks tell each other
    seen = []
    for at in range(0, last + 1, campaign.size(6, 1)):
        folder = shutil.copytree(before, tmp_path / f"killed-{at}")
        path = folder / "run"
        inject = f"inject={calls[at]}:signal=SIGKILL:when={calls[: at + 1].count(calls[at])}"
        code, _ = victim.watched_save(SCENARIO, path, CHANGES, "-e", inject)
        assert code == KILLED
        seen.append(version_of(path))
        following = NEXT if seen[-1] == NEW else NEW
        assert victim.save(SCENARIO.saver, path, following) == 0
        assert version_of(path) == following
        assert leftovers(folder) == []
    assert seen == sorted(seen)
    assert set(seen) == {OLD, NEW}
    campaign.report("a run of two ranks", kills=len(seen), old=seen.count(OLD), new=seen.count(NEW), lost=0)


@pytest.mark.slow
@pytest.mark.campaign
@pytest.mark.filterwarnings("ignore:resumed from")  # one process goes on with what two have saved
def test_a_rank_that_dies_is_an_error_on_the_other_which_says_what_is_in_place(tmp_path, campaign):
    program = Path(__file__).with_name("dying_rank.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    stride = campaign.size(2, 1)
    command = [sys.executable, "-W", "ignore", program, tmp_path / "before" / "run", str(stride)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=500)
    *died, ended = map(json.loads, done.stdout.splitlines())
    assert (ended["codes"], ended["error"]) == ([0, 0], "")
    seen = []
    for each in died:
        folder = Path(each["folder"])
        assert each["codes"] == [0, -9]
        assert "another rank has ended or does not answer" in each["error"]
        seen.append(version_of(folder))
        assert ("the checkpoint is in place, but" in each["error"]) == (seen[-1] == NEW)
        following = NEXT if seen[-1] == NEW else NEW
        save_step(folder, following)
        assert version_of(folder) == following
        assert leftovers(folder.parent) == []
    assert set(seen) == {OLD, NEW}
    campaign.report("the other rank", kills=len(seen), old=seen.count(OLD), new=seen.count(NEW), lost=0)
