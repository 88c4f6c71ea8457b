"""The tree of a checkpoint as text, exactly."""

from __future__ import annotations

import pytest

from torchkeep.errors import LimitError
from torchkeep.tensors import Described, TensorSpec, format_bytes
from torchkeep.verbs.outline import MAX_LINES, outline

T = TensorSpec("float32", (2,))
U = TensorSpec("float32", (3,))
HALF = TensorSpec("float16", (2,))
MODULE = {"_parameters": {"weight": T, "bias": None}, "_buffers": {"mean": U}, "_modules": {}, "_hooks": {}}


@pytest.mark.parametrize(
    ("tree", "lines"),
    [
        ({}, ["no tensors, 0 values"]),
        (T, ["1 tensor, 8 bytes", "└─ ''  float32 (2,)"]),
        (None, ["no tensors, 1 value", "└─ ''  None"]),
        ({"w": TensorSpec("int64", (), device="cuda:7")}, ["1 tensor, 8 bytes", "└─ w  int64 () cuda:7"]),
        ({"w": TensorSpec("int64", (), device="cpu")}, ["1 tensor, 8 bytes", "└─ w  int64 ()"]),
        ({"a.b.c": T}, ["1 tensor, 8 bytes", "└─ a.b.c  float32 (2,)"]),
        ({".a": T, "b..c": 1, "": 2}, ["1 tensor, 8 bytes", "├─ .a  float32 (2,)", "├─ b..c  1", "└─ ''  2"]),
        ({"a.b": T, "a": {"b": U}}, ["2 tensors, 20 bytes", "├─ a.b  float32 (2,)", "└─ a~2.b  float32 (3,)"]),
        (
            {"a": T, "a.b": U},
            ["2 tensors, 20 bytes", "└─ a  float32 (2,), 2 tensors, 20 bytes", "   └─ b  float32 (3,)"],
        ),
        ({"e": {}, "n": None, "d": {"k": {}}}, ["no tensors, 1 value", "├─ e  empty", "├─ n  None", "└─ d.k  empty"]),
        (
            {1: "one", (2, 3): b"two", "t": (1, [T])},
            [
                "1 tensor, 8 bytes",
                "├─ 1  'one'",
                "├─ (2, 3)  b'two'",
                "└─ t  1 tensor, 8 bytes",
                "   ├─ 0  1",
                "   └─ 1.0  float32 (2,)",
            ],
        ),
        ({"big": 1 << 20_000}, ["no tensors, 1 value", "└─ big  an integer of 20,001 bits"]),
        ({"deep": [[[[1]]]]}, ["no tensors, 1 value", "└─ deep  [[[[...]]]]"]),
        ({"s": {4}, "t": (1,), "u": set()}, ["no tensors, 3 values", "├─ s  {4}", "├─ t  (1,)", "└─ u  set()"]),
        (dict.fromkeys(range(1001), 1), ["no tensors, 1,001 values"]),
        (
            {"l": list(range(99))},
            ["no tensors, 1 value", "└─ l  [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16..."],
        ),
        (
            {"m": Described("my.Net", state=MODULE)},
            [
                "2 tensors, 20 bytes",
                "└─ m  Net, 2 tensors, 20 bytes",
                "   ├─ weight  float32 (2,)",
                "   └─ mean  float32 (3,)",
            ],
        ),
        (
            Described("a.B", args=(T, 1), kwargs={"k": U}),
            ["B, 2 tensors, 20 bytes", "├─ arg0  float32 (2,)", "├─ arg1  1", "└─ k  float32 (3,)"],
        ),
    ],
)
def test_small_trees_are_told_exactly(tree, lines):
    assert outline("x", tree) == "x: " + "\n".join(lines)


