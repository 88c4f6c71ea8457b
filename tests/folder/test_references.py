"""The tensors that nodes refer to are found wherever they stand."""

import pytest

from torchkeep.folder.references import references_in

W, B = {"$tensor": ["model", "w"]}, {"$tensor": ["model", "b"]}


@pytest.mark.parametrize(
    ("node", "found"),
    [
        (W, ["w"]),
        ({"b": B, "w": [W, 1, {"again": B}]}, ["b", "w", "b"]),
        ({"$dict": [["first", W], [{"$tuple": [B]}, None]]}, ["w", "b"]),
        ({"$numpy.tensor": W}, ["w"]),
        ({**W, "attributes": {"scale": B}}, ["w", "b"]),
        ({"$tensor": ["model"]}, []),
        ([{"$tensor": "model"}, 1, None, "w"], []),
        (None, []),
    ],
)
def test_references_are_found_in_order_and_what_is_none_is_passed_over(node, found):
    assert list(references_in(node)) == [("model", name) for name in found]


def test_a_tree_may_be_deeper_than_the_interpreter_recurses():
    node = W
    for _ in range(100_000):
        node = [node]
    assert list(references_in(node)) == [("model", "w")]
