"""Optimizer state goes by name: the next step equals the one of a run that was never interrupted."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import torchkeep as tk
from torchkeep.errors import PlanError


class Lion(torch.optim.Optimizer):
    """A third party's optimizer that keeps to the interface of torch: a moment and a list of tensors."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self, closure):
        loss = torch.enable_grad()(closure)()
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                moment = state.setdefault("moment", torch.zeros_like(parameter))
                recent = state.setdefault("recent", [])
                recent[:] = [*recent, parameter.grad.clone()][-2:]
                slow, fast = group["betas"]
                sign = (slow * moment + (1 - slow) * sum(recent)).sign()
                moment.mul_(fast).add_(parameter.grad, alpha=1 - fast)
                parameter.sub_(sign, alpha=group["lr"])
        return loss


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "plain sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "adam tensor lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01)),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "third party": lambda p: Lion(p, lr=0.01),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}


def build(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(inputs).pow(2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_step_after_a_load_equals_the_one_never_interrupted(tmp_path, kind):
    model = build()
    optimizer = OPTIMIZERS[kind](model.parameters())
    for seed in range(3):
        step(model, optimizer, seed)
    tk.save({"model": model, "optimizer": optimizer}, tmp_path / "ckpt")
    again = build(1)
    optimizer_again = OPTIMIZERS[kind](again.parameters())
    tk.load(tmp_path / "ckpt", into={"model": again, "optimizer": optimizer_again})
    for seed in (7, 8):
        step(model, optimizer, seed)
        step(again, optimizer_again, seed)
    assert same_weights(model, again)


def test_parameters_in_another_order_and_other_groups_get_their_own_state(tmp_path):
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    step(model, optimizer, 0)
    tk.save({"model": model, "optimizer": optimizer}, tmp_path / "ckpt")
    again = build(1)
    halves = [
        {"params": list(again[4].parameters())},
        {"params": list(again[2].parameters()) + list(again[0].parameters())},
    ]
    optimizer_again = torch.optim.Adam(halves, lr=0.01)
    tk.load(tmp_path / "ckpt", into={"model": again, "optimizer": optimizer_again})
    step(model, optimizer, 1)
    step(again, optimizer_again, 1)
    assert same_weights(model, again)


def test_freezing_before_a_resume_keeps_the_state_of_what_still_trains(tmp_path):
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    step(model, optimizer, 0)
    tk.save({"model": model, "optimizer": optimizer}, tmp_path / "ckpt")
    again = build(1)
    tk.freeze(again, "0")
    optimizer_again = torch.optim.Adam(tk.trainable(again), lr=0.01)
    rest = tk.load(tmp_path / "ckpt", into={"model": again, "optimizer": optimizer_again})
    left = {row.name: row.reason for row in rest.plan.rows if row.status == "skipped"}
    assert left == dict.fromkeys(["0.weight", "0.bias"], "not loaded: its parameter does not train now")
    for old, new in zip(model[2].parameters(), again[2].parameters(), strict=True):
        assert torch.equal(optimizer.state[old]["exp_avg"], optimizer_again.state[new]["exp_avg"])


def test_moments_keep_the_dtype_they_were_saved_with(tmp_path):
    model = nn.Linear(2, 2).to(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.full_like(parameter, 1 / 3, dtype=torch.float32)
    tk.save({"model": model, "optimizer": optimizer}, tmp_path / "ckpt")
    again = nn.Linear(2, 2).to(torch.bfloat16)
    optimizer_again = torch.optim.SGD(again.parameters(), lr=0.1, momentum=0.9)
    tk.load(tmp_path / "ckpt", into={"model": again, "optimizer": optimizer_again})
    buffer = optimizer_again.state[again.weight]["momentum_buffer"]
    assert buffer.dtype == torch.float32
    assert buffer[0, 0].item() == torch.tensor(1 / 3).item()


def test_the_checkpoints_learning_rate_wins_and_the_difference_is_said(tmp_path):
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    tk.save({"model": model, "optimizer": optimizer}, tmp_path / "ckpt")
    other = torch.optim.SGD(model.parameters(), lr=0.1)
    rest = tk.load(tmp_path / "ckpt", into={"model": model, "optimizer": other})
    assert other.param_groups[0]["lr"] == 0.5
    assert rest.notes == ("group 0: lr 0.5 from the checkpoint, not 0.1",)


def test_an_optimizer_in_a_torch_file_is_taken_in_the_models_order_and_the_plan_says_so(tmp_path):
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    step(model, optimizer, 0)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "old.pt")
    again = build(1)
    optimizer_again = torch.optim.Adam(again.parameters(), lr=0.01)
    rest = tk.load(tmp_path / "old.pt", into={"model": again, "optimizer": optimizer_again})
    said = "positions only in the file: taken in the order of the model's parameters there"
    assert said in str(rest.plan)
    assert rest.notes == (said,)
    step(model, optimizer, 1)
    step(again, optimizer_again, 1)
    assert same_weights(model, again)


def test_an_optimizer_loaded_without_its_module_goes_by_position(tmp_path):
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    step(model, optimizer, 0)
    tk.save({"model": model, "optimizer": optimizer}, tmp_path / "ckpt")
    alone = torch.optim.Adam(model.parameters(), lr=0.01)
    rest = tk.load(tmp_path / "ckpt", into=alone)
    assert "positions only on one side" in str(rest.plan)
    for parameter in model.parameters():
        assert torch.equal(alone.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg"])
    other = torch.optim.Adam(build()[:3].parameters())
    with pytest.raises(PlanError, match="by position only"):
        tk.load(tmp_path / "ckpt", into=other)


def test_positions_of_another_number_are_refused_and_nothing_is_touched(tmp_path):
    model = build()
    optimizer = torch.optim.Adam(model[2:].parameters())
    step(model, optimizer, 0)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "old.pt")
    other = build(1)
    before = copy.deepcopy(other.state_dict())
    fewer = torch.optim.Adam(other[0].parameters())
    plan = tk.plan(tmp_path / "old.pt", into={"model": other, "optimizer": fewer})
    assert "4 parameters by position only on one side and 2 on the other" in str(plan)
    with pytest.raises(PlanError, match="nothing says which belongs to which"):
        tk.load(tmp_path / "old.pt", into={"model": other, "optimizer": fewer})
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), before.values(), strict=True))