@pytest.mark.parametrize(
    ("layers", "rows"),
    [
        ([{"w": T}, {"w": T}], ["0 ... 1  (2 alike, each 1 tensor, 8 bytes)", "w"]),
        ([{"w": T}, {"w": U}], ["0.w", "1.w"]),
        ([{"w": T}, {"w": HALF}], ["0.w", "1.w"]),
        ([{"w": T}, {"v": T}], ["0.w", "1.v"]),
        ([T, T, T], ["0 ... 2  (3 alike, each float32 (2,))"]),
        ([{"lr": 1}, {"lr": 1}, {"lr": 2}], ["0 ... 1  (2 alike, each 1 value)", "lr", "2.lr"]),
        ([{"w": T, "b": 1}, {"w": T, "b": 2}], ["0", "w", "b", "1", "w", "b"]),
        ([{"w": T}, {"w": U}] * 8, ["0 ... 15  (16 with equal names, 16 tensors, 160 bytes)"]),
        ([{"w": T}, {"w": HALF}] * 5, [f"{index}.w" for index in range(10)]),
        ([{"w": T}, {"v": U}] * 5, [f"{index}.{'wv'[index % 2]}" for index in range(10)]),
        ([{"lr": index} for index in range(10)], [f"{index}.lr" for index in range(10)]),
    ],
)
def test_neighbours_are_folded_only_when_equal_and_in_long_lists_when_only_shapes_differ(layers, rows):
    lines = outline("x", layers).splitlines()[1:]

    assert [line.strip("│├└─ ") if "..." in line else line.strip("│├└─ ").partition("  ")[0] for line in lines] == rows


def test_layers_with_a_gap_between_their_numbers_are_not_one_row():
    tree = {"0": {"w": T}, "1": {"w": T}, "3": {"w": T}, "04": {"w": T}}

    assert outline("x", tree).splitlines()[1:] == [
        "├─ 0 ... 1  (2 alike, each 1 tensor, 8 bytes)",
        "│  └─ w  float32 (2,)",
        "├─ 3.w  float32 (2,)",
        "└─ 04.w  float32 (2,)",
    ]


def test_what_does_not_fit_is_counted_and_levels_with_tensors_are_opened_before_values():
    values = {f"v{index}": index for index in range(18)}
    tensors = {f"w{index}": T for index in range(30)}
    lines = outline("x", {"args": values, "history": dict(values), "net": tensors}).splitlines()

    assert lines[0] == "x: 30 tensors, 240 bytes"
    assert lines[1] == "├─ args  18 values"
    assert lines[2] == "├─ history  18 values"
    assert lines[3] == "└─ net  30 tensors, 240 bytes"
    assert lines[-1] == "   └─ ... 11 more, 11 tensors, 88 bytes"
    assert len(lines) == 24


@pytest.mark.parametrize(
    "tree",
    [
        {f"l{a}.{b}.w{c}": T for a in range(9) for b in "xyz" for c in "pqr"},
        {"x" * 10_000: "y" * 10_000_000, "z": [["q" * 1_000_000] * 1000] * 1000},
        {".".join("0" * 100_000): T, "b": T},
        dict.fromkeys(range(100_000), 1),
        {f"k{index}": {f"m{inner}": inner for inner in range(5)} for index in range(500)},
    ],
    ids=["wide", "long", "dotted", "values", "many"],
)
def test_any_tree_fits_a_screen(tree):
    lines = outline("x", tree).splitlines()

    assert len(lines) <= MAX_LINES
    assert max(map(len, lines)) <= 160


def nested(depth: int) -> object:
    node: object = {"w": T}
    for _ in range(depth):
        node = {"inner": node, "value": 1}
    return node


def test_what_is_nested_deeper_than_is_told_is_counted():
    assert outline("x", nested(950)).splitlines()[0] == "x: 1 tensor, 8 bytes"


def test_a_tree_that_contains_itself_is_a_limit_error():
    tree: dict[str, object] = {}
    tree["self"] = tree
    with pytest.raises(LimitError, match="contains itself"):
        outline("x", tree)


@pytest.mark.parametrize(
    ("count_bytes", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (14_156_352, "14.2 MB"),
        (10**12, "1.0 TB"),
        (10**16, "10000.0 TB"),
    ],
)
def test_bytes_are_told_in_powers_of_a_thousand(count_bytes, text):
    assert format_bytes(count_bytes) == text
