"""Suggested rules are few, right, and make the plan fit."""

import os
import pickle
import subprocess
import sys
import time

import pytest
from tests.slowness import slowness

from torchkeep.planning import Pair, make_plan
from torchkeep.rules import Rename, Skip
from torchkeep.tensors import TensorSpec


def spec(*shape, dtype="float32"):
    return TensorSpec(dtype, shape)


def resnet(prefix="", *, layer="layer", head="fc", classes=10):
    tensors = {f"{prefix}conv1.weight": spec(64, 3, 7, 7)}
    for stage in range(1, 5):
        for block in range(2):
            for part in (1, 2):
                tensors[f"{prefix}{layer}{stage}.{block}.conv{part}.weight"] = spec(64 * stage, 64, 3, 3)
                for name in ("weight", "bias", "running_mean", "running_var"):
                    tensors[f"{prefix}{layer}{stage}.{block}.bn{part}.{name}"] = spec(64 * stage)
    return {**tensors, f"{prefix}{head}.weight": spec(classes, 512), f"{prefix}{head}.bias": spec(classes)}


def gpt(root, blocks, layers=4):
    parts = {"ln_1.weight": (64,), "ln_1.bias": (64,), "attn.weight": (64, 192), "ln_2.weight": (64,)}
    found = {f"{root}.wte.weight": spec(1000, 64)}
    return found | {f"{root}.{blocks}.{i}.{name}": spec(*shape) for i in range(layers) for name, shape in parts.items()}


def norms(first, second):
    return {f"{part}.LayerNorm.{name}": spec(4) for part in ("a", "b") for name in (first, second)}


def suggested(checkpoint, model, *rules):
    plan = make_plan({"": Pair(checkpoint, model, "module", "Net")}, rules, source="ckpt")
    found = plan.suggest()
    fitted = plan.with_rules(*found)
    assert not fitted.collisions
    assert not any(row.differs for row in fitted.rows)
    return [repr(rule) for rule in found]


@pytest.mark.parametrize(
    ("checkpoint", "model", "rules"),
    [
        (resnet(), resnet(), []),
        (resnet("backbone."), resnet(), [r'Rename(r"^backbone\.", "")']),
        (resnet(), resnet("net.encoder."), ['Rename("^", "net.encoder.")']),
        (resnet("a.b."), resnet("c."), [r'Rename(r"^a\.b\.", "c.")']),
        (resnet("backbone.", classes=1000), resnet(), [r'Rename(r"^backbone\.", "")', 'Skip("fc")']),
        (resnet(head="fc", classes=1000), resnet(head="fclass"), ['Skip("fclass")', 'Skip("fc")']),
        (resnet(head="clasifier"), resnet(head="classifier"), [r'Rename(r"^clasifier\.", "classifier.")']),
        (resnet(layer="layer"), resnet(layer="block"), ['Rename("^layer", "block")']),
        (
            gpt("transformer", "h"),
            gpt("model", "layers"),
            ['Rename("^transformer", "model")', r'Rename(r"^model\.h\.", "model.layers.")'],
        ),
        (
            norms("gamma", "beta"),
            norms("weight", "bias"),
            [r'Rename(r"\.beta$", ".bias")', r'Rename(r"\.gamma$", ".weight")'],
        ),
        (
            {f"{i} self interaction.{name}": spec(4, i + 1) for i in range(3) for name in ("weight", "output_mask")},
            {f"{i}_self_interaction.{name}": spec(4, i + 1) for i in range(3) for name in ("weight", "output_mask")},
            ['Rename(" ", "_")'],
        ),
        ({"fc.wieght": spec(3, 4)}, {"fc.weight": spec(3, 4)}, ['Rename({"fc.wieght": "fc.weight"})']),
        (
            {f"h.{i}.{part}": spec(2) for i in range(9) for part in ("w", "attn.mask")},
            {f"h.{i}.w": spec(2) for i in range(9)},
            ['Skip("h.*.attn.*")'],
        ),
        ({"a.w": spec(2), "b.w": spec(3)}, {"a.w": spec(2, dtype="float16"), "b.w": spec(3)}, ['Cast("a")']),
        (
            {f"{part}.w": spec(2) for part in "abcdef"},
            {f"{part}.w": spec(2, dtype="float16") for part in "abcdef"},
            ["Cast()"],
        ),
    ],
)
def test_few_rules_explain_what_differs(checkpoint, model, rules):
    found = suggested(checkpoint, model)
    assert found == rules


