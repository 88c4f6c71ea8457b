"""Loading: into anything that exists, from any format, with every difference said and nothing touched on refusal."""

from __future__ import annotations

import copy
import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import register_parametrization

import torchkeep as tk
from torchkeep.errors import CorruptError, FormatError, NotFoundError, PlanError


def net(out=2, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, out))


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


SAVERS = {
    "torchkeep folder": lambda model, path: tk.save(model, path / "ckpt").path,
    "torchkeep file": lambda model, path: tk.save(model, path / "w.safetensors").path,
    "torch zip": lambda model, path: _torch_save(model.state_dict(), path / "w.pth"),
    "torch legacy": lambda model, path: _torch_save(model.state_dict(), path / "w.pth", zipped=False),
    "nested": lambda model, path: _torch_save({"state_dict": model.state_dict(), "epoch": 3}, path / "w.ckpt"),
    "nested deeper": lambda model, path: _torch_save({"a": {"model": {"weights": model.state_dict()}}}, path / "w.pt"),
    "whole module": lambda model, path: _torch_save(model, path / "whole.pt"),
    "data parallel": lambda model, path: _torch_save(nn.DataParallel(model).state_dict(), path / "dp.pt"),
    "safetensors": lambda model, path: _safetensors_save(model, path / "plain.safetensors"),
}


def _torch_save(value, path, *, zipped=True):
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


def _safetensors_save(model, path):
    from safetensors.torch import save_file

    save_file(model.state_dict(), path)
    return path


@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel, torch.compile], ids=["bare", "parallel", "compiled"])
@pytest.mark.parametrize("kind", SAVERS)
def test_weights_of_every_format_load_into_a_model_bare_or_wrapped(tmp_path, kind, wrap):
    model, other = net(), net(seed=1)
    rest = tk.load(SAVERS[kind](model, tmp_path), into=wrap(other))
    assert equal(model, other)
    assert rest.plan.coverage == 1.0
    assert rest.fresh == ()


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=["parallel", "compiled"])
def test_a_wrapped_model_is_saved_like_the_bare_one(tmp_path, wrap):
    model = net()
    tk.save({"model": wrap(model)}, tmp_path / "ckpt")
    assert list(tk.load(tmp_path / "ckpt")["model"]) == list(model.state_dict())


class Called(nn.Module):
    """A model with a child that is genuinely called module."""

    def __init__(self, wrap, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.module = nn.Linear(2, 2)
        self.inner = wrap(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.compile,
        lambda m: torch.compile(nn.DataParallel(m)),
        checkpoint_wrapper,
        lambda m: torch.compile(checkpoint_wrapper(m)),
    ],
)
def test_wrappers_inside_a_model_leave_no_trace_in_names(tmp_path, wrap):
    bare, wrapped = Called(lambda m: m, 0), Called(wrap, 1)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
    for parameter in wrapped.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.randn_like(parameter)
    tk.save({"model": wrapped, "optimizer": optimizer}, tmp_path / "ckpt")
    state = tk.load(tmp_path / "ckpt")
    assert list(state["model"]) == list(bare.state_dict())
    assert state["model"]._metadata["inner.1"] == {"version": 2}
    assert set(state["optimizer"]["state"]) == {name for name, _ in bare.named_parameters()}
    tk.load(tmp_path / "ckpt", into={"model": bare})
    assert equal(bare, wrapped)
    tk.save(Called(lambda m: m, 2), tmp_path / "bare")
    tk.load(tmp_path / "bare", into=wrapped)
    assert equal(wrapped, Called(lambda m: m, 2))
    assert tk.freeze(wrapped, "inner.0") == ("inner.0.weight", "inner.0.bias")
    assert tk.freeze(wrapped, "module") == ("module.weight", "module.bias")


@pytest.mark.parametrize("original_parameters", [True, False])
def test_a_sharded_model_of_one_process_saves_and_loads_like_the_bare_one(tmp_path, original_parameters):
    script = Path(__file__).parent / "sharded_process.py"
    bare, sharded = tmp_path / "bare", tmp_path / "sharded"
    tk.save(net(), bare)
    command = [sys.executable, str(script), str(bare), str(sharded), str(int(original_parameters))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)
    assert (done.returncode, done.stdout) == (0, "1.0\n"), done.stderr
    other = net(seed=1)
    assert tk.load(sharded, into=other).plan.coverage == 1.0
    assert equal(other, net())


