"""Records that no save writes: a good checkpoint with its description changed and its digest made right again.

``python -m tests.whole.hostile_records PATHS...`` loads each one under an audit hook and prints what came of it.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torchkeep.errors import CorruptError, LimitError, PlanError, UnsafeError
from torchkeep.folder.record import decode_record, encode_record
from torchkeep.live.wanted import VALUES

TRAPS = "tests.whole.traps"
MODULE: dict[str, Any] = {
    "class": "torch.nn.modules.module:Module",
    "state": {"_parameters": {}, "_buffers": {}, "_modules": {}},
}
WEIGHT = {"$tensor": ["model", "linear.weight"]}
GEOMETRY = {
    **{name: [1, 1] for name in ("stride", "padding", "output_padding", "dilation")},
    "groups": 1,
    "transpose": 0,
}
IN_ORDER = sorted(VALUES)
ODD: dict[str, Any] = {"class": f"{TRAPS}:OddKey"}
PAIR: dict[str, Any] = {"class": f"{TRAPS}:OddPair"}


def forge(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the structure in a checkpoint's record; its digest is that of what is there then."""
    file = folder / "checkpoint.json"
    record = decode_record(file.read_bytes(), str(file))
    entry = record.entries["model"]
    structure = copy.deepcopy(entry.facts["structure"])
    change(structure)
    facts = {**entry.facts, "structure": structure}
    file.chmod(0o644)
    file.write_bytes(encode_record(replace(record, entries={"model": replace(entry, facts=facts)})))


def attribute(node: object, name: str = "value") -> Callable[[dict[str, Any]], object]:
    """Give the model an attribute."""
    return lambda structure: structure["objects"][0]["state"].update({name: node})


def table(name: str, node: object) -> Callable[[dict[str, Any]], object]:
    """Put something into a table of the model."""
    return lambda structure: structure["objects"][0]["state"][name].update(x=node)


def added(row: dict[str, Any], node: object | None = None) -> Callable[[dict[str, Any]], object]:
    """Add an object, and an attribute that refers to it unless another is given."""

    def change(structure: dict[str, Any]) -> None:
        structure["objects"].append(row)
        number = {"$object": len(structure["objects"]) - 1}
        structure["objects"][0]["state"]["value"] = number if node is None else node

    return change


def both(first: dict[str, Any], second: dict[str, Any]) -> Callable[[dict[str, Any]], object]:
    """Add two objects; the model refers to the second."""

    def change(structure: dict[str, Any]) -> None:
        structure["objects"] += [first, second]
        structure["objects"][0]["state"]["value"] = {"$object": 3}

    return change


def chain(levels: int, *, closed: bool = False) -> Callable[[dict[str, Any]], object]:
    """A module in a module in a module; the last holds the first when it is closed."""

    def change(structure: dict[str, Any]) -> None:
        objects = structure["objects"]
        first = len(objects)
        for number in range(first, first + levels):
            inside = first if number == first + levels - 1 else number + 1
            modules = {"x": {"$object": inside}} if closed or inside != first else {}
            objects.append({"class": MODULE["class"], "state": {**MODULE["state"], "_modules": modules}})
        objects[0]["state"]["_modules"]["x"] = {"$object": first}

    return change


def named(name: str) -> dict[str, str]:
    return {"$name": name}


def partial_of(name: str, *args: object) -> dict[str, object]:
    return {"$partial": [named(name), list(args), {}]}


def structure_is(**members: object) -> Callable[[dict[str, Any]], object]:
    return lambda structure: structure.update(members)


def class_is(name: str, number: int = 0) -> Callable[[dict[str, Any]], object]:
    return lambda structure: structure["objects"][number].update({"class": name})


def weight(**members: object) -> Callable[[dict[str, Any]], object]:
    """Change the node of a weight."""
    return lambda structure: structure["objects"][1]["state"]["_parameters"]["weight"].update(members)


