from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import urllib.request
import webbrowser
from pathlib import Path

import pytest
import torch

import torchkeep as tk
from torchkeep.cli import main
from torchkeep.viewer.server import Server


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Give a run of two checkpoints in the working folder."""
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Linear(3, 2)
    with tk.CheckpointManager("run", {"model": model}) as manager:
        for step in (10, 20):
            with torch.no_grad():
                model.weight.add_(1)
            manager.save(step, metrics={"loss": 1 / step})
    return "run"


@pytest.mark.parametrize("ending", [signal.SIGINT])
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_it_prints_the_address_serves_until_ctrl_c_and_ends_well(run, ending, form):
    command = [sys.executable, "-m", "torchkeep.cli", "view", run, "--no-browser", *form]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if form:
        told = json.loads("".join(iter(process.stdout.readline, "}\n")) + "}")
        assert told["schema"] == 1
        address = told["address"]
    else:
        address = process.stdout.readline().strip()
    with urllib.request.urlopen(f"{address}subject", timeout=200) as answer:
        assert [each["step"] for each in json.load(answer)["checkpoints"]] == [10, 20]
    process.send_signal(ending)
    rest, errors = process.communicate(timeout=200)
    assert (process.returncode, rest) == (0, "")
    assert errors == "serving to this machine alone; Ctrl-C ends it\n"


@pytest.fixture
def opened(monkeypatch):
    """Give the list of what a browser would be opened at, each with what is there then; serving ends at once."""
    found = []
    monkeypatch.setattr(
        webbrowser, "open", lambda url: found.append((url, os.stat(url[7:]), Path(url[7:]).read_text()))
    )
    monkeypatch.setattr(Server, "serve_forever", lambda _: None)
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    return found


@pytest.mark.parametrize(("screen", "form"), [({}, []), ({"DISPLAY": ":0"}, ["--no-browser"])])
def test_no_browser_is_opened_without_a_screen_or_a_wish(run, opened, monkeypatch, screen, form):
    for name, value in screen.items():
        monkeypatch.setenv(name, value)
    assert main(["view", run, *form]) == 0
    assert opened == []


def test_a_browser_is_led_to_the_address_by_a_file_that_nobody_else_may_read(run, opened, monkeypatch, capsys):
    monkeypatch.setenv("DISPLAY", ":0")
    assert main(["view", run]) == 0

    address = capsys.readouterr().out.strip()
    ((url, status, text),) = opened
    assert address.split("/")[-2] not in url
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert f'content="0;url={address}"' in text
    assert not os.path.exists(url[7:])


def test_an_export_says_what_it_wrote(run, capsys):
    assert main(["view", run, "--export", "report.html"]) == 0
    assert capsys.readouterr().out.startswith("report.html: ")

    assert main(["view", run, "--compare", "20", "10", "--export", "report.html", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "schema": 1,
        "path": "report.html",
        "total_bytes": os.path.getsize("report.html"),
        "checkpoint": "step-00000010",
        "compared_with": "step-00000020",
    }


WRONG = [
    (["view", "absent"], 3, "absent: nothing is there"),
    (["view", "run", "--against", "absent.pt"], 3, "absent.pt: nothing is there"),
    (["view", "note.txt"], 3, "note.txt: "),
    (["view", "run", "--compare", "10", "20"], 2, "--compare goes with --export"),
    (["view", "run", "--compare", "10", "30", "--export", "r.html"], 3, "run: no checkpoint of step 30"),
    (["view", "run/step-00000010", "--compare", "10", "20", "--export", "r.html"], 2, "--compare takes the steps of a"),
    (["view", "run", "--port", "70000"], 2, "--port: 70000 is no port"),
    (["view", "run", "--export", "run"], 1, "run: not a file; it was left as it is"),
    (["view", "run", "--export", "absent/r.html"], 3, "absent: there is no such folder"),
    (["view", "empty"], 3, "empty: "),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "code", "says"), WRONG)
def test_what_a_user_can_get_wrong_is_a_message(run, arguments, code, says, capsys):
    os.mkdir("empty")
    with open("note.txt", "w") as file:
        file.write("no checkpoint")
    assert main(arguments) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"torchkeep: {says}")
    assert not os.path.exists("r.html")


def test_a_port_that_is_taken_is_said(run, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["view", run, "--port", str(port), "--no-browser"]) == 1
    assert f"port {port} is in use\n  hint: name another with --port, or none" in capsys.readouterr().err


def test_an_export_imports_no_torch(run):
    program = "import sys; from torchkeep.cli import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", program, "view", run, "--export", "report.html"]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
