"""Which checkpoints of a run stay, and why."""

import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchkeep.policies import (
    Candidate,
    KeepAll,
    KeepBest,
    KeepEvery,
    KeepLast,
    KeepTagged,
    KeepWithin,
    OptimizerInLast,
    decide,
)

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
        (KeepBest(1, "acc", mode="max") | KeepBest(1, "acc", mode="min"), [100, 400, 600]),
        (KeepBest(2, "acc", mode="max") & KeepLast(2), [400, 600]),
        (KeepEvery(101) & KeepBest(1, "acc", mode="min"), [100, 600]),
        (OptimizerInLast(1), [100, 200, 300, 400, 500, 600]),
        (KeepTagged(), [600]),
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
        (lambda: KeepLast(0), "KeepLast: n must be a positive integer, not 0"),
        (lambda: KeepLast(True), "KeepLast: n must be a positive integer, not True"),
        (lambda: KeepEvery(-5), "KeepEvery: steps must be a positive integer, not -5"),
        (
            lambda: KeepBest(1.5, "acc", mode="max"),
            "KeepBest: n must be a positive integer, not 1.5",
        ),
        (
            lambda: KeepBest(1, "acc", mode="best"),
            "KeepBest: mode must be 'max' or 'min', not 'best'",
        ),
        (
            lambda: KeepBest("loss", 1, mode="max"),
            "KeepBest: n must be a positive integer, not 'loss'\nKeepBest: metric must be the name of a metric, not 1",
        ),
        (lambda: KeepWithin(0), "KeepWithin: size_bytes must be a positive integer, as 20 * 10**9, not 0"),
        (lambda: KeepWithin("20GB"), "KeepWithin: size_bytes must be a positive integer, as 20 * 10**9, not '20GB'"),
        (lambda: OptimizerInLast(0), "OptimizerInLast: n must be a positive integer, not 0"),
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
    thinned = (KeepLast(9) | KeepTagged("a", "b")) & KeepWithin(10**9) & OptimizerInLast(2)
    assert repr(thinned) == "(KeepLast(9) | KeepTagged('a', 'b')) & KeepWithin(1000000000) & OptimizerInLast(2)"
    assert eval(repr(thinned)) == thinned


# Tags, sizes, optimizers, and numbers that are none


def of_size(*sizes):
    return [Candidate(step, files={step: size}) for step, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("policy", "run", "kept"),
    [
        (KeepWithin(30), of_size(10, 10, 10), [0, 1, 2]),
        (KeepWithin(29), of_size(10, 10, 10), [0, 2]),
        (KeepWithin(10), of_size(10, 10, 10), [2]),
        (KeepWithin(5), of_size(10, 10, 10), [2]),
        (KeepWithin(60), of_size(*[10] * 16), [0, 8, 12, 13, 14, 15]),
        (KeepTagged("paper"), [Candidate(0, tags=("paper", "a")), Candidate(1, tags=("a",)), Candidate(2)], [0, 2]),
        (KeepTagged(), [Candidate(0, tags=("paper", "a")), Candidate(1, tags=("a",)), Candidate(2)], [0, 1, 2]),
        (KeepBest(1, "a", mode="max"), [Candidate(0, {"a": 1}), Candidate(1, {"a": 9}, nonfinite=True)], [0, 1]),
        (KeepLast(1), [Candidate(0), Candidate(1), Candidate(2, nonfinite=True), Candidate(3, nonfinite=True)], [1, 3]),
    ],
    ids=repr,
)
def test_a_policy_looks_at_sizes_tags_and_nan(policy, run, kept):
    assert [decision.step for decision in decide(policy, run) if decision.keep] == kept


def test_bytes_that_checkpoints_share_count_once_and_what_frees_nothing_stays():
    shared, run = {"backbone": 100}, []
    for step in range(6):
        run.append(Candidate(step, files={**shared, **({step: 10} if step != 3 else {})}))
    kept = {decision.step: decision.reasons for decision in decide(KeepWithin(130), run) if decision.keep}
    assert list(kept) == [0, 3, 4, 5]
    assert kept[3] == ("within what fits into 130 bytes",)


