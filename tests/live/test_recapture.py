"""A capture that uses the last one again says what a new one says, whatever was done to the objects in between."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from torchkeep.live.capture import capture_entries
from torchkeep.live.recapture import Recapture


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Linear(6, 6)
        self.register_buffer("seen", torch.zeros(2))
        self.scale = nn.Parameter(torch.ones(2))
        self.register_buffer("none", torch.zeros(0, 3))
        self.register_buffer("cache", torch.zeros(2), persistent=False)
        self.register_buffer("phases", torch.rand(3, dtype=torch.complex64))


@pytest.fixture
def given():
    model = Net()
    optimizer = torch.optim.Adam(
        [{"params": model.body.parameters()}, {"params": [*model.head.parameters(), model.scale]}], lr=0.1
    )
    step(model, optimizer)
    return {"model": model, "optimizer": optimizer, "progress": {"epoch": 0, "seen": torch.zeros(3)}}


def step(model, optimizer):
    for parameter in model.parameters():
        parameter.grad = torch.rand_like(parameter)
    optimizer.step()


def replace_a_parameter(given):
    given["model"].head.weight = nn.Parameter(torch.rand(6, 6))


def turn_a_parameter_in_place(given):
    given["model"].head.weight.data = given["model"].head.weight.data.t()


def conjugate_a_buffer(given):
    given["model"].phases.data = given["model"].phases.data.conj()


def let_another_buffer_persist(given):
    given["model"]._non_persistent_buffers_set ^= {"cache", "seen"}


def give_a_state_dict_of_its_own(given):
    state_dict = given["model"].state_dict
    given["model"].state_dict = lambda **options: {k: v for k, v in state_dict(**options).items() if "head" in k}


def take_a_state_back(given):
    given["optimizer"].load_state_dict(copy.deepcopy(given["optimizer"].state_dict()))


def become_another(given):
    vars(given["model"].head).update(vars(nn.Linear(6, 6)))


def tie_two_parameters(given):
    given["model"].other = nn.Linear(6, 6)
    given["model"].other.weight = given["model"].head.weight


def add_a_group(given):
    given["model"].new = nn.Linear(2, 2)
    given["optimizer"].add_param_group({"params": given["model"].new.parameters(), "lr": 3.0})


def swap_two_parameters_of_a_group(given):
    params = given["optimizer"].param_groups[0]["params"]
    params[0], params[1] = params[1], params[0]


def keep_what_the_model_keeps(given):
    given["progress"]["seen"] = given["model"].seen


def replace_a_table(name, change):
    def act(given):
        owner = given["optimizer" if name in {"state", "param_groups"} else "model"]
        setattr(owner, name, copy.copy(getattr(owner, name)))
        change(given)

    return act


def replace_a_group(given):
    first, *others = given["optimizer"].param_groups
    given["optimizer"].param_groups[:] = [{**first, "params": list(first["params"][::-1])}, *others]


def train_a_moment(given):
    given["optimizer"].state[given["model"].head.weight]["exp_avg"].requires_grad_()


def add_a_hook(given):
    given["model"].register_state_dict_post_hook(lambda module, state, prefix, _: state.update({prefix + "more": 3}))


CHANGES = {
    "nothing": lambda given: None,
    "a step": lambda given: step(given["model"], given["optimizer"]),
    "another learning rate": lambda given: given["optimizer"].param_groups[0].update(lr=0.5),
    "a learning rate that is a tensor": lambda given: given["optimizer"].param_groups[0].update(lr=torch.tensor(0.5)),
    "plain values": lambda given: given["progress"].update(epoch=7, loss=float("inf")),
    "frozen": lambda given: given["model"].body.requires_grad_(False),
    "evaluation": lambda given: given["model"].body.eval(),
    "another parameter": replace_a_parameter,
    "other strides": turn_a_parameter_in_place,
    "another dtype": lambda given: given["model"].half(),
    "channels last": lambda given: given["model"].to(memory_format=torch.channels_last),
    "tied": tie_two_parameters,
    "a state that is loaded": take_a_state_back,
    "attributes of another": become_another,
    "a conjugate": conjugate_a_buffer,
    "another buffer that persists": let_another_buffer_persist,
    "a state dict of its own": give_a_state_dict_of_its_own,
    "a new group": add_a_group,
    "another order": swap_two_parameters_of_a_group,
    "a buffer made anew": lambda given: setattr(given["model"], "seen", torch.ones(2)),
    "a buffer that goes": lambda given: delattr(given["model"], "seen"),
    "a buffer that is kept now": lambda given: given["model"]._non_persistent_buffers_set.clear(),
    "a module more": lambda given: given["model"].add_module("more", nn.Linear(1, 1)),
    "a module renamed": lambda given: given["model"]._modules.update(tail=given["model"]._modules.pop("head")),
    "state that goes": lambda given: given["optimizer"].state.clear(),
    "state of another kind": lambda given: given["optimizer"].state[given["model"].head.weight].update(step=3),
    "parameters replaced": replace_a_table("_parameters", lambda given: setattr(given["model"], "scale", None)),
    "buffers replaced": replace_a_table("_buffers", lambda given: given["model"]._buffers.update(seen=torch.ones(2))),
    "modules replaced": replace_a_table("_modules", lambda given: setattr(given["model"], "head", nn.Linear(6, 6))),
    "what is not kept replaced": replace_a_table(
        "_non_persistent_buffers_set", lambda given: given["model"]._non_persistent_buffers_set.clear()
    ),
    "state replaced": replace_a_table("state", lambda given: given["optimizer"].state.clear()),
    "groups replaced": replace_a_table("param_groups", lambda given: given["optimizer"].param_groups.reverse()),
    "a hook on the optimizer's state": lambda given: given["optimizer"].register_state_dict_post_hook(
        lambda optimizer, state: state.update(more=3)
    ),
    "a group replaced": replace_a_group,
    "parameters of a group replaced": lambda given: (
        given["optimizer"].param_groups[0].update(params=given["optimizer"].param_groups[0]["params"][::-1])
    ),
    "the same bits as another dtype": lambda given: setattr(
        given["model"].seen, "data", given["model"].seen.data.view(torch.int32)
    ),
    "an empty buffer of another shape": lambda given: setattr(given["model"].none, "data", torch.zeros(0, 4)),
    "a moment that trains": train_a_moment,
    "tied to what is beside": keep_what_the_model_keeps,
    "a hook on the state": add_a_hook,
}


def described(captured):
    groups = {
        group: {name: (each.spec, each.may_change, bytes(each.read())) for name, each in tensors.items()}
        for group, tensors in captured.groups.items()
    }
    return captured.entries, groups


@pytest.mark.parametrize("change", CHANGES)
def test_a_capture_again_is_as_a_new_one(change, given):
    recapture = Recapture(given)
    for act in (lambda _: None, CHANGES[change], CHANGES["a step"], CHANGES["plain values"]):
        recapture.capture()
        if act is CHANGES["a step"] and change in {"another dtype", "other strides", "state of another kind"}:
            continue  # torch's own step refuses these
        act(given)
        assert described(recapture.capture()) == described(capture_entries(given))


def test_what_did_not_change_its_structure_is_not_described_again(given):
    recapture = Recapture(given)
    first = recapture.capture()
    step(given["model"], given["optimizer"])
    given["progress"]["epoch"] = 1
    again = recapture.capture()
    assert again.groups["model"] is first.groups["model"]
    assert again.groups["optimizer"] is first.groups["optimizer"]
    assert again.groups["progress"] is not first.groups["progress"]


@pytest.mark.parametrize("order", [["progress", "model"], ["model", "progress"]])
def test_a_tie_to_what_is_captured_anew_is_found_in_either_order(order, given):
    keep_what_the_model_keeps(given)
    given = {name: given[name] for name in order}
    recapture = Recapture(given)
    recapture.capture()
    given["progress"]["seen"] = torch.zeros(2)
    assert described(recapture.capture()) == described(capture_entries(given))
    keep_what_the_model_keeps(given)
    captured = recapture.capture()
    assert sum("seen" in name for tensors in captured.groups.values() for name in tensors) == 1


def test_memory_that_moves_is_described_again(given):
    recapture = Recapture(given)
    first = recapture.capture()
    given["model"].share_memory()  # the tensors, their views and their storages are the same objects as before
    assert recapture.capture().groups["model"] is not first.groups["model"]
