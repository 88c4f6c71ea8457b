"""Two ranks save together and rank 0, which writes, dies at any of its calls: both resume the newest committed step.

What is killed is the thread that writes, of a process that is one of two of a gloo group; the other dies with it. Then
two new ones resume the run and save its next step.
"""

from __future__ import annotations

import shutil

import pytest
from tests.crash.versions import NEW, NEXT, OLD, leftovers, version_of
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
