"""Prove the promise on real weights: kill a training run in the middle, start it again, and compare it bit for bit.

    python examples/demo.py

Runs examples/transfer.py twice: once to the end, and once killed with SIGKILL and started again with the same command.
Exits with 1 if weights, optimizer or anything else that was saved differ.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import torchkeep as tk

TRANSFER = Path(__file__).with_name("transfer.py")
KILL_AFTER_STEP = 19
LIMIT_SECONDS = 600


def start(run_folder: Path) -> subprocess.Popen[bytes]:
    """Start the training script as a user would."""
    return subprocess.Popen([sys.executable, str(TRANSFER), str(run_folder)])


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for a run, which must end well."""
    if process.wait(timeout=LIMIT_SECONDS):
        sys.exit(f"the training script failed with {process.returncode}")


def kill_in_the_middle(run_folder: Path) -> None:
    """Start a run, and kill it soon after a checkpoint past the first appeared."""
    process = start(run_folder)
    deadline = time.monotonic() + LIMIT_SECONDS
    while not (run_folder / f"step-{KILL_AFTER_STEP:08d}").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            sys.exit("the run ended before it could be killed")
        time.sleep(0.02)
    time.sleep(0.7)  # a few steps on, so that work is lost and must be done again
    process.kill()
    if process.wait() == 0:
        sys.exit("the run ended before it could be killed")


def differences(one: object, other: object, at: str = "") -> list[str]:
    """The paths at which two loaded values are not bit-identical."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = (one.dtype, one.shape) == (other.dtype, other.shape) and torch.equal(
            one.contiguous().view(-1).view(torch.uint8), other.contiguous().view(-1).view(torch.uint8)
        )
        return [] if same else [at]
    if isinstance(one, dict) and isinstance(other, dict):
        if list(one) != list(other):
            return [f"{at} (keys)"]
        return [fault for key in one for fault in differences(one[key], other[key], f"{at}.{key}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [fault for index, (a, b) in pairs for fault in differences(a, b, f"{at}.{index}")]
    return [] if one == other else [at]


def main() -> None:
    """Run both and compare."""
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        print("== one run, uninterrupted", flush=True)
        finish(start(whole))
        print("\n== another, killed with SIGKILL in the middle", flush=True)
        kill_in_the_middle(killed)
        print(f"\n== killed; on disk: {', '.join(sorted(path.name for path in killed.glob('step-*')))}")
        print("== the same command again", flush=True)
        finish(start(killed))

        last, last_of_killed = tk.checkpoints(whole).latest(), tk.checkpoints(killed).latest()
        found = differences(tk.load(last), tk.load(last_of_killed))
        if last.step != last_of_killed.step or last.metrics != last_of_killed.metrics:
            found.append("step or metrics")
        if found:
            sys.exit(f"\nDIFFERENT after the resume: {', '.join(found[:10])}")
        count = len(tk.open(last).tensors)
        print(f"\nidentical: all {count} tensors of weights and optimizer, bit for bit, at step {last.step}")


if __name__ == "__main__":
    main()
