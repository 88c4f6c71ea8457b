"""Optimizer state from anybody's file reaches the parameter it was kept for, or the load says how it was told."""

from __future__ import annotations

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

import torchkeep as tk
from torchkeep.errors import PlanError

BY_MODEL = "positions only in the file: taken in the order of the model's parameters there"
BY_POSITION = "positions only on one side: taken in the order of the optimizer's parameters"


def build() -> nn.ModuleDict:
    """Two layers that nothing but their names tells apart, a norm with buffers, and a head."""
    names = ("a", "b", "norm", "c")
    return nn.ModuleDict(
        dict(zip(names, [nn.Linear(6, 6), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)], strict=True))
    )


def numbered(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Step once, and give the moments of every parameter a number of their own, by its name."""
    numbers = {name: float(index + 1) for index, (name, _) in enumerate(model.named_parameters())}
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        for value in optimizer.state.get(parameter, {}).values():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                value.fill_(numbers[name])
    return numbers


def moments(model: nn.Module, optimizer: torch.optim.Optimizer, kind: str = "exp_avg") -> dict[str, float]:
    """The number in the moments of every parameter that has some, by its name."""
    states = {name: optimizer.state.get(parameter, {}) for name, parameter in model.named_parameters()}
    return {name: state[kind].flatten()[0].item() for name, state in states.items() if kind in state}


def reordered(model: nn.ModuleDict) -> list[nn.Parameter]:
    return [parameter for name in ("b", "a", "norm", "c") for parameter in model[name].parameters()]


def trained() -> tuple[nn.ModuleDict, torch.optim.Optimizer, dict[str, float]]:
    model = build()
    optimizer = torch.optim.Adam(model.parameters())
    return model, optimizer, numbered(model, optimizer)


def write_positions(model, optimizer, path):
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)


def write_qualified_names(model, optimizer, path):
    weights, state = get_state_dict(model, optimizer)
    torch.save({"model": weights, "optimizer": state}, path)


def write_distributed(model, optimizer, path):
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=path, no_dist=True)


def write_flat(model, optimizer, path):
    weights, state = get_state_dict(model, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=True))
    torch.save({"model": weights, "optimizer": state}, path)


def write_flat_distributed(model, optimizer, path):
    weights, state = get_state_dict(model, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=True))
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=path, no_dist=True)


def write_pickled(model, optimizer, path):
    torch.save({"model": model.state_dict(), "optimizer": optimizer}, path)


def write_our_own(model, optimizer, path):
    tk.save({"model": model, "optimizer": optimizer}, path)


def write_our_own_of_state_dicts(model, optimizer, path):
    tk.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)


WRITERS = {
    function.__name__: (function, note)
    for function, note in (
        (write_positions, BY_MODEL),
        (write_qualified_names, None),
        (write_distributed, None),
        (write_flat, None),
        (write_flat_distributed, None),
        (write_pickled, None),
        (write_our_own, None),
        (write_our_own_of_state_dicts, BY_MODEL),
    )
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("writer", WRITERS)
def test_equal_layers_keep_their_own_moments_in_another_order(tmp_path, writer):
    write, note = WRITERS[writer]
    model, optimizer, numbers = trained()
    write(model, optimizer, tmp_path / "ckpt")
    again = build()
    other = torch.optim.Adam(reordered(again))
    rest = tk.load(tmp_path / "ckpt", into={"model": again, "optimizer": other})
    assert moments(again, other) == numbers
    also = "; the order of this optimizer's is another and would fit too"
    assert rest.notes == (() if note is None else (note + also,))
    assert note is None or note in str(rest.plan)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("writer", WRITERS)
def test_freezing_since_the_save_keeps_the_state_of_what_still_trains(tmp_path, writer):
    write, _ = WRITERS[writer]
    model, optimizer, numbers = trained()
    write(model, optimizer, tmp_path / "ckpt")
    again = build()
    tk.freeze(again, "a", "norm")
    other = torch.optim.Adam(tk.trainable(again))
    rest = tk.load(tmp_path / "ckpt", into={"model": again, "optimizer": other})
    assert moments(again, other) == {name: value for name, value in numbers.items() if name[0] in "bc"}
    left = {row.name: row.reason for row in rest.plan.rows if row.entry == "optimizer" and row.status == "skipped"}
    frozen = ["a.weight", "a.bias", "norm.weight", "norm.bias"]
    assert left == dict.fromkeys(frozen, "not loaded: its parameter does not train now")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("writer", WRITERS)
def test_a_head_of_another_shape_is_refused_and_starts_fresh_when_asked(tmp_path, writer):
    write, _ = WRITERS[writer]
    model, optimizer, numbers = trained()
    write(model, optimizer, tmp_path / "ckpt")
    again = build()
    again["c"] = nn.Linear(6, 5)
    other = torch.optim.Adam(again.parameters())
    into = {"model": again, "optimizer": other}
    with pytest.raises(PlanError, match="2 of 17 tensors do not fit"):
        tk.load(tmp_path / "ckpt", into=into, rules=[tk.Skip("c", entry="model")])
    assert not other.state
    tk.load(tmp_path / "ckpt", into=into, strict=False)
    assert moments(again, other) == {name: value for name, value in numbers.items() if name[0] != "c"}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("writer", WRITERS)
def test_an_optimizer_that_knows_its_names_needs_no_module(tmp_path, writer):
    write, _ = WRITERS[writer]
    model, optimizer, numbers = trained()
    write(model, optimizer, tmp_path / "ckpt")
    again = build()
    other = torch.optim.Adam(list(again.named_parameters())[::-1])
    tk.load(tmp_path / "ckpt", into={"optimizer": other})
    assert moments(again, other) == numbers


def test_no_moment_that_fits_is_no_reason_to_check_none(tmp_path):
    model = nn.Linear(3, 4)
    optimizer = torch.optim.Adam(model.parameters())
    numbered(model, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "old.pt")
    other = torch.optim.Adam(nn.Linear(7, 5).parameters())
    with pytest.raises(PlanError, match="shape"):
        tk.load(tmp_path / "old.pt", into=other)


def test_a_module_that_has_another_order_in_the_file_tells_by_shapes_that_its_order_was_not_the_optimizers(tmp_path):
    model = build()
    backwards = list(model["c"].parameters()) + [p for n in "ab" for p in model[n].parameters()]
    backwards += list(model["norm"].parameters())
    optimizer = torch.optim.Adam(backwards)
    numbers = numbered(model, optimizer)
    write_positions(model, optimizer, tmp_path / "old.pt")
    again = build()
    order = list(again["c"].parameters()) + [p for n in "ab" for p in again[n].parameters()]
    other = torch.optim.Adam([*order, *again["norm"].parameters()])
    rest = tk.load(tmp_path / "old.pt", into={"model": again, "optimizer": other})
    assert moments(again, other) == numbers
    assert rest.notes == (BY_POSITION + "; equal shapes would hide another order",)


def test_groups_as_large_as_the_saved_ones_are_in_their_order_and_not_in_the_models(tmp_path):
    def halves(model: nn.ModuleDict) -> list[dict[str, object]]:
        return [{"params": list(model["b"].parameters())}, {"params": list(model["a"].parameters()), "lr": 0.5}]

    model, again = (nn.ModuleDict({"a": nn.Linear(6, 6), "b": nn.Linear(6, 6)}) for _ in range(2))
    optimizer, other = torch.optim.Adam(halves(model)), torch.optim.Adam(halves(again))
    numbers = numbered(model, optimizer)
    write_positions(model, optimizer, tmp_path / "old.pt")
    tk.load(tmp_path / "old.pt", into={"model": again, "optimizer": other})
    assert moments(again, other) == numbers
    assert [group["lr"] for group in other.param_groups] == [0.001, 0.5]


def test_an_optimizer_without_names_takes_our_own_by_position_and_says_what_that_may_hide(tmp_path):
    model, optimizer, _ = trained()
    write_our_own(model, optimizer, tmp_path / "ckpt")
    rest = tk.load(tmp_path / "ckpt", into=torch.optim.Adam(build().parameters()))
    assert rest.notes == (BY_POSITION + "; equal shapes would hide another order",)
    assert [row.name for row in rest.plan.rows] == [name for name, _ in model.named_parameters()]
    small = nn.Linear(2, 3)
    tk.save(torch.optim.SGD(small.parameters(), lr=0.1), tmp_path / "small")
    assert tk.load(tmp_path / "small", into=torch.optim.SGD(small.parameters(), lr=0.1)).notes == (BY_POSITION,)


def test_two_models_and_two_optimizers_in_a_torch_file_each_find_their_own_names(tmp_path):
    generator, discriminator = build(), nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    of_g, of_d = (torch.optim.Adam(model.parameters()) for model in (generator, discriminator))
    numbers_g, numbers_d = numbered(generator, of_g), numbered(discriminator, of_d)
    saved = {"G": generator.state_dict(), "D": discriminator.state_dict()}
    torch.save({**saved, "of_g": of_g.state_dict(), "of_d": of_d.state_dict()}, tmp_path / "gan.pt")
    new_g, new_d = build(), nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    tk.freeze(new_g, "a")
    again_g = torch.optim.Adam(tk.trainable(new_g))
    again_d = torch.optim.Adam([*new_d[1].parameters(), *new_d[0].parameters()])
    tk.load(tmp_path / "gan.pt", into={"G": new_g, "D": new_d, "of_g": again_g, "of_d": again_d})
    assert moments(new_g, again_g) == {name: value for name, value in numbers_g.items() if name[0] != "a"}
    assert moments(new_d, again_d) == numbers_d


def test_a_tied_weight_counts_once_and_renaming_the_model_renames_the_state(tmp_path):
    def tied() -> nn.ModuleDict:
        model = nn.ModuleDict({"wte": nn.Embedding(5, 3), "fc": nn.Linear(3, 3), "head": nn.Linear(3, 5, bias=False)})
        model["head"].weight = model["wte"].weight
        return model

    model = tied()
    optimizer = torch.optim.AdamW(model.parameters())
    numbers = numbered(model, optimizer)
    prefixed = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save({"model": prefixed, "optimizer": optimizer.state_dict()}, tmp_path / "ddp.pt")
    again = tied()
    tk.freeze(again, "wte")
    other = torch.optim.AdamW(again["fc"].parameters())
    into = {"model": again, "optimizer": other}
    tk.load(tmp_path / "ddp.pt", into=into, rules=[tk.Rename(r"^module\.", "")])
    assert moments(again, other) == {name: numbers[name] for name in ("fc.weight", "fc.bias")}
