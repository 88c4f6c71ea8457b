"""A server of the page in this process, a command in another, and names that nobody should have to trust."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from torchkeep.viewer.server import Server
from torchkeep.viewer.subject import Subject

HOSTILE = {
    "<img src=x onerror=alert(1)>.weight": torch.arange(6.0).reshape(2, 3),
    "</script><script>alert(2)</script>": torch.ones(4),
    '"><svg onload=alert(3)>': torch.zeros(2, 2),
    "__proto__.constructor": torch.ones(3),
    "toString": torch.ones(5),
    "bidi\u202egnp.exe\u2028\x1b[2J\nline": torch.ones(2),
    "." * 3000: torch.ones(1),
    "x" * 5000: torch.ones(1),
    "": torch.ones(7),
    "nan": torch.tensor([float("nan"), 1.0, float("inf")]),
    "bf16": torch.ones(3, dtype=torch.bfloat16),
    "empty": torch.empty(0, 4),
}


@contextmanager
def serving(*paths: os.PathLike[str]) -> Iterator[Server]:
    """Serve a path, and others beside it, from a thread."""
    subject = Subject(paths[0], paths[1:])
    server = Server(subject)
    server.daemon_threads = False  # closing waits for answers that are under way
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        subject.close()


def torchkeep(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [sys.executable, "-m", "torchkeep.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)
