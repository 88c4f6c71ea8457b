"""Hostile descriptions are refused with typed errors: nothing imported, nothing called, nothing built."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.whole import traps
from tests.whole.hostile_records import CASES, forge
from torch import nn

import torchkeep as tk

ROOT = Path(__file__).resolve().parents[2]


class Calling:
    """Pickles as a call of anything."""

    def __init__(self, function: object, *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> object:
        return self.call


def holding(value: object) -> nn.Module:
    model = traps.Plain()
    model.value = value
    return model


def below(value: object) -> nn.Module:
    model = traps.Plain()
    model._modules["x"] = value
    return model


PICKLES = {
    "a pickle that calls os.system": (lambda: holding(Calling(os.system, "true")), "posix.system"),
    "a pickle with a call for a module": (lambda: below(Calling(eval, "1")), "builtins.eval"),
    "a pickle that calls a trusted function": (lambda: holding(Calling(traps.function, 1)), "a call of"),
    "a pickle that calls a constructor": (lambda: holding(Calling(traps.Plain, 1)), "a call of"),
    "a pickle that calls torch.hub.load": (lambda: holding(Calling(torch.hub.load, "a", "b")), "torch.hub.load"),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, tuple[str, str, list[str], list[str]]]:
    """What came of each case, all in one fresh process that watches itself."""
    folder = tmp_path_factory.mktemp("hostile")
    tk.save_whole(traps.Plain(), folder / "good")
    paths = []
    for number, (change, _, _) in enumerate(CASES.values()):
        shutil.copytree(folder / "good", folder / str(number))
        forge(folder / str(number), change)
        paths.append(folder / str(number))
    for number, (make, _) in enumerate(PICKLES.values()):
        paths.append(folder / f"{number}.pt")
        torch.save(make(), paths[-1], pickle_module=pickle)
    command = [sys.executable, "-m", "tests.whole.hostile_records", folder / "good", *paths]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return dict(zip([*CASES, *PICKLES], map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_record_is_refused_and_nothing_of_it_runs(name, outcomes):
    kind, text, events, ran = outcomes[name]
    _, expected, words = CASES[name]
    assert (kind, events, ran) == ("" if expected is None else expected.__name__, [], []), text
    assert words in text
    assert expected is None or "hostile" in text  # the path of the file
    assert "\x1b" not in text


@pytest.mark.parametrize("name", PICKLES)
def test_a_hostile_pickle_is_refused_and_nothing_of_it_runs(name, outcomes):
    kind, text, events, ran = outcomes[name]
    assert (kind, events, ran) == ("UnsafeError", [], []), text
    assert PICKLES[name][1] in text


def test_the_list_to_paste_never_holds_what_runs_programs(outcomes):
    pasted = [text for _, text, _, _ in outcomes.values() if "trust=" in text]
    assert len(pasted) == 1
    assert "json.JSONDecoder" in pasted[0]
