"""State of another kind of optimizer is told, and an optimizer that a load fails on is as it was."""

from __future__ import annotations

import types

import pytest
import torch
from torch import nn

import torchkeep as tk
from torchkeep.errors import PlanError

OPTIM = torch.optim


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    inputs = torch.linspace(-1, 1, 12).reshape(3, 4)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(inputs).pow(2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)


def trained(kind: type[torch.optim.Optimizer], **options: object) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    optimizer = kind(model.parameters(), **options)
    for _ in range(2):
        step(model, optimizer)
    return model, optimizer


def refuse(optimizer):
    """Raise an optimizer's error: an interrupt once, another one each time."""
    error = optimizer.error
    if isinstance(error, KeyboardInterrupt):
        optimizer.error = None
    if error is not None:
        raise error


def write(form, model, optimizer, path):
    if form == "ours":
        tk.save({"model": model, "optimizer": optimizer}, path)
    else:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)


@pytest.mark.parametrize("form", ["ours", "foreign"])
@pytest.mark.parametrize(
    ("saved", "live", "why"),
    [
        (OPTIM.AdamW, OPTIM.SGD, "its state has exp_avg, exp_avg_sq, which SGD does not keep"),
        (OPTIM.AdamW, OPTIM.RMSprop, "its state has exp_avg, exp_avg_sq, which RMSprop does not keep"),
        (OPTIM.RMSprop, OPTIM.Adadelta, "its state lacks acc_delta, which Adadelta needs"),
        (OPTIM.SGD, OPTIM.Adam, "its state has momentum_buffer, which Adam does not keep"),
        (OPTIM.Adam, OPTIM.Adafactor, "its state has exp_avg, exp_avg_sq, which Adafactor does not keep"),
        (OPTIM.LBFGS, OPTIM.Adam, "which Adam does not keep"),
    ],
)
def test_state_of_another_kind_is_refused_and_dropped_with_its_options_when_asked(tmp_path, form, saved, live, why):
    model, optimizer = trained(saved, lr=0.01, **({"momentum": 0.9} if saved is OPTIM.SGD else {}))
    write(form, model, optimizer, tmp_path / "ckpt")
    other = live(model.parameters(), lr=0.5)
    into = {"model": model, "optimizer": other}
    said = "one's state is not the other's" if form == "ours" else why
    with pytest.raises(PlanError, match=said):
        tk.load(tmp_path / "ckpt", into=into)
    rest = tk.load(tmp_path / "ckpt", into=into, strict=False)
    (note,) = rest.notes
    assert note.startswith("the optimizer's state starts fresh: ")
    assert note.endswith(said)
    assert other.param_groups[0]["lr"] == 0.5
    assert not other.state
    step(model, other)


class Bad(torch.optim.Adam):
    """What a script calls its own optimizer."""


def library(body: str) -> type[torch.optim.Optimizer]:
    module = types.ModuleType("train_lib")
    exec(f"import torch\n{body}", vars(module))
    made = next(value for name, value in vars(module).items() if isinstance(value, type) and name != "torch")
    made.__module__ = "train_lib"
    return made


@pytest.mark.parametrize(
    ("saved", "live"),
    [
        (Bad, library("class Bad(torch.optim.Adam): pass")),
        (OPTIM.Adam, Bad),
        (Bad, OPTIM.Adam),
        (OPTIM.AdamW, OPTIM.Adam),
        (OPTIM.Adam, OPTIM.AdamW),
        (OPTIM.SGD, library("class Mine(torch.optim.SGD): pass")),
    ],
    ids=["moved", "derived", "base", "AdamW to Adam", "Adam to AdamW", "derived from SGD"],
)
def test_a_class_that_moved_or_is_derived_has_the_same_state(tmp_path, saved, live):
    options = {"lr": 0.1, "momentum": 0.9} if saved is OPTIM.SGD else {}
    model, optimizer = trained(saved, **options)
    write("ours", model, optimizer, tmp_path / "ckpt")
    other = live(model.parameters(), **options)
    rest = tk.load(tmp_path / "ckpt", into={"model": model, "optimizer": other})
    for parameter in model.parameters():
        for kind, value in optimizer.state[parameter].items():
            assert torch.equal(other.state[parameter][kind], value)
    changed = {saved, live} == {OPTIM.AdamW, OPTIM.Adam}
    assert any("weight_decay" in note for note in rest.notes) == changed
    said = "group 0: decoupled_weight_decay True from the checkpoint, not False"
    assert [note for note in rest.notes if "decoupled" in note] == ([said] if saved is OPTIM.AdamW else [])


@pytest.mark.parametrize(("saved", "live"), [(OPTIM.Adam, OPTIM.RAdam), (OPTIM.NAdam, OPTIM.Adam)])
def test_equal_keys_of_two_kinds_of_torch_are_no_equal_state(tmp_path, saved, live):
    model, optimizer = trained(saved)
    write("ours", model, optimizer, tmp_path / "ckpt")
    with pytest.raises(PlanError, match="one's state is not the other's"):
        tk.load(tmp_path / "ckpt", into={"model": model, "optimizer": live(model.parameters())})


