"""Models of every odd kind come back whole: equal trees, equal tensors, equal outputs, and an equal next step."""

from __future__ import annotations

import logging
import weakref

import pytest
import torch
from tests.whole import nasty_models
from tests.whole.nasty_models import MODELS, QUANTISED, VECTORS, Armed, Holder, Norm, Tied, converted
from torch import nn

import torchkeep as tk
from torchkeep.live.packed import pack, unpack


@pytest.fixture(params=MODELS, name="pair")
def give_pair(request, tmp_path):
    """Give a model, the one that was rebuilt from it, and what to call them with."""
    make, inputs = MODELS[request.param]
    torch.manual_seed(0)
    model = make()
    saved = tk.save_whole(model, tmp_path / "model", example_inputs=inputs)
    assert not [note for note in saved.notes if "_weight_norm_compat_hook" not in note]
    rebuilt = tk.load_whole(tmp_path / "model", trust=[nasty_models], check=True)
    return model, rebuilt, inputs if isinstance(inputs, tuple) else (inputs,)


def step(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """One training step, and everything that it may have changed."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    output = model(*inputs)
    loss = (output[0] if isinstance(output, tuple) else output).float().square().sum()
    loss.backward()
    optimizer.step()
    return [loss, *(p.grad for p in model.parameters() if p.grad is not None), *tensors_of(model)]


def tensors_of(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def is_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.is_sparse:
        one, other = one.to_dense(), other.to_dense()
    return one.dtype == other.dtype and torch.equal(one.float(), other.float()) and one.stride() == other.stride()


def test_the_tree_and_every_tensor_are_equal(pair):
    model, rebuilt, _ = pair
    assert repr(rebuilt) == repr(model)
    assert [type(each).__name__ for each in rebuilt.modules()] == [type(each).__name__ for each in model.modules()]
    assert [name for name, _ in rebuilt.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert list(rebuilt.state_dict()) == list(model.state_dict())
    for one, other in zip(tensors_of(model), tensors_of(rebuilt), strict=True):
        assert type(one) is type(other)
        assert one.requires_grad == other.requires_grad
        assert is_equal(one, other)
    assert [each.training for each in model.modules()] == [each.training for each in rebuilt.modules()]
    for one, other in zip(model.modules(), rebuilt.modules(), strict=True):
        assert set(vars(one)) == set(vars(other))
        assert one._non_persistent_buffers_set == other._non_persistent_buffers_set


def test_the_next_training_step_is_equal(pair):
    model, rebuilt, inputs = pair
    expected, found = step(model, inputs), step(rebuilt, inputs)
    assert len(found) == len(expected)
    assert all(is_equal(one, other) for one, other in zip(expected, found, strict=True))


@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # of torch.ao
def test_quantised_layers_come_back_with_equal_outputs(name, tmp_path):
    make, inputs = QUANTISED[name]
    torch.manual_seed(0)
    model = make()
    tk.save_whole(model, tmp_path / "model", example_inputs=inputs)
    rebuilt = tk.load_whole(tmp_path / "model", trust=["torch.ao"], check=True, tolerance=0.0)
    assert repr(rebuilt) == repr(model)
    assert torch.equal(rebuilt(inputs), model(inputs))
    assert torch.jit.trace(rebuilt, inputs)(inputs).shape == model(inputs).shape


@pytest.mark.parametrize(
    "change",
    [
        {"groups": 0}, {"groups": -1}, {"groups": 3}, {"groups": "1"}, {"stride": [0, 1]}, {"dilation": [1, 0]},
        {"padding": [-1, 0]}, {"stride": [1]}, {"stride": [1 << 40, 1]}, {"kind": "Conv3dPackedParamsBase"},
        {"kind": "os.system"}, {"weight": torch.ones(2, 2, 3, 3)}, {"weight": None}, {"bias": torch.ones(7)},
        {"bias": torch.ones(2, 1)}, {"bias": "b"},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # of torch.ao
def test_packed_weights_of_impossible_parts_are_refused(change):
    parts = unpack(converted(nn.Conv2d(2, 2, 3), inputs=torch.ones(1, 2, 4, 4))[1]._packed_params)
    assert isinstance(pack(parts), torch.ScriptObject)
    with pytest.raises((TypeError, ValueError, KeyError, RuntimeError)):
        pack({**parts, **change})


def test_nothing_of_a_class_is_called(tmp_path, monkeypatch):
    tk.save_whole(Armed(3), tmp_path / "model")
    torch.save(Armed(3), tmp_path / "model.pt")

    monkeypatch.setattr(Armed, "is_armed", True)
    rebuilt = [tk.load_whole(tmp_path / name, trust=[nasty_models]) for name in ("model", "model.pt")]
    monkeypatch.undo()

    assert [(each.helper.value, each.linear.in_features) for each in rebuilt] == [(3, 3), (3, 3)]


def test_objects_that_were_one_are_one(tmp_path):
    tk.save_whole(Holder(), tmp_path / "model")
    model = tk.load_whole(tmp_path / "model", trust=[nasty_models])
    assert model.shared[0] is model.shared[1] is model.options is model.pair.first
    assert model.keeper.module is model is model.keeper.extra[0]
    assert model.method.__self__ is model.keeper
    assert model.beside["twin"][0] is model.linear is model.stack[0]
    assert model.norm is Norm.BATCH
    assert model.by_class == {nn.Linear: "linear", Norm.BATCH: 1}
    assert list(model.ordered.items()) == [(3, "c"), (1, "a")]
    assert model.ordered.note == "kept"
    assert (type(model.label), model.label) == (nasty_models.Label, "name")
    assert model.norm_class(4).eps == 1e-3
    assert model.log is logging.getLogger("torchkeep.tests")
    assert (model.nothing, model.text, model.many) == (None, "$text", {"$a": 1, "b": {2, 3}, "c": range(3)})
    assert model.kinds == (torch.bfloat16, torch.device("cpu"), torch.channels_last, torch.strided)
    assert weakref.ref(model)() is model


def test_ties_hold_and_stay_ties(tmp_path):
    tk.save_whole(Tied(), tmp_path / "model")
    model = tk.load_whole(tmp_path / "model", trust=[Tied])
    assert model.head.weight is model.embed.weight is not model.alias
    assert model.again is model.head
    assert model.alias.data_ptr() == model.embed.weight.data_ptr()
    assert model.plain is model.mask
    assert "mask" not in model.state_dict()
    with torch.no_grad():
        model.alias.zero_()
    assert not model.embed.weight.any()


def test_a_whole_model_is_an_ordinary_checkpoint_too(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    tk.save_whole(model, tmp_path / "model", step=7, metrics={"acc": 0.5})
    other = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    loaded = tk.load(tmp_path / "model", into=other)
    assert (loaded.plan.coverage, loaded.step) == (1.0, 7)
    assert torch.equal(other(VECTORS), model(VECTORS))
    assert list(tk.load(tmp_path / "model")) == list(model.state_dict())
    assert tk.verify(tmp_path / "model")
    again = tk.save_whole(model, tmp_path / "model")
    assert again.written_bytes == 0


def test_one_file_holds_a_whole_model_as_well(tmp_path):
    model = Tied()
    tk.save_whole(model, tmp_path / "model.safetensors", example_inputs=MODELS["tied embeddings"][1])
    rebuilt = tk.load_whole(tmp_path / "model.safetensors", trust=[Tied], check=True)
    assert torch.equal(rebuilt.embed.weight, model.embed.weight)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=["DataParallel", "compile"])
def test_wrappers_are_left_out(wrap, tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    model[1] = wrap(model[1])
    tk.save_whole(wrap(model), tmp_path / "model")
    rebuilt = tk.load_whole(tmp_path / "model")
    assert [type(each) for each in rebuilt.modules()] == [nn.Sequential, nn.Linear, nn.Sequential, nn.Linear]
