"""What becomes of each tensor when a checkpoint is laid beside a model."""

from types import MappingProxyType

import pytest

from torchkeep.planning import Pair, make_plan
from torchkeep.planning.widening import widens
from torchkeep.rules import Cast, Only, Rename, Skip
from torchkeep.tensors import TensorSpec

W = TensorSpec("float32", (4, 3))
HALF = TensorSpec("float16", (4, 3))


def rows_of(checkpoint, model, rules=(), *, kind="module", optional=MappingProxyType({})):
    pair = Pair(checkpoint, model, kind, "Net", optional=optional)
    return make_plan({"": pair}, rules, source="ckpt").rows


def told(rows):
    return [(row.name, row.checkpoint_name, row.status.value, [change.value for change in row.changes]) for row in rows]


def test_a_row_says_status_specs_and_reason():
    (row,) = rows_of({"w": HALF}, {"w": W})
    assert (row.entry, row.name, row.checkpoint_name, row.checkpoint, row.model) == ("", "w", "w", HALF, W)
    assert told([row]) == [("w", "w", "matched", ["cast"])]
    assert row.reason == "float16 to float32 keeps every value"


@pytest.mark.parametrize(
    ("checkpoint", "model", "rules", "expected", "reason"),
    [
        ({"w": W}, {"w": W}, [], ("w", "w", "matched", []), "loads as it was saved"),
        (
            {},
            {"w": W},
            [],
            ("w", None, "only_in_model", []),
            "stays at its initial value: no such tensor in the checkpoint",
        ),
        ({"w": W}, {}, [], ("w", "w", "only_in_checkpoint", []), "not loaded: no such tensor in the model"),
        (
            {"w": TensorSpec("float32", (3, 4))},
            {"w": W},
            [],
            ("w", "w", "shape_differs", []),
            "stays at its initial value: shape (3, 4) in the checkpoint, (4, 3) in the model",
        ),
        (
            {"w": W},
            {"w": HALF},
            [],
            ("w", "w", "dtype_differs", []),
            "stays at its initial value: narrowing float32 to float16 needs Cast()",
        ),
        ({"w": W}, {"w": HALF}, [Cast("w")], ("w", "w", "matched", ["cast"]), 'float32 to float16 by Cast("w")'),
        (
            {"v": W},
            {"w": HALF},
            [Rename("v", "w"), Cast()],
            ("w", "v", "matched", ["renamed", "cast"]),
            "v in the checkpoint (Rename); float32 to float16 by Cast()",
        ),
        ({"fc.w": W}, {"fc.w": W}, [Skip("fc")], ("fc.w", "fc.w", "skipped", []), 'Skip("fc")'),
        ({"fc.w": W}, {}, [Skip("fc")], ("fc.w", "fc.w", "skipped", []), 'not loaded: Skip("fc")'),
        ({}, {"fc.w": W}, [Only("a")], ("fc.w", None, "skipped", []), 'stays at its initial value: Only("a")'),
        (
            {"b": TensorSpec("int64", (1,))},
            {"b": TensorSpec("int64", ())},
            [],
            ("b", "b", "matched", ["adapted"]),
            "one element becomes a scalar",
        ),
    ],
)
def test_each_outcome_has_its_status_and_its_reason(checkpoint, model, rules, expected, reason):
    rows = rows_of(checkpoint, model, rules)
    assert told(rows) == [expected]
    assert rows[0].reason.endswith(reason)


@pytest.mark.parametrize(
    ("source", "target", "exact"),
    [
        ("float16", "float32", True),
        ("bfloat16", "float32", True),
        ("float32", "float64", True),
        ("float16", "bfloat16", False),
        ("bfloat16", "float16", False),
        ("float32", "float16", False),
        ("float8_e5m2", "float16", True),
        ("float8_e4m3fn", "bfloat16", True),
        ("float8_e4m3fn", "float8_e5m2", False),
        ("int32", "int64", True),
        ("int64", "int32", False),
        ("uint8", "int16", True),
        ("uint8", "int8", False),
        ("int8", "uint8", False),
        ("bool", "int8", True),
        ("uint8", "bool", False),
        ("bool", "bfloat16", True),
        ("uint8", "bfloat16", True),
        ("int16", "float16", False),
        ("int16", "float32", True),
        ("int64", "float32", False),
        ("int64", "float64", False),
        ("int32", "float64", True),
        ("complex64", "complex128", True),
        ("complex64", "float32", False),
        ("float32", "int64", False),
        ("float4_e2m1fn_x2", "float32", False),
    ],
)
def test_a_dtype_widens_only_where_every_value_is_kept(source, target, exact):
    assert widens(source, target) is exact


