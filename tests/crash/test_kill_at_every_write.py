"""A writer killed before any of its system calls leaves the previous checkpoint or the new one, whole; never a mix.

strace kills at the entry of a call, which then does not happen. A save that is only traced gives the calls in their
order; after it one save is killed at each of them, so that every state that the file system goes through is met.
"""

from __future__ import annotations

import shutil

import pytest
from tests.crash.versions import NEW, NEXT, leftovers, version_of
from tests.crash.victim import without_exchange
from tests.crash.watched import SCENARIOS

from torchkeep.folder.recovery import recover


@pytest.mark.slow
@pytest.mark.campaign
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_save_killed_at_any_call_leaves_the_old_or_the_new_checkpoint(name, victim, tmp_path, campaign):
    scenario = SCENARIOS[name]
    before = tmp_path / "before"
    before.mkdir()
    scenario.make(before)
    old = version_of(before / scenario.name)
    calls = victim.calls_of(scenario, shutil.copytree(before, tmp_path / "traced") / scenario.name)
    assert all(any(name.startswith(call) for name in calls) for call in scenario.calls)
    seen = []
    for count in range(1, len(calls) + 1):
        folder = shutil.copytree(before, tmp_path / f"killed-{count}")
        path = folder / scenario.name
        victim.save_killed_at(scenario, path, calls[:count])
        if scenario.watch is without_exchange:
            recover(folder)  # between the two renames the final name is absent, until somebody comes by
        seen.append(version_of(path))
        following = NEXT if seen[-1] == NEW else NEW
        assert victim.save(scenario.saver, path, following) == 0
        assert version_of(path) == following
        assert leftovers(folder) == []
    # The new one comes by one call, the rename; it is there before the next call and it stays.
    renames = [at for at, call in enumerate(calls) if call.startswith("rename")]
    became_new = seen.index(NEW) if scenario.commits else len(seen)
    assert became_new - 1 in renames or not scenario.commits
    assert seen == [old] * became_new + [NEW] * (len(seen) - became_new)
    campaign.report(name, kills=len(calls), old=seen.count(old), new=seen.count(NEW), lost=0)
