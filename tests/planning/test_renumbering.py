"""Modules whose numbers changed, since layers were put in, taken out or grouped, get their tensors; others do not."""

import pytest

from torchkeep.planning import Pair, make_plan
from torchkeep.planning.renumbering import common_to_all, renumber
from torchkeep.rules import Rename
from torchkeep.tensors import TensorSpec


def linear(stem, out, into):
    return {f"{stem}.weight": (out, into), f"{stem}.bias": (out,)}


def conv(stem, out, into):
    return linear(stem, out, into) | {f"{stem}.weight": (out, into, 3, 3)}


def norm(stem, width):
    running = {f"{stem}.{name}": (width,) for name in ("weight", "bias", "running_mean", "running_var")}
    return running | {f"{stem}.num_batches_tracked": ()}


def joined(*modules):
    return {name: shape for module in modules for name, shape in module.items()}


def planned(checkpoint, model):
    sides = ({name: TensorSpec("float32", shape) for name, shape in side.items()} for side in (checkpoint, model))
    return make_plan({"": Pair(*sides, "module", "Net")}, [], source="ckpt")


def arriving(checkpoint, model):
    """Module of the model to module of the checkpoint, as the suggested rules have it, where the two names differ."""
    plan = planned(checkpoint, model)
    fitted = plan.with_rules(*plan.suggest())
    fitted.check(strict=True)
    return {
        row.name.rpartition(".")[0]: row.checkpoint_name.rpartition(".")[0]
        for row in fitted.rows
        if row.status == "matched" and row.checkpoint_name != row.name
    }


PLAIN = joined(conv("f.0", 8, 3), conv("f.2", 16, 8), conv("f.4", 16, 16), conv("f.6", 32, 16))
NORMED = joined(
    conv("f.0", 8, 3) | norm("f.1", 8),
    conv("f.3", 16, 8) | norm("f.4", 16),
    conv("f.6", 16, 16) | norm("f.7", 16),
    conv("f.9", 32, 16) | norm("f.10", 32),
)
FLAT = joined(conv("f.1.conv.0", 8, 4), norm("f.1.conv.1", 8), conv("f.1.conv.3", 6, 8), norm("f.1.conv.4", 6))
GROUPED = joined(conv("f.1.conv.0.0", 8, 4), norm("f.1.conv.0.1", 8), conv("f.1.conv.1", 6, 8), norm("f.1.conv.2", 6))


@pytest.mark.parametrize(
    ("checkpoint", "model", "moved"),
    [
        pytest.param(PLAIN, NORMED, {"f.3": "f.2", "f.6": "f.4", "f.9": "f.6"}, id="a norm behind each"),
        pytest.param(NORMED, PLAIN, {"f.2": "f.3", "f.4": "f.6", "f.6": "f.9"}, id="norms taken out"),
        pytest.param(
            FLAT,
            GROUPED,
            {
                "f.1.conv.0.0": "f.1.conv.0",
                "f.1.conv.0.1": "f.1.conv.1",
                "f.1.conv.1": "f.1.conv.3",
                "f.1.conv.2": "f.1.conv.4",
            },
            id="pairs grouped",
        ),
        pytest.param(
            joined(linear("0", 20, 10), linear("2", 30, 20), linear("4", 5, 30)),
            joined(linear("0", 30, 20), linear("2", 5, 30)),
            {"0": "2", "2": "4"},
            id="the first taken out",
        ),
        pytest.param(
            joined(*(linear(f"{at}", 8, 8) for at in (0, 2, 4)), linear("6", 2, 8)),
            joined(*(linear(f"{at}", 8, 8) for at in (0, 3, 6)), linear("9", 2, 8)),
            {"3": "2", "6": "4", "9": "6"},
            id="equal ones, as many on both sides",
        ),
        pytest.param(
            joined(linear("10", 9, 8), linear("8", 8, 4)),
            joined(linear("3", 8, 4), linear("5", 9, 8)),
            {"3": "8", "5": "10"},
            id="in the order of numbers, whatever that of the file",
        ),
        pytest.param(
            joined({"f.0.weight": (8, 3, 3, 3)}, {"f.1.weight": (16, 8, 3, 3)}),
            joined(conv("f.0", 8, 3), conv("f.3", 16, 8)),
            {"f.3": "f.1"},
            id="a bias that only one side has",
        ),
        pytest.param(
            PLAIN,
            {f"net.{name}": shape for name, shape in NORMED.items()},
            {"net.f.0": "f.0", "net.f.3": "f.2", "net.f.6": "f.4", "net.f.9": "f.6"},
            id="inside another module",
        ),
        pytest.param(
            {f"model.{name}": shape for name, shape in NORMED.items()},
            {name.replace("f.", "encoder."): shape for name, shape in PLAIN.items()},
            {f"encoder.{new}": f"model.f.{old}" for new, old in ((0, 0), (2, 3), (4, 6), (6, 9))},
            id="under another name",
        ),
    ],
)
def test_a_module_that_moved_in_its_list_gets_its_own_tensors(checkpoint, model, moved):
    assert arriving(checkpoint, model) == moved