@pytest.mark.parametrize(
    ("saved", "wanted"),
    [
        ("module.fc.w", "fc.w"),
        ("fc.w", "module.fc.w"),
        ("_orig_mod.module.net._fsdp_wrapped_module.fc._checkpoint_wrapped_module.w", "net.fc.w"),
        ("module.fc.w", "_orig_mod.fc.w"),
        ("net.module.fc.w", "net._orig_mod.fc.w"),
    ],
)
def test_wrapper_segments_in_a_name_do_not_matter(saved, wanted):
    # A second tensor in plain form keeps the whole of a side from being one wrapper.
    rows = rows_of({saved: W, "a": HALF}, {wanted: W, "a": HALF})
    assert told(rows) == [(wanted, saved, "matched", ["renamed"]), ("a", "a", "matched", [])]
    assert "wrapper segments of the names differ" in rows[0].reason


def test_a_child_that_is_really_called_module_keeps_its_name():
    names = {"module.fc.w": W, "fc.w": W, "_orig_mod": W}
    assert all(row.status == "matched" and not row.changes for row in rows_of(names, names))


def test_inside_a_wrapper_a_child_called_module_is_not_taken_for_the_wrapper():
    rows = rows_of({"module.module.w": W, "module.w": W}, {"module.w": W, "w": W})
    assert told(rows) == [
        ("module.w", "module.module.w", "matched", ["renamed"]),
        ("w", "module.w", "matched", ["renamed"]),
    ]
    rows = rows_of({"module.w": W, "w": W}, {"module.module.w": W, "module.w": W})
    assert [row.checkpoint_name for row in rows] == ["module.w", "w"]


def test_a_wrapper_is_never_dropped_onto_a_name_that_another_tensor_has():
    rows = rows_of({"fc.w": HALF, "module.fc.w": W}, {"fc.w": W})
    assert told(rows) == [
        ("fc.w", "fc.w", "matched", ["cast"]),
        ("module.fc.w", "module.fc.w", "only_in_checkpoint", []),
    ]


def test_two_wrapped_names_for_one_tensor_are_not_guessed_between():
    rows = rows_of({"module.w": W, "_orig_mod.w": W}, {"w": W})
    assert [row.status.value for row in rows] == ["only_in_model", "only_in_checkpoint", "only_in_checkpoint"]
    rows = rows_of({"w": W}, {"module.w": W, "_orig_mod.w": W})
    assert [row.status.value for row in rows] == ["only_in_model", "only_in_model", "only_in_checkpoint"]


def test_renames_act_one_after_the_other_and_the_rest_on_the_names_they_make():
    rows = rows_of({"a.w": W}, {"c.w": W}, [Skip("a"), Rename("^a", "b"), Rename("^b", "c"), Skip("b")])
    assert told(rows) == [("c.w", "a.w", "matched", ["renamed"])]


def test_a_rule_for_one_entry_leaves_the_others_alone():
    pair = Pair({"w": W}, {"w": W}, "module", "Net")
    plan = make_plan({"G": pair, "D": pair}, [Skip("w", entry="G")], source="ckpt")
    assert [(row.entry, row.status.value) for row in plan.rows] == [("G", "skipped"), ("D", "matched")]


def test_an_optimizer_has_no_dtypes_to_compare_and_an_unknown_shape_fits():
    rows = rows_of({"a": W, "b": None, "c": W}, {"a": HALF, "b": W, "d": W}, kind="optimizer")
    assert [(row.name, row.status.value) for row in rows] == [
        ("a", "matched"),
        ("b", "matched"),
        ("d", "only_in_model"),
        ("c", "only_in_checkpoint"),
    ]
    assert rows[2].reason == "starts without optimizer state: no such tensor in the checkpoint"


def test_what_the_model_does_without_is_skipped_when_the_checkpoint_has_none():
    rows = rows_of({"bn.w": W}, {"bn.w": W, "bn.n": W}, optional={"bn.n": "why"})
    assert told(rows)[1] == ("bn.n", None, "skipped", [])
    assert rows_of({"bn.n": W}, {"bn.n": W}, optional={"bn.n": "why"})[0].status == "matched"
