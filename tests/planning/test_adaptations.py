"""What the rules that change shapes decide, from specs alone."""

import numpy as np
import pytest

from torchkeep.errors import PlanError
from torchkeep.planning import Pair, make_plan
from torchkeep.rules import (
    Cast,
    Fuse,
    InputChannels,
    MapRows,
    Only,
    Rename,
    ResizePositions,
    ResizeRows,
    Skip,
    Split,
    Transpose,
    parse_rule,
)
from torchkeep.tensors import TensorSpec


def spec(*shape, dtype="float32", device=None):
    return TensorSpec(dtype, shape, device=device)


def rows_of(checkpoint, model, *rules, kind="module"):
    return make_plan({"": Pair(checkpoint, model, kind, "Net")}, rules, source="ckpt").rows


def told(rows):
    return [(row.name, row.checkpoint_name, row.status.value, [c.value for c in row.changes]) for row in rows]


@pytest.mark.parametrize(
    ("saved", "wanted", "rule", "reason"),
    [
        ((4, 3), (3, 4), Transpose("w"), "transposed"),
        ((3, 3, 8, 16), (16, 8, 3, 3), Transpose("w", order=(3, 2, 0, 1)), "dimensions in the order (3, 2, 0, 1)"),
        ((8, 3, 7, 7), (8, 1, 7, 7), InputChannels("w"), "3 input channels to 1, summed"),
        ((8, 3, 7, 7), (8, 5, 7, 7), InputChannels("w"), "3 input channels to 5, repeated and scaled"),
        (
            (8, 3, 7),
            (8, 4, 7),
            InputChannels("w", fill="zero"),
            "3 of 4 input channels from 3, the others are zero",
        ),
        ((8, 4, 7, 7), (8, 3, 7, 7), InputChannels("w", fill="initial"), "3 of 3 input channels from 4"),
        ((3, 5), (2, 5), MapRows(list("abc"), list("cx")), "1 of 2 rows from 3, the others stay at initial values"),
        ((2,), (2,), MapRows(["cat", "dog"], ["dog", "cat"], "w"), "2 of 2 rows from 2"),
        ((9, 4), (12, 4), ResizeRows("w"), "9 of 12 rows from 9, the others stay at initial values"),
        ((9, 4), (12, 4), ResizeRows("w", fill="mean"), "9 of 12 rows from 9, the others are the mean"),
        ((12, 4), (9, 4), ResizeRows("w"), "9 of 9 rows from 12"),
        ((1, 197, 8), (1, 577, 8), ResizePositions("w"), "14 x 14 to 24 x 24 positions, bicubic, the first 1 kept"),
        ((198, 8), (578, 8), ResizePositions("w"), "14 x 14 to 24 x 24 positions, bicubic, the first 2 kept"),
        ((169, 3), (529, 3), ResizePositions("w", sampling="bilinear"), "13 x 13 to 23 x 23 positions, bilinear"),
        ((1, 8, 4, 6), (1, 8, 8, 12), ResizePositions("w"), "4 x 6 to 8 x 12 positions, bicubic"),
        (
            (1, 25, 8),
            (1, 33, 8),
            ResizePositions("w", kept=1, old_grid=(4, 6), new_grid=(4, 8)),
            "4 x 6 to 4 x 8 positions, bicubic, the first 1 kept",
        ),
        ((512, 8), (1024, 8), ResizePositions("w", sampling="linear"), "512 to 1024 positions, linear"),
    ],
)
def test_a_rule_makes_a_shape_fit_and_says_how(saved, wanted, rule, reason):
    (row,) = rows_of({"w": spec(*saved)}, {"w": spec(*wanted)}, rule)
    assert told([row]) == [("w", "w", "matched", ["adapted"])]
    assert row.reason == reason


