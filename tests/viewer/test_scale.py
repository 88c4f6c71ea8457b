"""How long people wait for the page of `torchkeep view`: a long run of large checkpoints, in a real Chromium.

The tensors are many and small, so that counts and not bytes are what costs. Times are from the key or click to the
picture, with Python's answers in them.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace

import pytest
import torch
from playwright.sync_api import expect
from tests.viewer.serving import serving

import torchkeep as tk
from torchkeep.folder.committed import read_record
from torchkeep.folder.record import encode_record

PARTS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "norm_1", "norm_2", "bias")
LIMIT_SECONDS = 20  # on a machine with other work; the document has what it took
DRAWN = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


def make_run(folder, checkpoint_count: int, layer_count: int) -> None:
    """Two checkpoints with every tensor changed between them, and many more that share the first one's file."""
    state = {f"layers.{layer}.{part}.weight": torch.randn(4, 4) for layer in range(layer_count) for part in PARTS}
    first = tk.save({"model": state, "progress": {"epoch": 1}}, folder / "step-00000000", step=0).path
    record = read_record(first)
    for step in range(1, checkpoint_count - 1):
        path = folder / f"step-{step:08d}"
        path.mkdir()
        for shard in record.shards:
            os.link(first / shard, path / shard)
        metrics = {"loss": 3 / (step + 1), "accuracy": 1 - 1 / (step + 1)}
        (path / "checkpoint.json").write_bytes(encode_record(replace(record, step=step, metrics=metrics)))
    moved = {name: tensor + 0.01 * torch.randn_like(tensor) for name, tensor in state.items()}
    last = checkpoint_count - 1
    tk.save({"model": moved, "progress": {"epoch": 2}}, folder / f"step-{last:08d}", step=last, metrics={"loss": 0.0})


@pytest.mark.slow
@pytest.mark.campaign
def test_a_long_run_of_large_checkpoints_is_looked_at_without_waiting(tmp_path, visit, campaign):
    checkpoint_count, layer_count = campaign.size(60, 1000), campaign.size(100, 1000)
    make_run(tmp_path / "run", checkpoint_count, layer_count)
    size = f"{checkpoint_count:,} checkpoints of {len(PARTS) * layer_count:,} tensors"

    with serving(tmp_path / "run") as server:
        begin = time.monotonic()
        page = visit(server.url, ready="#view-run .list-row")

        def waited(what: str) -> None:
            nonlocal begin
            page.evaluate(DRAWN)
            seconds = time.monotonic() - begin
            assert seconds < LIMIT_SECONDS, f"{what}: {seconds:.1f} s"
            campaign.report(what, run=size, seconds=f"{seconds:.2f}")
            begin = time.monotonic()

        waited("the run: curves, sizes, list")
        page.click("#tab-weights")
        page.wait_for_selector("#view-weights .list-row")
        waited("its newest checkpoint: treemap, list")
        page.fill("#search", "layers.77 q_proj")
        expect(page.locator("#view-weights .list-count")).to_contain_text(" of ")
        waited("a search by name")
        page.fill("#search", "")
        page.click("#view-weights .list-row >> nth=4")
        page.wait_for_selector("#panel .histogram")
        waited("a tensor: statistics, two histograms, change")
        page.keyboard.press("Escape")
        begin = time.monotonic()
        page.keyboard.press("3")
        expect(page.locator("#view-movement .list-count")).to_have_text(f"{len(PARTS) * layer_count:,} tensors")
        waited("how far every layer moved since the first step")
        page.keyboard.press("4")
        page.wait_for_selector("#view-plan .list-row")
        waited("the load plan against the first step")
        page.keyboard.press("[")
        expect(page.locator("#view-weights .facts")).to_contain_text(f"step-{checkpoint_count - 2:08d}")
        expect(page.locator("#view-plan")).to_contain_text(f"The weights of step {checkpoint_count - 2:,} into")
        waited("the checkpoint before")
