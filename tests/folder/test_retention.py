"""Which checkpoints of a run stay, and why."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchkeep.folder.retention import Candidate, KeepAll, KeepBest, KeepEvery, KeepLast, decide

ACCURACIES = {100: 0.5, 200: 0.9, 300: math.nan, 400: 0.9, 500: None, 600: 0.7}
RUN = [Candidate(step, {} if acc is None else {"acc": acc}) for step, acc in ACCURACIES.items()]


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        (KeepAll(), [100, 200, 300, 400, 500, 600]),
        (KeepLast(2), [500, 600]),
        (KeepLast(9), [100, 200, 300, 400, 500, 600]),
        (KeepEvery(101), [100, 600]),
        (KeepEvery(100), [600]),
        (KeepBest(1, "acc", mode="max"), [400, 600]),
        (KeepBest(2, "acc", mode="max"), [200, 400, 600]),
        (KeepBest(1, "acc", mode="min"), [100, 600]),
        (KeepBest(9, "acc", mode="max"), [100, 200, 400, 600]),
        (KeepBest(1, "loss", mode="min"), [600]),
        (KeepLast(1) | KeepBest(1, "acc", mode="min") | KeepEvery(301), [100, 300, 600]),
    ],
    ids=repr,
)
def test_a_policy_keeps(policy, kept):
    assert [decision.step for decision in decide(policy, RUN[::-1]) if decision.keep] == kept


def test_a_decision_says_every_reason():
    decisions = decide(KeepLast(2) | KeepBest(2, "acc", mode="max"), RUN)
    assert [decision.reasons for decision in decisions] == [
        ("not in the last 2", "not among the best 2 by acc"),
        ("among the best 2 by acc: 0.9",),
        ("not in the last 2", "acc is NaN"),
        ("among the best 2 by acc: 0.9",),
        ("in the last 2", "has no acc"),
        ("the newest", "in the last 2"),
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KeepLast(0), "n must be a positive integer, not 0"),
        (lambda: KeepLast(True), "n must be a positive integer, not True"),
        (lambda: KeepEvery(-5), "steps must be a positive integer, not -5"),
        (lambda: KeepBest(1.5, "acc", mode="max"), "n must be a positive integer, not 1.5"),
        (lambda: KeepBest(1, "acc", mode="best"), "mode must be 'max' or 'min', not 'best'"),
    ],
)
def test_a_policy_that_means_nothing_is_a_value_error(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_keep_best_does_not_guess_its_mode():
    with pytest.raises(TypeError, match="mode"):
        KeepBest(1, "acc")


def test_a_policy_joins_policies_only():
    with pytest.raises(TypeError, match="unsupported operand"):
        KeepLast(1) | 3


def test_the_repr_of_a_policy_pastes_back():
    policy = (KeepLast(3) | KeepBest(2, "a'b", mode="min")) | (KeepEvery(10) | KeepAll())
    assert repr(policy) == """KeepLast(3) | KeepBest(2, "a'b", mode='min') | KeepEvery(10) | KeepAll()"""
    assert eval(repr(policy)) == policy


_POLICIES = st.one_of(
    st.builds(KeepLast, st.integers(1, 4)),
    st.builds(KeepEvery, st.integers(1, 9)),
    st.builds(lambda n, mode: KeepBest(n, "acc", mode=mode), st.integers(1, 4), st.sampled_from(["max", "min"])),
)
_RUNS = st.lists(
    st.builds(Candidate, st.integers(0, 99), st.dictionaries(st.just("acc"), st.floats())),
    unique_by=lambda candidate: candidate.step,
)


@given(_POLICIES, _POLICIES, _RUNS)
def test_two_policies_keep_what_either_keeps_and_always_the_newest(one, other, run):
    both, *alone = ({d.step for d in decide(each, run) if d.keep} for each in (one | other, one, other))
    assert both == set.union(*alone)
    assert all(decision.reasons for decision in decide(one | other, run))
    assert not run or max(candidate.step for candidate in run) in both
