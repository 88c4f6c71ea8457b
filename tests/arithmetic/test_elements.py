"""Values of every dtype are read and written as torch reads and writes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torchkeep.arithmetic.elements import decode, encode
from torchkeep.errors import FormatError

EIGHT_BITS = ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"]
AWKWARD = [0.0, -0.0, 1.0, -1.0, 1e-8, -1e-8, 3.14159, 65504.0, 65520.0, 1e30, -1e30, 464.0, 464.1, 480.0, 247.9, 248.0]
AWKWARD += [2**-9, 2**-10, 3 * 2**-10, 2**-17, 2**-16, 1.5 * 2**-16, 61440.0, 61439.0, np.inf, -np.inf, np.nan]


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", [*EIGHT_BITS, "float8_e8m0fnu"])
def test_every_code_of_eight_bits_has_the_value_that_torch_gives_it(dtype):
    codes = torch.arange(256, dtype=torch.uint8)
    expected = codes.view(getattr(torch, dtype)).to(torch.float32).numpy()
    np.testing.assert_array_equal(decode(dtype, memoryview(codes.numpy())), expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", *EIGHT_BITS])
def test_values_are_rounded_as_torch_rounds_them(dtype):
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([1e-6, 1e-3, 1.0, 30.0, 1e4])
    random = (torch.randn(5, 20_000, generator=generator) * scales[:, None]).reshape(-1)
    halves = torch.arange(0, 256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    ties = (halves[1:127] + halves[:126]) / 2
    values = torch.cat([torch.tensor(AWKWARD), random, ties, -ties])
    expected = values.to(getattr(torch, dtype))
    ours, theirs = encode(dtype, values.numpy()), bits(expected)
    is_nan = values.isnan().numpy() | expected.float().isnan().numpy()
    width = expected.itemsize
    left = np.frombuffer(ours, np.uint8).reshape(-1, width)
    right = np.frombuffer(theirs, np.uint8).reshape(-1, width)
    assert (left[~is_nan] == right[~is_nan]).all()
    assert np.isnan(decode(dtype, ours)[is_nan].astype(np.float32)).all()


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int64", "uint16", "float64", "complex64", "complex32", "complex128"]
)
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_what_is_read_and_written_back_has_the_same_bytes(dtype):
    made = torch.tensor([0, 1, 0, 1]).to(getattr(torch, dtype))
    stored = memoryview(bits(made))
    assert bytes(encode(dtype, decode(dtype, stored))) == bytes(stored)


@pytest.mark.parametrize(
    ("dtype", "values", "words"),
    [
        ("float32", np.ones(2, np.complex64), "complex64 values are not stored as float32"),
        ("complex64", np.ones(2), "float64 values are not stored as complex64"),
        ("float6_e2m3", np.ones(4), "values are not stored as float6_e2m3"),
        ("float8_e8m0fnu", np.ones(4), "values are not stored as float8_e8m0fnu"),
    ],
)
def test_what_cannot_be_written_is_refused(dtype, values, words):
    with pytest.raises(FormatError, match=words):
        encode(dtype, values)


def test_halves_of_bytes_are_not_computed_with():
    with pytest.raises(FormatError, match="values of float4_e2m1fn_x2 are not computed with"):
        decode("float4_e2m1fn_x2", memoryview(b"ab"))
