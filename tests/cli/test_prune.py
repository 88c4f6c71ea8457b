from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch

import torchkeep as tk
from torchkeep.cli import main
from torchkeep.folder.record import decode_record, encode_record
from torchkeep.folder.retention import Verdict
from torchkeep.policies import KeepTagged, RetentionPolicy


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Give a run of four checkpoints."""
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Linear(8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with tk.CheckpointManager("run", {"model": model, "optimizer": optimizer}) as manager:
        for step in range(4):
            model(torch.ones(1, 8)).sum().backward()
            optimizer.step()
            manager.save(99 + step, metrics={"val:acc": [0.1, 0.9, 0.5, 0.3][step]}, tags=["x"] if step == 0 else [])
    return "run"


def steps(run):
    return [each.step for each in tk.checkpoints(run)]


def test_a_dry_run_prints_every_decision_and_removes_nothing(run, capsys):
    assert main(["prune", run, "--keep-last", "1", "--keep-best", "1:val:acc:max", "--dry-run"]) == 0
    assert (
        re.sub(r"[\d.]+ kB", "N kB", capsys.readouterr().out)
        == """\
 99  remove  not the last; not the best by val:acc
100  keep    the best by val:acc: 0.9
101  remove  not the last; not the best by val:acc
102  keep    the newest; the last
2 of 4 checkpoints would go, N kB would be freed
"""
    )
    assert steps(run) == [99, 100, 101, 102]


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (["--keep-last", "2"], [101, 102]),
        (["--keep-every", "100"], [99, 102]),
        (["--keep-tagged", "x"], [99, 102]),
        (["--keep-tagged"], [99, 102]),
        (["--keep-best", "1:val:acc:min", "--keep-best", "1:val:acc:max"], [99, 100, 102]),
        (["--keep-within", "1"], [102]),
        (["--keep-last", "3", "--keep-within", "1 kB"], [102]),
        (["--optimizer-in-last", "1"], [99, 100, 101, 102]),
    ],
)
def test_what_the_options_keep_is_left(run, options, left):
    assert main(["prune", run, *options]) == 0
    assert steps(run) == left
    if "--optimizer-in-last" in options:
        assert [len(tk.load(each)) for each in tk.checkpoints(run)] == [1, 1, 1, 2]


def test_json_has_every_decision_with_its_reasons(run, capsys):
    assert main(["prune", run, "--keep-last", "3", "--optimizer-in-last", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == 1
    assert told["dry_run"] is False
    assert told["freed_bytes"] > 0
    assert [(each["step"], each["keep"], each["drops_optimizers"]) for each in told["checkpoints"]] == [
        (99, False, False),
        (100, True, True),
        (101, True, True),
        (102, True, False),
    ]
    assert told["checkpoints"][0]["reasons"] == ["not in the last 3"]


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--keep-last", "0"], 2, "n must be a positive integer, not 0"),
        (["--keep-best", "acc"], 2, "N:METRIC:max or N:METRIC:min is wanted"),
        (["--keep-best", "1:acc:up"], 2, "mode must be 'max' or 'min', not 'up'"),
        (["--keep-within", "lots"], 2, "'lots' is not a size; 200GB or 1.5TiB is"),
        (["--keep-last", "two"], 2, "invalid int value"),
    ],
)
def test_a_wrong_option_is_a_message_and_removes_nothing(run, capsys, options, code, text):
    assert main(["prune", run, *options]) == code
    assert text in capsys.readouterr().err
    assert steps(run) == [99, 100, 101, 102]


def test_without_options_the_runs_own_policy_decides_and_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model, policy = torch.nn.Linear(8, 2), tk.KeepLast(2) | KeepTagged("x")
    for retain, steps_ in [(None, range(4)), (policy, [4])]:
        with tk.CheckpointManager("run", {"model": model}, retain=retain) as manager:
            manager.resume()
            for step in steps_:
                manager.save(step, tags=["x"] if step == 0 else [])
    assert main(["prune", "run"]) == 0
    assert capsys.readouterr().out.endswith(
        "0 of 3 checkpoints removed, 0 bytes freed\nby the run's own policy: KeepLast(2) | KeepTagged('x')\n"
    )
    assert main(["prune", "run", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["own_policy"] == repr(policy)
    assert main(["prune", "run", "--keep-last", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["own_policy"] is None
    assert steps("run") == [4]


class Mine(RetentionPolicy):
    def judge(self, checkpoints):
        return [[Verdict(keep=True, reason="mine")] for _ in checkpoints]


@pytest.mark.parametrize(
    ("retain", "text"),
    [
        (None, "this run recorded no retention policy"),
        ("KeepLast(1) | Mine", "the run's own policy is KeepLast(1) | Mine, and Mine is not torchkeep's"),
        ("open('x', 'w')", "is open('x', 'w'), and open is not torchkeep's: nothing of it is run"),
    ],
)
def test_a_run_whose_own_policy_is_not_known_is_left_alone_and_says_so(run, capsys, retain, text):
    newest = tk.checkpoints(run).latest().path / "checkpoint.json"
    record = decode_record(newest.read_bytes(), "record")
    provenance = {**record.provenance, "retain": retain}
    newest.chmod(0o644)
    newest.write_bytes(encode_record(replace(record, provenance=provenance)))
    assert main(["prune", run]) == 3
    told = capsys.readouterr().err
    assert text in told
    assert "say what to keep, as KeepLast(3), or --keep-last 3 on the command line; nothing was removed" in told
    assert steps(run) == [99, 100, 101, 102]
    assert main(["ls", run]) == 0
    shown = capsys.readouterr().out
    assert "kept by" not in shown
    assert ("what it keeps is not known here" in shown) == (retain is not None)


def test_a_policy_of_the_users_is_recorded_by_its_name(tmp_path):
    with tk.CheckpointManager(tmp_path, {"model": torch.nn.Linear(2, 1)}, retain=Mine() | tk.KeepLast(1)) as manager:
        manager.save(0)
    retain = tk.checkpoints(tmp_path).retain
    assert (retain.code, retain.policy, retain.unknown) == ("Mine | KeepLast(1)", None, ("Mine",))


def test_a_folder_that_is_not_there_is_code_3(tmp_path, capsys):
    assert main(["prune", str(tmp_path / "no"), "--keep-last", "1"]) == 3
    assert "there is no run folder here" in capsys.readouterr().err
