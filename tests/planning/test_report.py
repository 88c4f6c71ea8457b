"""What people read before a load, and instead of one: to the letter."""

import pytest

from torchkeep.errors import PlanError
from torchkeep.planning import Pair, make_plan
from torchkeep.planning.subtrees import fold
from torchkeep.rules import Only, Rename, Skip
from torchkeep.tensors import TensorSpec


def spec(*shape, dtype="float32"):
    return TensorSpec(dtype, shape)


def gpt(vocabulary):
    blocks = {f"transformer.h.{i}.{part}.weight": spec(8, 8) for i in range(73) for part in ("attn", "mlp")}
    return {"transformer.wte.weight": spec(50257, 768), **blocks, "lm_head.weight": spec(vocabulary, 768)}


ADAPTED = {**gpt(50304), **{f"transformer.adapter.{i}": spec(96, 200) for i in range(24)}}
GPT_PLAN = make_plan(
    {"": Pair(gpt(50257), ADAPTED, "module", "GPT", origin="state_dict")},
    [Skip("fcc")],
    source="runs/exp1/step-00002000",
)


def error_text(plan, *, strict=True):
    with pytest.raises(PlanError) as refused:
        plan.check(strict=strict)
    return str(refused.value)


def test_a_load_that_does_not_fit_names_every_difference_and_rules_to_paste():
    assert (
        error_text(GPT_PLAN)
        == """\
cannot load runs/exp1/step-00002000 into GPT: 25 of 172 tensors do not fit
  shape differs   lm_head.weight          checkpoint (50257, 768)   model (50304, 768)
  only in model   transformer.adapter.*   24 tensors, 1.8 MB
  Skip("fcc") matched nothing
  hint: load(..., rules=[Skip("lm_head"), Skip("transformer.adapter")])"""
    )


def test_a_plan_reads_differences_first_with_their_consequences():
    assert (
        str(GPT_PLAN)
        == """\
runs/exp1/step-00002000 -> GPT
  147 of 172 tensors matched, 49.6 % of the model's elements
  taken from state_dict
  shape differs   lm_head.weight           (50257, 768) -> (50304, 768)   stays at its initial value
  only in model   transformer.adapter.*    24 tensors, 1.8 MB             stay at initial values
  matched         transformer.wte.weight   float32 (50257, 768)
  matched         transformer.h.*          146 tensors, 37.4 kB
  Skip("fcc") matched nothing"""
    )


def test_every_kind_of_change_and_every_entry_has_its_line():
    checkpoint = {
        "module.a.w": spec(2, dtype="float16"),
        "module.a.v": spec(2, dtype="float16"),
        "n": spec(1, dtype="int64"),
        "old": spec(3),
        "gone": spec(3),
        "head.w": spec(3),
    }
    model = {"a.w": spec(2), "a.v": spec(2), "n": spec(dtype="int64"), "new": spec(3), "head.w": spec(3)}
    plan = make_plan(
        {
            "model": Pair(checkpoint, model, "module", "Net", note="loads through load_state_dict"),
            "optimizer": Pair({"a.w": None}, {"a.w": spec(2), "a.v": spec(2)}, "optimizer", "Adam"),
        },
        [Rename("^old$", "new"), Skip("head")],
        source="ckpt",
    )
    assert (
        str(plan)
        == """\
ckpt -> Net, Adam
  4 of 5 tensors matched, 72.7 % of the model's elements
  model: loads through load_state_dict
  optimizer: state of 1 of 2 parameters matched
  only in model        optimizer: a.v       float32 (2,)   starts without optimizer state
  only in checkpoint   model: gone          float32 (3,)   not loaded
  skipped              model: head.w        float32 (3,)   stays at its initial value: Skip("head")
  renamed              module.* -> *        2 tensors
  renamed              old -> new           1 tensor
  cast                 float16 -> float32   2 tensors
  adapted              n                    one element -> scalar
  matched              model: a.*           2 tensors, 16 bytes
  matched              model: n             int64 ()
  matched              model: new           float32 (3,)
  matched              optimizer: a.w       float32 (2,)"""
    )


def test_a_refusal_in_loose_mode_names_only_what_no_looseness_allows():
    plan = make_plan(
        {"": Pair({"a": spec(2), "b": spec(2)}, {"a": spec(2, dtype="float16"), "c": spec(2)}, "module", "Net")},
        [],
        source="ckpt",
    )
    assert error_text(plan, strict=False).splitlines()[:2] == [
        "cannot load ckpt into Net: 1 of 3 tensors do not fit",
        "  dtype differs   a   checkpoint float32   model float16",
    ]


