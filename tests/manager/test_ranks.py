"""Two ranks under torchrun: they agree on the step, each gets its own state back, an error is one of all of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torchkeep as tk
from torchkeep.folder.committed import read_record

PROGRAM = Path(__file__).with_name("ranks_program.py")
ROOT = PROGRAM.parent.parent.parent


def launch(what, folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*command, str(PROGRAM), what, str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def results_of(what, folder):
    process = launch(what, folder)
    try:
        told, _ = process.communicate(timeout=400)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, told
    return [json.loads((folder / f"{what}-{rank}.json").read_text()) for rank in range(2)]


def test_a_signal_to_one_rank_saves_all_at_one_step_and_all_go_on_exactly(tmp_path):
    results = results_of("exact", tmp_path)
    path = str(tmp_path / "cut" / "step-00000005")
    for result in results:
        assert result["exact"], results
        assert (result["step"], result["first"], result["path"]) == (5, 6, path)
        assert result["code"] == 128 + signal.SIGUSR1
        assert result["draws"] == 12
    (kept,) = tk.checkpoints(tmp_path / "cut")
    assert tk.verify(kept)
    record = read_record(kept.path)
    assert len(record.rng["ranks"]) == 1
    assert record.rng["ranks"][0]["torch"] != record.rng["torch"]
    assert list(record.entries["own"].facts["ranks"]) == ["1"]
    assert "ranks" not in record.entries["progress"].facts
    assert tk.load(kept)["own"]["rank"] == 0


def test_what_fails_on_one_rank_is_an_error_on_every_rank_and_all_go_on(tmp_path):
    first, second = results_of("failing", tmp_path)
    assert "No space left on device" in first["save"]
    assert "rank 0 did not save: " in second["save"]
    assert "No space left on device" in second["save"]
    assert "another rank failed; its own error says why" in first["draft"]
    assert "own.odd: <class 'builtin_function_or_method'>" in second["draft"]
    assert "another rank could not resume; its own error says why" in first["resume"]
    assert "do not fit" in second["resume"]
    assert [each.step for each in tk.checkpoints(tmp_path / "run")] == [0, 2]


def test_the_launcher_that_is_ended_ends_every_rank_after_one_save(tmp_path):
    process = launch("forever", tmp_path / "run")
    try:
        deadline = time.monotonic() + 300
        while not all((tmp_path / f"running-{rank}").exists() for rank in range(2)):
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGTERM)
        told, _ = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    (kept,) = tk.checkpoints(tmp_path / "run")
    assert f"SIGTERM: saved step {kept.step}: {kept.path}" in told
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", kept.path.name]
    assert tk.verify(kept)