@pytest.mark.parametrize(
    ("checkpoint", "model"),
    [
        # Two networks that both have all of it.
        ({**resnet("teacher."), **resnet("student.")}, resnet()),
        # Two tensors that are alike, and nothing in their names.
        ({"x.weight": spec(8)}, {"left.weight": spec(8), "right.weight": spec(8)}),
        # The bias of a module that is there is not the bias of a module that is new.
        (
            {"a.out.weight": spec(8, 8), "a.out.bias": spec(8)},
            {"a.out.weight": spec(8, 8), "a.outer.bias": spec(8), "a.outer.weight": spec(8)},
        ),
    ],
)
def test_what_is_ambiguous_is_left_out(checkpoint, model):
    assert not any(rule.startswith("Rename") for rule in suggested(checkpoint, model))


def test_a_rename_never_moves_what_already_has_its_place():
    checkpoint = {**resnet("backbone."), "backbone.queue": spec(7)}
    model = {**resnet(), "backbone.queue": spec(7)}
    plan = make_plan({"": Pair(checkpoint, model, "module", "Net")}, [], source="ckpt")
    fitted = plan.with_rules(*plan.suggest())
    assert fitted.coverage == 1.0
    assert "backbone.queue" in fitted.loaded
    assert all(isinstance(rule, Rename) and len(rule.names) <= 1 for rule in fitted.rules)


def test_a_rename_for_a_module_that_would_cost_its_optimizer_a_match_is_not_suggested():
    side = {"net.a.weight": spec(3, 2), "net.a.bias": spec(3)}
    pairs = {
        "model": Pair(side, {"a.weight": spec(3, 2), "a.bias": spec(3)}, "module", "Net"),
        "optimizer": Pair(side, side, "optimizer", "Adam"),
    }
    plan = make_plan(pairs, [], source="ckpt")
    fitted = plan.with_rules(*plan.suggest())
    assert not any(isinstance(rule, Rename) for rule in fitted.rules)


def test_names_that_collide_are_suggested_to_be_skipped():
    assert suggested({"a.w": spec(2), "b.w": spec(2)}, {"w": spec(2)}, Rename(r"^[ab]\.", "")) == ['Skip("w")']


def test_rules_for_a_module_serve_its_optimizer_and_spare_what_only_the_optimizer_lacks():
    pairs = {
        "model": Pair(resnet("net.", classes=5), resnet(), "module", "Net"),
        "optimizer": Pair(
            dict.fromkeys(name for name in resnet("net.") if "running" not in name and "conv1.weight" not in name),
            {name: tensor for name, tensor in resnet().items() if "running" not in name},
            "optimizer",
            "Adam",
        ),
    }
    plan = make_plan(pairs, [], source="ckpt")
    rules = plan.suggest()
    fitted = plan.with_rules(*rules)
    fitted.check(strict=True)
    assert [repr(rule) for rule in rules][:2] == [r'Rename(r"^net\.", "")', 'Skip("fc")']
    assert all(rule.entry == "optimizer" for rule in rules[2:])
    assert set(fitted.fresh) == {"fc.weight", "fc.bias"}


def test_several_models_get_rules_of_their_own():
    pairs = {
        "G": Pair(resnet("net."), resnet(), "module", "G"),
        "D": Pair(resnet("net."), resnet("net."), "module", "D"),
    }
    plan = make_plan(pairs, [], source="ckpt")
    assert plan.suggest() == (Rename(r"^net\.", "", entry="G"),)


