"""A policy recorded as code is that policy again, and nothing else that a record says is ever run."""

from __future__ import annotations

import pytest

from torchkeep.folder.policy_code import code_of, parse_policy
from torchkeep.policies import (
    KeepAll,
    KeepBest,
    KeepEvery,
    KeepLast,
    KeepTagged,
    KeepWithin,
    OptimizerInLast,
    RetentionPolicy,
)

EACH = [
    KeepAll(),
    KeepLast(3),
    KeepEvery(1000),
    KeepBest(2, "a'b\"c\\ é\n|&", mode="min"),
    KeepTagged(),
    KeepTagged("paper", "x, y"),
    KeepWithin(200 * 10**9),
    OptimizerInLast(1),
]
JOINED = [
    KeepLast(1) | KeepTagged("a") | KeepEvery(5),
    (KeepLast(9) | KeepTagged("a")) & KeepWithin(10) & OptimizerInLast(2),
    KeepLast(9) & (KeepWithin(10) & OptimizerInLast(2)),
    KeepLast(9) & (KeepWithin(10) | KeepEvery(2)),
    KeepLast(1) | (KeepEvery(2) & KeepWithin(3)),
]


class Mine(RetentionPolicy):
    """A policy of the user's, whose repr says what nobody else should read."""

    def __repr__(self):
        return "Mine(secret='hunter2')"


@pytest.mark.parametrize("policy", [*EACH, *JOINED], ids=repr)
def test_what_is_recorded_is_the_repr_and_reads_back_as_the_same(policy):
    assert code_of(policy) == repr(policy)
    assert parse_policy(code_of(policy)).policy == policy


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        (Mine(), "Mine"),
        (KeepLast(3) | Mine(), "KeepLast(3) | Mine"),
        ((KeepLast(3) | Mine()) & KeepWithin(5), "(KeepLast(3) | Mine) & KeepWithin(5)"),
        (KeepLast(3) & (Mine() & Mine()), "KeepLast(3) & (Mine & Mine)"),
    ],
)
def test_a_class_of_the_users_is_recorded_by_its_name_and_read_as_unknown(policy, code):
    assert code_of(policy) == code
    read = parse_policy(code)
    assert (read.code, read.policy, read.unknown) == (code, None, ("Mine",))


def test_a_class_that_only_looks_like_one_of_torchkeeps_is_not_taken_for_it():
    class KeepLast(RetentionPolicy):
        n = 1

    assert code_of(KeepLast()) == "KeepLast"
    assert parse_policy("KeepLast").unknown == ("KeepLast",)


@pytest.mark.parametrize(
    "code",
    [
        "",
        "3",
        "KeepLast(0)",
        "KeepLast(-1)",
        "KeepLast(1, 2)",
        "KeepLast(True)",
        "KeepLast(n=__import__('os').getpid())",
        "KeepLast(*[1])",
        "KeepLast(**{'n': 1})",
        "KeepTagged(KeepLast(1))",
        "KeepLast(1) + KeepLast(2)",
        "__import__('os').system('true')",
        "(lambda: KeepLast(1))()",
        "KeepLast(1); KeepLast(2)",
        "KeepLast(1) if 1 else 2",
        "KeepLast.__init__(1)",
        "(" * 3000,
        "~" * 4000,
        "KeepAll()" + "|KeepAll()" * 409,
        "KeepAll()" + "&KeepAll()" * 500,
        "\x00\ud800",
        "x" * 10**7,
    ],
    ids=lambda code: code[:30].encode("unicode_escape").decode(),
)
def test_any_other_text_is_no_policy_and_runs_nothing(code):
    read = parse_policy(code)
    assert read.policy is None or code.startswith("KeepAll()")
    assert len(read.code) <= 4096


def test_the_name_of_a_function_is_only_a_name():
    assert parse_policy("open('x', 'w') | eval").unknown == ("open", "eval")