def test_a_checkpoint_of_something_else_is_asked_about_and_not_skipped_away():
    plan = make_plan({"": Pair({"x": spec(3)}, {"y.z": spec(2)}, "module", "Net")}, [], source="ckpt")
    assert error_text(plan).endswith(
        "hint: nothing in it fits: is this the checkpoint, and the entry of it, that was meant?\n"
        "    its names are x\n    the model's are y.z"
    )


def test_a_checkpoint_of_which_hardly_anything_fits_is_asked_about_too():
    old = {"head.bias": spec(2), "stem.weight": spec(50, 9)}
    new = {"head.bias": spec(2), "body.weight": spec(9, 40), "body.bias": spec(9), "end.bias": spec(1)}
    plan = make_plan({"": Pair(old, new, "module", "Net")}, [], source="ckpt")
    assert error_text(plan).endswith(
        "hint: 0.5 % of it fits: is this the checkpoint, and the entry of it, that was meant?\n"
        "    its names are head.bias, stem.weight\n    the model's are head.bias, body.weight, body.bias, ..."
    )


@pytest.mark.parametrize("loosely", [{"strict": True}, {"strict": False}])
def test_rules_that_leave_everything_alone_are_refused_and_said(loosely):
    side = {f"{part}.w": spec(2) for part in "abcd"}
    plan = make_plan({"": Pair(side, side, "module", "Net")}, [Only("typo"), Skip("b")], source="ckpt")
    with pytest.raises(PlanError) as caught:
        plan.check(**loosely)
    assert str(caught.value).splitlines() == [
        "cannot load ckpt into Net: nothing would be loaded, the rules leave everything alone",
        '  Only("typo") matched nothing',
        "  hint: skip less; the model's names are a.w, b.w, c.w, ...",
    ]
    assert "  nothing would be loaded: the rules leave everything alone" in str(plan).splitlines()
    plan.check(strict=False, min_coverage=0)


def test_a_model_of_several_that_an_only_without_meaning_leaves_alone_is_named():
    pairs = {name: Pair({"w": spec(2)}, {"w": spec(2)}, "module", "Net") for name in "GD"}
    plan = make_plan(pairs, [Only("typo", "v", entry="G")], source="ckpt")
    assert "  nothing would be loaded into G: the rules leave everything alone" in str(plan).splitlines()
    with pytest.raises(PlanError, match=r"nothing would be loaded into G, the rules .*\n.*\n.*\n.* names are w$"):
        plan.check(strict=True)
    for rule in (Only("typo", "w", entry="G"), Skip("*", entry="G"), Only("typo", entry="elsewhere")):
        make_plan(pairs, [rule], source="ckpt").check(strict=True)


def test_what_has_nothing_to_load_into_is_no_fault():
    make_plan({"": Pair({}, {}, "module", "Net")}, [], source="ckpt").check(strict=True)


def test_a_long_list_of_differences_stays_short():
    letters = [f"part{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(100)]
    model = {"w": spec(9), **{f"{part}.weight": spec(2) for part in letters}}
    text = error_text(make_plan({"": Pair({"w": spec(9)}, model, "module", "Net")}, [], source="ckpt"))
    assert len(text.splitlines()) <= 25
    assert "... and 81 more like these" in text


def test_ordinary_lines_fit_a_hundred_columns():
    assert max(len(line) for text in (str(GPT_PLAN), error_text(GPT_PLAN)) for line in text.splitlines()) <= 100


@pytest.mark.parametrize(
    ("names", "keep", "globs"),
    [
        (["fc.weight", "fc.bias"], ["conv.weight"], ["fc"]),
        (["fc.weight"], ["fc.bias"], ["fc.weight"]),
        (["a.b.c", "a.b.d"], ["a.x"], ["a.b"]),
        (["h.0.m", "h.1.m"], ["h.0.n", "h.1.n"], ["h.*.m"]),
        (["h.0.m.a", "h.1.m.a"], ["h.0.n", "h.1.n"], ["h.*.m.*"]),
        (["h.0.m", "h.1.m"], ["h.0.n", "h.1.n", "h.2.m"], ["h.0.m", "h.1.m"]),
        (["h.0.m", "h.1.m"], ["h.0.n", "h.1.n", "h.0.x.m"], ["h.0.m", "h.1.m"]),
        (["a"], ["a.b"], ["[a]"]),
        (["a[0].w", "a[0]"], [], ["a[[]0].w", "a[[]0]"]),
        (["a", "b"], [], ["a", "b"]),
        (["", ".x", ".y"], [], ["", ".x", ".y"]),
    ],
)
def test_names_fold_into_globs_that_mean_nothing_else(names, keep, globs):
    assert [subtree.glob for subtree in fold(names, keep)] == globs
