"""What tests of the page share: real checkpoints, a real server, and Debian's Chromium with its console watched."""

from __future__ import annotations

import shutil

import pytest
import torch
from playwright.sync_api import expect
from tests.viewer.serving import HOSTILE, serving

import torchkeep as tk
from browser import chromium as started


class Blocks(torch.nn.Module):
    """Four alike blocks and a head: enough for folding, a heat map and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(
            torch.nn.ModuleDict({"norm": torch.nn.LayerNorm(16), "fc": torch.nn.Linear(16, 16)}) for _ in range(4)
        )
        self.head = torch.nn.Linear(16, 8, bias=False)


@pytest.fixture(scope="package")
def run(tmp_path_factory):
    """Give six checkpoints: block 0 stays, block 3 moves most, the third loss is NaN; and a folder that is none."""
    folder = tmp_path_factory.mktemp("viewer") / "run"
    torch.manual_seed(0)
    model = Blocks()
    model.blocks[0].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    with tk.CheckpointManager(folder, {"model": model, "optimizer": optimizer, "progress": {"epoch": 3}}) as manager:
        for step in range(100, 700, 100):
            for index, block in enumerate(model.blocks):
                for parameter in block.parameters():
                    with torch.no_grad():
                        parameter.add_(0.01 * index * torch.randn_like(parameter))
            loss = float("nan") if step == 300 else 100 / step
            metrics = {"loss": loss, "<b>acc</b>": step / 700, "constructor": 1.0}
            manager.save(step, metrics=metrics, tags=["<i>paper"] if step == 400 else [])
    damaged = folder / "step-00000700"
    shutil.copytree(folder / "step-00000600", damaged)
    return folder


@pytest.fixture(scope="package")
def hostile(tmp_path_factory):
    """Give a torch file whose names and values are markup, controls, and what every JavaScript object has."""
    path = tmp_path_factory.mktemp("hostile") / "<img src=x onerror=alert(5)> & bad.pt"
    torch.save({"state_dict": HOSTILE, "note": "<script>alert(4)</script>", "__proto__": {"epoch": 1}}, path)
    return path


@pytest.fixture(scope="package")
def server(run):
    """Give a server of the run."""
    with serving(run) as serving_run:
        yield serving_run


@pytest.fixture(scope="module")
def browser(chromium):
    """Give one Chromium for a module; it ends with it, since Playwright keeps an event loop running."""
    expect.set_options(timeout=120_000)
    with started(chromium) as opened:
        yield opened


@pytest.fixture
def visit(browser):
    """Give a function that opens an address in a fresh profile; at the end nothing may have been said on the console.

    Requests to any other place than the address's own are faults too.
    """
    faults: list[str] = []
    contexts = []

    def open_page(
        url: str, *, width: int = 1280, height: int = 900, ready: str = "[role=tab]", allowed: str = "", **options
    ):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        context.set_default_timeout(120_000)
        page = context.new_page()
        page.on("console", lambda said: (allowed and allowed in said.text) or faults.append(f"console: {said.text}"))
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        place = url.partition("#")[0]
        page.on("request", lambda sent: sent.url.startswith((place, "data:")) or faults.append(f"request: {sent.url}"))
        page.goto(url)
        page.wait_for_selector(ready)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []
