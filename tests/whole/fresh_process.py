"""Rebuild models in a process that has never seen them: ``python -m tests.whole.fresh_process FOLDER MODULE TRUST...``.

For each checkpoint in the folder it prints its name, the digest of what was rebuilt, and what went wrong.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import torch
from torch import nn

import torchkeep as tk
from torchkeep.folder.digests import chunk_digests, digest_of
from torchkeep.live.describe import capture_whole

ROOT = Path(__file__).resolve().parents[2]


def digest_of_model(model: nn.Module) -> str:
    """One digest over the description of a model and the bytes of every tensor in it."""
    captured, _ = capture_whole(model, None, include_source=False)
    tensors = {
        f"{group}.{name}": [str(tensor.spec), *chunk_digests(tensor.read())]
        for group, of in captured.groups.items()
        for name, tensor in of.items()
    }
    entry = captured.entries["model"]
    structure = {name: node for name, node in entry.facts["structure"].items() if name != "hooks"}
    facts = [entry.tree, {**entry.facts, "structure": structure}]
    return digest_of(json.dumps([in_order(facts), tensors], sort_keys=True).encode())


def in_order(node: object) -> object:
    """The node with its sets sorted: their order depends on the process."""
    if isinstance(node, list):
        return [in_order(each) for each in node]
    if not isinstance(node, dict):
        return node
    items = {key: in_order(each) for key, each in node.items()}
    return {key: sorted(each, key=json.dumps) if key in {"$set", "$frozenset"} else each for key, each in items.items()}


def rebuilt_elsewhere(folder: Path, module: str, *trust: str) -> dict[str, tuple[str, str]]:
    """The digest and the error of each checkpoint in a folder, by its name, from a fresh process."""
    command = [sys.executable, "-m", "tests.whole.fresh_process", str(folder), module, *trust]
    path = os.pathsep.join(str(ROOT / each) for each in ("src", "examples", "."))
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    return {name: (digest, error) for name, digest, error in lines}


def main(folder: str, module: str, *trust: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error", UserWarning)
    if module == "torchvision":
        from vision import import_torchvision

        import_torchvision()
    else:
        importlib.import_module(module)
    for path in sorted(Path(folder).iterdir()):
        outcome = ["", ""]
        try:
            with tk.open(path) as checkpoint:
                has_outputs = "fingerprint" in checkpoint.source.record.entries["model"].facts["structure"]
            model = tk.load_whole(path, trust=trust, check=has_outputs, tolerance=0.0)
            outcome = [digest_of_model(model), ""]
        except Exception as error:  # noqa: BLE001 - the parent looks at which
            outcome = ["", f"{type(error).__name__}: {error}"]
        print(json.dumps([path.name, *outcome]), flush=True)  # noqa: T201 - what the parent reads


if __name__ == "__main__":
    main(*sys.argv[1:])