CALLABLE_NAMES = (
    *("os:system", "posix:system", "subprocess:Popen", "sys:exit", "importlib:import_module", "pickle:loads"),
    *("builtins:eval", "builtins:exec", "builtins:getattr", "builtins:__import__", "builtins:object"),
    *("torch:load", "torch.serialization:load", "torch.hub:load", "torch.jit:load", "torch.utils.cpp_extension:load"),
    *("shutil:rmtree", "runpy:run_path", "socket:socket", "ctypes:CDLL", "operator:methodcaller"),
)
CLIMBING_NAMES = (
    *("torch.nn.modules.module:torch.load", "torch.nn.functional:importlib.import_module"),
    *("torch.nn.modules.module:functools.partial", "torch.nn.modules.container:OrderedDict"),
    *("torch.nn.modules.module:warnings", "torch.nn.modules.linear:Module", "torch.nn:Module"),
    *("torch.nn.utils.parametrize:register_parametrization", "torch.nn.modules.module:Module.load_state_dict"),
    *("tests.whole.traps:instance", "tests.whole.traps:RAN", "tests.whole.traps:nn.Module"),
    *("tests.whole.traps:function.real", "tests.whole.traps:function.func_globals"),
)
MALFORMED_NAMES = (
    *("torch.nn:Module.__init__.__globals__", "torch.nn.modules.module:Module.__subclasses__", "__main__:__builtins__"),
    *("", ":", "torch.nn:", "torch", "torch.nn:../../x", "torch nn:Module", "torch.nn:Mo\x1bdule", "torch..nn:Module"),
    "torch.nn.__main__:x",
)

