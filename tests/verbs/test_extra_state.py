"""Extra state goes by the plan too: renamed and skipped like tensors, and a difference where one side has it alone."""

import pytest
import torch
from torch import nn

import torchkeep as tk
from torchkeep.errors import PlanError


class Counting(nn.Linear):
    """A layer whose state has a number beside its tensors."""

    def __init__(self, calls=0):
        super().__init__(2, 2)
        self.calls = calls

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]


@pytest.mark.parametrize(
    ("prefix", "make", "rules"),
    [
        ("module.", Counting, ()),
        ("_orig_mod.", lambda: nn.DataParallel(Counting()), ()),
        ("body.", Counting, [tk.Rename(r"^body\.", "")]),
        ("", lambda: nn.Sequential(Counting()), [tk.Rename("^", "0.")]),
    ],
)
def test_extra_state_arrives_under_the_names_that_wrappers_and_renames_leave(tmp_path, prefix, make, rules):
    saved = Counting(calls=7)
    torch.save({prefix + name: value for name, value in saved.state_dict().items()}, tmp_path / "net.pt")
    model = make()
    assert tk.load(tmp_path / "net.pt", into=model, rules=rules).notes == ()
    (live,) = (each for each in model.modules() if isinstance(each, Counting))
    assert live.calls == 7
    assert torch.equal(live.weight, saved.weight)


@pytest.mark.parametrize(
    ("saved", "into", "side"),
    [(Counting(7), nn.Linear(2, 2), "checkpoint"), (nn.Linear(2, 2), Counting(3), "model")],
)
def test_extra_state_of_one_side_alone_is_a_difference_that_a_rule_or_strict_false_accepts(tmp_path, saved, into, side):
    torch.save(saved.state_dict(), tmp_path / "net.pt")
    before = into.weight.clone()
    plan = tk.plan(tmp_path / "net.pt", into=into)
    fault = rf'_extra_state, which is no plain tensor, is only in the {side}: Skip\("_extra_state"\) leaves it alone'
    with pytest.raises(PlanError, match=fault):
        plan.apply()
    assert torch.equal(into.weight, before)
    for load in (lambda: plan.apply(strict=False), plan.with_rules(tk.Skip("_extra_state")).apply):
        with torch.no_grad():
            into.weight.zero_()
        assert load().notes == ()
        assert torch.equal(into.weight, saved.weight)
    assert getattr(into, "calls", 3) == 3


def test_extra_state_that_a_rule_skips_stays_as_it_is(tmp_path):
    tk.save(nn.Sequential(Counting(7), Counting(8)), tmp_path / "ckpt")
    model = nn.Sequential(Counting(1), Counting(2))
    tk.load(tmp_path / "ckpt", into=model, rules=[tk.Only("1")])
    assert (model[0].calls, model[1].calls) == (1, 8)


class Older(nn.Linear):
    """A layer that overrides loading as it was before torch had ``assign``."""

    def load_state_dict(self, state_dict, strict=True):
        return super().load_state_dict({name: value + 1 for name, value in state_dict.items()}, strict)


def test_a_loader_that_does_not_know_assign_is_called_without_it(tmp_path):
    saved, model = nn.Linear(2, 2), Older(2, 2)
    tk.save(saved, tmp_path / "ckpt")
    tk.load(tmp_path / "ckpt", into=model)
    assert torch.equal(model.weight, saved.weight + 1)


def test_a_refusal_says_the_first_of_torchs_reasons_and_not_only_that_there_are_some(tmp_path):
    class Strict(nn.Linear):
        def load_state_dict(self, state_dict, strict=True):
            return super().load_state_dict({**state_dict, "surplus": torch.ones(1)}, strict)

    tk.save(nn.Linear(2, 2), tmp_path / "ckpt")
    with pytest.raises(PlanError, match=r'state_dict for Strict: Unexpected key\(s\) in state_dict: "surplus"'):
        tk.load(tmp_path / "ckpt", into=Strict(2, 2))


@pytest.mark.parametrize("inside", [True, False])
def test_a_model_made_in_inference_mode_is_filled_whatever_the_order_of_its_memory(tmp_path, inside):
    saved = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2)).bfloat16()
    tk.save(saved, tmp_path / "ckpt")
    with torch.inference_mode():
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2)).to(memory_format=torch.channels_last)
    with torch.inference_mode(inside):
        tk.load(tmp_path / "ckpt", into=model)
    assert all(torch.equal(a, b.float()) for a, b in zip(model.parameters(), saved.parameters(), strict=True))
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