def test_on_disk_and_without_a_target_it_is_torchs_own_form_with_names(tmp_path):
    model = build()
    optimizer = torch.optim.Adam(model.parameters())
    step(model, optimizer, 0)
    tk.save({"model": model, "optimizer": optimizer}, tmp_path / "ckpt")
    state = tk.load(tmp_path / "ckpt")["optimizer"]
    assert state["param_groups"][0]["params"] == [name for name, _ in model.named_parameters()]
    assert torch.equal(state["state"]["4.bias"]["exp_avg"], optimizer.state[model[4].bias]["exp_avg"])
    with tk.open(tmp_path / "ckpt") as checkpoint:
        assert "4.bias.exp_avg" in checkpoint.source.record.tensors["optimizer"]


def test_an_optimizer_with_a_loader_of_its_own_is_given_torchs_positional_form(tmp_path):
    class Own(torch.optim.SGD):
        def load_state_dict(self, state_dict):
            self.seen = state_dict
            super().load_state_dict(state_dict)

    model = build()
    optimizer = Own(model.parameters(), lr=0.1, momentum=0.9)
    step(model, optimizer, 0)
    tk.save({"model": model, "optimizer": optimizer}, tmp_path / "ckpt")
    other = Own(model.parameters(), lr=0.1, momentum=0.9)
    tk.load(tmp_path / "ckpt", into={"model": model, "optimizer": other})
    assert sorted(other.seen["state"]) == list(range(6))
    assert torch.equal(
        other.state[model[0].weight]["momentum_buffer"], optimizer.state[model[0].weight]["momentum_buffer"]
    )


def test_two_groups_become_one_and_the_difference_of_their_options_is_said(tmp_path):
    model = build()
    optimizer = torch.optim.Adam(tk.param_groups(model, {"*": {"lr": 0.01}, "4": {"lr": 0.1}}))
    step(model, optimizer, 0)
    tk.save({"model": model, "optimizer": optimizer}, tmp_path / "ckpt")
    again = build(1)
    one = torch.optim.Adam(again.parameters(), lr=0.5)
    rest = tk.load(tmp_path / "ckpt", into={"model": again, "optimizer": one})
    assert any("its parameters come from groups whose options differ" in note for note in rest.notes)
    assert one.param_groups[0]["lr"] == 0.01
    for old, new in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(optimizer.state[old]["exp_avg_sq"], one.state[new]["exp_avg_sq"])


