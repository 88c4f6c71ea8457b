"""What is not registered is found where it is this training's, and looking for it does nothing to anybody else."""

from __future__ import annotations

import threading

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import torchkeep as tk
from torchkeep.live.unregistered import unregistered


def training():
    model = nn.Linear(2, 1)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(1))
    return {"model": model, "ema": AveragedModel(model), "scaler": scaler}


def test_what_is_kept_with_another_training_is_not_missed_in_this_one(tmp_path):
    before = training()
    with tk.CheckpointManager(tmp_path / "before", before) as manager:
        manager.save(0)
    with tk.CheckpointManager(tmp_path / "now", {"model": nn.Linear(2, 1)}) as manager:
        manager.save(0)  # no warning, which would be an error
    part = {"model": before["model"]}
    assert sorted(unregistered(part)) == [
        "a GradScaler is in use and is not in this checkpoint",
        "the AveragedModel of a model like 'model' is not in this checkpoint",
    ]
    assert before["ema"] is not None


def test_an_average_that_no_manager_has_kept_may_be_of_any_model_like_it():
    average = AveragedModel(nn.Linear(2, 1))
    assert unregistered({"model": nn.Linear(2, 1)}) == [
        "the AveragedModel of a model like 'model' is not in this checkpoint"
    ]
    assert average is not None


def test_other_threads_go_on_filling_their_tuples():
    has_ended, errors, filled = threading.Event(), [], 0

    def fill():
        nonlocal filled
        try:
            while not has_ended.is_set():
                tuple(number for number in range(200))
                filled += 1
        except SystemError as error:
            errors.append(error)

    thread = threading.Thread(target=fill)
    thread.start()
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters())
    try:
        for _ in range(2):
            assert unregistered({"model": model}) == ["the SGD that trains 'model' is not in this checkpoint"]
    finally:
        has_ended.set()
        thread.join()
    assert errors == []
    assert filled
    assert optimizer.state == {}
