"""Trainings that are interrupted and resumed end bit for bit like one that was not.

Every step depends on everything that a resume has to bring back: weights, an average of them, optimizer, scheduler,
scaler, a generator of its own, the three global ones (also in the loader's workers), the loader's position, gradients
of half an accumulation, a buffer that no state dict has. A cell is one optimizer, precision, place of the interruption
(end of an epoch, inside one, inside an accumulation), number of workers, and the first or the second resume. Then one
item at a time is left out of what is kept, and the comparison has to notice.
"""

from __future__ import annotations

import random
from contextlib import nullcontext

import pytest
from tests.manager.resume_matrix import CELLS, OPTIMIZERS, PRECISIONS, Cell, try_cell


def small(optimizer):
    """A few cells of an optimizer, one of them with workers."""
    cells = [cell for cell in CELLS if cell.optimizer == optimizer]
    drawn = random.Random(optimizer)
    return [
        *drawn.sample([cell for cell in cells if not cell.workers], 2),
        *drawn.sample([cell for cell in cells if cell.workers], 1),
    ]


@pytest.mark.campaign
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_interrupted_training_ends_bit_for_bit_like_one_that_was_not(optimizer, tmp_path, campaign):
    cells = [cell for cell in CELLS if cell.optimizer == optimizer] if campaign.is_full else small(optimizer)
    inexact = {str(cell): found for cell in cells if (found := try_cell(cell, tmp_path / str(cell)))}
    campaign.report(f"{optimizer}: interrupted and resumed", tried=len(cells), differing=len(inexact))
    assert inexact == {}


REPORTED = {
    "model": "6 of the parameters that 'optimizer' trains are in no module of this checkpoint",
    "ema": "the AveragedModel of a model like 'model' is not in this checkpoint",
    "optimizer": "the Adam that trains 'model' is not in this checkpoint",
    "scheduler": "the CosineAnnealingLR of 'optimizer' is not in this checkpoint",
    "scaler": "a GradScaler is in use and is not in this checkpoint",
    "loader": r"a DataLoader is at batch \d of 6 of its epoch, and its position is not in this checkpoint",
}


@pytest.mark.campaign
@pytest.mark.parametrize(
    "item", [*REPORTED, "generator", "progress", "gradients", "passes", "random states"], ids=lambda item: item
)
@pytest.mark.filterwarnings("ignore:.*positions only on one side:UserWarning")  # without the model nothing has a name
def test_without_one_item_the_comparison_notices_and_what_can_be_known_is_reported(item, tmp_path, campaign):
    cell = Cell("Adam", "float16 scaled", "mid-accumulation", 0, 1)
    expected = pytest.warns(UserWarning, match=REPORTED[item]) if item in REPORTED else nullcontext()
    with expected:
        found = try_cell(cell, tmp_path, without=item)
    campaign.report("one item of the state left out", tried=1, differing=int(bool(found)))
    assert found


def test_the_small_form_meets_every_optimizer_precision_place_number_of_workers_and_resume():
    cells = [cell for optimizer in OPTIMIZERS for cell in small(optimizer)]
    assert {cell.precision for cell in cells} == set(PRECISIONS)
    for field in ("place", "workers", "resumes"):
        assert {getattr(cell, field) for cell in cells} == {getattr(cell, field) for cell in CELLS}
    assert len(CELLS) >= 60