def test_as_a_run_grows_what_fits_is_spread_over_all_of_it():
    kept = []
    for step in range(0, 100_000, 100):
        kept.append(Candidate(step, files={step: 10}))
        left = {decision.step for decision in decide(KeepWithin(80), kept) if decision.keep}
        kept = [candidate for candidate in kept if candidate.step in left]
    ages = [99_900 - candidate.step for candidate in kept]
    assert len(kept) == 8
    assert ages[0] == 99_900
    assert ages[-2:] == [100, 0]
    assert all(older > newer * 1.5 for older, newer in itertools.pairwise(ages))


def test_optimizers_go_from_what_another_policy_keeps_but_not_from_the_newest():
    run = [Candidate(step, nonfinite=step == 4) for step in range(5)]
    decisions = decide(KeepLast(4) & OptimizerInLast(1), run)
    assert [(each.step, each.drops_optimizers) for each in decisions if each.keep] == [
        (1, True),
        (2, True),
        (3, False),
        (4, False),
    ]
    assert decisions[1].reasons == ("in the last 4", "without optimizer: not the last")
    assert decisions[3].reasons[0] == "the newest without NaN or inf"
    assert not any(each.drops_optimizers for each in decide(KeepAll() | OptimizerInLast(1), run))
    gone = [Candidate(step, has_optimizers=False) for step in range(5)]
    assert not any(each.drops_optimizers for each in decide(OptimizerInLast(1), gone))


@pytest.mark.parametrize(
    ("policy", "most"),
    [
        (KeepLast(3), 30),
        (KeepBest(2, "a", mode="min"), 30),
        (KeepLast(3) | KeepBest(2, "a", mode="min"), 60),
        (KeepEvery(3) | KeepLast(1), None),
        (KeepAll(), None),
        (KeepAll() & KeepWithin(500), 500),
        (KeepLast(3) & OptimizerInLast(1), 30),
        (KeepWithin(5), 10),
    ],
    ids=repr,
)
def test_a_policy_knows_the_most_that_it_keeps(policy, most):
    assert policy.most_bytes(10) == most


_POLICIES = st.one_of(
    st.builds(KeepWithin, st.integers(1, 99)),
    st.builds(OptimizerInLast, st.integers(1, 3)),
    st.builds(lambda tags: KeepTagged(*tags), st.sets(st.sampled_from("ab"))),
    st.builds(KeepLast, st.integers(1, 4)),
    st.builds(KeepEvery, st.integers(1, 9)),
    st.builds(lambda n, mode: KeepBest(n, "acc", mode=mode), st.integers(1, 4), st.sampled_from(["max", "min"])),
)
_RUNS = st.lists(
    st.builds(
        Candidate,
        st.integers(0, 99),
        st.dictionaries(st.just("acc"), st.floats()),
        st.sets(st.sampled_from("ab")).map(tuple),
        st.booleans(),
        st.dictionaries(st.integers(0, 20), st.integers(0, 9)),
    ),
    unique_by=lambda candidate: candidate.step,
)


@given(_POLICIES, _POLICIES, _RUNS)
def test_two_policies_keep_what_either_keeps_and_always_the_newest(one, other, run):
    both, *alone = ({d.step for d in decide(each, run) if d.keep} for each in (one | other, one, other))
    assert both == set.union(*alone)
    assert all(decision.reasons for decision in decide(one | other, run))
    assert not run or max(candidate.step for candidate in run) in both


@given(_POLICIES, _POLICIES, _RUNS)
def test_what_thins_another_keeps_no_more_and_always_the_newest_that_is_finite(one, other, run):
    kept = {d.step for d in decide(one & other, run) if d.keep}
    assert kept <= {d.step for d in decide(one, run) if d.keep}
    finite = [candidate.step for candidate in run if not candidate.nonfinite]
    assert not finite or max(finite) in kept
