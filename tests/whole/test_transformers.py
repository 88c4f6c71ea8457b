"""Architectures of transformers: saved whole, rebuilt in a fresh process with bit-equal outputs."""

from __future__ import annotations

import pytest
import torch
from tests.whole.fresh_process import digest_of_model, rebuilt_elsewhere
from tests.whole.transformers_models import ARCHITECTURES

import torchkeep as tk

NAMES = list(ARCHITECTURES)
HALVES = {"first": NAMES[::2], "second": NAMES[1::2]}  # One for each core.


def test_there_are_at_least_forty():
    assert len(NAMES) >= 40


@pytest.mark.campaign
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_every_architecture_comes_back_in_a_fresh_process_with_equal_outputs(half, tmp_path, campaign, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    digests = {}
    for name in HALVES[half]:
        architecture = ARCHITECTURES[name]
        model = architecture.build()
        inputs = architecture.inputs() if architecture.runs_without_constructor else None
        tk.save_whole(model, tmp_path / name, example_inputs=inputs)
        digests[name] = digest_of_model(model)
    found = rebuilt_elsewhere(tmp_path, "transformers", "transformers")
    assert {name: error for name, (_, error) in found.items() if error} == {}
    assert {name: digest for name, (digest, _) in found.items()} == digests
    runs = [name for name in found if ARCHITECTURES[name].runs_without_constructor]
    campaign.report("transformers architectures", models=len(found), with_equal_outputs=len(runs))


def test_a_pickled_architecture_is_rebuilt_and_its_next_step_is_equal(tmp_path):
    name = "T5ForConditionalGeneration"
    model, inputs = ARCHITECTURES[name].build(), ARCHITECTURES[name].inputs()
    torch.save(model, tmp_path / "model.pt")
    rebuilt = tk.load_whole(tmp_path / "model.pt", trust=["transformers"])
    losses = []
    for each in (model, rebuilt):
        torch.manual_seed(0)
        optimizer = torch.optim.AdamW(each.parameters(), lr=0.1)
        loss = each(**inputs).logits.square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss)
    assert torch.equal(*losses)
    assert rebuilt.get_input_embeddings().weight is rebuilt.shared.weight
    for one, other in zip(model.parameters(), rebuilt.parameters(), strict=True):
        assert torch.equal(one, other)
