"""Comparisons are those that torch makes of the whole tensors, whatever the pieces and dtypes."""

from __future__ import annotations

import math

import pytest
import torch

import torchkeep as tk
from torchkeep.arithmetic import elements, ranges
from torchkeep.arithmetic.comparison import compare
from torchkeep.tensors import tensors_of

NAN = float("nan")
torch.manual_seed(0)
BASE = torch.randn(40, 9)
ONE_OFF = BASE.clone()
ONE_OFF[17, 4] += 0.5
PAIRS = {
    "equal": (BASE, BASE.clone()),
    "one element": (BASE, ONE_OFF),
    "all": (BASE, torch.randn(40, 9)),
    "narrowed": (BASE, BASE.bfloat16()),
    "widened": (BASE.half(), BASE.half().double()),
    "integers": (torch.arange(50), torch.arange(50).flip(0)),
    "flags": (torch.tensor([True, False]), torch.tensor([True, True])),
    "complex": (torch.complex(BASE, BASE), torch.complex(BASE, ONE_OFF)),
    "from zero": (torch.zeros(5), torch.ones(5)),
    "scalar": (torch.tensor(1.0), torch.tensor(3.0)),
    "empty": (torch.zeros(0, 3), torch.zeros(0, 3)),
}


def compared(tmp_path, pairs, threads=1):
    torch.save({name: left for name, (left, _) in pairs.items()}, tmp_path / "a.pt")
    tk.save({name: right for name, (_, right) in pairs.items()}, tmp_path / "b")
    with tk.open(tmp_path / "a.pt") as a, tk.open(tmp_path / "b") as b:
        left, right = tensors_of(a.tree), tensors_of(b.tree)
        return compare(a.source, b.source, {name: (left[name], right[name]) for name in pairs}, threads)


@pytest.mark.parametrize(("piece", "range_bytes"), [(1 << 18, 64 << 20), (5, 128)])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_comparison_is_what_torch_says_of_both(piece, range_bytes, threads, tmp_path, monkeypatch):
    monkeypatch.setattr(elements, "PIECE_ELEMENTS", piece)
    monkeypatch.setattr(ranges, "RANGE_BYTES", range_bytes)
    found = compared(tmp_path, PAIRS, threads)
    for name, (left, right) in PAIRS.items():
        result = found[name]
        wide = torch.complex128 if left.is_complex() else torch.float64
        a, b = left.to(wide).reshape(-1), right.to(wide).reshape(-1)
        assert result.is_bit_equal == (left.dtype == right.dtype and torch.equal(left, right)), name
        assert result.differing_count == int((a != b).sum()), name
        assert result.step_norm == pytest.approx((b - a).norm().item(), rel=1e-12), name
        assert (result.first_norm, result.second_norm) == pytest.approx((a.norm().item(), b.norm().item())), name
        if a.norm() and b.norm():
            cosine = (torch.vdot(a, b).real / a.norm() / b.norm()).item()
            assert result.cosine == pytest.approx(cosine, abs=1e-12), name
        if result.differing_count:
            assert result.largest_step == (b - a).abs().max().item(), name
            assert (b - a).reshape(left.shape)[result.largest_at].abs().item() == result.largest_step
        else:
            assert (result.largest_step, result.largest_at) == (0.0, None)
    assert found["from zero"].relative_change == math.inf
    assert found["from zero"].cosine is None
    assert found["scalar"].relative_change == 2.0


def test_nan_is_equal_to_nan_and_differs_from_a_number(tmp_path):
    left = torch.tensor([NAN, 1.0, NAN, 0.0, math.inf])
    right = torch.tensor([NAN, NAN, 2.0, -0.0, math.inf])
    result = compared(tmp_path, {"w": (left, right)})["w"]
    assert (result.differing_count, result.is_bit_equal, result.step_norm) == (2, False, 0.0)
    zeros = compared(tmp_path, {"w": (left[3:4], right[3:4])})["w"]
    assert (zeros.is_equal, zeros.is_bit_equal) == (True, False)


def test_tensors_of_other_shapes_are_not_compared(tmp_path):
    with pytest.raises(ValueError, match=r"w: float32 \(2,\) and float32 \(3,\) have no elements in common"):
        compared(tmp_path, {"w": (torch.zeros(2), torch.zeros(3))})