@pytest.mark.parametrize(
    ("saved", "wanted", "rule", "reason"),
    [
        ((4, 3), (4, 3), Transpose("w"), "shape (3, 4) made of it, (4, 3) in the model"),
        (
            (8, 3, 7, 7),
            (9, 1, 7, 7),
            InputChannels("w"),
            "(8, 3, 7, 7) and (9, 1, 7, 7) differ in more than dimension 1",
        ),
        ((8, 0, 7), (8, 3, 7), InputChannels("w"), "it has no input channels to repeat"),
        ((3, 5), (4, 6), ResizeRows("w"), "(3, 5) and (4, 6) differ in more than dimension 0"),
        ((), (3,), ResizeRows("w"), "() and (3,) differ in more than dimension 0"),
        ((3, 5), (4, 5), MapRows(list("ab"), list("bcd"), "w"), "2 old and 3 new labels for 3 and 4 rows"),
        ((10, 8), (20, 8), ResizePositions("w"), "10 and 20 positions are no squares behind a few others"),
        ((10, 8), (20, 9), ResizePositions("w"), "more than the number of positions differs"),
        ((10, 8), (20, 9), ResizePositions("w", sampling="linear"), "more than the number of positions differs"),
        (
            (2, 8),
            (9, 8),
            ResizePositions("w", sampling="linear", kept=2),
            "2 positions are kept, and there are no others",
        ),
        ((0, 8), (9, 8), ResizePositions("w"), "there are no positions"),
    ],
)
def test_a_rule_that_cannot_make_it_fit_says_why_and_nothing_arrives(saved, wanted, rule, reason):
    (row,) = rows_of({"w": spec(*saved)}, {"w": spec(*wanted)}, rule)
    assert row.status.value == "shape_differs"
    assert reason in row.reason


def test_the_report_says_why_a_rule_could_not_act():
    plan = make_plan(
        {"": Pair({"w": spec(8, 3, 7)}, {"w": spec(9, 1, 7)}, "module", "Net")}, [InputChannels("w")], source="c"
    )
    assert 'InputChannels("w") cannot act: (8, 3, 7) and (9, 1, 7) differ in more than dimension 1' in str(plan)


def test_the_error_says_why_a_rule_could_not_act_and_which_did_nothing():
    rules = [MapRows(list("ab"), list("bcd"), "fc"), Fuse(["q", "k"], "qk"), Split("kv", ["k", "v"]), Skip("haed")]
    sides = {"fc": spec(3, 5), "a.q": spec(4), "b.kv": spec(3)}, {"fc": spec(4, 5), "a.qk": spec(8)}
    plan = make_plan({"": Pair(*sides, "module", "Net")}, rules, source="c")
    with pytest.raises(PlanError) as refused:
        plan.check(strict=True)
    faults = refused.value.faults
    because = "2 old and 3 new labels for 3 and 4 rows"
    assert faults[0].endswith(f'MapRows(["a", "b"], ["b", "c", "d"], "fc") cannot act: {because}')
    assert faults[-3:] == (
        'Fuse(["q", "k"], "qk") did nothing: a.q has no a.k beside it',
        'Split("kv", ["k", "v"]) did nothing: b.kv of shape (3,) cannot be divided so',
        'Skip("haed") matched nothing',
    )
    assert refused.value.remedy == "mend the rules that could not act, or leave them out"


def test_values_that_have_no_mean_are_not_averaged():
    for rule in (InputChannels("w"), ResizeRows("w", fill="mean"), ResizePositions("w")):
        (row,) = rows_of({"w": spec(4, 4, 4, dtype="int64")}, {"w": spec(4, 1, 4, dtype="int64")}, rule)
        assert row.status.value == "shape_differs"


def test_rows_that_would_keep_initial_values_of_a_model_without_any_are_refused():
    (row,) = rows_of({"w": spec(2, 3)}, {"w": spec(4, 3, device="meta")}, ResizeRows("w"))
    assert row.status.value == "shape_differs"
    assert 'on the meta device and has no initial values to keep: fill="zero" or "mean"' in row.reason


def test_what_only_partly_arrives_counts_so_and_is_fresh():
    plan = make_plan({"": Pair({"w": spec(1, 4)}, {"w": spec(4, 4)}, "module", "Net")}, [ResizeRows("w")], source="c")
    assert (plan.coverage, plan.loaded, plan.fresh, plan.matched_count) == (0.25, (), ("w",), 1)