CASES: dict[str, tuple[Callable[[dict[str, Any]], object], type[Exception], str]] = {
    **{f"{name} as an attribute": (attribute(named(name)), UnsafeError, "") for name in CALLABLE_NAMES},
    **{f"{name} as a class": (class_is(name), UnsafeError, "") for name in CALLABLE_NAMES},
    **{f"{name} as an object": (added({"class": name, "args": ["true"]}), UnsafeError, "") for name in CALLABLE_NAMES},
    **{f"a partial of {name}": (attribute(partial_of(name, "x.pt")), UnsafeError, "") for name in CALLABLE_NAMES},
    **{f"{name} climbs": (attribute(named(name)), UnsafeError, "") for name in CLIMBING_NAMES},
    **{f"{name!r} is malformed": (attribute(named(name)), UnsafeError, "") for name in MALFORMED_NAMES},
    "a name of no trusted package": (attribute(named("json:JSONDecoder")), UnsafeError, 'trust=["json.JSONDecoder"]'),
    "a name that is not there": (attribute(named("torch.nn:NoSuchClass")), PlanError, "nothing is there any more"),
    "a method that Python reads": (attribute({"$method": [{"$object": 0}, "__reduce_ex__"]}), UnsafeError, "no method"),
    "a method that is none": (attribute({"$method": [{"$object": 0}, "training"]}), UnsafeError, "no method"),
    "a method of a text": (attribute({"$method": ["text", "format"]}), UnsafeError, "no method"),
    "a method called a list": (attribute({"$method": [{"$object": 0}, []]}), UnsafeError, "no method"),
    "a partial of a text": (attribute({"$partial": ["eval", [], {}]}), UnsafeError, "partial of a str"),
    "a partial of a module": (attribute({"$partial": [{"$object": 0}, [], {}]}), UnsafeError, "partial of a"),
    "an attribute __class__": (attribute(named("torch.nn:Module"), "__class__"), UnsafeError, "Python itself reads"),
    "an attribute __reduce_ex__": (attribute(1, "__reduce_ex__"), UnsafeError, "Python itself reads"),
    "a constructor call": (added({"class": f"{TRAPS}:Plain", "args": [1], "state": {}}), UnsafeError, "a call of"),
    "a function call": (added({"class": f"{TRAPS}:function", "args": [1]}), UnsafeError, "a call of"),
    "a class with __del__": (added({"class": f"{TRAPS}:Finalised"}), UnsafeError, "__del__"),
    "an object of a class in C": (added({"class": "torch.nn.parameter:Parameter"}), UnsafeError, "made in C"),
    "a key with a hash of its own": (
        added({"class": f"{TRAPS}:OddKey"}, {"$dict": [[{"$object": 2}, 1]]}), UnsafeError, "hash",
    ),
    "an item of a set with a hash of its own": (
        added({"class": f"{TRAPS}:OddKey"}, {"$set": [{"$object": 2}]}), UnsafeError, "hash",
    ),
    "an item of a set of its own, with a hash of its own": (
        both(ODD, {"class": f"{TRAPS}:OddSet", "items": [{"$object": 2}]}), UnsafeError, "hash",
    ),
    "a key of a dict of its own, with a hash of its own": (
        both(ODD, {"class": f"{TRAPS}:OddDict", "items": [[{"$object": 2}, 1]]}), UnsafeError, "hash",
    ),
    "an item of a dict that iterates by its own code": (
        both(PAIR, {"class": f"{TRAPS}:OddDict", "items": [{"$object": 2}]}), CorruptError, "no pair",
    ),
    "a member of an enum by a value that compares by its own code": (
        both(ODD, {"class": f"{TRAPS}:Choice", "args": [{"$object": 2}]}), UnsafeError, "code of its own",
    ),
    "a set that cannot change, made of nothing": (added({"class": f"{TRAPS}:Fixed"}), CorruptError, "cannot be made"),
    "a set that cannot change, with a hash of its own": (
        both(ODD, {"class": f"{TRAPS}:Fixed", "args": [[{"$object": 2}]]}), UnsafeError, "hash",
    ),
    "a member that is not there": (added({"class": f"{TRAPS}:Choice", "args": [7]}), PlanError, "no member of value"),
    "a function of a class": (
        attribute({"$method": [named(MODULE["class"]), "load_state_dict"]}), UnsafeError, "bound to nothing",
    ),
    "a namespace with a name that Python reads": (
        attribute({"$namespace": {"__deepcopy__": named("torch:relu")}}), UnsafeError, "Python itself reads",
    ),
    "a tensor with a name that Python reads": (
        weight(attributes={"__deepcopy__": 1}), UnsafeError, "Python itself reads",
    ),
    **{f"a {name} for the model": (class_is(name), CorruptError, "as the model is a") for name in IN_ORDER},
    **{f"a {name} made of nothing": (added({"class": name}), CorruptError, "") for name in IN_ORDER},
    **{f"a {name} made of a list": (added({"class": name, "args": [["load"]]}), CorruptError, "") for name in IN_ORDER},
    **{
        f"packed weights of {name}": (attribute({"$torch.packed": parts}), CorruptError, "")
        for name, parts in {
            "nothing": {},
            "text": {"kind": "LinearPackedParamsBase", "weight": "w", "bias": None},
            "a tensor alone": {"kind": "Conv2dPackedParamsBase", "weight": WEIGHT, "bias": None},
            "floats": {"kind": "Conv2dPackedParamsBase", "weight": WEIGHT, "bias": None, **GEOMETRY},
            "a bias that is text": {"kind": "LinearPackedParamsBase", "weight": WEIGHT, "bias": "b"},
            "another class": {"kind": "os.system", "weight": None, "bias": None},
            "a list": {"kind": ["x"], "weight": None, "bias": None},
        }.items()
    },
    "199,000 nested modules": (chain(199_000), LimitError, "nested deeper"),
    "items of what is no container": (added({"class": f"{TRAPS}:OddKey", "items": [1]}), PlanError, "no container"),
    "a module that contains itself": (table("_modules", {"$object": 0}), LimitError, "contains itself"),
    "modules in a ring": (chain(3, closed=True), LimitError, "contains itself"),
    "301 nested modules": (chain(301), LimitError, "nested deeper"),
    "201,000 nested modules": (chain(201_000), LimitError, "objects"),
    "lists in lists": (attribute(json.loads("[" * 200 + "]" * 200)), LimitError, "nested deeper"),
    "a module table with a number": (table("_modules", 5), CorruptError, "no module"),
    "a module table with a class": (table("_modules", named(MODULE["class"])), CorruptError, "no module"),
    "a parameter table with a text": (table("_parameters", "w"), CorruptError, "no tensor"),
    "a buffer table with a module": (table("_buffers", {"$object": 0}), CorruptError, "no tensor"),
    "a module table that is a list": (attribute([1], "_modules"), CorruptError, "no table"),
    "a module without tables": (attribute(None, "_buffers"), CorruptError, "no table"),
    "a tensor that is not there": (attribute({"$tensor": ["model", "no"]}), CorruptError, "no tensor is called"),
    "strides of zero": (weight(stride=[0, 0]), CorruptError, "strides"),
    "strides out of bounds": (weight(stride=[1, 1 << 40]), CorruptError, "strides"),
    "negative strides": (weight(stride=[-1, 2]), CorruptError, "strides"),
    "strides that are text": (weight(stride="ab"), CorruptError, "strides"),
    "strides of another rank": (weight(stride=[1]), CorruptError, "strides"),
    "tensor attributes that are a list": (weight(attributes=[1]), CorruptError, ""),
    "an object that is not there": (attribute({"$object": 99}), CorruptError, "no object 99"),
    "an object before the first": (attribute({"$object": -1}), CorruptError, "no object -1"),
    "an object numbered by a text": (attribute({"$object": "0"}), CorruptError, "no object"),
    "a logger of a number": (attribute({"$logger": 1}), CorruptError, "logger"),
    "a partial of two parts": (attribute({"$partial": [1, 2]}), CorruptError, ""),
    "no objects": (structure_is(objects=[]), CorruptError, "no objects"),
    "objects that are no list": (structure_is(objects=3), CorruptError, "not a list"),
    "an object that is a list": (structure_is(objects=[[]]), CorruptError, "not an object"),
    "an object without a class": (structure_is(objects=[{}]), CorruptError, "no class"),
    "sources of numbers": (structure_is(sources={"a": {"file": 1}}), CorruptError, "sources.a"),
    "hooks of numbers": (structure_is(hooks=[[1, 2, 3]]), CorruptError, "not made of texts"),
    "a fingerprint of nothing": (structure_is(fingerprint={}), CorruptError, "fingerprint"),
    "parametrisations with a bad name": (
        lambda structure: structure["objects"].append(
            {"class": "torch.nn.modules.container:ModuleDict",
             "state": {**MODULE["state"], "_modules": {"forward": {"$object": 1}}}}
        ) or structure["objects"][0]["state"]["_modules"].update(parametrizations={"$object": 2}),
        CorruptError, "cannot be the name of a tensor",
    ),
    "a recurrent layer without weights": (
        class_is("torch.nn.modules.rnn:LSTM", 1), CorruptError, "cannot be made",
    ),
    # Only hooks that are kept are looked at.
    "a hook that is no hook": (attribute({"$dict": [[0, {"$object": 1}]]}, "_forward_pre_hooks"), None, ""),
}  # fmt: skip