@pytest.mark.parametrize(
    ("checkpoint", "model"),
    [
        pytest.param(
            joined(linear("0", 8, 8), linear("2", 8, 8), linear("4", 2, 8)),
            joined(*(linear(f"{at}", 8, 8) for at in (0, 1, 2, 3)), linear("4", 2, 8)),
            id="which of equal ones is new",
        ),
        pytest.param(
            joined(*(linear(f"h.{at}", 4, 4) for at in (1, 2, 3))),
            joined(*(linear(f"h.{at}", 4, 4) for at in (0, 1, 2))),
            id="blocks that nearly all have their place",
        ),
        pytest.param(
            joined(*(linear(f"h.{at}.attn", 4, 4) for at in range(4)), linear("h.1.adapter", 2, 4)),
            joined(*(linear(f"h.{at}.attn", 4, 4) for at in range(4)), linear("h.3.adapter", 2, 4)),
            id="an adapter in another block",
        ),
        pytest.param(
            joined(*(conv(f"f.{at}", at + 1, 3) for at in range(5)), conv("f.5", 64, 32)),
            joined(*(conv(f"f.{at}", at + 9, 7) for at in range(5)), conv("f.7", 64, 32)),
            id="one that fits among many that do not",
        ),
        pytest.param(PLAIN, PLAIN, id="names that agree"),
    ],
)
def test_nothing_is_moved_where_numbers_and_shapes_do_not_say_it(checkpoint, model):
    assert renumber(checkpoint, model) == {}
    assert not any(isinstance(rule, Rename) for rule in planned(checkpoint, model).suggest())


def test_what_stands_in_the_place_of_another_is_put_aside_and_skipped():
    checkpoint = joined(conv("f.0", 8, 3), norm("f.1", 8), conv("f.2", 4, 8))
    model = joined(conv("f.0", 8, 3), conv("f.1", 4, 8))
    plan = planned(checkpoint, model)
    fitted = plan.with_rules(*plan.suggest())
    aside = {row.name for row in fitted.rows if row.status == "skipped"}
    assert aside == {f"unused.{name}" for name in norm("f.1", 8)}
    assert fitted.coverage == 1.0


@pytest.mark.parametrize(
    ("left", "right", "sure"),
    [
        ("", "abc", []),
        ("abc", "xaxbxcx", [(0, 1), (1, 3), (2, 5)]),
        ("aab", "aaab", [(2, 3)]),
        ("ab", "ba", []),
        ("abcd", "abdc", [(0, 0), (1, 1)]),
    ],
)
def test_only_what_each_longest_common_sequence_pairs_is_sure(left, right, sure):
    assert common_to_all(left, right) == sure
