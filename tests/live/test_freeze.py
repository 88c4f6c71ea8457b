"""Freezing by glob, what trains afterwards, and parameter groups of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchkeep as tk


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(
        nn.ModuleDict({"conv": nn.Conv2d(1, 2, 1), "norm": nn.BatchNorm2d(2)}), nn.Flatten(), nn.Linear(2, 2)
    )


def forward(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    first, flatten, head = model
    return head(flatten(first["norm"](first["conv"](inputs))))


@pytest.mark.parametrize(
    ("names", "trains"),
    [
        (["*"], []),
        (["0"], ["2.weight", "2.bias"]),
        (["0.conv"], ["0.norm.weight", "0.norm.bias", "2.weight", "2.bias"]),
        (["*.bias"], ["0.conv.weight", "0.norm.weight", "2.weight"]),
        (
            ["2.weight", "0.norm.running_mean"],
            ["0.conv.weight", "0.conv.bias", "0.norm.weight", "0.norm.bias", "2.bias"],
        ),
    ],
    ids=str,
)
def test_freeze_takes_globs_bare_prefixes_and_names_a_plan_gives(model, names, trains):
    tk.freeze(model, *names)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trains
    assert len(tk.trainable(model)) == len(trains)


def test_freeze_sees_through_wrappers(model):
    tk.freeze(nn.DataParallel(model), "0")
    assert len(tk.trainable(model)) == 2


@pytest.mark.parametrize(
    "act",
    [
        lambda given: tk.freeze(given, "fc"),
        lambda given: tk.unfreeze(given, "fc"),
        tk.trainable,
        lambda given: tk.param_groups(given, {"*": {}}),
        lambda given: tk.replace_head(given, 3),
    ],
    ids=["freeze", "unfreeze", "trainable", "param_groups", "replace_head"],
)
@pytest.mark.parametrize("given", [{"fc": 1}, nn.Linear, None], ids=["dict", "type", "None"])
def test_what_is_no_module_is_refused_in_words(act, given):
    with pytest.raises(TypeError, match=r"^\w+ takes a module; not .*of type (dict|type, which is .*|NoneType)$"):
        act(given)


def test_what_a_plan_says_of_one_entry_of_several_goes_into_unfreeze(model, tmp_path):
    tk.save({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}, tmp_path / "ckpt")
    into = {"a": nn.Sequential(nn.Linear(2, 2)), "b": nn.Linear(2, 2)}
    loaded = tk.load(tmp_path / "ckpt", into=into, rules=[tk.Skip("*", entry="a")])
    assert loaded.fresh == ("a.0.weight", "a.0.bias")
    tk.freeze(into["a"], "*")
    assert tk.unfreeze(into["a"], *loaded.plan.fresh_of("a")) == ("0.weight", "0.bias")


def test_unfreeze_undoes_freeze(model):
    tk.freeze(model, "*", batch_norm=True)
    assert tk.unfreeze(model, "2") == ("2.weight", "2.bias")
    tk.unfreeze(model, "*")
    assert len(tk.trainable(model)) == 6
    before = model[0]["norm"].running_mean.clone()
    forward(model.train(), torch.randn(4, 1, 1, 1))
    assert not torch.equal(model[0]["norm"].running_mean, before)


def test_frozen_batch_norm_keeps_its_statistics_even_after_train(model):
    tk.freeze(model, "0", batch_norm=True)
    before = {name: value.clone() for name, value in model[0]["norm"].state_dict().items()}
    forward(model.train(), torch.randn(8, 1, 1, 1))
    assert all(torch.equal(value, before[name]) for name, value in model[0]["norm"].state_dict().items())


def test_a_name_that_fits_nothing_is_an_error_with_the_closest_and_changes_nothing(model):
    with pytest.raises(ValueError, match=r"nothing in the model is called '2\.weigth' \(close: '2\.weight'\)"):
        tk.freeze(model, "0", "2.weigth")
    assert len(tk.trainable(model)) == 6


def test_param_groups_hold_what_trains_and_the_last_match_wins(model):
    tk.freeze(model, "0.conv")
    groups = tk.param_groups(model, {"*": {"lr": 1e-4}, "0.norm": {"lr": 1e-3}, "2": {"lr": 1e-2}})
    assert [(group["lr"], len(group["params"])) for group in groups] == [(1e-3, 2), (1e-2, 2)]
    torch.optim.AdamW(groups)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"2": {"lr": 1.0}}, "no glob fits 0.conv.weight, 0.conv.bias, 0.norm.weight, 0.norm.bias"),
        ({"*": {"lr": 1.0}, "fc": {"lr": 2.0}}, "nothing in the model is called 'fc'"),
    ],
)
def test_param_groups_refuse_globs_that_fit_nothing_and_parameters_without_a_group(model, options, text):
    with pytest.raises(ValueError, match=text):
        tk.param_groups(model, options)


def test_what_a_plan_loaded_and_what_is_fresh_are_groups_of_their_own(model, tmp_path):
    tk.save(model, tmp_path / "ckpt")
    model[2] = nn.Linear(2, 5)
    plan = tk.plan(tmp_path / "ckpt", into=model, rules=[tk.Skip("2")])
    groups = tk.param_groups(model, {plan.loaded: {"lr": 1e-4}, plan.fresh: {"lr": 1e-2}, (): {"lr": 7}})
    assert [(group["lr"], [tuple(p.shape) for p in group["params"]]) for group in groups] == [
        (1e-4, [(2, 1, 1, 1), (2,), (2,), (2,)]),
        (1e-2, [(5, 2), (5,)]),
    ]
    assert tk.freeze(model, *plan.loaded) == ("0.conv.weight", "0.conv.bias", "0.norm.weight", "0.norm.bias")
    with pytest.raises(ValueError, match=r"nothing in the model is called 'fcc'"):
        tk.param_groups(model, {("2", "fcc"): {}})
