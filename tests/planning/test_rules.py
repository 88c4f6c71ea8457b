"""Rules are values: they say what they match, refuse what they cannot mean, and print as the code that makes them."""

import pytest

from torchkeep.planning.globs import exact_glob, matches
from torchkeep.rules import Cast, Only, Rename, Skip


@pytest.mark.parametrize(
    ("glob", "name", "means"),
    [
        ("fc", "fc", True),
        ("fc", "fc.weight", True),
        ("fc", "fc2.weight", False),
        ("fc", "layer.fc.weight", False),
        ("*.bias", "layer1.0.conv.bias", True),
        ("*", "anything.at.all", True),
        ("layer?", "layer1", True),
        ("layer?", "layer1.weight", False),
        ("layer[34].*", "layer3.0.weight", True),
        ("FC", "fc", False),
        ("a[[]0]", "a[0]", True),
        ("", "", True),
        ("", ".weight", False),
    ],
)
def test_a_glob_crosses_dots_and_a_bare_name_means_its_subtree(glob, name, means):
    assert matches(glob, name) is means


@pytest.mark.parametrize("name", ["fc", "a[0]", "wei!", "what?", "x*", "a.b", "]", ""])
def test_an_exact_glob_means_its_name_and_no_subtree(name):
    assert matches(exact_glob(name), name)
    assert not matches(exact_glob(name), f"{name}.weight")


@pytest.mark.parametrize(
    "rule",
    [
        Rename(r"^backbone\.", ""),
        Rename(r"(\d+)", r"\1\\"),
        Rename('say "x"\n', "\u2028"),
        Rename({"a": "b", 'c"': "\\"}, entry="G"),
        Rename("trailing\\\\", "x"),
        Skip("fc", "*.num_batches_tracked"),
        Skip("fc", entry='"'),
        Only("é"),
        Cast(),
        Cast(entry="model"),
        Cast("a", entry="model"),
    ],
)
def test_a_rule_prints_as_the_code_that_makes_it(rule):
    again = eval(repr(rule), {"Rename": Rename, "Skip": Skip, "Only": Only, "Cast": Cast})
    assert again == rule
    assert hash(again) == hash(rule)


def test_a_rule_prints_the_way_people_write_it():
    assert repr(Rename(r"^backbone\.", "")) == r'Rename(r"^backbone\.", "")'
    assert repr(Skip("fc", entry="G")) == 'Skip("fc", entry="G")'
    assert repr(Cast(entry="G")) == 'Cast(entry="G")'


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: Rename("(", ""), ValueError, 'the pattern "(" is no regular expression'),
        (lambda: Rename("a", r"\2"), ValueError, r'the replacement r"\2" does not go with "a"'),
        (lambda: Rename("a", r"\g<x>"), ValueError, r'the replacement r"\g<x>" does not go with "a"'),
        (lambda: Rename("a"), TypeError, "Rename needs a replacement"),
        (lambda: Rename({"a": "b"}, "c"), TypeError, "a mapping of names alone"),
        (lambda: Rename({"a": 1}), TypeError, "not 1 of type int"),
        (lambda: Rename(3, "b"), TypeError, "not 3 of type int"),
        (Skip, ValueError, 'Skip needs at least one glob, for example Skip("fc")'),
        (Only, ValueError, "Only needs at least one glob"),
        (lambda: Skip(["a", "b"]), TypeError, "Skip takes strings, one argument each"),
        (lambda: Cast("a", entry=3), TypeError, "Cast(entry=...) takes the name of one entry"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused_where_it_is_made(make, error, text):
    with pytest.raises(error) as refused:
        make()
    assert text in str(refused.value)


def test_a_mapping_renames_all_at_once_so_that_two_names_can_be_swapped():
    swap = Rename({"a": "b", "b": "a"})
    assert [swap.apply(name) for name in ("a", "b", "c", "a.x")] == ["b", "a", "c", "a.x"]


def test_equal_globs_of_different_rules_are_different_rules():
    assert Skip("fc") != Only("fc")
