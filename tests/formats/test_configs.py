"""Configurations in checkpoints are plain dicts and lists, whether or not their library is installed."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from torchkeep.errors import LimitError
from torchkeep.formats import open_source
from torchkeep.formats.pickle_configs import DICT_CLASSES
from torchkeep.tensors import Described

CLASSES = {
    **dict.fromkeys(["omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"], object),
    **dict.fromkeys([f"omegaconf.nodes.{kind}Node" for kind in ("Any", "Float", "String")], object),
    **dict.fromkeys(DICT_CLASSES, dict),
}


@pytest.fixture
def classes(monkeypatch):
    """Stand-ins for the classes, importable while a file is written."""
    made = {}
    for path, base in CLASSES.items():
        module, _, name = path.rpartition(".")
        made[path] = type(name, (base,), {"__module__": module})
        packages = module.split(".")
        for count in range(1, len(packages) + 1):
            package = ".".join(packages[:count])
            monkeypatch.setitem(sys.modules, package, sys.modules.get(package) or types.ModuleType(package))
        monkeypatch.setattr(sys.modules[module], name, made[path], raising=False)
    return made


def opened(path, value):
    torch.save(value, path)
    source = open_source(path)
    source.close()
    return source.tree


@pytest.mark.parametrize("path", DICT_CLASSES)
def test_lightnings_hyper_parameters_are_a_dict(classes, tmp_path, path):
    parameters = classes[path](lr=0.1, layers=classes[path](hidden=[1, 2]))
    tree = opened(tmp_path / "x.ckpt", {"state_dict": {}, "hyper_parameters": parameters})
    assert type(tree["hyper_parameters"]) is dict
    assert tree["hyper_parameters"] == {"lr": 0.1, "layers": {"hidden": [1, 2]}}


def config(classes, content, parent=None):
    """An object as omegaconf makes it: values in nodes, each of which knows its parent."""
    kind = {dict: "dictconfig.DictConfig", list: "listconfig.ListConfig"}.get(type(content), "nodes.AnyNode")
    made = classes[f"omegaconf.{kind}"]()
    made._metadata = {"flags": {}}
    made._parent = parent
    if isinstance(content, dict):
        made._content = {key: config(classes, value, made) for key, value in content.items()}
    elif isinstance(content, list):
        made._content = [config(classes, value, made) for value in content]
    else:
        made._val = content
    return made


def test_omegaconfs_values_are_plain_ones(classes, tmp_path):
    plain = {"lr": 0.1, "sched": {"name": "cos", "steps": [1, {"a": None}]}, "same": "${lr}", "unset": "???"}
    made = config(classes, plain)
    tree = opened(tmp_path / "x.ckpt", {"hyper_parameters": made, "again": made})
    assert tree["hyper_parameters"] == plain
    assert tree["again"] is tree["hyper_parameters"]


def test_a_part_that_was_saved_before_its_whole_keeps_its_values_in_both(classes, tmp_path):
    made = config(classes, {"lr": 0.1, "sched": {"name": "cos"}})
    tree = opened(tmp_path / "x.ckpt", {"part": made._content["sched"], "whole": made})
    assert tree["part"] == {"name": "cos"}
    assert tree["whole"]["lr"] == 0.1
    assert tree["whole"]["sched"].state["_content"] == {"name": "cos"}


def test_a_configuration_of_another_shape_stays_described(classes, tmp_path):
    made = classes["omegaconf.dictconfig.DictConfig"]()
    made.other = 3
    tree = opened(tmp_path / "x.ckpt", made)
    assert isinstance(tree, Described)
    assert tree.state == {"other": 3}


def test_90_a_configuration_that_contains_itself_is_refused(classes, tmp_path):
    made = config(classes, {"a": 1})
    made._content["self"] = made._content
    with pytest.raises(LimitError, match="contains itself"):
        opened(tmp_path / "x.ckpt", made)