def test_a_thousand_tensors_take_less_than_a_second():
    checkpoint = {f"transformer.h.{i}.part{j}.weight": spec(64) for i in range(100) for j in range(10)}
    model = {f"model.layers.{i}.block{j}.weight": spec(64) for i in range(100) for j in range(10)}
    plan = make_plan({"": Pair(checkpoint, {**model, "new": spec(3)}, "module", "Net")}, [], source="ckpt")
    most_seconds, seconds = slowness(), []
    while not seconds or (min(seconds) >= most_seconds and len(seconds) < 3):  # the best of three: others run beside
        begin = time.process_time()
        rules = plan.suggest()
        seconds.append(time.process_time() - begin)
    assert min(seconds) < most_seconds
    assert plan.with_rules(*rules).fresh == ("new",)
    assert Skip("new") in rules


def attention(prefix, *, fused, layers=3, transposed=False):
    whole, part = ((8, 24), (8, 8)) if transposed else ((24, 8), (8, 8))
    parts = {"in_proj_weight": whole, "in_proj_bias": (24,)} if fused else {}
    if not fused:
        parts = {
            f"{name}.{kind}": part if kind == "weight" else (8,)
            for name in ("q_proj", "k_proj", "v_proj")
            for kind in ("weight", "bias")
        }
    parts |= {"out.weight": (8, 8), "out.bias": (8,)}
    return {f"{prefix}.{i}.{name}": spec(*shape) for i in range(layers) for name, shape in parts.items()}


@pytest.mark.parametrize("transposed", [False, True])
def test_projections_that_are_one_tensor_on_one_side_are_fused_or_split(transposed):
    apart, one = (attention("blocks", fused=f, transposed=transposed) for f in (False, True))
    dim = ", dim=-1" if transposed else ""
    assert suggested(apart, one) == [
        f'Fuse(["q_proj.weight", "k_proj.weight", "v_proj.weight"], "in_proj_weight"{dim})',
        'Fuse(["q_proj.bias", "k_proj.bias", "v_proj.bias"], "in_proj_bias")',
    ]
    assert suggested(one, apart) == [
        f'Split("in_proj_weight", ["q_proj.weight", "k_proj.weight", "v_proj.weight"]{dim})',
        'Split("in_proj_bias", ["q_proj.bias", "k_proj.bias", "v_proj.bias"])',
    ]


def test_parts_of_unequal_sizes_are_split_in_their_ratio_beside_renames_of_everything():
    model = {f"h.{i}.{p}.weight": spec(n, 8) for i in range(3) for p, n in (("q", 8), ("k", 2), ("v", 2))}
    checkpoint = {f"blocks.{i}.attn.qkv.weight": spec(12, 8) for i in range(3)}
    rules = suggested(checkpoint, model)
    assert rules[0] == 'Split("qkv", ["q", "k", "v"], ratios=(4, 1, 1))'
    assert len(rules) == 2
    assert rules[1].startswith("Rename(")


def test_suggestions_print_as_code_with_what_each_gains_and_what_else_there_is():
    checkpoint = {
        **resnet("backbone.", classes=1000),
        "pos_embed": spec(1, 17, 8),
        "wte.weight": spec(9, 4),
        "t.w": spec(3, 5),
    }
    model = {**resnet(), "pos_embed": spec(1, 37, 8), "wte.weight": spec(12, 4), "t.w": spec(5, 3)}
    model["conv1.weight"] = spec(64, 1, 7, 7)
    plan = make_plan({"": Pair(checkpoint, model, "module", "Net")}, [], source="ckpt")
    rules = plan.suggest()
    matched = sum(model[name] == checkpoint.get(f"backbone.{name}") for name in model)
    assert str(rules).splitlines() == [
        "rules=[",
        f'    Rename(r"^backbone\\.", ""),  # {matched} tensors gained',
        (
            '    Skip("conv1", "fc", "pos_embed", "wte", "t"),  # 6 tensors left alone; or adapt: '
            'InputChannels("conv1"), ResizePositions("pos_embed"), ResizeRows("wte"), Transpose("t.w")'
        ),
        "]",
    ]
    first, second = rules.explained
    assert (len(first.gains), second.settles[:2]) == (matched, ("conv1.weight", "fc.weight"))
    adapted = plan.with_rules(first.rule, *second.alternatives, Skip("fc"))
    adapted.check(strict=True)
    assert adapted.with_rules().suggest() == ()


