"""What a manager is made of, refused at the door where it cannot be meant: all of it at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torchkeep.folder.parallel import default_threads
from torchkeep.manager.state import held_state
from torchkeep.policies import Also, RetentionPolicy, SaveWhen, Staging
from torchkeep.verbs.arguments import path_of, refuse_together, threads_of, whole_number


def run_folder_of(folder: str | os.PathLike[str]) -> Path:
    """The absolute path of a run folder.

    Raises:
        TypeError, ValueError: It is no path, or empty.
    """
    return path_of(folder, "a run folder", f"folder is {folder!r}: the path of a run folder is wanted")


def held_of(  # noqa: PLR0913 - all that a manager is made of
    folder: str | os.PathLike[str],
    state: Mapping[str, object],
    *,
    save_when: SaveWhen | None,
    retain: RetentionPolicy | None,
    also: Also,
    failed_saves_allowed: int,
    io_threads: int | None,
    staging: Staging,
    staging_bytes: int | None,
) -> dict[str, object]:
    """What `held_state` gives, once every argument can be meant.

    Raises:
        TypeError, ValueError: Some cannot; every one of them is said.
    """
    held: dict[str, object] = {}
    refuse_together(
        lambda: run_folder_of(folder),
        lambda: held.update(held_state(state, also)),
        lambda: _require("save_when", save_when, (SaveWhen, type(None)), "a policy is wanted, as EverySteps(500)"),
        lambda: _require("retain", retain, (RetentionPolicy, type(None)), "a policy is wanted, as KeepLast(3)"),
        lambda: whole_number("failed_saves_allowed", failed_saves_allowed, 0),
        lambda: threads_of(io_threads, default_threads),
        lambda: _require("staging", staging, (Staging,), "Staging.AT_ONCE or Staging.OVERLAPPED is wanted"),
        lambda: None if staging_bytes is None else whole_number("staging_bytes", staging_bytes, 0),
    )
    return held


def _require(name: str, value: object, kinds: tuple[type, ...], wanted: str) -> None:
    if not isinstance(value, kinds):
        raise TypeError(f"{name} is {value!r}: {wanted}, from torchkeep.policies")