PARAMETRIZED = {
    "bare": lambda layer: layer,
    "weight norm": parametrizations.weight_norm,
    "older weight norm": nn.utils.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}


NEW, OLDER = "w.parametrizations.weight", "w.weight"


@pytest.mark.parametrize(
    ("saved", "live", "same", "differing"),
    [
        ("bare", "spectral norm", {OLDER: f"{NEW}.original"}, [f"{NEW}.0._u", f"{NEW}.0._v"]),
        ("weight norm", "older weight norm", {f"{NEW}.original0": "w.weight_g", f"{NEW}.original1": "w.weight_v"}, []),
        ("older weight norm", "weight norm", {"w.weight_g": f"{NEW}.original0", "w.weight_v": f"{NEW}.original1"}, []),
        ("weight norm", "weight norm", {f"{NEW}.original0": f"{NEW}.original0"}, []),
        ("orthogonal", "orthogonal", {f"{NEW}.original": f"{NEW}.original"}, []),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_a_parametrized_weight_is_found_by_the_name_it_has_without(tmp_path, saved, live, same, differing):
    def make(kind):
        return nn.ModuleDict({"w": PARAMETRIZED[kind](nn.Linear(4, 4)), "module": nn.Linear(2, 2)})

    model, other = make(saved), make(live)
    tk.save(model, tmp_path / "ckpt")
    plan = tk.plan(tmp_path / "ckpt", into=nn.DataParallel(other), rules=[tk.Skip(*differing)] if differing else [])
    assert [row.name for row in plan.rows if row.status.value == "skipped"] == differing
    plan.apply()
    for old, new in {**same, "w.bias": "w.bias", "module.weight": "module.weight"}.items():
        assert torch.equal(model.state_dict()[old], other.state_dict()[new])


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight

    def right_inverse(self, weight):
        return weight / 2


def test_a_plain_weight_goes_through_the_parametrization_so_that_the_model_computes_the_same(tmp_path):
    plain, doubled = nn.Linear(3, 3), nn.Linear(3, 3)
    register_parametrization(doubled, "weight", Doubled())
    tk.save(plain, tmp_path / "plain")
    rest = tk.load(tmp_path / "plain", into=nn.ModuleDict({"module": doubled})["module"])
    assert torch.equal(doubled.weight, plain.weight)
    assert "by the right_inverse of its parametrization" in next(r for r in rest.plan.rows if r.changes).reason
    tk.save(doubled, tmp_path / "doubled")
    bare = nn.Linear(3, 3)
    with pytest.raises(PlanError, match=r"2 of 3 tensors do not fit"):
        tk.load(tmp_path / "doubled", into=bare)


def test_every_difference_is_raised_at_once_and_nothing_is_touched(tmp_path):
    model = net()
    tk.save({"model": model}, tmp_path / "ckpt")
    other = net(out=5, seed=1)
    other.append(nn.Linear(5, 5))
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(PlanError) as refused:
        tk.load(tmp_path / "ckpt", into={"model": other})
    text = str(refused.value)
    assert "into Sequential: 4 of 11 tensors do not fit" in text
    assert "shape differs   3.weight   checkpoint (2, 4)   model (5, 4)" in text
    assert "only in model   4.*" in text
    assert 'Skip("4")' in text
    assert all(torch.equal(a, before[name]) for name, a in other.state_dict().items())


def test_not_strict_takes_what_fits_a_differing_shape_included_and_reports_the_rest(tmp_path):
    model, other = net(), net(out=5, seed=1)
    head = other[3].weight.detach().clone()
    tk.save(model, tmp_path / "ckpt")
    rest = tk.load(tmp_path / "ckpt", into=other, strict=False)
    assert rest.fresh == ("3.weight", "3.bias")
    assert torch.equal(other[0].weight, model[0].weight)
    assert torch.equal(other[3].weight, head)


def test_almost_nothing_matching_is_an_error_even_when_not_strict(tmp_path):
    tk.save({f"net_{name}": tensor for name, tensor in net().state_dict().items()}, tmp_path / "ckpt")
    with pytest.raises(PlanError, match="0 % of Sequential"):
        tk.load(tmp_path / "ckpt", into=net(seed=1), strict=False)


def test_rules_make_it_fit(tmp_path):
    model, other = net(), net(seed=1)
    tk.save({f"net_{name}": tensor for name, tensor in model.state_dict().items()}, tmp_path / "ckpt")
    tk.load(tmp_path / "ckpt", into=other, rules=[tk.Rename("^net_", "")])
    assert equal(model, other)


def test_widening_happens_and_is_reported_and_narrowing_needs_cast(tmp_path):
    tk.save(net().half(), tmp_path / "half")
    rest = tk.load(tmp_path / "half", into=net(seed=1))
    assert {change for row in rest.plan.rows for change in row.changes} == {"cast"}
    tk.save(net(), tmp_path / "full")
    half = net(seed=1).half()
    for strict in (True, False):
        with pytest.raises(PlanError, match=r"dtype differs .*float32.*float16(.|\n)*Cast\("):
            tk.load(tmp_path / "full", into=half, strict=strict)
    tk.load(tmp_path / "full", into=half, rules=[tk.Cast()])
    assert torch.equal(half[0].weight, net()[0].weight.half())


def test_keys_of_into_are_paths_down_to_a_prefix_inside_a_state_dict(tmp_path):
    generator, discriminator = net(), net(out=3, seed=2)
    optimizer = torch.optim.Adam(generator.parameters())
    joint = nn.ModuleDict({"g": generator, "d": discriminator})
    torch.save(
        {
            "state_dict": joint.state_dict(),
            "optimizer_states": [optimizer.state_dict()],
            "a.b": {"c.d": {"w": torch.ones(2)}},
        },
        tmp_path / "gan.ckpt",
    )
    new_g, new_d, tensor = net(seed=3), net(out=3, seed=4), {"w": torch.zeros(2)}
    rest = tk.load(
        tmp_path / "gan.ckpt",
        into={
            "state_dict.g": new_g,
            "state_dict.d": new_d,
            "optimizer_states.0": torch.optim.Adam(new_g.parameters()),
            ("a.b", "c.d"): tensor,
        },
    )
    assert equal(generator, new_g)
    assert equal(discriminator, new_d)
    assert tensor["w"].tolist() == [1, 1]
    assert "state_dict" not in rest or not rest["state_dict"]


def test_two_entries_that_could_both_be_the_weights_are_refused_with_their_keys(tmp_path):
    tk.save({"G": net(), "D": net()}, tmp_path / "gan")
    with pytest.raises(PlanError, match=r"'?G'?(.|\n)*'?D'?"):
        tk.load(tmp_path / "gan", into=net())
    tk.load(tmp_path / "gan", into={"G": net()})


def test_raw_weights_are_taken_before_averaged_ones_and_the_plan_says_which(tmp_path):
    model, average = net(), net(seed=1)
    tk.save({"ema": average, "model": model}, tmp_path / "ckpt")
    other = net(seed=2)
    rest = tk.load(tmp_path / "ckpt", into=other)
    assert equal(model, other)
    assert rest.plan.pairs[""].origin == "model"
    tk.load(tmp_path / "ckpt", into={"ema": other})
    assert equal(average, other)


def test_weights_inside_a_list_are_found_and_the_rest_of_it_comes_back(tmp_path):
    model, other = net(), net(seed=1)
    torch.save([3, [model.state_dict(), "two"]], tmp_path / "listed.pt")
    rest = tk.load(tmp_path / "listed.pt", into=other)
    assert equal(model, other)
    assert rest.plan.pairs[""].origin == "1.0"
    assert dict(rest) == {0: 3, 1: {1: "two"}}


def test_one_object_for_two_entries_that_differ_is_refused_for_the_last_would_win(tmp_path):
    model = net()
    tk.save({"a": net(), "b": net(seed=1), "same": net(), "c": {"n": 1}, "d": {"n": 2}}, tmp_path / "ckpt")
    before = copy.deepcopy(model.state_dict())
    counter = Counter()
    into = {"a": model, "b": nn.DataParallel(model), "c": counter, "d": counter}
    with pytest.raises(PlanError) as refused:
        tk.load(tmp_path / "ckpt", into=into)
    assert refused.value.faults == (
        "'a' and 'b' are for one and the same Sequential and differ",
        "'c' and 'd' are for one and the same Counter and differ",
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    tk.load(tmp_path / "ckpt", into={"a": model, "same": model})
    assert equal(model, net())


class Counter:
    n = 0

    def state_dict(self):
        return {"n": self.n}

    def load_state_dict(self, state):
        self.n = state["n"]


def test_a_mapping_of_tensors_is_filled_in_place(tmp_path):
    model, other = net(), net(seed=1)
    tk.save(model, tmp_path / "ckpt")
    tk.load(tmp_path / "ckpt", into=other.state_dict())
    assert equal(model, other)


def test_what_was_not_asked_into_an_object_comes_back(tmp_path):
    alpha = nn.Parameter(torch.tensor(0.25))
    tk.save({"model": net(), "epoch": 12, "alpha": alpha, "log": {"a": torch.ones(2)}}, tmp_path / "ckpt", step=7)
    rest = tk.load(tmp_path / "ckpt", into={"model": net(seed=1)})
    assert list(rest) == ["epoch", "alpha", "log"]
    assert rest["epoch"] == 12
    assert rest["alpha"].item() == 0.25
    assert rest["log"]["a"].tolist() == [1, 1]
    assert rest.step == 7


@pytest.mark.parametrize("bad", [3, "text", None, (1,)], ids=repr)
def test_a_plain_value_in_into_is_a_type_error(tmp_path, bad):
    tk.save({"model": net(), "epoch": 3}, tmp_path / "ckpt")
    with pytest.raises(TypeError, match="cannot load into 'epoch'"):
        tk.load(tmp_path / "ckpt", into={"model": net(), "epoch": bad})


def test_a_key_that_is_not_in_the_checkpoint_is_an_error_that_lists_what_is(tmp_path):
    tk.save({"model": net(), "epoch": 3}, tmp_path / "ckpt")
    with pytest.raises(NotFoundError, match=r"nothing in it is called 'modle'\n  hint: it holds 'model', 'epoch'"):
        tk.load(tmp_path / "ckpt", into={"modle": net()})


def test_damage_is_found_before_anything_is_touched(tmp_path):
    model = net()
    saved = tk.save({"a": model, "b": model.state_dict()["0.weight"].double()}, tmp_path / "ckpt")
    file = tmp_path / "ckpt" / "a.safetensors"
    file.chmod(0o644)
    data = bytearray(file.read_bytes())
    data[-3] ^= 4
    file.write_bytes(data)
    other = net(seed=1)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(CorruptError, match=r"1 of its parts is damaged(.|\n)*differ from their digest"):
        tk.load(saved.path, into={"a": other})
    assert all(torch.equal(a, before[name]) for name, a in other.state_dict().items())


def test_loading_in_place_keeps_the_parameters_memory_and_tells_autograd(tmp_path):
    model = net()
    tk.save(model, tmp_path / "ckpt")
    address, version = model[0].weight.data_ptr(), model[0].weight._version
    tk.load(tmp_path / "ckpt", into=model)
    assert model[0].weight.data_ptr() == address
    assert model[0].weight._version > version


def test_channels_last_and_meta_models_are_filled(tmp_path):
    model = net()
    tk.save(model, tmp_path / "ckpt")
    last = net(seed=1).to(memory_format=torch.channels_last)
    tk.load(tmp_path / "ckpt", into=last)
    assert equal(model, last)
    assert last[0].weight.is_contiguous(memory_format=torch.channels_last)
    with torch.device("meta"):
        empty = net()
    empty[3].weight.requires_grad_(False)
    tk.load(tmp_path / "ckpt", into=empty)
    assert equal(model, empty)
    assert [parameter.requires_grad for parameter in empty.parameters()] == [True] * 4 + [False, True]


def test_a_meta_model_with_a_loader_of_its_own_is_filled_too(tmp_path):
    module = nn.Sequential(Versioned(), nn.Linear(2, 2))
    tk.save(module, tmp_path / "ckpt")
    with torch.device("meta"):
        empty = nn.Sequential(Versioned(), nn.Linear(2, 2))
    tk.load(tmp_path / "ckpt", into=empty)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), empty.parameters(), strict=True))


