from __future__ import annotations

import json
import re
import shutil
from datetime import timedelta

import pytest
import torch

import torchkeep as tk
from torchkeep.cli import main
from torchkeep.cli.ls import age_text


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Give a run of three checkpoints that share a frozen part, the last one damaged."""
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
    model[0].requires_grad_(False)
    with tk.CheckpointManager("run", {"model": model}) as manager:
        for step, metrics in [(100, {"acc": 0.5}), (200, {"acc": 0.75, "loss": 1e-5}), (300, {})]:
            with torch.no_grad():
                model[1].bias.add_(1)
            manager.save(step, metrics=metrics)
    record = tmp_path / "run" / "step-00000300" / "checkpoint.json"
    text = record.read_text()
    record.unlink()
    record.write_text(text[:-2])
    return "run"


def test_a_table_of_steps_metrics_and_sizes_and_on_stderr_what_was_passed_over(run, capsys):
    assert main(["ls", run]) == 0

    shown = capsys.readouterr()
    assert (
        re.sub(r"\d+ s", "0 s", shown.out)
        == """\
step  age   acc   loss    size     own
 100  0 s   0.5      -  8.6 kB  4.2 kB
 200  0 s  0.75  1e-05  8.6 kB  4.2 kB
2 checkpoints, 12.7 kB on disk
"""
    )
    assert shown.err.startswith("passed over run/step-00000300: ")


def test_json_has_bytes_and_times_for_machines(run, capsys):
    assert main(["ls", run, "--json"]) == 0

    values = json.loads(capsys.readouterr().out)
    assert [each["step"] for each in values["checkpoints"]] == [100, 200]
    first = values["checkpoints"][0]
    assert list(first) == ["step", "path", "saved_at", "metrics", "total_bytes", "own_bytes"]
    assert (first["path"], first["metrics"]) == ("run/step-00000100", {"acc": 0.5})
    assert first["saved_at"].endswith("+00:00")
    assert list(values["passed_over"]) == ["step-00000300"]


def test_verifying_a_run_verifies_each_and_the_one_passed_over_is_damage(run, capsys):
    assert main(["verify", run]) == 4

    first, second, third, _ = capsys.readouterr().out.splitlines()
    assert first == "run/step-00000100: ok, 4 tensors, 360 bytes checked by digests"
    assert second == "run/step-00000200: ok, 4 tensors, 360 bytes checked by digests"
    assert third == "run/step-00000300: damaged"

    shutil.rmtree("run/step-00000300")
    assert main(["verify", run]) == 0


def test_verify_json_lists_faults_by_checkpoint(run, capsys):
    assert main(["verify", run, "--json"]) == 4

    values = json.loads(capsys.readouterr().out)
    assert values["ok"] is False
    assert [(each["path"], each["ok"]) for each in values["checkpoints"]] == [
        ("run/step-00000100", True),
        ("run/step-00000200", True),
        ("run/step-00000300", False),
    ]
    (fault,) = values["checkpoints"][-1]["faults"]
    assert values["faults"] == [f"run/step-00000300: {fault}"]


@pytest.mark.parametrize(
    ("age", "text"),
    [
        (timedelta(seconds=59.9), "59 s"),
        (timedelta(seconds=60), "1 min"),
        (timedelta(hours=23, minutes=59), "23 h"),
        (timedelta(days=400), "400 d"),
        (timedelta(seconds=-30), "0 s"),
    ],
)
def test_an_age_is_told_in_its_largest_whole_unit(age, text):
    assert age_text(age) == text
