"""Real processes: what is on stdout, what is on stderr, and what they exit with."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import torchkeep as tk

SRC = Path(__file__).resolve().parents[2] / "src"
FACTORIES = """
import torch
print("a line that a module prints")

def fits(): return torch.nn.Linear(3, 2)
def wider(): return torch.nn.Linear(3, 4)
def raises(): raise ValueError("no config")
"""


class Evil:
    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Give a folder with good, damaged and hostile checkpoints, a run, and modules with factories."""
    folder = tmp_path_factory.mktemp("cli")
    model = torch.nn.Linear(3, 2)
    torch.save({"model": model.state_dict(), "epoch": 3}, folder / "good.pt")
    torch.save({"G": model.state_dict(), "D": model.state_dict()}, folder / "gan.pt")
    tk.save({"model": model}, folder / "ckpt")
    tk.save({"model": model}, folder / "bad")
    (shard,) = (folder / "bad").glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.unlink()  # It is shared with no other; a new file leaves all others alone.
    shard.write_bytes(content)
    with tk.CheckpointManager(folder / "run", {"model": model}) as manager:
        manager.save(10)
    (folder / "cut.pt").write_bytes((folder / "good.pt").read_bytes()[:-200])
    (folder / "evil.pt").write_bytes(_torch_file_with(pickle.dumps(Evil(), 2), folder))
    (folder / "text.pt").write_text("hello, I am a text")
    (folder / "empty").mkdir()
    (folder / "factories.py").write_text(FACTORIES)
    (folder / "wants.py").write_text("import no_such_package\n")
    return folder


def _torch_file_with(stream: bytes, folder: Path) -> bytes:
    import zipfile

    with zipfile.ZipFile(folder / "evil.zip", "w") as archive:
        archive.writestr("archive/data.pkl", stream)
        archive.writestr("archive/version", "3\n")
    return (folder / "evil.zip").read_bytes()


def torchkeep(folder: Path, *arguments: str, as_anybody: bool = False) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    command = [sys.executable, "-m", "torchkeep.cli", *arguments]
    if as_anybody and os.geteuid() == 0:  # without what lets root pass over permissions
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["show", "good.pt"], 0, ""),
        (["show", "absent.pt"], 3, "torchkeep: absent.pt: "),
        (["show", "empty"], 3, "the folder holds no checkpoint that is known"),
        (["show", "text.pt"], 3, "not a checkpoint: it begins with b'hello, I'"),
        (["show", "run"], 3, "name one, for example the newest: run/step-00000010"),
        (["show", "cut.pt"], 4, "torchkeep: cut.pt: "),
        (["show", "evil.pt"], 4, "torchkeep: evil.pt: "),
        (["ls", "run"], 0, ""),
        (["ls", "empty"], 0, "empty: no committed checkpoint"),
        (["ls", "absent"], 3, "absent: there is no run folder here"),
        (["ls", "ckpt"], 3, "a checkpoint, not a run folder\n  hint: look into it: torchkeep show ckpt"),
        (["verify", "ckpt"], 0, ""),
        (["verify", "run"], 0, ""),
        (["verify", "bad"], 4, ""),
        (["verify", "cut.pt"], 4, ""),
        (["verify", "evil.pt"], 4, "torchkeep: evil.pt: "),
        (["verify", "absent"], 3, "torchkeep: absent: "),
        (["plan", "good.pt", "factories:fits"], 0, "a line that a module prints"),
        (["plan", "good.pt", "factories:wider"], 1, "2 of 2 tensors do not fit\n  hint: --suggest prints rules"),
        (["plan", "gan.pt", "factories:fits"], 1, "2 entries could be the weights"),
        (["plan", "cut.pt", "factories:fits"], 4, "torchkeep: cut.pt: "),
        (["plan", "good.pt", "absent:fits"], 3, "absent:fits: no module 'absent' to import"),
        (
            ["plan", "good.pt", "factories:absent"],
            3,
            "nothing in factories is called 'absent'\n  hint: it has fits, raises, wider",
        ),
        (["plan", "good.pt", "factories"], 2, "'factories': package.module:factory is wanted"),
        (["plan", "good.pt", "factories:raises"], 2, "raised ValueError: no config ("),
        (
            ["plan", "good.pt", "wants:f"],
            2,
            "wants:f: importing it raised ModuleNotFoundError: No module named 'no_such",
        ),
        (
            ["plan", "good.pt", "factories:fits", "--rename", "(=x"],
            2,
            '--rename: Rename: the pattern "(" is no regular',
        ),
        (["frobnicate"], 2, "invalid choice: 'frobnicate'"),
        ([], 2, "    show      show what is in a checkpoint of any format"),
        (["show", "good.pt", "--jsn"], 2, "usage: torchkeep show [-h] [--stats] [--json] PATH"),
        (
            ["ls", "good.pt"],
            3,
            "good.pt: a file, not a run folder\n  hint: to look into a checkpoint: torchkeep show good",
        ),
        (["prune", "good.pt"], 3, "good.pt: a file, not a run folder"),
        (["tag", "good.pt", "x"], 3, "no torchkeep checkpoint here\n  hint: name a folder that torchkeep saved"),
        (
            ["tag", "run/step-00000010", ""],
            2,
            "tag: '' cannot be a tag: a tag is a name of printing characters without",
        ),
        (["plan", "good.pt", "factories:fits", "--replay", "text.pt"], 3, "text.pt: a recorded plan is JSON"),
        (
            ["diff", "good.pt", "good.pt", "--plan", "absent"],
            3,
            "absent: no such file\n  hint: torchkeep plan ... --json",
        ),
        (["convert", "good.pt", "ckpt"], 1, "ckpt: something is there already"),
        (["view", "good.pt", "--export", "text.pt"], 1, "text.pt: not a page; it was left as it is"),
        (["view", "good.pt", "--export", "absent/x.html"], 3, "absent: there is no such folder\n  hint: make it first"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_each_command_exits_with_its_code_and_says_why_on_stderr_without_a_traceback(arguments, code, said, folder):
    done = torchkeep(folder, *arguments)

    assert said in done.stderr
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "a line that a module prints" not in done.stdout
    if code in {2, 3} or not said:
        assert bool(done.stdout) == (code not in {2, 3})
    assert not (folder / "ran").exists()


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may do everything")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["show", "good.pt"],
            "good.pt: cannot be read: Permission denied\n  hint: check its permissions and its owner",
        ),
        (["diff", "mine.pt", "mine.pt", "--plan", "good.pt"], "good.pt: cannot be read: Permission denied"),
        (["convert", "mine.pt", "new.pt"], "new.pt: the checkpoint was not saved: Permission denied"),
        (["view", "mine.pt", "--export", "new.html"], "new.html: the page was not written: Permission denied"),
        (["prune", "run"], "the run cannot be locked; nothing was removed: Permission denied"),
        (["tag", "run/step-00000010", "x"], "the tags were not changed: Permission denied"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_may_not_be_read_or_written_is_said_without_a_traceback(arguments, said, folder, tmp_path):
    place = tmp_path / "place"
    shutil.copytree(folder, place)
    shutil.copy(folder / "good.pt", place / "mine.pt")
    (place / "good.pt").chmod(0)
    (place / "run" / ".lock").unlink()
    for closed in (place, place / "run"):
        closed.chmod(0o555)
    try:
        done = torchkeep(place, *arguments, as_anybody=True)
    finally:
        for closed in (place, place / "run"):
            closed.chmod(0o755)
    assert said in done.stderr
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("closed", "arguments", "code"), [(">&-", "show good.pt", 0), ("2>&-", "show absent.pt", 3)])
def test_a_stream_that_is_closed_is_written_nowhere(closed, arguments, code, folder):
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    command = f"{sys.executable} -m torchkeep.cli {arguments} {closed}"
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "good.pt"],
        ["ls", "run"],
        ["ls", "empty"],
        ["verify", "ckpt"],
        ["verify", "bad"],
        ["plan", "good.pt", "factories:fits"],
        ["plan", "good.pt", "factories:wider", "--suggest"],
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_with_json_stdout_is_one_object_of_schema_1(arguments, folder):
    values = json.loads(torchkeep(folder, *arguments, "--json").stdout)

    assert next(iter(values.items())) == ("schema", 1)