def test_what_is_ambiguous_is_said_beside_the_rules():
    checkpoint = {"a.conv.w": spec(3, 3), "b.conv.w": spec(3, 3)}
    model = {"x.conv.w": spec(3, 3), "y.conv.w": spec(3, 3), "z.conv.w": spec(3, 3)}
    rules = make_plan({"": Pair(checkpoint, model, "module", "Net")}, [], source="ckpt").suggest()
    assert set(rules.ambiguous["a.conv.w"]) == {"x.conv.w", "y.conv.w", "z.conv.w"}
    assert "# ambiguous, left out: a.conv.w could be x.conv.w or y.conv.w or z.conv.w" in str(rules)


def test_suggestions_survive_a_copy_to_another_process():
    rules = make_plan({"": Pair(resnet("a."), resnet(), "module", "Net")}, [], source="ckpt").suggest()
    again = pickle.loads(pickle.dumps(rules))
    assert (again, str(again), again.explained) == (rules, str(rules), rules.explained)


def encoder(prefix, *, names, layers=3):
    """Blocks with two norms each, which only names or an order can tell apart."""
    norms = {f"{norm}.{kind}": (8,) for norm in names for kind in ("weight", "bias")}
    parts = {"up.weight": (32, 8), "up.bias": (32,), **norms}
    return {f"{prefix}.{i}.{name}": spec(*shape) for i in range(layers) for name, shape in parts.items()}


def test_the_order_of_a_model_tells_equal_modules_apart_and_that_of_a_sorted_file_does_not():
    checkpoint = encoder("enc.layer", names=["attention.output.LayerNorm", "output.LayerNorm"])
    model = encoder("layers", names=["norm1", "norm2"])
    assert suggested(checkpoint, model) == [
        r'Rename(r"^enc\.layer\.", "layers.")',
        r'Rename(r"\.attention\.output\.LayerNorm\.", ".norm1.")',
        r'Rename(r"\.output\.LayerNorm\.", ".norm2.")',
    ]
    in_file = dict(sorted(checkpoint.items()))
    rules = make_plan({"": Pair(in_file, model, "module", "Net")}, [], source="c").suggest()
    assert not any("norm1" in repr(rule) for rule in rules if isinstance(rule, Rename))
    assert (
        "# ambiguous, left out: enc.layer.*.output.LayerNorm.bias could be layers.*.norm1.bias or layers.*.norm2.bias"
        in str(rules).splitlines()
    )


def test_blocks_that_are_counted_from_another_number_are_taken_in_their_order():
    names = ["attn.w", "attn.b", "mlp.w"]
    checkpoint = {f"h.{i}.{name}": spec(4, 4) for i in range(1, 13) for name in names}
    model = {f"blocks.{i}.{name}": spec(4, 4) for i in range(12) for name in names}
    for given in (checkpoint, dict(sorted(checkpoint.items()))):
        plan = make_plan({"": Pair(given, model, "module", "Net")}, [], source="c")
        fitted = plan.with_rules(*plan.suggest())
        assert {row.checkpoint_name: row.name for row in fitted.rows} == {
            f"h.{i + 1}.{name}": f"blocks.{i}.{name}" for i in range(12) for name in names
        }


def test_a_block_is_never_suggested_for_another_of_the_same_list():
    checkpoint = {f"h.{i}.w": spec(4, 4) for i in range(1, 4)}
    model = {f"h.{i}.w": spec(4, 4) for i in range(3)}
    assert suggested(checkpoint, model) == ['Skip("h.0")', 'Skip("h.3")']


def test_the_same_plan_gets_the_same_rules_in_every_process():
    script = (
        "from torchkeep.planning import Pair, make_plan\n"
        "from torchkeep.tensors import TensorSpec\n"
        "names = [f'layer.{i}.{part}.{kind}' for i in range(4) for part in 'qkvabc' for kind in ('weight', 'bias')]\n"
        "old = {name: TensorSpec('float32', (len(name) % 3, 4)) for name in sorted(names)}\n"
        "new = {f'net.{name}'.replace('a', 'x'): spec for name, spec in old.items()}\n"
        "print(make_plan({'': Pair(old, new, 'module', 'Net')}, [], source='c').suggest())\n"
    )
    printed = set()
    for seed in ("1", "2", "3"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True
        )
        printed.add(done.stdout)
    assert len(printed) == 1
    assert printed.pop().startswith("rules=[")


