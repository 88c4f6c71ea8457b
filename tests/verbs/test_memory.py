"""Measured in processes of their own: how much memory a save and a load take beyond what is saved and loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

MIB = 2**20
PROGRAM = """
import re, sys
from pathlib import Path
import torch, torchkeep as tk
torch.set_num_threads(1)
def build():
    return torch.nn.Sequential(*[torch.nn.Linear(1024, 1024, bias=False) for _ in range(64)])  # 256 MiB
def peak_bytes():
    # Of this program alone: what getrusage says begins with the peak of the process that started it.
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
model = build()
tk.save({"warm": torch.zeros(1)}, sys.argv[1] + "/warm")
tk.load(sys.argv[1] + "/warm", into={"warm": torch.zeros(1)})
before = peak_bytes()
ACT
print(peak_bytes() - before)
"""


def extra_bytes(folder, act):
    program = PROGRAM.replace("ACT", act)
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.parametrize("target", ["ckpt", "weights.safetensors"])
def test_a_save_and_a_load_into_an_existing_model_make_no_second_copy(tmp_path, target):
    path = f"sys.argv[1] + '/{target}'"
    assert extra_bytes(tmp_path, f"tk.save(model, {path})") < 128 * MIB
    assert extra_bytes(tmp_path, f"tk.load({path}, into=model)") < 64 * MIB


def test_a_load_without_a_target_is_seen_to_take_the_memory(tmp_path):
    extra_bytes(tmp_path, "tk.save(model, sys.argv[1] + '/ckpt')")
    assert extra_bytes(tmp_path, "kept = tk.load(sys.argv[1] + '/ckpt')") > 64 * MIB
