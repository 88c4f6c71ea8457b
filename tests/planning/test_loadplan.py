"""A plan answers how much fits, refuses what does not, and runs only what it was bound to."""

import json
from dataclasses import replace

import pytest

from torchkeep.errors import PlanError
from torchkeep.planning import Pair, make_plan
from torchkeep.rules import Cast, Rename, Skip
from torchkeep.tensors import TensorSpec


def spec(*shape, dtype="float32"):
    return TensorSpec(dtype, shape)


def planned(checkpoint, model, *rules, kind="module"):
    return make_plan({"": Pair(checkpoint, model, kind, "Net")}, rules, source="ckpt")


def refusal(act):
    with pytest.raises(PlanError) as refused:
        act()
    return str(refused.value)


def test_coverage_counts_the_elements_of_the_model_that_are_matched():
    plan = planned({"a": spec(90)}, {"a": spec(90), "b": spec(10)})
    assert (plan.coverage, plan.matched_count, plan.loaded, plan.fresh) == (0.9, 1, ("a",), ("b",))
    assert planned({"a": spec(9)}, {}).coverage == 1.0


def test_an_optimizer_does_not_count():
    module = Pair({"a": spec(9)}, {"a": spec(9)}, "module", "Net")
    optimizer = Pair({}, {"a": spec(9)}, "optimizer", "Adam")
    plan = make_plan({"model": module, "optimizer": optimizer}, [], source="ckpt")
    assert (plan.coverage, plan.matched_count, plan.model_count, plan.fresh) == (1.0, 1, 1, ())


def test_names_of_several_models_carry_their_entry():
    pair = Pair({"w": spec(1)}, {"w": spec(1), "v": spec(1)}, "module", "Net")
    plan = make_plan({"G": pair, "D": pair}, [], source="ckpt")
    assert (plan.loaded, plan.fresh) == (("G.w", "D.w"), ("G.v", "D.v"))
    assert (plan.loaded_of("D"), plan.fresh_of("D")) == (("w",), ("v",))
    with pytest.raises(ValueError, match="the plan has no entry 'E'; it has 'G', 'D'"):
        plan.fresh_of("E")


@pytest.mark.parametrize(
    ("checkpoint", "model", "rules", "strict_refuses", "loose_refuses"),
    [
        ({"a": spec(9)}, {"a": spec(9)}, [], False, False),
        ({"a": spec(9)}, {"a": spec(9), "b": spec(1)}, [], True, False),
        ({"a": spec(9), "b": spec(1)}, {"a": spec(9)}, [], True, False),
        ({"a": spec(9), "b": spec(1)}, {"a": spec(9), "b": spec(2)}, [], True, False),
        ({"a": spec(9)}, {"a": spec(9, dtype="float16")}, [], True, True),
        ({"a": spec(9)}, {"a": spec(9, dtype="float16")}, [Cast()], False, False),
        # An adapter inside a base model, and a backbone inside a bigger network: one side is covered.
        ({"a": spec(1)}, {"a": spec(1), "b": spec(99)}, [], True, False),
        ({"a": spec(1), "b": spec(99)}, {"a": spec(1)}, [], True, False),
        # A wrong prefix: neither is.
        ({"a": spec(1), "x.b": spec(99)}, {"a": spec(1), "b": spec(99)}, [], True, True),
        # What is skipped counts on neither side.
        ({"a": spec(1), "x.b": spec(99)}, {"a": spec(1), "b": spec(99)}, [Skip("x", "b")], False, False),
        ({"a": spec(1), "c": spec(1)}, {"a": spec(1), "b": spec(99)}, [Rename("c", "b"), Skip("b")], False, False),
    ],
)
def test_what_strict_and_loose_loads_refuse(checkpoint, model, rules, strict_refuses, loose_refuses):
    plan = planned(checkpoint, model, *rules)
    for strict, refuses in ((True, strict_refuses), (False, loose_refuses)):
        if refuses:
            assert "cannot load ckpt into Net" in refusal(lambda strict=strict: plan.check(strict=strict))
        else:
            plan.check(strict=strict)


def test_the_least_coverage_is_the_callers_to_choose():
    plan = planned({"a": spec(1), "x": spec(99)}, {"a": spec(1), "b": spec(99, 2)})
    assert "only 0.5 % of Net, 1.0 % of the checkpoint found a place, 50.0 % is required" in refusal(
        lambda: plan.check(strict=False)
    )
    plan.check(strict=False, min_coverage=0.01)


def test_one_pair_that_fits_does_not_make_up_for_one_that_does_not():
    fits = Pair({"a": spec(99)}, {"a": spec(99)}, "module", "G")
    does_not = Pair({"b": spec(1)}, {"a": spec(1)}, "module", "D")
    plan = make_plan({"G": fits, "D": does_not}, [], source="ckpt")
    assert "0.0 % of D" in refusal(lambda: plan.check(strict=False))


