"""Any system call of a save may fail, with any error: it is told as a typed error or it does not matter.

strace makes one call fail, at its entry, so that it does not happen. After each the path holds what the save said that
it holds, the same process saves the next version, which is whole, no file stays open, and nothing is left beside it.
"""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from tests.crash.victim import REFUSED, SAVED, at_start_of_save, until_background
from tests.crash.watched import BEGIN_OF_SAVE, CHANGES, END_OF_SAVE, LOOKS, SCENARIOS

ERRORS = ("ENOSPC", "EIO", "EACCES", "EROFS", "EDQUOT", "EINTR")
FAILING = {
    name: replace(
        scenario,
        saver=f"{scenario.saver}, and go on",
        watch=at_start_of_save if scenario.watch is until_background else scenario.watch,
    )
    for name, scenario in SCENARIOS.items()
}


KINDS = (*CHANGES, *LOOKS, BEGIN_OF_SAVE, END_OF_SAVE)


def calls_that_fail(calls: list[str]) -> list[int]:
    """Where in a trace the calls of the save are: not those of the gate before it, nor those of the looks around it."""
    begin = calls.index(BEGIN_OF_SAVE) + 1 if BEGIN_OF_SAVE in calls else 0
    end = calls.index(END_OF_SAVE) if END_OF_SAVE in calls else len(calls)
    return list(range(begin, end))


@pytest.mark.slow
@pytest.mark.campaign
@pytest.mark.parametrize("name", FAILING)
def test_a_save_whose_call_fails_tells_the_truth_and_the_next_one_works(name, victim, tmp_path, campaign):
    scenario = FAILING[name]
    before = tmp_path / "before"
    before.mkdir()
    scenario.make(before)
    calls = victim.calls_of(scenario, shutil.copytree(before, tmp_path / "traced") / scenario.name, KINDS)
    failing = calls_that_fail(calls)
    pairs = [(at, error) for at in failing for error in ERRORS][:: campaign.size(61, 1)]
    outcomes = {}
    for at, error in pairs:
        folder = shutil.copytree(before, tmp_path / "failing")
        inject = f"inject={calls[at]}:error={error}:when={calls[: at + 1].count(calls[at])}"
        code, _ = victim.watched_save(scenario, folder / scenario.name, KINDS, "-e", inject)
        outcomes[at, calls[at], error] = code
        shutil.rmtree(folder)
    assert {failure: code for failure, code in outcomes.items() if code not in {SAVED, REFUSED}} == {}
    refused = list(outcomes.values()).count(REFUSED)
    possible = len(failing) * len(ERRORS)
    campaign.report(name, calls=len(failing), possible=possible, tried=len(pairs), refused=refused, untrue=0)
