"""Which entry of a checkpoint is taken to be the weights."""

import pytest

from torchkeep.errors import LimitError, NotFoundError, PlanError
from torchkeep.planning import find_weights
from torchkeep.tensors import Described, TensorSpec

T = TensorSpec("float32", (4, 4))
STATE = {"conv.weight": T, "conv.bias": T, "fc.weight": T}
ADAM = {"state": {0: {"exp_avg": T, "exp_avg_sq": T}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        (STATE, ()),
        ({"weight": T}, ()),
        ({**STATE, "_extra_state": Described("x.Y"), "_metadata": {"version": 1}}, ()),
        ({"model": STATE, "optimizer": ADAM, "epoch": 3}, ("model",)),
        ({"state_dict": STATE, "optimizer_states": [ADAM], "hyper_parameters": {"lr": 1}}, ("state_dict",)),
        (
            {"model": {"state_dict": STATE, "model_args": {"dim": 64}}, "optimizer": ADAM, "history": {"loss": [1.0]}},
            ("model", "state_dict"),
        ),
        ({"model_ema": STATE, "model": STATE}, ("model",)),
        ({"ema": {"model": STATE}, "net_g": STATE}, ("net_g",)),
        ({"state_dict_ema": STATE, "epoch": 3}, ("state_dict_ema",)),
        ({"backbone": STATE, "epoch": 3, "opt": ADAM}, ("backbone",)),
        ({"params": {"Dense": {"kernel": T, "bias": T}, "Norm": {"scale": T}}}, ("params",)),
        ({"alpha": T, "gamma": T, "model": STATE}, ("model",)),
        ({"epoch": 3, "loss": {"alpha": T}, "net": {f"{i}.weight": T for i in range(9)}}, ("net",)),
        ({"head": {"w": T}, "body": {f"{i}.weight": T for i in range(10)}}, ("body",)),
        ([{"epoch": 1}, {"model": STATE}], (1, "model")),
        ({"model": Described("collections.Sub", state=STATE)}, ("model",)),
        ({"optimizer": {"fc.exp_avg": T, "fc.step": T}, "m": STATE}, ("m",)),
        ({"rng_state": T, "cuda_rng": {"0": T}, "m": STATE}, ("m",)),
        ({"model": {"optimizer_head.weight": T, "fc.weight": T}}, ("model",)),
    ],
)
def test_the_weights_are_found_where_people_put_them(tree, path):
    assert find_weights(tree).path == path


def test_what_was_not_taken_is_told_with_its_reason():
    found = find_weights({"model": {"state_dict": STATE}, "ema": STATE, "extra": STATE, "optimizer": ADAM})
    assert (found.name, found.tensors) == ("model.state_dict", STATE)
    assert found.others == (
        ("extra", 3, "not a usual name for weights"),
        ("ema", 3, "EMA; raw weights go first"),
        ("optimizer", 2, "optimizer state"),
    )


def test_nested_mappings_become_dotted_names():
    found = find_weights({"params": {"enc": {"w": T}, "dec": {"w": T}}})
    assert list(found.tensors) == ["enc.w", "dec.w"]


def test_a_module_saved_whole_gives_the_names_of_its_state_dict():
    bn = {"_parameters": {"weight": T, "bias": None}, "_buffers": {"mean": T, "tmp": T}, "_modules": {}}
    bn["_non_persistent_buffers_set"] = {"tmp"}
    net = {"_parameters": {}, "_buffers": {}, "_modules": {"bn": Described("torch.nn.BatchNorm1d", state=bn)}}
    found = find_weights({"model": Described("lib.Net", state=net), "epoch": 3})
    assert (found.path, list(found.tensors)) == (("model",), ["bn.weight", "bn.mean"])


def test_two_that_could_be_meant_are_listed_and_not_chosen_between():
    with pytest.raises(PlanError) as refused:
        find_weights({"G": STATE, "D": {"w.weight": T, "w.bias": T}, "opt_g": ADAM})
    assert str(refused.value) == (
        "2 entries could be the weights\n  G   3 tensors\n  D   2 tensors\n"
        '  hint: name the one that is meant: into={"G": model}'
    )


@pytest.mark.parametrize("tree", [ADAM, {"optimizer": ADAM, "epoch": 3}, {"epoch": 3}, {}, T, [T, T], None])
def test_without_weights_what_is_there_is_listed(tree):
    with pytest.raises(NotFoundError, match="no entry looks like weights"):
        find_weights(tree)


def test_the_error_without_weights_says_what_is_there():
    with pytest.raises(NotFoundError) as refused:
        find_weights({"optimizer": ADAM, "epoch": 3})
    assert refused.value.faults == ("optimizer   2 tensors: optimizer state", "epoch   int")
    assert refused.value.remedy == "is this the file that was meant? torchkeep show lists what is in it"


def test_hints_name_an_entry_that_is_there_by_its_whole_path():
    with pytest.raises(NotFoundError, match=r'hint: if scheduler is meant, name it: into=\{"a.scheduler": model\}$'):
        find_weights({"scheduler": STATE}, below=("a",))
    with pytest.raises(PlanError, match=r'name the one that is meant: into=\{"a.G": model\}$'):
        find_weights({"G": STATE, "D": STATE}, below=("a",))


def test_a_tree_that_contains_itself_is_a_limit_error():
    tree = {"model": {}}
    tree["model"]["model"] = tree
    with pytest.raises(LimitError):
        find_weights(tree)


def test_a_module_inside_itself_many_times_ends():
    tree = STATE
    for _ in range(900):
        tree = {"x": tree}
    with pytest.raises(NotFoundError):
        find_weights(tree)