def test_names_that_collide_are_refused_whatever_is_allowed():
    plan = planned({"a.w": spec(2), "b.w": spec(2), "v": spec(1)}, {"w": spec(2), "v": spec(1)}, Rename(r"^[ab]\.", ""))
    assert plan.collisions == ("a.w and b.w are both renamed to w",)
    assert plan.loaded == ("v",)
    for act in (
        lambda: plan.check(strict=False, min_coverage=0),
        lambda: plan.require(coverage=0),
        plan.apply,
    ):
        assert "1 name is claimed more than once\n  a.w and b.w are both renamed to w" in refusal(act)
    plan.with_rules(Skip("w")).check(strict=True)


def test_require_gives_the_plan_back_or_says_how_much_is_there():
    plan = planned({"a": spec(90)}, {"a": spec(90), "b": spec(10)})
    assert plan.require(coverage=0.9) is plan
    assert "only 90.0 % of the model's elements found a place, 95.0 % is required" in refusal(
        lambda: plan.require(coverage=0.95)
    )


@pytest.mark.parametrize("share", [95, -0.1, float("nan")])
def test_a_share_is_between_nothing_and_all(share):
    plan = planned({}, {})
    with pytest.raises(ValueError, match="coverage is a share from 0 to 1"):
        plan.require(coverage=share)
    with pytest.raises(ValueError, match="min_coverage is a share from 0 to 1"):
        plan.check(strict=False, min_coverage=share)


def test_apply_runs_the_executor_only_when_it_fits():
    calls = []
    plan = replace(planned({"a": spec(1)}, {"b": spec(1), "c": spec(1)}), executor=calls.append)
    refusal(plan.apply)
    assert calls == []
    renamed = plan.with_rules(Rename("a", "b"), Skip("c"))
    renamed.apply()
    renamed.apply(strict=False)
    assert calls == [renamed, renamed]


def test_a_plan_without_objects_says_how_to_get_one():
    assert "make it with torchkeep.plan(path, into=...)" in refusal(planned({}, {}).apply)


def test_the_executor_is_no_part_of_a_plans_value():
    plan = planned({"a": spec(1)}, {"a": spec(1)})
    assert replace(plan, executor=print) == plan
    assert repr(plan) == "<LoadPlan ckpt -> Net: 1 of 1 tensors matched, 100 % of the model's elements>"


def test_a_plan_is_plain_values_for_json():
    plan = planned({"a": spec(2)}, {"a": spec(2, dtype="float64"), "b": spec(2)}, Skip("c"))
    assert json.loads(json.dumps(plan.to_dict())) == {
        "schema": 1,
        "source": "ckpt",
        "coverage": 0.5,
        "tensors": {"matched": 1, "total": 2},
        "rules": ['Skip("c")'],
        "rows": [
            {
                "entry": "",
                "name": "a",
                "checkpoint_name": "a",
                "status": "matched",
                "changes": ["cast"],
                "reason": "float32 to float64 keeps every value",
                "checkpoint": {"dtype": "float32", "shape": [2]},
                "model": {"dtype": "float64", "shape": [2]},
            },
            {
                "entry": "",
                "name": "b",
                "checkpoint_name": None,
                "status": "only_in_model",
                "changes": [],
                "reason": "stays at its initial value: no such tensor in the checkpoint",
                "checkpoint": None,
                "model": {"dtype": "float32", "shape": [2]},
            },
        ],
    }


@pytest.mark.parametrize(
    ("rule", "idle"),
    [
        (Skip("fcc"), 'Skip("fcc")'),
        (Skip("a", "fcc"), 'Skip("fcc")'),
        (Rename("^b", "c"), 'Rename("^b", "c")'),
        (Rename({"a": "b", "x": "y"}), 'Rename({"x": "y"})'),
        (Cast("x"), 'Cast("x")'),
        (Skip("a", entry="G"), 'Skip("a", entry="G")'),
    ],
)
def test_what_of_a_rule_matched_nothing_is_said(rule, idle):
    plan = planned({"a": spec(1)}, {"a": spec(1)}, rule)
    assert [repr(rule) for rule in plan.idle_rules] == [idle]
    assert any(line.startswith(f"  {idle} ") and "nothing" in line for line in str(plan).splitlines())


def test_a_rename_that_only_the_one_before_makes_possible_is_not_idle():
    assert planned({"a": spec(1)}, {"c": spec(1)}, Rename("a", "b"), Rename("b", "c")).idle_rules == ()
    assert planned({"a": spec(1)}, {"a": spec(1)}, Cast()).idle_rules == ()