WATCHED = (
    *("import", "exec", "compile", "os.", "subprocess.", "socket.", "shutil.", "ctypes.", "pty.", "webbrowser."),
    *("marshal.", "pickle.", "code.", "urllib.", "ftplib.", "smtplib.", "tempfile.", "builtins.input", "sys.set"),
)
HARMLESS = ("os.listdir", "os.scandir", "os.walk")


def main(good: str, *paths: str) -> None:
    from tests.whole import traps

    import torchkeep as tk

    trust = [traps]
    # Whatever a load, or an error's text, imports is imported now.
    tk.load_whole(good, trust=trust)
    "\x1b".encode("unicode_escape")
    events: list[str] = []
    is_watching = False

    def hook(event: str, args: tuple[object, ...]) -> None:
        is_parsed = event == "compile" and args[1] == "<unknown>"  # ast.parse
        if is_watching and event.startswith(WATCHED) and event not in HARMLESS and not is_parsed:
            events.append(f"{event}{args!r}"[:200])

    sys.addaudithook(hook)
    for path in paths:
        is_watching = True
        try:
            tk.load_whole(path, trust=trust, strict=False)
            outcome = ("", "built")
        except Exception as error:  # noqa: BLE001 - the parent looks at which
            outcome = (type(error).__name__, str(error)[:2000])
        is_watching = False
        print(json.dumps([*outcome, events, traps.RAN]))  # noqa: T201 - what the parent reads
        events.clear()
        traps.RAN.clear()


if __name__ == "__main__":
    main(*sys.argv[1:])
