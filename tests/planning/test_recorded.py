"""A plan that was recorded is replayed with its rules, and refused when anything would be decided otherwise."""

import json

import pytest

from torchkeep.errors import FormatError, PlanError
from torchkeep.planning import Pair, make_plan
from torchkeep.rules import Cast, Fuse, MapRows, Rename, Skip
from torchkeep.tensors import TensorSpec


def spec(*shape, dtype="float32"):
    return TensorSpec(dtype, shape)


CHECKPOINT = {"b.q": spec(2), "b.k": spec(2), "head": spec(3, 4), "x": spec(1), "half": spec(2)}
MODEL = {"a.qk": spec(4), "head": spec(2, 4), "half": spec(2, dtype="float16")}
RULES = [Rename("^b", "a"), Fuse(["q", "k"], "qk"), MapRows(["c", "d", "e"], ["e", "f"]), Skip("x"), Cast("half")]


def planned(checkpoint=CHECKPOINT, model=MODEL, rules=()):
    return make_plan({"G": Pair(checkpoint, model, "module", "Net")}, rules, source="ckpt")


def test_a_recorded_plan_brings_its_rules_and_decides_the_same():
    text = planned(rules=RULES).to_json()
    again = planned(rules=[Skip("*")]).replay(text)
    assert again.rules == tuple(RULES)
    assert again.rows == planned(rules=RULES).rows
    assert planned(CHECKPOINT, MODEL).replay(text).to_json() == text


@pytest.mark.parametrize(
    ("checkpoint", "model", "told"),
    [
        (
            CHECKPOINT | {"head": spec(3, 5)},
            MODEL,
            (
                "G: head   was matched (adapted) float32 [3, 4] -> float32 [2, 4]   is shape differs float32 [3, 5] -> "
                "float32 [2, 4]"
            ),
        ),
        (CHECKPOINT, MODEL | {"new": spec(2)}, "G: new   was not there   is only in model float32 [2]"),
        (
            {name: s for name, s in CHECKPOINT.items() if name != "x"},
            MODEL,
            "G: x   was skipped float32 [1]   is not there",
        ),
        (
            CHECKPOINT,
            MODEL | {"half": spec(2)},
            "G: half   was matched (cast) float32 [2] -> float16 [2]   is matched float32 [2]",
        ),
    ],
)
def test_each_tensor_of_which_the_plan_decides_otherwise_is_named(checkpoint, model, told):
    text = planned(rules=RULES).to_json()
    with pytest.raises(PlanError) as refused:
        planned(checkpoint, model).replay(text)
    assert refused.value.what.startswith("the plan for ckpt is not the recorded one: 1 of ")
    assert refused.value.faults == (told,)


def test_an_entry_that_stands_alone_may_have_another_name_and_of_several_each_is_told():
    pair = Pair(CHECKPOINT, MODEL, "module", "Net")
    text = planned(rules=RULES).to_json()
    assert make_plan({"": pair}, [], source="ckpt").replay(text).matched_count == 3
    several = make_plan({"G": pair, "D": pair}, RULES, source="ckpt").to_json()
    with pytest.raises(PlanError) as refused:
        make_plan({"G": pair, "E": pair}, [], source="ckpt").replay(several)
    assert refused.value.what.endswith("8 of 12 tensors differ")
    assert refused.value.faults == (
        "entry 'D': was 4 tensors   is not there",
        "entry 'E': was not there   is 4 tensors",
    )


def test_reasons_may_be_said_otherwise_but_nothing_else_and_a_long_list_stays_short():
    values = json.loads(planned(rules=RULES).to_json())
    for row in values["rows"]:
        row["reason"] = "other words"
    assert planned().replay(json.dumps(values)).rules == tuple(RULES)
    names = {f"t{i}": spec(1) for i in range(100)}
    with pytest.raises(PlanError) as refused:
        planned(names, names).replay(planned(names, {}).to_json())
    assert len(refused.value.faults) == 20
    assert refused.value.faults[-1] == "... and 81 more"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "a recorded plan is JSON, and this is none"),
        ("[" * 100_000, "a recorded plan is JSON, and this is none"),
        ("[]", "a recorded plan has schema 1, and this has not"),
        ('{"schema": 2}', "a recorded plan has schema 1, and this has not"),
        ('{"schema": 1, "rules": [], "rows": {}}', "a list of rules and a list of rows"),
        ('{"schema": 1, "rules": [3], "rows": []}', "a list of rules and a list of rows"),
        ('{"schema": 1, "rules": ["print(1)"], "rows": []}', "has a rule that cannot be read"),
    ],
)
def test_what_is_no_recorded_plan_is_a_format_error(text, why):
    with pytest.raises(FormatError, match=why):
        planned().replay(text)


def test_rows_that_somebody_wrote_are_differences_and_no_crash():
    rows = '{"name": null}, {"entry": [], "name": 3, "status": {}, "changes": 5, "model": {"dtype": []}}'
    with pytest.raises(PlanError, match="is not the recorded one"):
        planned().replay(f'{{"schema": 1, "rules": [], "rows": [{rows}]}}')
