"""Statistics are those that torch computes from the whole tensor, whatever the pieces."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import torchkeep as tk
from torchkeep.arithmetic import elements, ranges
from torchkeep.arithmetic.statistics import histogram_of, statistics_of
from torchkeep.tensors import tensors_of
from torchkeep.verbs.sources import open_source

torch.manual_seed(0)
NAN, INF = float("nan"), float("inf")
TENSORS = {
    "normal": torch.randn(300, 7) * 3 + 100,
    "far_from_zero": torch.randn(5000) * 1e-3 + 1e4,
    "half": torch.randn(100).half(),
    "brain": torch.randn(33).bfloat16(),
    "eighths": torch.randn(40).to(torch.float8_e5m2),
    "large_integers": torch.tensor([2**62, 2**62 - 1, -(2**62)]),
    "flags": torch.tensor([True, False, True]),
    "complex": torch.complex(torch.randn(9), torch.randn(9)),
    "one": torch.tensor(4.0),
    "empty": torch.zeros(0, 4),
    "zeros": torch.tensor([0.0, -0.0, 1e-40]),
    "huge": torch.tensor([3e38, 3e38, -3e38]),
}


@pytest.fixture(params=["torchkeep", "torch"])
def opened(request, tmp_path):
    path = tmp_path / "saved"
    (tk.save if request.param == "torchkeep" else torch.save)(TENSORS, path)
    source = open_source(path)
    yield source
    source.close()


@pytest.mark.parametrize(("piece", "range_bytes"), [(1 << 18, 64 << 20), (16, 512), (7, 64)])
def test_statistics_are_torchs_whatever_the_pieces_and_threads(opened, piece, range_bytes, monkeypatch):
    monkeypatch.setattr(elements, "PIECE_ELEMENTS", piece)
    monkeypatch.setattr(ranges, "RANGE_BYTES", range_bytes)
    for threads in (1, 3):
        found = statistics_of(opened, tensors_of(opened.tree), threads)
        assert list(found) == list(TENSORS)
        for name, tensor in TENSORS.items():
            stats = found[name]
            real = tensor.to(torch.complex128).abs() if tensor.is_complex() else tensor
            assert (stats.count, stats.zero_count) == (
                tensor.numel(),
                int((tensor.double() == 0).sum()) if not tensor.is_complex() else 0,
            )
            assert stats.is_finite
            if not tensor.numel():
                assert (stats.minimum, stats.maximum, stats.mean, stats.std) == (None, None, None, None)
                continue
            low, high = (real.float() if tensor.itemsize < 4 else real).aminmax()
            assert (stats.minimum, stats.maximum) == pytest.approx((low.item(), high.item()), rel=1e-14)
            assert stats.mean == pytest.approx(real.double().mean().item(), rel=1e-12)
            if tensor.numel() > 1:
                assert stats.std == pytest.approx(real.double().std().item(), rel=1e-9)
            else:
                assert stats.std is None


@given(st.lists(st.sampled_from([0.0, 1.5, -2.0, NAN, INF, -INF]), min_size=1, max_size=40), st.integers(1, 9))
def test_nan_and_inf_are_counted_and_the_first_of_each_is_found(values, piece):
    class Held:
        def read_range_into(self, spec, begin, buffer):
            buffer[:] = array.tobytes()[begin : begin + len(buffer)]

    array = np.array(values, np.float32)
    spec = tk.tensors.TensorSpec("float32", (len(values),), "w")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elements, "PIECE_ELEMENTS", piece)
        stats = statistics_of(Held(), {"w": spec})["w"]
    finite = [value for value in values if math.isfinite(value)]
    assert stats.nan_count == sum(map(math.isnan, values))
    assert stats.inf_count == sum(map(math.isinf, values))
    assert stats.first_nan == next(((at,) for at, value in enumerate(values) if math.isnan(value)), None)
    assert stats.first_inf == next(((at,) for at, value in enumerate(values) if math.isinf(value)), None)
    assert stats.mean == (pytest.approx(sum(finite) / len(finite)) if finite else None)
    assert stats.minimum == (min(finite) if finite else None)


def test_where_the_first_nan_stands_is_told_as_an_index(tmp_path):
    tensor = torch.zeros(3, 4, 5)
    tensor[1, 2, 3] = NAN
    tensor[2, 0, 0] = INF
    torch.save({"w": tensor}, tmp_path / "a.pt")
    with tk.open(tmp_path / "a.pt") as checkpoint:
        stats = statistics_of(checkpoint.source, tensors_of(checkpoint.tree))["w"]
    assert (stats.first_nan, stats.first_inf, stats.is_finite) == ((1, 2, 3), (2, 0, 0), False)


def test_tied_tensors_are_read_once_and_progress_is_told_in_bytes(tmp_path):
    shared = torch.ones(100)
    torch.save({"a": shared, "b": shared, "c": torch.ones(10)}, tmp_path / "a.pt")
    told = []
    with tk.open(tmp_path / "a.pt") as checkpoint:
        found = statistics_of(checkpoint.source, tensors_of(checkpoint.tree), 2, lambda *each: told.append(each))
    assert found["a"] == found["b"]
    assert told[-1] == (440, 440)
    assert sorted(told) == told


def test_a_histogram_counts_what_torch_counts(tmp_path):
    tensor = torch.randn(1000)
    tensor[3] = NAN
    torch.save({"w": tensor, "same": torch.ones(5)}, tmp_path / "a.pt")
    with tk.open(tmp_path / "a.pt") as checkpoint:
        counts = histogram_of(checkpoint.source, checkpoint.tree["w"], -2.0, 2.0, 8)
        constant = histogram_of(checkpoint.source, checkpoint.tree["same"], 1.0, 1.0, 4)
    assert counts == torch.histc(tensor[~tensor.isnan()], 8, -2.0, 2.0).int().tolist()
    assert sum(constant) == 5
