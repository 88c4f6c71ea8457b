"""What holds for any names, shapes and rules."""

from hypothesis import given
from hypothesis import strategies as st

from torchkeep.planning import Pair, Status, make_plan
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

SEGMENTS = st.sampled_from(["module", "_orig_mod", "layer", "block", "fc", "0", "1", "w", "b", "a[0]", "x*", ""])
NAMES = st.lists(SEGMENTS, min_size=1, max_size=4).map(".".join)
SPECS = st.builds(
    TensorSpec,
    st.sampled_from(["float32", "float16", "int64", "bool"]),
    st.sampled_from([(), (1,), (2,), (2, 3), (0,), (3, 2), (3, 3), (4, 2, 2), (4, 1, 2), (9, 2), (16, 2)]),
)
SIDES = st.dictionaries(NAMES, SPECS, max_size=12)
GLOBS = st.sampled_from(["fc", "*.w", "layer*", "module", "[bw]", "*", "0"])
RULES = st.lists(
    st.one_of(
        st.builds(Skip, GLOBS),
        st.builds(Only, GLOBS, entry=st.sampled_from([None, "G"])),
        st.builds(Cast, GLOBS),
        st.sampled_from([Rename("layer", "block"), Rename(r"^module\.", ""), Rename({"w": "b", "fc": "w"})]),
        st.sampled_from([Fuse(["w", "b"], "fc"), Split("fc", ["w", "b"]), Split("w", ["0", "1"], dim=-1)]),
        st.builds(Transpose, GLOBS),
        st.builds(ResizeRows, GLOBS, fill=st.sampled_from(["initial", "mean", "zero"])),
        st.builds(ResizePositions, GLOBS, sampling=st.sampled_from(["bicubic", "linear"])),
        st.builds(InputChannels, GLOBS),
        st.just(MapRows(["a", "b"], ["b", "c", "a"])),
    ),
    max_size=3,
)
PAIRS = st.dictionaries(
    st.sampled_from(["G", "D", "optimizer"]),
    st.builds(Pair, SIDES, SIDES, st.sampled_from(["module", "tensors", "optimizer"]), st.just("Net")),
    min_size=1,
)


@given(PAIRS, RULES)
def test_every_name_of_either_side_is_in_exactly_one_row(pairs, rules):
    plan = make_plan(pairs, rules, source="ckpt")
    for entry, pair in pairs.items():
        rows = [row for row in plan.rows if row.entry == entry]
        assert sorted(row.name for row in rows if row.model is not None) == sorted(pair.model)
        saved = [part.name for row in rows for part in row.parts]
        assert set(saved) == set(pair.checkpoint)
        if not any(isinstance(rule, Split) for rule in rules):
            assert len(saved) == len(pair.checkpoint)
        for row in rows:
            if row.status is Status.MATCHED and row.recipe is not None and row.model is not None:
                assert row.recipe.shape in {row.model.shape, (1,)}
                assert 0 <= row.arriving_elements <= row.model.numel
    assert str(plan).startswith("ckpt -> Net")


@given(PAIRS, RULES)
def test_a_plan_is_replayed_from_what_it_records(pairs, rules):
    plan = make_plan(pairs, rules, source="ckpt")
    again = make_plan(pairs, [], source="ckpt").replay(plan.to_json())
    assert (again.rules, again.rows) == (plan.rules, plan.rows)
    assert [parse_rule(repr(rule)) for rule in rules] == rules


@given(SIDES)
def test_equal_sides_match_wholly_and_need_no_rules(side):
    plan = make_plan({"": Pair(side, side, "module", "Net")}, [], source="ckpt")
    plan.check(strict=True)
    assert (plan.coverage, plan.suggest(), plan.fresh) == (1.0, (), ())
    assert all(row.status is Status.MATCHED and not row.changes for row in plan.rows)


@given(SIDES, SIDES, RULES, GLOBS)
def test_what_is_skipped_never_loads(checkpoint, model, rules, glob):
    plan = make_plan({"": Pair(checkpoint, model, "module", "Net")}, [*rules, Skip(glob)], source="ckpt")
    assert not any(Skip(glob).matches(name) for name in plan.loaded)


@given(PAIRS, RULES)
def test_the_suggested_rules_always_make_it_fit(pairs, rules):
    plan = make_plan(pairs, rules, source="ckpt")
    suggested = plan.suggest()
    fitted = plan.with_rules(*suggested)
    assert not fitted.collisions
    assert not any(row.differs for row in fitted.rows)
    assert plan.suggest() == suggested
    matched = {(row.entry, row.name) for row in plan.rows if row.status is Status.MATCHED}
    after = {(row.entry, row.name) for row in plan.with_rules(*suggested).rows if row.status is Status.MATCHED}
    modules = {entry for entry, pair in pairs.items() if pair.kind != "optimizer"}
    assert {key for key in matched if key[0] in modules} <= after


WORDS = st.text("abcdefghij_", min_size=1, max_size=6)


@given(
    st.sets(st.tuples(WORDS, WORDS, st.sampled_from(["weight", "bias"])), min_size=100, max_size=130),
    st.lists(WORDS, max_size=3),
    st.lists(WORDS, max_size=3),
    st.integers(1, 5),
)
def test_a_prefix_changed_throughout_is_one_rename(names, old, new, sizes):
    ordered = sorted(".".join(("body", *name)) for name in names)
    specs = {name: TensorSpec("float32", (index % sizes,)) for index, name in enumerate(ordered)}
    checkpoint = {".".join((*old, name)): spec for name, spec in specs.items()}
    model = {".".join((*new, name)): spec for name, spec in specs.items()}
    plan = make_plan({"": Pair(checkpoint, model, "module", "Net")}, [], source="ckpt")
    rules = plan.suggest()
    assert len(rules) == (old != new)
    assert plan.with_rules(*rules).coverage == 1.0
