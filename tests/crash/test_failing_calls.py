"""Any system call of a save may fail, with any error: it is told as a typed error or it does not matter.

strace makes one call fail, at its entry, so that it does not happen. After each the path holds what the save said that
it holds, the same process saves the next version, which is whole, no file stays open, and nothing is left beside it.
"""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from tests.crash.victim import REFUSED, SAVED, at_start_of_save, until_background
from tests.crash.watched import CHANGES, LOOKS, SCENARIOS

ERRORS = ("ENOSPC", "EIO", "EACCES", "EROFS", "EDQUOT", "EINTR")
FAILING = {
    name: replace(
        scenario,
        saver=f"{scenario.saver}, and go on",
        watch=at_start_of_save if scenario.watch is until_background else scenario.watch,
    )
    for name, scenario in SCENARIOS.items()
}


KINDS = (*CHANGES, *LOOKS)


@pytest.mark.slow
@pytest.mark.campaign
@pytest.mark.parametrize("name", FAILING)
def test_a_save_whose_call_fails_tells_the_truth_and_the_next_one_works(name, victim, tmp_path, campaign):
    scenario = FAILING[name]
    before = tmp_path / "before"
    before.mkdir()
    scenario.make(before)
    calls = victim.calls_of(scenario, shutil.copytree(before, tmp_path / "traced") / scenario.name, KINDS)
    pairs = [(at, error) for at in range(len(calls)) for error in ERRORS][:: campaign.size(61, 1)]
    outcomes = {}
    for at, error in pairs:
        folder = shutil.copytree(before, tmp_path / "failing")
        path = folder / scenario.name
        outcomes[at, calls[at], error] = victim.save_failing_at(scenario, path, KINDS, calls[: at + 1], error)
        shutil.rmtree(folder)
    assert {failure: code for failure, code in outcomes.items() if code not in {SAVED, REFUSED}} == {}
    refused = list(outcomes.values()).count(REFUSED)
    possible = len(calls) * len(ERRORS)
    campaign.report(name, calls=len(calls), possible=possible, tried=len(pairs), refused=refused, untrue=0)
