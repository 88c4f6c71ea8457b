"""Every bad input is refused with a typed error or read as it is, within a second and 64 MB, touching nothing else.

Each is made in a folder of its own and opened, read and verified in a process of its own, with a hook on everything
that the interpreter opens, writes or runs. Memory is the growth of what the process has ever had at once, beyond the
size of what was opened; seconds are of the processor.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.hostile.catalogue import CASES, ELSEWHERE, NOT_THERE, Case
from tests.slowness import slowness

MOST_SECONDS = 1.0
MOST_BYTES = 64 << 20
ITEMS = range(1, 146)


class Warden:
    """The process that opens what must not be opened here."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("warden.py")],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def open(self, path: Path, folder: Path) -> dict[str, object]:
        """What became of it."""
        self._process.stdin.write(json.dumps({"path": str(path), "folder": str(folder)}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(300)
        self._process.stdout.close()


@pytest.fixture(scope="module")
def warden():
    process = Warden()
    yield process
    process.close()


def bytes_below(path: Path) -> int:
    return sum(each.lstat().st_size for each in (path, *path.rglob("*")))


def fault_of(case: Case, warden: Warden, folder: Path) -> str | None:
    """What is wrong with how a case is met, or None."""
    folder.mkdir()
    path = case.make(folder)
    size = bytes_below(folder)
    said = warden.open(path, folder)
    expected = case.outcome.__name__ if case.outcome else "opens"
    outcome = str(said["outcome"])
    if outcome.partition(":")[0] != expected:
        return f"{expected} wanted: {outcome[:300]}"
    if said["touched"]:
        return f"it touched {said['touched']}"
    if said["grown_bytes"] > MOST_BYTES + size:
        return f"memory grew by {said['grown_bytes']:,} bytes for {size:,}"
    # Others run beside: the best of three.
    seconds = min([said["seconds"], *(warden.open(path, folder)["seconds"] for _ in range(2 * (said["seconds"] > 1)))])
    is_slow = seconds > MOST_SECONDS and seconds > MOST_SECONDS * slowness()
    return f"it took {seconds:.1f} seconds" if is_slow else None


@pytest.mark.campaign
def test_every_bad_input_is_met_within_limits(warden, tmp_path, campaign):
    faults = {}
    for number, case in enumerate(CASES):
        fault = fault_of(case, warden, tmp_path / str(number))
        if fault:
            faults[case.title] = fault
    assert faults == {}
    for item in ITEMS:
        cases = [case for case in CASES if item in case.items]
        outcomes = sorted({case.outcome.__name__ if case.outcome else "opens" for case in cases})
        names = ", ".join(case.title.partition(" ")[2] for case in cases[:6]) + (", ..." if len(cases) > 6 else "")
        what = names or NOT_THERE.get(item) or ELSEWHERE[item]
        campaign.report(f"{item}. {what}"[:160], outcome=", ".join(outcomes), cases=len(cases), violations=0)


def test_every_item_of_the_list_has_a_case_or_a_reason():
    met = {item for case in CASES for item in case.items} | set(ELSEWHERE) | set(NOT_THERE)
    assert sorted(set(ITEMS) - met) == []


def test_a_case_that_runs_something_or_takes_too_much_is_noticed(warden, tmp_path):
    import torchkeep.formats.pickle_machine  # noqa: F401 - what is watched is there

    (tmp_path / "x").write_bytes(b"x")
    assert warden.open(tmp_path / "x", tmp_path / "other")["touched"]