def blocks(prefix, *parts, layers=2, width=8):
    return {
        f"{prefix}.layers.{i}.{part}.{kind}": spec(width, *rest)
        for i in range(layers)
        for part in parts
        for kind, rest in (("weight", [width]), ("bias", []))
    }


@pytest.mark.parametrize(
    ("checkpoint", "model", "unsaid"),
    [
        (  # what is alike is paired, whatever the order
            blocks("actor", "fc") | blocks("critic", "fc"),
            blocks("critic_net", "fc") | blocks("actor_net", "fc"),
            None,
        ),
        (blocks("student", "a", "b") | blocks("teacher", "a", "b"), blocks("net", "a", "b"), "ambiguous"),
        (blocks("actor", "a", "b"), blocks("policy", "a", "b") | blocks("value", "a", "b"), "ambiguous"),
        (  # one module on either side: only its shape speaks for it
            {**resnet(), "topic_head.weight": spec(20, 512)},
            {**resnet(), "sentiment_head.weight": spec(20, 512)},
            'Skip("topic_head")',
        ),
        (  # one of a series is not another of it
            {f"b.{i}.conv{j}.weight": spec(8, 8) for i in range(3) for j in (1, 2)},
            {f"b.{i}.conv{j}.weight": spec(8, 8) for i in range(3) for j in (0, 1)},
            'Skip("b.*.conv0.*")',
        ),
    ],
)
def test_what_only_shapes_say_is_said_and_not_suggested(checkpoint, model, unsaid):
    plan = make_plan({"": Pair(checkpoint, model, "module", "Net")}, [], source="c")
    rules = plan.suggest()
    fitted = plan.with_rules(*rules)
    moved = {row.checkpoint_name: row.name for row in fitted.rows if row.status == "matched" and row.changes}
    if unsaid is None:
        assert moved == {
            name: name.replace("actor", "actor_net").replace("critic", "critic_net") for name in checkpoint
        }
    else:
        assert moved == {}
        assert unsaid in str(rules)


def test_a_renamed_part_in_two_towers_of_which_layers_were_dropped_is_no_swap():
    def tower(name, layers, part):
        return {
            f"{name}.layers.{i}.mlp.{part}.{kind}": spec(4, *rest)
            for i in range(layers)
            for kind, rest in (("weight", [2]), ("bias", []))
        }

    checkpoint = tower("encoder", 2, "fc1") | tower("decoder", 2, "fc1")
    model = tower("encoder", 1, "up") | tower("decoder", 1, "up")
    plan = make_plan({"": Pair(checkpoint, model, "module", "Net")}, [], source="c")
    fitted = plan.with_rules(*plan.suggest())
    moved = {row.checkpoint_name: row.name for row in fitted.rows if row.status == "matched"}
    assert moved == {name.replace("up", "fc1"): name for name in model}


def test_all_of_a_module_goes_to_one_module():
    checkpoint = {f"l.{i}.LayerNorm.{kind}": spec(8) for i in range(4) for kind in ("weight", "bias")}
    model = {f"m.{i}.{part}": spec(8) for i in range(4) for part in ("norm.weight", "out.bias", "norm.bias")}
    plan = make_plan({"": Pair(checkpoint, model, "module", "Net")}, [], source="c")
    fitted = plan.with_rules(*plan.suggest())
    for row in fitted.rows:
        if row.status == "matched":
            assert row.name == row.checkpoint_name.replace("l.", "m.").replace("LayerNorm", "norm")


def test_deep_names_take_no_longer_than_others():
    names = [".".join(["model"] * depth + [f"part{depth}"] * 20 + ["weight"]) for depth in range(1, 20)]
    plan = make_plan(
        {"": Pair({n: spec(2) for n in names}, {f"x.{n}": spec(3) for n in names}, "module", "N")}, [], source="c"
    )
    begin = time.process_time()
    plan.suggest()
    assert time.process_time() - begin < slowness()