@pytest.mark.parametrize(
    ("change", "fresh", "said"),
    [
        (lambda m: m.append(nn.Linear(2, 2)), ["5.weight", "5.bias"], {"only_in_model": 2}),
        (lambda m: m.pop(4), [], {"only_in_checkpoint": 2}),
        (lambda m: m.__setitem__(4, nn.Linear(4, 3)), ["4.weight", "4.bias"], {"shape_differs": 2}),
    ],
    ids=["a layer added", "a layer removed", "a head resized"],
)
def test_what_changed_in_the_model_starts_fresh_and_everything_else_keeps_its_state(tmp_path, change, fresh, said):
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    step(model, optimizer, 0)
    tk.save({"model": model, "optimizer": optimizer}, tmp_path / "ckpt")
    again = build(1)
    change(again)
    optimizer_again = torch.optim.Adam(again.parameters(), lr=0.01)
    rest = tk.load(tmp_path / "ckpt", into={"model": again, "optimizer": optimizer_again}, strict=False)
    rows = [row for row in rest.plan.rows if row.entry == "optimizer"]
    assert {status: sum(row.status == status for row in rows) for status in said} == said
    old_states = {name: optimizer.state[parameter] for name, parameter in model.named_parameters()}
    for name, parameter in again.named_parameters():
        if name in fresh:
            assert parameter not in optimizer_again.state
        else:
            assert torch.equal(optimizer_again.state[parameter]["exp_avg"], old_states[name]["exp_avg"])
    step(again, optimizer_again, 1)


def test_one_optimizer_over_two_models_tells_their_equal_names_apart(tmp_path):
    generator, discriminator = build(), build(1)
    both = [*generator.parameters(), *discriminator.parameters()]
    optimizer = torch.optim.Adam(both, lr=0.01)
    step(generator, optimizer, 0)
    for parameter in discriminator.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    tk.save({"G": generator, "D": discriminator, "optimizer": optimizer}, tmp_path / "gan")
    new_g, new_d = build(2), build(3)
    other = torch.optim.Adam([*new_d.parameters(), *new_g.parameters()], lr=0.01)
    tk.load(tmp_path / "gan", into={"G": new_g, "D": new_d, "optimizer": other})
    for old, new in zip(both, [*new_g.parameters(), *new_d.parameters()], strict=True):
        assert torch.equal(optimizer.state[old]["exp_avg"], other.state[new]["exp_avg"])


def test_sparse_gradients_keep_their_state(tmp_path):
    table = nn.Embedding(10, 3, sparse=True)
    optimizer = torch.optim.SparseAdam(table.parameters())
    table(torch.tensor([1, 4])).sum().backward()
    optimizer.step()
    tk.save({"model": table, "optimizer": optimizer}, tmp_path / "ckpt")
    again = nn.Embedding(10, 3, sparse=True)
    other = torch.optim.SparseAdam(again.parameters())
    tk.load(tmp_path / "ckpt", into={"model": again, "optimizer": other})
    for model, each in ((table, optimizer), (again, other)):
        each.zero_grad()
        model(torch.tensor([1, 7])).sum().backward()
        each.step()
    assert torch.equal(table.weight, again.weight)


def test_unfreezing_more_on_a_resume_starts_what_did_not_train_before_fresh(tmp_path):
    model = build()
    tk.freeze(model, "0", "2")
    optimizer = torch.optim.Adam(tk.trainable(model), lr=0.01)
    step(model, optimizer, 0)
    tk.save({"model": model, "optimizer": optimizer}, tmp_path / "ckpt")
    again = build(1)
    tk.freeze(again, "0")
    wider = torch.optim.Adam(tk.trainable(again), lr=0.01)
    tk.load(tmp_path / "ckpt", into={"model": again, "optimizer": wider})
    assert again[2].weight not in wider.state
    assert torch.equal(wider.state[again[4].weight]["exp_avg"], optimizer.state[model[4].weight]["exp_avg"])


