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
step  age   acc   loss    size     own  verified
 100  0 s   0.5      -  8.6 kB  4.2 kB  -
 200  0 s  0.75  1e-05  8.6 kB  4.2 kB  -
2 checkpoints, 12.7 kB on disk
the run's own policy: KeepAll()
"""
    )
    assert shown.err.startswith("passed over run/step-00000300: ")


def test_json_has_bytes_and_times_for_machines(run, capsys):
    assert main(["ls", run, "--json"]) == 0

    values = json.loads(capsys.readouterr().out)
    assert [each["step"] for each in values["checkpoints"]] == [100, 200]
    first = values["checkpoints"][0]
    assert list(first) == [
        "step", "path", "saved_at", "metrics", "tags", "nonfinite", "total_bytes", "own_bytes", "added_bytes",
        "verified_at", "damaged", "keep", "reasons",
    ]  # fmt: skip
    assert (values["own_policy"], values["unknown_policies"]) == ("KeepAll()", [])
    assert (first["keep"], first["reasons"]) == (True, ["all are kept"])
    assert (first["path"], first["metrics"]) == ("run/step-00000100", {"acc": 0.5})
    assert first["saved_at"].endswith("+00:00")
    assert list(values["passed_over"]) == ["step-00000300"]


def test_tags_and_what_a_policy_would_keep_have_columns_and_nothing_is_removed(run, capsys):
    assert main(["tag", "run/step-00000100", "paper", "first try"]) == 0
    assert main(["ls", run, "--keep-last", "1", "--keep-tagged", "paper"]) == 0
    shown = capsys.readouterr().out
    lines = [line.split() for line in re.sub(r"\d+ s", "0 s", shown).splitlines()]
    assert lines[1] == ["step", "age", "acc", "loss", "size", "own", "verified", "tags", "kept", "by"]
    assert lines[2][-3:] == ["paper,", "tagged", "paper"]
    assert ["first", "try"] in lines
    assert "the newest; the" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert main(["ls", run, "--keep-best", "1:acc:max", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["checkpoints"]
    assert (first["keep"], second["keep"], first["tags"]) == (False, True, ["paper", "first try"])
    assert "the best by acc" in " ".join(second["reasons"])
    assert main(["tag", "run/step-00000100", "first try", "--remove", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tags"] == ["paper"]
    assert main(["tag", "run/step-00000100"]) == 0
    assert capsys.readouterr().out == "run/step-00000100: paper\n"
    assert main(["tag", "run/absent", "x"]) == 3


def test_what_keeps_each_by_the_runs_own_policy_is_told_without_options(tmp_path, capsys):
    retain = tk.KeepLast(1) | tk.KeepBest(1, "acc", mode="max")
    with tk.CheckpointManager(tmp_path, {"model": torch.nn.Linear(8, 2)}, retain=retain) as manager:
        for step, acc in enumerate([0.1, 0.9, 0.5]):
            manager.save(step, metrics={"acc": acc})
    assert main(["ls", str(tmp_path)]) == 0
    header, best, newest, _, policy = capsys.readouterr().out.splitlines()
    assert header.split()[-2:] == ["kept", "by"]
    assert best.endswith("the best by acc: 0.9")
    assert newest.endswith("the newest; the last")
    assert policy == "the run's own policy: KeepLast(1) | KeepBest(1, 'acc', mode='max')"


def test_what_was_verified_is_remembered_until_a_file_changes(run, tmp_path, capsys):
    shutil.rmtree("run/step-00000300")
    assert main(["verify", "run/step-00000100"]) == 0
    assert main(["verify", "run/step-00000200", "--quick"]) == 0
    capsys.readouterr()

    def verified():
        assert main(["ls", run, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["checkpoints"]
        return [(bool(each["verified_at"]), each["damaged"]) for each in found]

    assert verified() == [(True, False), (False, False)]
    assert main(["ls", run]) == 0
    assert re.search(r"kB  \d+ s ago\n", capsys.readouterr().out)
    shards = [path for path in (tmp_path / "run" / "step-00000200").glob("*.safetensors") if path.stat().st_nlink == 1]
    content = bytearray(shards[0].read_bytes())
    content[-1] ^= 1
    shards[0].unlink()
    shards[0].write_bytes(content)
    assert main(["verify", run]) == 4
    capsys.readouterr()
    assert verified() == [(True, False), (False, True)]
    shards[0].unlink()
    content[-1] ^= 1
    shards[0].write_bytes(content)
    assert verified() == [(True, False), (False, False)]  # not known again
    (tmp_path / "run" / ".verified.json").write_text("[" * 100_000)
    assert verified() == [(False, False), (False, False)]


def test_verifying_in_a_folder_that_cannot_be_written_works_as_well(run, tmp_path, monkeypatch, capsys):
    from torchkeep.folder import verified

    monkeypatch.setattr(verified, "FILE_NAME", "absent/.verified.json")
    assert main(["verify", "run/step-00000100"]) == 0


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
