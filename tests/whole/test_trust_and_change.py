"""What a caller has to trust, and what is said where code is not found, has moved, or has changed since the save."""

from __future__ import annotations

import importlib
import io
import re
import sys
import threading
from pathlib import Path

import pytest
import torch
from tests.whole import traps
from tests.whole.nasty_models import IMAGES, MODELS, STEPS, VECTORS, Holder, Tied
from torch import nn
from torch.nn import functional

import torchkeep as tk
from torchkeep.errors import FormatError, NotFoundError, PlanError, UnsafeError

NETWORK = """
from torch import nn


class Block(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.linear = nn.Linear(size, size)
        self.act = nn.functional.relu

    def forward(self, values):
        return self.act(self.linear(values))


class Net(nn.Module):
    def __init__(self, size=4):
        super().__init__()
        self.size = size
        self.block = Block(size)
        self.register_buffer("scale", __import__("torch").ones(size), persistent=False)

    def forward(self, values):
        return self.block(values) * self.scale
"""
INPUT = torch.linspace(-1, 1, 8).reshape(2, 4)


class Code:
    """A package under way: its text is changed and imported anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: set[str] = set()

    def write(self, text: str, name: str = "shop_models") -> object:
        (self.folder / f"{name}.py").write_text(text)
        self.names.add(name)
        self.forget()
        return importlib.import_module(name)

    def forget(self) -> None:
        importlib.invalidate_caches()
        for name in self.names:
            sys.modules.pop(name, None)


@pytest.fixture
def code(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    made = Code(tmp_path)
    yield made
    made.forget()


@pytest.fixture
def saved(code, tmp_path) -> Path:
    model = code.write(NETWORK).Net()
    tk.save_whole(model, tmp_path / "model", example_inputs=INPUT, include_source=True)
    return tmp_path / "model"


def refusal(kind: type[Exception], *args: object, **kwargs: object) -> str:
    with pytest.raises(kind) as caught:
        tk.load_whole(*args, **kwargs)
    return str(caught.value)


def test_the_error_lists_exactly_what_to_paste(code, saved):
    code.forget()
    text = refusal(UnsafeError, saved)
    assert text == (
        f"{saved}: the model wants 2 names that are not trusted; nothing was imported\n"
        "  shop_models.Net     of the model itself\n"
        "  shop_models.Block   of block\n"
        '  hint: if you would import them yourself: load_whole(..., trust=["shop_models.Block", "shop_models.Net"])'
    )
    assert "shop_models" not in sys.modules
    trust = eval(text.rpartition("trust=")[2].removesuffix(")"))
    assert type(tk.load_whole(saved, trust=trust)).__name__ == "Net"


@pytest.mark.parametrize(
    "trust",
    [
        ["shop_models"],
        "shop_models",
        ["shop_models.Net", "shop_models:Block"],
        lambda module: [module.Net, module.Block],
        lambda module: [module],
        lambda module: module,
        lambda module: [module.Net, "shop_models.Block"],
    ],
    ids=["package", "one text", "names", "classes", "module", "one module", "both"],
)
def test_a_class_is_trusted_by_itself_its_name_or_its_package(trust, code, saved):
    module = importlib.import_module("shop_models")
    model = tk.load_whole(saved, trust=trust(module) if callable(trust) else trust, check=True)
    assert isinstance(model, module.Net)


@pytest.mark.parametrize("trust", [["shop"], ["shop_models.Ne"], ["shop_models.Net.x"], ["models"], [nn.Linear], []])
def test_a_name_that_only_begins_alike_is_not_trusted(trust, saved):
    assert "not trusted" in refusal(UnsafeError, saved, trust=trust)


WIDE = ("torch", "os", "builtins", "subprocess", "torch.hub", "sys.path", "*", "torch.*", "..", "", "a b")


@pytest.mark.parametrize("trust", WIDE)
def test_trust_in_everything_is_refused(trust, saved):
    with pytest.raises(ValueError, match="trust="):
        tk.load_whole(saved, trust=[trust])


@pytest.mark.parametrize("given", [["a"], 3, "a"])
def test_a_class_map_maps_names(given, saved):
    with pytest.raises(TypeError, match=r"class_map is a .*: names in the file to classes are wanted"):
        tk.load_whole(saved, class_map=given)


def test_trust_is_made_of_classes_functions_and_names(saved):
    with pytest.raises(TypeError, match="trust holds a int: classes, functions and dotted names are wanted"):
        tk.load_whole(saved, trust=[3])


def test_a_trusted_class_admits_no_function_of_its_module(tmp_path):
    model = traps.Plain()
    model.value = traps.function
    tk.save_whole(model, tmp_path / "model")
    assert "tests.whole.traps.function" in refusal(UnsafeError, tmp_path / "model", trust=[traps.Plain])
    for trust in ([traps.Plain, traps.function], [traps]):
        assert tk.load_whole(tmp_path / "model", trust=trust).value is traps.function


def test_a_name_of_the_class_map_that_the_file_does_not_have_is_said(code, saved):
    said = "class_map names 'shop_models.Nets', which the file does not: it names 'shop_models.Net'"
    slip = {"shop_models.Nets": nn.Linear}
    with pytest.warns(UserWarning, match=re.escape(f"{saved}: {said}")) as warned:
        tk.load_whole(saved, trust=["shop_models"], class_map=slip)
    assert warned[0].filename == __file__
    assert said in refusal(UnsafeError, saved, class_map=slip)
    code.forget()
    (code.folder / "shop_models.py").unlink()
    assert said in refusal(PlanError, saved, trust=["shop_models"], class_map=slip)


def test_code_that_moved_is_found_through_the_class_map(code, saved):
    moved = code.write(NETWORK, "shop_networks")
    code.forget()
    (code.folder / "shop_models.py").unlink()
    text = refusal(PlanError, saved, trust=["shop_models"])
    assert "2 names of the model not found" in text
    assert 'class_map={"old.path.Net": Net}' in text
    one_by_one = {"shop_models.Net": moved.Net, "shop_models.Block": moved.Block}
    assert type(tk.load_whole(saved, class_map=one_by_one, check=True)) is moved.Net
    model = tk.load_whole(saved, trust=["shop_networks"], class_map={"shop_models": "shop_networks"}, check=True)
    assert type(model).__module__ == "shop_networks"
    assert "shop_networks.Net" in refusal(UnsafeError, saved, class_map={"shop_models": "shop_networks"})


def test_a_class_of_a_script_says_how_to_give_it(tmp_path, monkeypatch):
    monkeypatch.setattr(Tied, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "Tied", Tied, raising=False)
    tk.save_whole(Tied(), tmp_path / "model")
    monkeypatch.undo()
    hint = '__main__ is the script that saved: class_map={"__main__.Net": Net}'
    assert hint in refusal(UnsafeError, tmp_path / "model")
    assert type(tk.load_whole(tmp_path / "model", class_map={"__main__.Tied": Tied})) is Tied


CHANGES = {
    "a new attribute": (
        ("self.size = size", "self.size = size\n        self.depth = 2"),
        ["shop_models.Net.depth   only in the class: it sets it now, the file has none"],
    ),
    "an attribute renamed": (
        ("size = size", "width = size"),
        ["shop_models.Net.width   only in the class", "shop_models.Net.size   only in the checkpoint"],
    ),
    "a new child": (
        ("self.act = nn.functional.relu", "self.act = nn.functional.relu\n        self.norm = nn.LayerNorm(size)"),
        ["shop_models.Block.norm   only in the class"],
    ),
    "a buffer gone": (
        ('self.register_buffer("scale", __import__("torch").ones(size), persistent=False)', "pass"),
        ["shop_models.Net.scale   only in the checkpoint: the class does not know it any more"],
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_attributes_are_reported_one_by_one(name, code, saved):
    (old, new), lines = CHANGES[name]
    code.write(NETWORK.replace(old, new).replace("* self.scale", "" if "scale" in old else "* self.scale"))
    text = refusal(PlanError, saved, trust=["shop_models"])
    assert f"classes changed since the save: {len(lines)} attribute" in text
    assert [line for line in lines if line not in text] == []
    with pytest.warns(UserWarning, match="only in the c"):
        model = tk.load_whole(saved, trust=["shop_models"], strict=False)
    assert model.block.linear.weight.shape == (4, 4)


def test_a_changed_text_is_said_with_its_difference(code, saved):
    code.write(NETWORK.replace("values) * self.scale", "values) * self.scale + 1"))
    with pytest.warns(UserWarning, match="not in all as it was saved") as caught:
        tk.load_whole(saved, trust=["shop_models"])
    text = str(caught[0].message)
    assert "shop_models.Net is not the class that was saved (shop_models.py)" in text
    assert "-        return self.block(values) * self.scale\n" in text
    assert "+        return self.block(values) * self.scale + 1" in text
    assert "shop_models.Block" not in text


def test_attributes_that_are_set_on_some_paths_only_are_no_change(code, saved):
    code.write(
        NETWORK.replace("self.size = size", "self.size = size\n        if size > 9:\n            self.big = True")
    )
    with pytest.warns(UserWarning, match="is not the class that was saved"):
        tk.load_whole(saved, trust=["shop_models"])


def test_the_source_is_kept_for_people_where_it_is_asked_for(code, saved, tmp_path):
    with tk.open(saved) as checkpoint:
        source = checkpoint.sources["shop_models.Net"]
    assert source.startswith("class Net(nn.Module):\n")
    assert source.endswith("return self.block(values) * self.scale\n")
    tk.save_whole(code.write(NETWORK).Net(), tmp_path / "other")
    with tk.open(tmp_path / "other") as checkpoint:
        assert checkpoint.sources == {}


def test_no_path_of_the_machine_is_recorded(saved):
    assert str(saved.parent) not in (saved / "checkpoint.json").read_text()


FORWARD = "return self.block(values) * self.scale"
WRONG = {
    "another forward": ("return self.block(values) * self.scale * 1.01", "output: Tensor-likes are not close"),
    "another dtype": ("return self.block(values) * self.scale.double()", "torch.float64 != torch.float32"),
    "another shape": ("return self.block(values)[:1] * self.scale", "shape"),
    "a buffer that is not there": ("return self.block(values) * self.scales", "has no attribute 'scales'"),
    "an output more": ("return self.block(values) * self.scale, values", "1: only in what the model gives now"),
    "an output less": ("return {}", "without tensors"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_check_finds_what_computes_something_else(name, code, saved):
    forward, words = WRONG[name]
    code.write(NETWORK.replace(FORWARD, forward))
    with pytest.warns(UserWarning, match="not the class that was saved"):
        found = refusal(PlanError, saved, trust=["shop_models"], check=True)
    assert words in found
    assert "differ from those at the save" in found or "does not run on the inputs" in found


def test_a_tolerance_allows_for_rounding(code, saved):
    code.write(NETWORK.replace("* self.scale", "* self.scale * 1.001"))
    with pytest.warns(UserWarning, match="not the class"):
        assert tk.load_whole(saved, trust=["shop_models"], check=True, tolerance=0.01)


def test_what_cannot_be_checked_says_so(tmp_path):
    tk.save_whole(nn.Linear(2, 2), tmp_path / "model")
    assert "save_whole(..., example_inputs=...)" in refusal(NotFoundError, tmp_path / "model", check=True)


class Drifting(nn.Module):
    calls = 0

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return values + self.calls


def test_outputs_that_cannot_be_had_again_are_refused_at_the_save(tmp_path):
    with pytest.raises(FormatError, match="gives other outputs when it is run again"):
        tk.save_whole(Drifting(), tmp_path / "model", example_inputs=torch.ones(2))
    assert not (tmp_path / "model").exists()


def test_example_inputs_leave_the_model_and_the_random_state_as_they_were(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    model[1].eval()
    torch.manual_seed(3)
    tk.save_whole(model, tmp_path / "model", example_inputs=INPUT)
    assert [each.training for each in model.modules()] == [True, True, False, True]
    assert not model[1].running_mean.any()
    found, _ = torch.rand(1), torch.manual_seed(3)
    assert torch.equal(found, torch.rand(1))


def local_function() -> object:
    def inner(values: torch.Tensor) -> torch.Tensor:
        return values

    return inner


def local_class() -> object:
    class Inner:
        pass

    return Inner


def endless() -> list[object]:
    held: list[object] = []
    held.append(held)
    return held


nameless = lambda values: values
UNDESCRIBABLE = {
    "act: a lambda (tests.whole.test_trust_and_change.<lambda>), which has no name": lambda: nameless,
    "act: the function": local_function,
    "act: the class": local_class,
    "act: an object of the class": lambda: local_class()(),  # noqa: PLW0108 - the object, not the class
    "act: an open file": io.StringIO,
    "act: an object of _thread.lock, which is made in C": threading.Lock,
    "act: an object of tests.whole.traps.Finalised, whose __del__ would run": traps.Finalised,
    "act: a TorchScript module": lambda: torch.jit.script(nn.ReLU()),
    "act: a torch.fx graph": lambda: torch.fx.symbolic_trace(nn.ReLU()),
    "act: a generator": lambda: (each for each in ()),
    "act: a module": lambda: functional,
    "act.0.deep: a lambda": lambda: [{"deep": nameless}],
    "act.0: it contains itself": endless,
    "act: the function None.Tensor.numpy": lambda: torch.ones(1).numpy,
    "act.0: a nested tensor": lambda: [torch.nested.nested_tensor([torch.ones(1)])],
}


@pytest.mark.parametrize("words", UNDESCRIBABLE)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_what_has_no_description_is_an_error_that_names_it(words, tmp_path):
    model = nn.Sequential(traps.Plain(), nn.Identity())
    model[0].act = UNDESCRIBABLE[words]()
    with pytest.raises(FormatError) as caught:
        tk.save_whole(model, tmp_path / "model")
    text = str(caught.value)
    assert f"\n  0.{words}" in text
    assert "cannot save the whole model: " in text
    assert "hint: take it off before saving and put it on again after loading" in text
    assert not (tmp_path / "model").exists()


def test_modules_without_an_end_are_refused_by_name(tmp_path):
    ring = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))
    ring[0].above = ring
    with pytest.raises(
        FormatError, match="the model itself contains itself\n  hint: keep a reference to an outer module"
    ):
        tk.save_whole(ring, tmp_path / "model")
    tower = nn.Linear(2, 2)
    for _ in range(299):
        tower = nn.Sequential(tower)
    tk.save_whole(tower, tmp_path / "model")
    assert sum(1 for _ in tk.load_whole(tmp_path / "model").modules()) == 300
    with pytest.raises(FormatError, match="is nested deeper than 300"):
        tk.save_whole(nn.Sequential(tower), tmp_path / "model")


def test_lazy_modules_ask_for_their_first_forward(tmp_path):
    with pytest.raises(FormatError, match=r"model\.weight: not initialised yet; run the model once, then save it"):
        tk.save_whole(nn.LazyLinear(2), tmp_path / "model")


def test_all_faults_are_told_at_once(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].act = model[1].act = lambda: None
    model.log = io.BytesIO()
    with pytest.raises(FormatError, match="3 attributes have no description") as caught:
        tk.save_whole(model, tmp_path / "model")
    assert {fault.partition(":")[0] for fault in caught.value.faults} == {"0.act", "1.act", "log"}


def print_shape(*_: object) -> None:
    pass


def test_hooks_are_reported_at_the_save_and_where_they_matter_at_the_load(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_forward_hook(print_shape)
    model.register_full_backward_hook(print_shape)
    model.register_state_dict_post_hook(print_shape)
    saved = tk.save_whole(model, tmp_path / "model")
    name = f"{__name__}.print_shape"
    assert saved.notes == (
        f"the model: the backward hook {name} was not stored",
        f"the model: the state dict hook {name} was not stored",
        f"0: the forward hook {name} was not stored",
    )
    with pytest.warns(UserWarning, match="not in all as it was saved") as caught:
        rebuilt = tk.load_whole(tmp_path / "model")
    assert "0: the forward hook" in str(caught[0].message)
    assert "state dict" not in str(caught[0].message)
    assert not rebuilt[0]._forward_hooks
    rebuilt(torch.ones(1, 2)).sum().backward()


def test_a_checkpoint_of_weights_says_how_it_is_loaded(tmp_path):
    tk.save(nn.Linear(2, 2), tmp_path / "weights")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "weights.pt")
    for name in ("weights", "weights.pt"):
        text = refusal(FormatError, tmp_path / name)
        assert "it holds weights and no whole model" in text
        assert "load(path, into=model)" in text


@pytest.mark.parametrize("name", [name for name in MODELS if name != "parametrisations"])
def test_a_pickled_module_of_torch_save_is_rebuilt_without_its_pickle(name, tmp_path):
    make, inputs = MODELS[name]
    torch.manual_seed(0)
    model = make().eval()
    if isinstance(model, Holder):
        model.kinds = model.kinds[:2]  # torch cannot pickle a memory format
        model.beside.clear()
        model.view = None
    if name == "weight norm by hook":
        for each in model:
            each.weight = each.weight.detach()  # torch refuses to pickle what was computed
    torch.save(model, tmp_path / "model.pt")
    rebuilt = tk.load_whole(tmp_path / "model.pt", trust=["tests.whole.nasty_models"])
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    expected, found = model(*inputs), rebuilt(*inputs)
    assert repr(rebuilt) == repr(model)
    assert all(torch.equal(a, b) for a, b in zip(as_list(expected), as_list(found), strict=True))


def as_list(output: object) -> list[torch.Tensor]:
    return [output] if isinstance(output, torch.Tensor) else [each for part in output for each in as_list(part)]


ADDED_LATER = {
    nn.Conv2d: (lambda: nn.Conv2d(3, 2, 3, padding=1), ["padding_mode", "_reversed_padding_repeated_twice"], IMAGES),
    nn.LSTM: (lambda: nn.LSTM(4, 3), ["proj_size"], STEPS),
    nn.GELU: (nn.GELU, ["approximate"], VECTORS),
    nn.Softmax: (lambda: nn.Softmax(1), [], VECTORS),
    nn.MultiheadAttention: (lambda: nn.MultiheadAttention(4, 2), ["batch_first", "_qkv_same_embed_dim"], (STEPS,) * 3),
    nn.TransformerEncoderLayer: (
        lambda: nn.TransformerEncoderLayer(4, 2, 8), ["norm_first", "activation", "activation_relu_or_gelu"], STEPS,
    ),
    nn.Upsample: (lambda: nn.Upsample(scale_factor=2), ["recompute_scale_factor"], IMAGES),
}  # fmt: skip


@pytest.mark.parametrize("kind", ADDED_LATER)
def test_modules_that_an_old_torch_pickled_get_what_torch_added_since(kind, tmp_path):
    make, names, inputs = ADDED_LATER[kind]
    model = make().eval()
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    expected = as_list(model(*inputs))
    for name in names:
        del vars(model)[name]
    torch.save(model, tmp_path / "model.pt")
    rebuilt = tk.load_whole(tmp_path / "model.pt")
    assert all(torch.equal(a, b) for a, b in zip(expected, as_list(rebuilt(*inputs)), strict=True))


def test_a_pickled_module_beside_other_things_is_found_and_named(tmp_path):
    torch.save({"epoch": 3, "model": traps.Plain()}, tmp_path / "one.pt")
    assert isinstance(tk.load_whole(tmp_path / "one.pt", trust=[traps.Plain]), traps.Plain)
    torch.save({"model": nn.Linear(2, 2), "ema": {"model": nn.Linear(3, 3)}}, tmp_path / "two.pt")
    listed = "it holds 2 models\n  model\n  ema.model\n  hint: name one: entry=..."
    assert listed in refusal(PlanError, tmp_path / "two.pt")
    assert tk.load_whole(tmp_path / "two.pt", entry="ema.model").in_features == 3
    assert "no whole model is called 'other'" in refusal(NotFoundError, tmp_path / "two.pt", entry="other")


def test_a_module_that_knows_its_parent_comes_back_from_a_pickle(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2))
    vars(model[0])["parent"] = [model]
    torch.save(model, tmp_path / "model.pt")
    rebuilt = tk.load_whole(tmp_path / "model.pt")
    assert rebuilt[0].parent[0] is rebuilt


def test_swapped_arguments_and_other_names_are_told(tmp_path):
    with pytest.raises(TypeError, match="are the two arguments swapped"):
        tk.save_whole(str(tmp_path / "model"), nn.Linear(2, 2))
    with pytest.raises(FormatError, match="the name promises a torch file"):
        tk.save_whole(nn.Linear(2, 2), tmp_path / "model.pth")
    assert "nothing is there" in refusal(NotFoundError, tmp_path / "none")