def test_q_k_and_v_become_qkv_under_the_names_that_other_rules_make():
    checkpoint = {
        f"h.{i}.{part}_proj.{kind}": spec(4, 4) for i in range(2) for part in "qkv" for kind in ("weight", "b")
    }
    model = {f"blocks.{i}.qkv.{kind}": spec(12, 4) for i in range(2) for kind in ("weight", "b")}
    rows = rows_of(checkpoint, model, Fuse(["q_proj", "k_proj", "v_proj"], "qkv"), Rename("^h", "blocks"))
    assert [row.status.value for row in rows] == ["matched"] * 4
    assert rows[0].checkpoint_name == "h.0.q_proj.weight + h.0.k_proj.weight + h.0.v_proj.weight"
    assert rows[0].reason.startswith(f"from {rows[0].checkpoint_name}: 3 tensors joined along dimension 0")
    assert [part.name for part in rows[3].parts] == ["h.1.q_proj.b", "h.1.k_proj.b", "h.1.v_proj.b"]


def test_qkv_becomes_q_k_and_v_also_where_the_parts_differ_in_size_and_lie_transposed():
    checkpoint = {"a.c_attn.weight": spec(8, 24), "a.c_attn.bias": spec(24)}
    model = {
        f"a.{p}.{kind}": spec(n, *rest)
        for p, n in (("q", 16), ("k", 4), ("v", 4))
        for kind, rest in (("weight", [8]), ("bias", []))
    }
    rules = [Split("c_attn", ["q", "k", "v"], ratios=(4, 1, 1), dim=-1), Transpose("a")]
    rows = rows_of(checkpoint, model, *rules)
    assert {row.status.value for row in rows} == {"matched"}
    assert rows[2].reason == "from a.c_attn.weight: 16 to 20 of 24 along dimension 1; transposed"


@pytest.mark.parametrize(
    ("checkpoint", "rule"),
    [
        ({"a.q": spec(4, 4), "a.k": spec(4, 4)}, Fuse(["q", "k", "v"], "qkv")),
        ({"a.q": spec(4, 4), "a.k": spec(4, 5)}, Fuse(["q", "k"], "qk")),
        ({"a.q": spec(4, 4), "a.k": spec(4, 4, dtype="float16")}, Fuse(["q", "k"], "qk")),
        ({"a.q": spec(), "a.k": spec()}, Fuse(["q", "k"], "qk")),
        ({"a.q": spec(3), "a.k": spec(3)}, Fuse(["q", "k"], "qk", blocks=2)),
        ({"a.q": spec(3), "a.k": spec()}, Fuse(["q", "k"], "qk")),
        ({"a.qkv": spec(8, 4)}, Split("qkv", ["q", "k", "v"])),
        ({"a.qkv_norm": spec(9, 4)}, Split("qkv", ["q", "k", "v"])),
        ({"a.qkv": spec()}, Split("qkv", ["q", "k", "v"])),
    ],
)
def test_what_cannot_be_joined_or_divided_stays_as_it_is_and_the_rule_is_idle(checkpoint, rule):
    plan = make_plan({"": Pair(checkpoint, {}, "module", "Net")}, [rule], source="c")
    assert [row.checkpoint_name for row in plan.rows] == list(checkpoint)
    assert plan.idle_rules == (rule,)


@pytest.mark.parametrize(
    "rule",
    [
        Transpose("a", "b.*"),
        Transpose("a", order=(3, 2, 0, 1), entry="G"),
        InputChannels("conv1", fill="zero"),
        MapRows(["cat", 'd"g', 3], ["owl", 3], "fc", fill="mean", entry="G"),
        MapRows(["a"], ["a", "b"]),
        ResizeRows("wte"),
        ResizePositions("pos", sampling="linear", kept=1, old_grid=(4, 6), new_grid=(4, 8)),
        Fuse(["q", "k"], "qk", dim=-1, blocks=2, entry="G"),
        Split("qkv", ["q", "k", "v"], ratios=(4, 1, 1), dim=1, blocks=8),
        Cast("a", policy="exact"),
        Rename(r"^a\.(\d+)", r"b.\1"),
        Rename({"a": "b"}, entry="G"),
        Skip("a"),
        Only("a", entry="x"),
    ],
)
def test_a_rule_is_read_back_from_the_code_that_it_prints_as(rule):
    again = parse_rule(repr(rule))
    assert (again, repr(again), hash(again)) == (rule, repr(rule), hash(rule))
    assert parse_rule(f"tk.{rule!r}") == rule