@pytest.mark.parametrize("form", ["ours", "foreign"])
def test_factored_moments_are_not_taken_for_the_shape_of_their_parameter(tmp_path, form):
    model, optimizer = trained(OPTIM.Adafactor)
    write(form, model, optimizer, tmp_path / "ckpt")
    again, other = trained(OPTIM.Adafactor)
    tk.load(tmp_path / "ckpt", into={"model": again, "optimizer": other})
    torch.save(optimizer.state_dict(), tmp_path / "alone.pt")
    fresh = OPTIM.Adafactor(again.parameters())
    tk.load(tmp_path / "alone.pt", into=fresh)
    for old, new in zip(model.parameters(), again.parameters(), strict=True):
        for kind, value in optimizer.state[old].items():
            assert torch.equal(other.state[new][kind], value)
            assert torch.equal(fresh.state[new][kind], value)


def test_state_over_all_parameters_of_a_foreign_file_follows_their_order_or_starts_fresh(tmp_path):
    model, optimizer = trained(OPTIM.LBFGS, max_iter=3)
    write("foreign", model, optimizer, tmp_path / "ckpt")
    again, _ = trained(OPTIM.LBFGS, max_iter=3)
    turned = OPTIM.LBFGS([*again[1].parameters(), *again[0].parameters()], max_iter=3)
    tk.load(tmp_path / "ckpt", into={"model": again, "optimizer": turned})
    sizes = [20, 15]
    expected = torch.split(optimizer.state[model[0].weight]["d"], sizes)
    assert torch.equal(turned.state[again[1].weight]["d"], torch.cat(expected[::-1]))
    wider = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 7))
    changed = OPTIM.LBFGS(wider.parameters(), max_iter=3)
    rest = tk.load(tmp_path / "ckpt", into={"model": wider, "optimizer": changed}, strict=False)
    assert "the state starts fresh: it spans all parameters, and they are not those of the save" in rest.notes
    step(wider, changed)


def test_state_over_all_parameters_that_nothing_names_is_refused_where_its_length_is_another(tmp_path):
    _model, optimizer = trained(OPTIM.LBFGS, max_iter=3)
    torch.save(optimizer.state_dict(), tmp_path / "alone.pt")
    wider = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 7))
    other = OPTIM.LBFGS(wider.parameters(), max_iter=3)
    with pytest.raises(PlanError, match="its state spans 35 elements, and the parameters have 55"):
        tk.load(tmp_path / "alone.pt", into=other)
    rest = tk.load(tmp_path / "alone.pt", into=other, strict=False)
    assert "the state starts fresh: it spans all parameters, and they are not those of the save" in rest.notes
    step(wider, other)


def test_the_one_parameter_that_was_trained_is_not_taken_for_all(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = OPTIM.Adam(model.parameters())
    model[1].bias.sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "alone.pt")
    other = OPTIM.Adam(model.parameters())
    tk.load(tmp_path / "alone.pt", into=other)
    assert [parameter is model[1].bias for parameter in other.state] == [True]


class Refusing(torch.optim.Adam):
    """Takes its state, and then refuses it."""

    error: BaseException | None = None

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        refuse(self)


class Unpicky(torch.optim.Adam):
    """Loads as torch does, and refuses when all of it is there."""

    error: BaseException | None = None

    def __setstate__(self, state):
        super().__setstate__(state)
        refuse(self)


@pytest.mark.parametrize("kind", [Refusing, Unpicky])
@pytest.mark.parametrize("had_state", [True, False])
@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_an_optimizer_that_refuses_its_state_is_put_back_and_so_is_everything_before_it(
    tmp_path, kind, had_state, error
):
    model, optimizer = trained(kind, lr=0.25)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    scheduler.last_epoch = 7
    tk.save({"model": model, "optimizer": optimizer, "scheduler": scheduler}, tmp_path / "ckpt")
    again, other = trained(kind, lr=0.5)
    if not had_state:
        other.state.clear()
    of_other = torch.optim.lr_scheduler.StepLR(other, 3)
    state = {p: {key: value.clone() for key, value in each.items()} for p, each in other.state.items()}
    for parameter in again.parameters():
        parameter.data.add_(1)
    weights = [parameter.clone() for parameter in again.parameters()]
    other.error = error
    into = {"model": again, "optimizer": other, "scheduler": of_other}
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else PlanError):
        tk.load(tmp_path / "ckpt", into=into)
    assert other.param_groups[0]["lr"] == 0.5
    assert list(other.state) == list(state)
    for parameter, each in state.items():
        assert all(torch.equal(other.state[parameter][key], value) for key, value in each.items())
    assert of_other.last_epoch == 0
    assert all(torch.equal(old, new) for old, new in zip(weights, again.parameters(), strict=True))
    other.error = None
    step(again, other)


def test_what_cannot_be_put_back_is_said_and_the_rest_is_put_back(tmp_path):
    class Stubborn:
        def state_dict(self):
            return {"a": 1}

        def load_state_dict(self, state):
            raise KeyError(f"{sorted(state)}")

    _model, optimizer = trained(Refusing, lr=0.25)
    tk.save({"stubborn": Stubborn(), "optimizer": optimizer}, tmp_path / "ckpt")
    _, other = trained(Refusing, lr=0.5)
    other.error = ValueError("no")
    with pytest.raises(PlanError, match="stubborn") as caught:
        tk.load(tmp_path / "ckpt", into={"optimizer": other, "stubborn": Stubborn()})
    assert "Stubborn could not be put back: KeyError" in str(caught.value)
    assert other.param_groups[0]["lr"] == 0.5