@pytest.mark.parametrize("verb", ["show", "ls", "plan", "verify"])
def test_the_help_of_each_verb_shows_an_example(verb, folder):
    done = torchkeep(folder, verb, "--help")

    assert done.returncode == 0
    assert f"examples:\n  torchkeep {verb} " in done.stdout


def test_the_version_is_the_packages(folder):
    assert torchkeep(folder, "--version").stdout == f"torchkeep {tk.__version__}\n"


@pytest.mark.parametrize("path", ["good.pt", "legacy.pth", "plain.safetensors", "ckpt"])
def test_show_imports_neither_torch_nor_numpy_nor_rich(path, folder):
    import safetensors.torch

    state = {"weight": torch.zeros(2)}
    torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(state, folder / "plain.safetensors")
    program = f"""
import sys
from torchkeep.cli import main
code = main(["show", {path!r}])
print(code, *({{"torch", "numpy", "rich"}} & set(sys.modules)), "imported")
"""
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )

    assert done.stdout.splitlines()[-1] == "0 imported", done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_is_not_an_error_to_speak_of(unbuffered, folder):
    torch.save({f"layer{index}.{'x' * 200}": torch.zeros(1) for index in range(2000)}, folder / "many.pt")
    command = f"{sys.executable} -m torchkeep.cli show many.pt --json | head -c 1 >&2; echo ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(SRC), "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )

    assert (done.stdout, done.stderr) == ("141\n", "{")


def test_a_reader_that_was_never_there_is_not_an_error_to_speak_of(folder):
    environment = {**os.environ, "PYTHONPATH": str(SRC), "PYTHONUNBUFFERED": ""}
    command = [sys.executable, "-m", "torchkeep.cli", "ls", "run"]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_an_interrupted_command_exits_with_130_and_says_so(folder):
    (folder / "slow.py").write_text(
        "import pathlib, time\ndef make():\n    pathlib.Path('begun').touch()\n    time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    command = [sys.executable, "-m", "torchkeep.cli", "plan", "good.pt", "slow:make"]
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (folder / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)

    assert process.communicate(timeout=300)[1] == "torchkeep: interrupted\n"
    assert process.returncode == 130