def test_state_survives_when_the_optimizer_spans_more_modules_than_before(tmp_path):
    model, loss = build(), nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    step(model, optimizer, 0)
    tk.save({"model": model, "loss": loss, "optimizer": optimizer}, tmp_path / "ckpt")
    both = torch.optim.Adam([*loss.parameters(), *model.parameters()], lr=0.01)
    tk.load(tmp_path / "ckpt", into={"model": model, "loss": loss, "optimizer": both}, strict=False)
    for parameter in model.parameters():
        assert torch.equal(both.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg"])


def test_a_loose_parameter_is_named_by_its_entry_and_names_of_torch_do_not_override_ours(tmp_path):
    model, alpha = build(), nn.Parameter(torch.tensor(0.5))
    named = [("net." + name, parameter) for name, parameter in model.named_parameters()]
    optimizer = torch.optim.SGD([*named, ("alpha", alpha)], lr=0.1, momentum=0.9)
    for number, (_, parameter) in enumerate([*named, ("alpha", alpha)]):
        optimizer.state[parameter]["momentum_buffer"] = torch.full_like(parameter, number)
    tk.save({"model": model, "alpha": alpha, "optimizer": optimizer}, tmp_path / "ckpt")
    other = torch.optim.SGD([alpha, *reversed(list(model.parameters()))], lr=0.1, momentum=0.9)
    tk.load(tmp_path / "ckpt", into={"model": model, "alpha": alpha, "optimizer": other})
    for number, (_, parameter) in enumerate([*named, ("alpha", alpha)]):
        assert other.state[parameter]["momentum_buffer"].flatten()[0].item() == number


@pytest.mark.parametrize(("saved", "live"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_moments_follow_a_parameter_to_another_dtype(tmp_path, saved, live):
    model = build().to(getattr(torch, saved))
    optimizer = torch.optim.AdamW(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    tk.save({"model": model, "optimizer": optimizer}, tmp_path / "ckpt")
    again = build(1).to(getattr(torch, live))
    other = torch.optim.AdamW(again.parameters())
    tk.load(tmp_path / "ckpt", into={"model": again, "optimizer": other}, rules=[tk.Cast()])
    sum(parameter.sum() for parameter in again.parameters()).backward()
    other.step()
    assert other.state[again[0].weight]["exp_avg"].dtype == again[0].weight.dtype


def test_another_class_of_optimizer_is_refused_unless_it_is_asked_for(tmp_path):
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    step(model, optimizer, 0)
    tk.save({"model": model, "optimizer": optimizer}, tmp_path / "ckpt")
    other = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    with pytest.raises(PlanError, match=r"saved from torch\.optim\.adamw\.AdamW, and this is torch\.optim\.sgd\.SGD"):
        tk.load(tmp_path / "ckpt", into={"model": model, "optimizer": other})
    assert other.param_groups[0]["lr"] == 0.5
    adam = torch.optim.Adam(model.parameters())
    tk.load(tmp_path / "ckpt", into={"model": model, "optimizer": adam}, strict=False)
    assert torch.equal(adam.state[model[0].weight]["exp_avg"], optimizer.state[model[0].weight]["exp_avg"])


def test_a_rate_that_a_scheduler_moved_is_no_difference(tmp_path):
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    optimizer.step()
    scheduler.step()
    tk.save({"model": model, "optimizer": optimizer}, tmp_path / "ckpt")
    rest = tk.load(tmp_path / "ckpt", into={"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.5)})
    assert rest.notes == ()


def lbfgs(parameters):
    return torch.optim.LBFGS(parameters, lr=0.1, max_iter=3)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 0, 1, 5, 3, 4]])
def test_state_that_spans_all_parameters_follows_them_into_another_order(tmp_path, order):
    model, again = build().double(), build().double()
    optimizer = lbfgs(model.parameters())
    reordered = lbfgs([list(again.parameters())[place] for place in order])
    for seed in range(3):
        step_double(model, optimizer, seed)
    tk.save({"model": model, "optimizer": optimizer}, tmp_path / "ckpt")
    rest = tk.load(tmp_path / "ckpt", into={"model": again, "optimizer": reordered})
    assert rest.notes == ()
    for seed in (7, 8):
        step_double(model, optimizer, seed)
        step_double(again, reordered, seed)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)


def step_double(model, optimizer, seed):
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def closure():
        optimizer.zero_grad()
        loss = model(inputs).pow(2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)


def test_state_that_spans_all_parameters_starts_fresh_where_they_are_others_and_that_is_said(tmp_path):
    model = build()
    optimizer = lbfgs(model.parameters())
    step(model, optimizer, 0)
    tk.save({"model": model, "optimizer": optimizer}, tmp_path / "ckpt")
    other = build(1)
    other[4] = nn.Linear(4, 7)
    fresh = lbfgs(other.parameters())
    rest = tk.load(tmp_path / "ckpt", into={"model": other, "optimizer": fresh}, rules=[tk.Skip("4")])
    assert rest.notes == ("the state starts fresh: it spans all parameters, and they are not those of the save",)
    assert not fresh.state[other[0].weight]
    step(other, fresh, 1)
