"""Looking for what is not registered does nothing to anybody else."""

from __future__ import annotations

import threading

import torch

from torchkeep.live.unregistered import unregistered


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