class Versioned(nn.Module):
    """A module with a loader and a state of its own."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.calls = 0

    def get_extra_state(self):
        return {"calls": self.calls, "history": torch.arange(3)}

    def set_extra_state(self, state):
        if state["calls"] == 13:
            raise RuntimeError("thirteen")
        self.calls = state["calls"]


def test_a_module_that_overrides_loading_loads_by_itself_and_is_put_back_when_it_raises(tmp_path):
    module = Versioned()
    module.calls = 4
    with torch.no_grad():
        module.weight.mul_(3)
    tk.save(nn.Sequential(module), tmp_path / "ckpt")
    other = nn.Sequential(Versioned())
    rest = tk.load(tmp_path / "ckpt", into=other)
    assert (other[0].calls, other[0].weight.tolist()) == (4, [3, 3])
    assert "has extra state" in str(rest.plan)
    module.calls = 13
    tk.save(nn.Sequential(module), tmp_path / "ckpt")
    fresh = nn.Sequential(Versioned())
    with pytest.raises(PlanError, match=r"Sequential refuses its state\n  RuntimeError: thirteen"):
        tk.load(tmp_path / "ckpt", into=fresh)
    assert fresh[0].weight.tolist() == [1, 1]


def test_flags_are_compared_and_reported_and_never_set(tmp_path):
    model = net()
    tk.freeze(model, "0")
    tk.save({"model": model.eval()}, tmp_path / "ckpt")
    other = net(seed=1)
    rest = tk.load(tmp_path / "ckpt", into={"model": other})
    assert [note.split(";")[0] for note in rest.notes] == [
        "model: 2 parameters were frozen at the save and are not now, 0 the other way round",
        "model: 5 modules were in evaluation mode at the save and are not now, 0 the other way round",
    ]
    assert other.training
    assert all(parameter.requires_grad for parameter in other.parameters())


def test_a_plan_can_be_printed_changed_and_applied(tmp_path):
    model, other = net(), net(out=5, seed=1)
    tk.save(model, tmp_path / "ckpt")
    plan = tk.plan(tmp_path / "ckpt", into=other)
    assert "shape differs" in str(plan)
    with pytest.raises(PlanError, match="2 of 9 tensors do not fit"):
        plan.apply()
    fitting = plan.with_rules(*plan.suggest())
    assert fitting.rules == (tk.Skip("3"),)
    fitting.require(coverage=0.5).apply()
    assert torch.equal(other[0].weight, model[0].weight)


def test_without_into_tensors_go_to_the_cpu_or_where_asked_and_never_where_the_file_says(tmp_path):
    tk.save({"w": torch.ones(2)}, tmp_path / "ckpt")
    assert tk.load(tmp_path / "ckpt")["w"].device.type == "cpu"
    assert tk.load(tmp_path / "ckpt", map_location="meta")["w"].device.type == "meta"


def test_a_folder_with_one_file_of_ours_is_that_file(tmp_path):
    model, other = net(), net(seed=1)
    tk.save(model, tmp_path / "sent" / "only.safetensors")
    tk.load(tmp_path / "sent", into=other)
    assert equal(model, other)


def test_an_empty_path_is_not_the_current_folder():
    with pytest.raises(NotFoundError, match="the path is empty"):
        tk.load("")


def test_what_is_left_of_a_step_without_its_record_is_refused(tmp_path):
    saved = tk.save(net(), tmp_path / "step-00000003")
    (saved.path / "checkpoint.json").unlink()
    with pytest.raises(CorruptError, match=r"what is left of a checkpoint: its checkpoint\.json is absent"):
        tk.load(saved.path)


def test_a_run_folder_is_not_a_checkpoint_and_the_error_names_the_newest(tmp_path):
    with tk.CheckpointManager(tmp_path, {"progress": {}}) as manager:
        manager.save(3)
        manager.save(4)
    with pytest.raises(tk.errors.FormatError, match=r"a run folder with 2 checkpoints(.|\n)*step-00000004"):
        tk.load(tmp_path)


def test_loose_tensors_among_entries_are_filled_by_their_keys_and_a_state_dict_is_matched_whole(tmp_path):
    tk.save({"alpha": torch.ones(2), "beta": torch.ones(1), "epoch": 3}, tmp_path / "mixed")
    alpha = torch.zeros(2)
    rest = tk.load(tmp_path / "mixed", into={"alpha": alpha})
    assert alpha.tolist() == [1, 1]
    assert list(rest) == ["beta", "epoch"]
    tk.save({"alpha": torch.ones(2), "beta": torch.ones(1)}, tmp_path / "flat")
    with pytest.raises(PlanError, match=r"only in checkpoint +beta"):
        tk.load(tmp_path / "flat", into={"alpha": alpha})


class Refusing:
    """Something that keeps a state and does not take every one back."""

    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        if state["value"] == 13:
            raise KeyError("thirteen")
        self.value = state["value"]


def test_when_one_object_refuses_its_state_all_are_as_before(tmp_path):
    model, other = net(), net(seed=1)
    tk.save({"model": model, "good": Refusing(1), "bad": Refusing(13)}, tmp_path / "ckpt")
    before = copy.deepcopy(other.state_dict())
    good = Refusing(7)
    with pytest.raises(PlanError, match=r"bad \(Refusing\) refuses its state\n  KeyError: 'thirteen'"):
        tk.load(tmp_path / "ckpt", into={"model": other, "good": good, "bad": Refusing(0)})
    assert good.value == 7
    assert all(torch.equal(a, before[name]) for name, a in other.state_dict().items())


class Tied(nn.Module):
    def __init__(self, tie, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.a, self.b = nn.Linear(300, 300, bias=False), nn.Linear(300, 300, bias=False)
        if tie:
            self.b.weight = self.a.weight


def test_tensors_that_are_tied_on_one_side_only(tmp_path):
    tk.save(Tied(tie=False), tmp_path / "two")
    model = Tied(tie=True, seed=1)
    before = model.a.weight.detach().clone()
    with pytest.raises(PlanError, match=r"a\.weight and b\.weight are one tensor in the model and differ"):
        tk.load(tmp_path / "two", into=model)
    assert torch.equal(model.a.weight, before)
    tk.load(tmp_path / "two", into=model, strict=False, io_threads=4)
    equal_twice = Tied(tie=False)
    equal_twice.b.load_state_dict(equal_twice.a.state_dict())
    tk.save(equal_twice, tmp_path / "same")
    tk.load(tmp_path / "same", into=model, io_threads=4)
    assert torch.equal(model.b.weight, equal_twice.a.weight)
    tk.save({"a.weight": equal_twice.a.weight.detach()}, tmp_path / "one")
    rest = tk.load(tmp_path / "one", into=Tied(tie=True))
    assert [row.reason for row in rest.plan.rows] == ["loads as it was saved", "it is tied to a.weight, which arrives"]
    assert (rest.plan.coverage, rest.fresh) == (1.0, ())
    tk.save(Tied(tie=True), tmp_path / "tied")
    tk.load(tmp_path / "tied", into=Tied(tie=False))


def test_ties_are_looked_at_under_the_names_that_rules_make_and_by_values(tmp_path):
    two = Tied(tie=False)
    torch.save({"x.weight": two.a.weight, "b.weight": two.b.weight}, tmp_path / "two.pt")
    into, rules = Tied(tie=True, seed=1), [tk.Rename("^x", "a")]
    with pytest.raises(PlanError) as refused:
        tk.load(tmp_path / "two.pt", into=into, rules=rules)
    assert 'differ in the checkpoint: Skip("b.weight") takes the first' in str(refused.value)
    tk.load(tmp_path / "two.pt", into=into, rules=[*rules, tk.Skip("b.weight")])
    assert torch.equal(into.b.weight, two.a.weight)
    torch.save({"a.weight": two.a.weight, "b.weight": two.a.weight.clone()}, tmp_path / "copies.pt")
    assert tk.load(tmp_path / "copies.pt", into=Tied(tie=True, seed=1)).fresh == ()


def test_a_module_with_a_sparse_buffer_loads_into_its_twin(tmp_path):
    def graph(scale):
        module = nn.Linear(2, 2)
        module.register_buffer("adjacency", (torch.eye(3) * scale).to_sparse())
        return module

    tk.save({"model": graph(2.0)}, tmp_path / "ckpt")
    other = graph(1.0)
    tk.load(tmp_path / "ckpt", into={"model": other})
    assert torch.equal(other.adjacency.to_dense(), torch.eye(3) * 2)


def test_an_averaged_model_loads_into_the_plain_one(tmp_path):
    from torch.optim.swa_utils import AveragedModel

    model = net()
    tk.save({"ema": AveragedModel(model)}, tmp_path / "ckpt")
    other = net(seed=1)
    tk.load(tmp_path / "ckpt", into={"ema": other})
    assert equal(model, other)
    tk.load(tmp_path / "ckpt", into={"ema": AveragedModel(other)})


def test_a_model_saved_alone_is_also_found_by_the_name_model(tmp_path):
    model, other = net(), net(seed=1)
    tk.save(model, tmp_path / "ckpt")
    tk.load(tmp_path / "ckpt", into={"model": other})
    assert equal(model, other)


def folded():
    module = nn.Sequential(nn.Linear(2, 2))
    module.register_buffer("folded", torch.zeros(1).expand(4))
    return module


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(2)), "0.weight, 0.bias: not initialised yet; run the model once"),
        (folded, "folded: elements share memory, as expand"),
    ],
    ids=["lazy", "expanded"],
)
def test_a_model_that_nothing_can_be_placed_in_is_refused_in_words(tmp_path, make, text):
    tk.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "ckpt")
    with pytest.raises(PlanError, match=text):
        tk.load(tmp_path / "ckpt", into=make())


@pytest.mark.parametrize(
    ("act", "error", "text"),
    [
        (lambda p: tk.load(p, into=net(), rules=tk.Skip("fc")), TypeError, "rules is a list of rules, as"),
        (lambda p: tk.load(p, into=net(), rules=["fc"]), TypeError, "rules is a list of rules, as .*not 'fc'"),
        (lambda p: tk.load(p, into=nn.Linear), TypeError, "cannot load into type"),
        (lambda p: tk.load(p, into={"model": nn.Linear}), TypeError, r"cannot load into 'model' \(type\)"),
        (lambda p: tk.load(p, map_location="bogus"), ValueError, "map_location='bogus' is no device here"),
        (lambda p: tk.save(p, net()), TypeError, "are the two arguments swapped"),
        (lambda p: tk.load("x" * 300), tk.CheckpointError, "cannot be read|nothing is there"),
    ],
    ids=range(7),
)
def test_wrong_arguments_say_what_is_wanted(tmp_path, act, error, text):
    with pytest.raises(error, match=text):
        act(tk.save(net(), tmp_path / "ckpt").path)


def test_loads_of_any_format_leave_no_file_open(tmp_path):
    model = net()
    paths = [SAVERS[kind](model, tmp_path) for kind in ("torchkeep folder", "torch zip", "safetensors")]
    torch.save(model.state_dict(), tmp_path / "l.pth", _use_new_zipfile_serialization=False)
    for path in [*paths, tmp_path / "l.pth"]:
        tk.load(path, into=model)
    gc.collect()  # what other tests left open
    before = len(os.listdir("/proc/self/fd"))
    for path in [*paths, tmp_path / "l.pth"] * 3:
        tk.load(path, into=model)
        tk.open(path)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_rule_that_matched_nothing_is_noted(tmp_path):
    tk.save(net(), tmp_path / "ckpt")
    assert tk.load(tmp_path / "ckpt", into=net(), rules=[tk.Skip("haed")]).notes == ('Skip("haed") matched nothing',)


def test_weights_that_are_numpy_arrays_are_refused_with_what_to_do(tmp_path):
    arrays = {name: value.numpy() for name, value in net().state_dict().items()}
    torch.save({"model": arrays, "author": "somebody"}, tmp_path / "arrays.pkl")
    for into in (net(), {"model": net()}):
        with pytest.raises(NotFoundError, match=r"9 numpy arrays in all(.|\n)*make tensors of .* torch.from_numpy"):
            tk.load(tmp_path / "arrays.pkl", into=into)


def test_an_archive_of_another_kind_is_called_what_it_is(tmp_path):
    np.savez(tmp_path / "a.npz", w=np.ones(2))
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), tmp_path / "program.pt2")
    with pytest.raises(FormatError, match=r"an archive of numpy arrays \(.npz\)(.|\n)*load it with numpy.load"):
        tk.load(tmp_path / "a.npz")
    with pytest.raises(FormatError, match=r"a program of torch.export \(.pt2\)(.|\n)*torch.export.load runs"):
        tk.load(tmp_path / "program.pt2")


@pytest.mark.parametrize("name", ["consolidated.00.pth", "best.pt", "last.ckpt"])
def test_a_folder_that_holds_a_file_of_no_usual_name_says_which(tmp_path, name):
    torch.save(net().state_dict(), tmp_path / name)
    with pytest.raises(FormatError, match=f"name one that is in it: {name}"):
        tk.load(tmp_path, into=net())


def test_memory_that_several_tensors_of_a_mapping_share_ends_as_if_they_were_filled_in_their_order(tmp_path):
    """Whatever is read straight into place, widened or strided on its way."""
    torch.manual_seed(0)
    saved = {
        "plain": torch.randn(8),
        "widened": torch.randn(8).half(),
        "strided": torch.randn(3),
        "last": torch.randn(4),
    }

    def views():
        memory = torch.zeros(12)
        return {"plain": memory[:8], "widened": memory[4:], "strided": memory[1::4], "last": memory[2:6]}

    expected, live = views(), views()
    for name, value in saved.items():
        expected[name].copy_(value)
    torch.save(saved, tmp_path / "w.pt")
    tk.save(saved, tmp_path / "ckpt")
    for path in (tmp_path / "w.pt", tmp_path / "ckpt"):
        tk.load(path, into=live)
        assert [each.tolist() for each in live.values()] == [each.tolist() for each in expected.values()]


class Halving(nn.Linear):
    """A layer that saves half of the bits, in memory that is not its own."""

    def state_dict(self, *args, **kwargs):
        return {name: value.half() for name, value in super().state_dict(*args, **kwargs).items()}


class Hooked(nn.Linear):
    """The same by a hook."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self._register_state_dict_hook(lambda _, state, *others: {name: value.half() for name, value in state.items()})


@pytest.mark.parametrize("kind", [Halving, Hooked])
@pytest.mark.parametrize("save", ["torchkeep folder", "torch zip"])
def test_a_module_whose_state_dict_holds_copies_is_filled_and_not_the_copies(tmp_path, kind, save):
    saved, model = kind(2, 3), nn.DataParallel(kind(2, 3))
    plan = tk.load(SAVERS[save](saved, tmp_path), into=model).plan
    assert torch.equal(model.module.weight, saved.weight.half().float())
    assert f"{kind.__name__} makes copies in its state_dict" in str(plan)


def test_not_strict_what_shares_memory_with_itself_is_left_and_the_rest_arrives(tmp_path):
    tk.save({"a": torch.ones(3), "folded": torch.ones(4, 2)}, tmp_path / "ckpt")
    live = {"a": torch.zeros(3), "folded": torch.zeros(1, 2).expand(4, 2)}
    plan = tk.load(tmp_path / "ckpt", into=live, strict=False).plan
    assert (live["a"].tolist(), live["folded"].sum().item()) == ([1, 1, 1], 0)
    assert "folded: elements share memory" in str(plan)
