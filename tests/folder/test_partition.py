"""Which tensors share a shard, save after save."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.folder import partition_scenarios

from torchkeep.folder.partition import ParentShard, PlannedShard, partition, unit_bytes

MIB = 2**20
GIB = 2**30


def _parent(plan: Sequence[PlannedShard]) -> list[ParentShard]:
    return [ParentShard(f"shard{at}", shard.names, shard.nbytes, shard.splits) for at, shard in enumerate(plan)]


def _shown(plan: Sequence[PlannedShard]) -> list[tuple[str, int, str | None]]:
    return [(" ".join(shard.names), shard.splits, shard.link) for shard in plan]


@pytest.mark.parametrize(
    ("sizes", "frozen", "shards"),
    [
        ({}, "", []),
        ({"w": 8, "b": 4}, "", ["w b"]),
        ({"w": 8, "mean": 4, "b": 8}, "w b", ["mean", "w b"]),
        ({"w": 8, "b": 8}, "w b", ["w b"]),
        ({"w": 8, "empty": 0}, "w", ["w empty"]),
        ({"empty": 0, "none": 0}, "none", ["empty none"]),
        ({"a": 3 * GIB, "b": GIB, "c": 1}, "", ["a b", "c"]),
        ({"a": 1, "big": 5 * GIB, "b": 1}, "", ["big", "a b"]),
        ({"big": 5 * GIB, "empty": 0}, "", ["big empty"]),
    ],
)
def test_a_first_save_parts_what_may_change_from_the_rest_and_cuts_at_4_gib(sizes, frozen, shards):
    plan = partition(sizes, [], set(sizes), sum(sizes.values()), set(frozen.split()))
    assert _shown(plan) == [(names, 0, None) for names in shards]


SIZES = {"a": 600 * MIB, "b": 300 * MIB, "c": MIB, "d": MIB // 2}
ONE = ParentShard("f", tuple(SIZES), sum(SIZES.values()))
UNIT = unit_bytes(sum(SIZES.values()))


@pytest.mark.parametrize(
    ("changed", "splits", "sizes", "expected"),
    [
        (set(), 0, {}, [("a b c d", 0, "f")]),
        (set("abcd"), 0, {}, [("a b c d", 0, None)]),
        (set("abc"), 0, {}, [("a b c d", 0, None)]),
        (set("cd"), 0, {}, [("c d", 0, None), ("a b", 1, None)]),
        (set("b"), 1, {}, [("b", 1, None), ("a", 2, None), ("c d", 2, None)]),
        (set(), 0, {"b": None}, [("a c d", 1, None)]),
        (set("d"), 0, {"a": None, "b": None}, [("c d", 0, None)]),
        (set(), 0, dict.fromkeys("abcd"), []),
        (set("e"), 0, {"e": 8}, [("a b c d", 0, "f"), ("e", 0, None)]),
        (set("de"), 0, {"e": 8}, [("d e", 0, None), ("a b c", 1, None)]),
    ],
    ids=[
        "unchanged: a link",
        "all changed",
        "what stays is less than U: rewritten as it is",
        "first split",
        "second split: units",
        "a removed tensor counts as changed",
        "removed and changed",
        "all removed",
        "a new tensor with nothing written: a new shard",
        "a new tensor joins the smallest that is written",
    ],
)
def test_a_shard_is_linked_rewritten_split_or_cut(changed, splits, sizes, expected):
    now = {name: nbytes for name, nbytes in (SIZES | sizes).items() if nbytes is not None}
    parent = [ParentShard(ONE.file, ONE.names, ONE.nbytes, splits)]
    plan = partition(now, parent, changed, sum(SIZES.values()))
    assert _shown(plan) == expected


@pytest.mark.parametrize(("stays_bytes", "shards"), [(MIB - 1, ["a b"]), (MIB, ["b", "a"])])
def test_what_stays_is_worth_a_shard_from_u_on(stays_bytes, shards):
    parent = [ParentShard("f", ("a", "b"), stays_bytes + 1)]
    plan = partition({"a": stays_bytes, "b": 1}, parent, {"b"}, stays_bytes + 1)
    assert [" ".join(shard.names) for shard in plan] == shards


def test_every_shard_says_why_it_is_as_it_is():
    plan = partition({**SIZES, "e": 5 * GIB}, [ONE], set("cde"), sum(SIZES.values()))
    assert [shard.reason for shard in plan] == ["changed", "stayed while 2 of 4 tensors changed", "new"]


def test_a_unit_is_at_least_a_mebibyte_and_a_512th_of_the_checkpoint():
    assert (unit_bytes(0), unit_bytes(512 * MIB), unit_bytes(4 * GIB)) == (MIB, MIB, 8 * MIB)


_NAMES = [f"t{at}" for at in range(40)]
_CHANGES = st.lists(st.sets(st.sampled_from(_NAMES), max_size=25), min_size=2, max_size=12)
_NBYTES = st.one_of(st.integers(1, 3 * MIB), st.sampled_from([1, MIB - 1, MIB, 40 * MIB]))


@given(sizes=st.lists(_NBYTES, min_size=40, max_size=40), changes=_CHANGES, classes=st.integers(0, 2**40 - 1))
@settings(max_examples=150, deadline=None)
def test_the_extra_bytes_and_the_shards_of_a_run_stay_within_their_bounds(sizes, changes, classes):
    nbytes, total = dict(zip(_NAMES, sizes, strict=True)), sum(sizes)
    frozen = {name for at, name in enumerate(_NAMES) if not classes >> at & 1}
    plan = partition(nbytes, [], set(_NAMES), total, frozen)
    first_shards, extra_bytes, touched_shards = len(plan), 0, 0
    for changed in changes:
        parent = _parent(plan)
        touched_shards += sum(not changed.isdisjoint(shard.names) for shard in parent)
        plan = partition(nbytes, parent, changed, total, frozen)
        extra_bytes += sum(shard.nbytes for shard in plan if shard.link is None) - sum(nbytes[name] for name in changed)
        assert extra_bytes <= 2 * total + touched_shards * unit_bytes(total)
        assert len(plan) <= 4 * 512 + first_shards


@given(st.lists(st.tuples(st.sets(st.sampled_from(_NAMES)), st.sets(st.sampled_from(_NAMES))), min_size=2, max_size=8))
@settings(max_examples=150, deadline=None)
def test_tensors_that_come_and_go_are_each_in_one_shard_and_no_link_holds_a_changed_one(saves):
    plan: list[PlannedShard] = []
    before: AbstractSet[str] = set()
    for names, touched in saves:
        sizes = {name: 400_000 * int(name[1:]) for name in _NAMES if name in names}
        frozen = {name for name in names if name <= "t2"}
        changed = (touched & names) | (names - before)
        parent = {shard.file: shard for shard in _parent(plan)}
        plan = partition(sizes, list(parent.values()), changed, sum(sizes.values()), frozen)
        assert sorted(name for shard in plan for name in shard.names) == sorted(names)
        for shard in plan:
            assert shard.nbytes == sum(sizes[name] for name in shard.names)
            if shard.link is not None:
                assert shard.names == parent[shard.link].names
                assert changed.isdisjoint(shard.names)
        before = names


@pytest.mark.parametrize("name", partition_scenarios.SCENARIOS)
def test_200_saves_write_hardly_more_than_what_changed(name):
    saves, expected = partition_scenarios.SCENARIOS[name]
    written = partition_scenarios.simulate(saves())
    assert written.ratio == pytest.approx(expected, abs=0.006)
    assert written.shards < 256