def test_labels_may_be_of_numpy_and_are_kept_as_plain_ones():
    rule = MapRows(np.array(["cat", "dog"]), [np.str_("dog"), np.int64(3)], "fc")
    assert repr(rule) == 'MapRows(["cat", "dog"], ["dog", 3], "fc")'
    assert parse_rule(repr(rule)) == rule
    assert MapRows(np.arange(3), range(1, 3)).rows == ((1, 2), (0, 1))


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("__import__('os').system('true')", "it is no call"),
        ("Skip(__import__('os'))", "malformed node"),
        ("open('x')", "there is no rule 'open'"),
        ("Skip('a'", "never closed"),
        ("Skip()", "needs at least one glob"),
        ("Skip('a', sep='')", "unexpected keyword"),
        ("Skip(*'ab')", "malformed node"),
        ("Skip(**{'entry': 'a'})", "keyword argument 'None'"),
        ("[" * 5000, "is no rule"),
        ("", "is no rule"),
    ],
)
def test_code_that_is_no_rule_is_refused_and_never_run(code, why):
    with pytest.raises(ValueError, match="is no rule: ") as refused:
        parse_rule(code)
    assert why in str(refused.value)
    assert str(refused.value).endswith(
        "the rules are Rename, Skip, Only, Cast, Fuse, Split, Transpose, InputChannels, MapRows, ResizeRows, "
        "ResizePositions"
    )


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: Transpose("a", order=(0, 0)), ValueError, "is a permutation of dimensions"),
        (lambda: Transpose("a", order=3), TypeError, "is a sequence of dimensions, as (3, 2, 0, 1); not 3"),
        (lambda: Transpose("a", order=("x", 0)), ValueError, "is a permutation of dimensions"),
        (lambda: ResizePositions("a", old_grid=5), ValueError, "is a height and a width, as (14, 14); not 5"),
        (lambda: MapRows({"a"}, ["a"]), TypeError, "takes two lists of labels, in the order of the rows; not {'a'}"),
        (lambda: MapRows(np.ones((2, 2), int), ["a"]), TypeError, "takes two lists of labels"),
        (lambda: InputChannels("a", fill="mean"), ValueError, 'is one of "repeat", "initial", "zero"; not \'mean\''),
        (InputChannels, ValueError, "needs at least one glob"),
        (lambda: MapRows(["a"], ["b"]), ValueError, "no label is in both lists"),
        (lambda: MapRows(["a"], ["a"]), ValueError, "both lists are as long, so name the head"),
        (lambda: MapRows(["a", "a"], ["a"]), ValueError, "'a' occurs more than once"),
        (lambda: MapRows([1.5], ["a"]), TypeError, "labels are strings or integers; not 1.5"),
        (lambda: MapRows(3, ["a"]), TypeError, "takes two lists of labels"),
        (lambda: ResizePositions("a", sampling="cubic"), ValueError, 'is one of "bicubic"'),
        (lambda: ResizePositions("a", old_grid=(0, 3)), ValueError, "is a height and a width"),
        (lambda: ResizePositions("a", kept=-1), ValueError, "is a number of positions; not -1"),
        (lambda: Fuse("qkv", "a"), TypeError, "takes a list of parts"),
        (lambda: Fuse(["q"], "a"), ValueError, "takes two or more parts"),
        (lambda: Fuse(["q", "q"], "a"), ValueError, "takes two or more parts"),
        (lambda: Fuse(["q", 3], "a"), TypeError, "not 3 of type int"),
        (lambda: Split("a", ["q", "k"], ratios=(1,)), ValueError, "is a positive integer for each of 2 parts"),
        (lambda: Split("a", ["q", "k"], blocks=0), ValueError, "is an integer of 1 or more; not 0"),
        (lambda: Split("a", ["q", "k"], dim="x"), TypeError, "is an integer; not 'x'"),
        (lambda: Cast("a", policy="careful"), ValueError, 'is one of "round", "exact", "saturate"'),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused_where_it_is_made(make, error, text):
    with pytest.raises(error) as refused:
        make()
    assert text in str(refused.value)
