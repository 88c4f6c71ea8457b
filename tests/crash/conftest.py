"""The process whose saves are watched."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.crash.watched import Victim


@pytest.fixture(scope="module")
def victim(strace: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    process = Victim(strace, tmp_path_factory.mktemp("strace"))
    yield process
    process.close()
