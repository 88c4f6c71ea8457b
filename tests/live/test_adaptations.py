"""Tensors and moments that are adapted on their way: equal to the same done by hand, and to training on."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import torchkeep as tk
from torchkeep.rules import (
    Fuse,
    InputChannels,
    MapRows,
    ResizePositions,
    ResizeRows,
    Split,
    Transpose,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float64]


def loaded(tmp_path, saved, wanted, *rules):
    """The model's tensors after a load of `saved` under the rules."""
    tk.save({name: tensor.clone() for name, tensor in saved.items()}, tmp_path / "ckpt")
    into = {name: tensor.clone() for name, tensor in wanted.items()}
    tk.load(tmp_path / "ckpt", into=into, rules=rules)
    return into


def interpolated(grid, size, mode="bicubic"):
    """A grid (height, width, channels) as torch's own interpolation makes it."""
    made = functional.interpolate(
        grid.permute(2, 0, 1)[None], size, mode=mode, antialias=mode != "nearest", align_corners=False
    )
    return made[0].permute(1, 2, 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "wanted", "rule", "by_hand"),
    [
        ((4, 3), (3, 4), Transpose("w"), lambda w, own: w.T),
        ((3, 2, 4, 5), (5, 4, 3, 2), Transpose("w", order=(3, 2, 0, 1)), lambda w, own: w.permute(3, 2, 0, 1)),
        ((4, 3, 2), (4, 1, 2), InputChannels("w"), lambda w, own: w.sum(1, keepdim=True)),
        ((4, 3, 2), (4, 5, 2), InputChannels("w"), lambda w, own: w[:, [0, 1, 2, 0, 1]] * (3 / 5)),
        ((4, 3, 2), (4, 4, 2), InputChannels("w", fill="zero"), lambda w, own: torch.cat([w, 0 * w[:, :1]], 1)),
        ((4, 3, 2), (4, 4, 2), InputChannels("w", fill="initial"), lambda w, own: torch.cat([w, own[:, 3:]], 1)),
        (
            (3, 5),
            (4, 5),
            MapRows(["cat", "dog", "owl"], ["owl", "bee", "cat", "fly"]),
            lambda w, own: torch.stack([w[2], own[1], w[0], own[3]]),
        ),
        ((3, 5), (5, 5), ResizeRows("w", fill="mean"), lambda w, own: torch.cat([w, w.mean(0).expand(2, 5)])),
        ((5, 5), (3, 5), ResizeRows("w"), lambda w, own: w[:3]),
        ((3,), (5,), ResizeRows("w"), lambda w, own: torch.cat([w, own[3:]])),
        (
            (1, 17, 6),
            (1, 37, 6),
            ResizePositions("w"),
            lambda w, own: torch.cat([w[:, :1], interpolated(w[0, 1:].view(4, 4, 6), (6, 6)).reshape(1, 36, 6)], 1),
        ),
        (
            (49, 3),
            (25, 3),
            ResizePositions("w", sampling="bilinear"),
            lambda w, own: interpolated(w.view(7, 7, 3), (5, 5), "bilinear").reshape(25, 3),
        ),
        (
            (1, 4, 6, 3),
            (1, 8, 9, 3),
            ResizePositions("w"),
            lambda w, own: interpolated(w[0], (8, 9))[None],
        ),
        (
            (10, 4),
            (22, 4),
            ResizePositions("w", sampling="linear", kept=2),
            lambda w, own: torch.cat([w[:2], functional.interpolate(w[2:].T[None], 20, mode="linear")[0].T]),
        ),
    ],
)
def test_a_tensor_is_adapted_as_one_would_by_hand(tmp_path, dtype, shape, wanted, rule, by_hand):
    torch.manual_seed(0)
    saved, own = torch.randn(shape).to(dtype), torch.randn(wanted).to(dtype)
    made = loaded(tmp_path, {"w": saved}, {"w": own}, rule)["w"]
    expected = by_hand(saved.double() if dtype is torch.float64 else saved.float(), own.float()).to(dtype)
    torch.testing.assert_close(made, expected)
    if not isinstance(rule, (InputChannels, ResizePositions)) and getattr(rule, "fill", "") != "mean":
        assert torch.equal(made, expected)


def test_initial_rows_keep_every_bit_where_the_checkpoint_is_narrower(tmp_path):
    own = torch.randn(4, 3)
    made = loaded(tmp_path, {"w": torch.ones(2, 3).bfloat16()}, {"w": own}, ResizeRows("w"))["w"]
    assert torch.equal(made, torch.cat([torch.ones(2, 3), own[2:]]))


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.bool, torch.complex128, torch.int64, torch.uint8], ids=str
)
def test_moving_rows_and_parts_works_for_every_dtype(tmp_path, dtype):
    saved = torch.tensor([[0, 1], [1, 1], [1, 0], [0, 0], [1, 1], [0, 1]]).to(dtype)
    own = torch.zeros(6, 2).to(dtype)
    order = [5, 3, 1, 0, 2, 4]
    made = loaded(tmp_path, {"w": saved}, {"w": own}, MapRows(list(range(6)), order, "w"))["w"]
    assert torch.equal(made.to(torch.complex128), saved.to(torch.complex128)[order])
    parts = {f"{part}.w": own[:2] for part in "qkv"}
    cut = loaded(tmp_path / "split", {"qkv.w": saved}, parts, Split("qkv", ["q", "k", "v"]))
    assert torch.equal(torch.cat([part.to(torch.complex128) for part in cut.values()]), saved.to(torch.complex128))


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("dim", [0, -1])
def test_fusing_what_was_split_gives_back_every_bit(tmp_path, dim, blocks):
    whole = torch.randn(16, 24)
    names = ["q", "k", "v"]
    sizes = {"q": 8, "k": 4, "v": 4} if dim == 0 else {"q": 12, "k": 6, "v": 6}
    parts = {f"a.{part}.w": torch.zeros((size, 24) if dim == 0 else (16, size)) for part, size in sizes.items()}
    cut = loaded(tmp_path, {"a.qkv.w": whole}, parts, Split("qkv", names, ratios=(2, 1, 1), dim=dim, blocks=blocks))
    in_blocks = whole.movedim(dim, 0).reshape(blocks, -1, whole.shape[1 + dim])
    first = in_blocks[:, : in_blocks.shape[1] // 2].flatten(0, 1).movedim(0, dim)
    assert torch.equal(cut["a.q.w"], first)
    again = loaded(tmp_path / "fuse", cut, {"a.qkv.w": torch.zeros(16, 24)}, Fuse(names, "qkv", dim=dim, blocks=blocks))
    assert torch.equal(again["a.qkv.w"], whole)


class Attention(nn.Module):
    """Self-attention of one head, its projections apart or as one, stored as Linear or transposed as in GPT-2."""

    def __init__(self, *, fused):
        super().__init__()
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(8, 24)} if fused else {part: nn.Linear(8, 8) for part in "qkv"})
        self.out = nn.Linear(8, 4)

    def forward(self, x):
        if "c_attn" in self.attn:
            q, k, v = self.attn["c_attn"](x).chunk(3, -1)
        else:
            q, k, v = (self.attn[part](x) for part in "qkv")
        return self.out((q @ k.transpose(-1, -2)).softmax(-1) @ v)


class Classifier(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body, self.fc = nn.Linear(8, 8), nn.Linear(8, classes)

    def forward(self, x):
        return self.fc(self.body(x).relu())


class Transposed(nn.Module):
    """A matrix the other way round, as GPT-2's Conv1D has it."""

    def __init__(self, *, transposed):
        super().__init__()
        self.transposed = transposed
        self.weight = nn.Parameter(torch.randn(8, 4) if transposed else torch.randn(4, 8))

    def forward(self, x):
        return x @ (self.weight if self.transposed else self.weight.T)


OPTIMIZERS = {
    "SGD with momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "AdamW with amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
}
SHUFFLED = [3, 1, 0, 2]


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize(
    ("make", "make_other", "rules", "outputs"),
    [
        (lambda: Attention(fused=False), lambda: Attention(fused=True), [Fuse(list("qkv"), "c_attn")], list(range(4))),
        (lambda: Attention(fused=True), lambda: Attention(fused=False), [Split("c_attn", list("qkv"))], list(range(4))),
        (
            lambda: Transposed(transposed=True),
            lambda: Transposed(transposed=False),
            [Transpose("weight")],
            list(range(4)),
        ),
        (lambda: Classifier(4), lambda: Classifier(4), [MapRows(list(range(4)), SHUFFLED, "fc")], SHUFFLED),
    ],
    ids=["fused", "split", "transposed", "labels in another order"],
)
def test_training_goes_on_in_the_other_structure_as_it_would_have_in_the_first(
    tmp_path, make, make_other, rules, outputs, make_optimizer
):
    torch.manual_seed(0)
    batches = [(torch.randn(5, 8, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)) for _ in range(6)]

    def train(model, optimizer, batches, outputs):
        for x, y in batches:
            optimizer.zero_grad()
            functional.mse_loss(model(x), y[:, outputs]).backward()
            optimizer.step()

    model = make().double()
    optimizer = make_optimizer(model.parameters())
    train(model, optimizer, batches[:3], list(range(4)))
    tk.save({"model": model, "optimizer": optimizer}, tmp_path / "ckpt")

    other = make_other().double()
    other_optimizer = make_optimizer(other.parameters())
    rest = tk.load(tmp_path / "ckpt", into={"model": other, "optimizer": other_optimizer}, rules=rules)
    assert rest.fresh == ()
    train(model, optimizer, batches[3:], list(range(4)))
    train(other, other_optimizer, batches[3:], outputs)
    x = batches[0][0]
    torch.testing.assert_close(other(x), model(x)[:, outputs], rtol=1e-9, atol=1e-12)


def test_new_rows_begin_without_moments_and_computed_ones_never_make_a_second_moment_negative(tmp_path):
    torch.manual_seed(0)

    def make(rows, positions):
        return nn.ParameterDict({"head": torch.randn(rows, 4), "pos": torch.randn(1, positions, 4)})

    model, other = make(3, 17), make(5, 37)
    optimizer, other_optimizer = (torch.optim.Adam(m.parameters(), lr=0.1) for m in (model, other))
    for _ in range(3):
        optimizer.zero_grad()
        (model["head"].pow(3).sum() + model["pos"].pow(5).sum()).backward()
        optimizer.step()
    tk.save({"model": model, "optimizer": optimizer}, tmp_path / "ckpt")
    rules = [ResizeRows("head"), ResizePositions("pos")]
    tk.load(tmp_path / "ckpt", into={"model": other, "optimizer": other_optimizer}, rules=rules)
    for moment in ("exp_avg", "exp_avg_sq"):
        old, new = (o.state[m["head"]][moment] for o, m in ((optimizer, model), (other_optimizer, other)))
        assert torch.equal(new, torch.cat([old, torch.zeros(2, 4)]))
        old, new = (o.state[m["pos"]][moment] for o, m in ((optimizer, model), (other_optimizer, other)))
        assert torch.equal(new[:, :1], old[:, :1])
        torch.testing.assert_close(
            new[0, 1:], interpolated(old[0, 1:].view(4, 4, 4), (6, 6), "bilinear").reshape(36, 4)
        )
    assert (other_optimizer.state[other["pos"]]["exp_avg_sq"] >= 0).all()
    assert other_optimizer.state[other["pos"]]["step"] == 3


def test_state_that_no_adaptation_says_anything_about_starts_fresh_and_is_said(tmp_path):
    def make(rows):
        model = nn.ParameterDict({"w": torch.randn(rows, 6)})
        return model, torch.optim.Adafactor(model.parameters(), lr=0.1)

    model, optimizer = make(4)
    model["w"].pow(2).sum().backward()
    optimizer.step()
    tk.save({"model": model, "optimizer": optimizer}, tmp_path / "ckpt")
    other, other_optimizer = make(5)
    with_rows = [ResizeRows("w")]
    rest = tk.load(tmp_path / "ckpt", into={"model": other, "optimizer": other_optimizer}, rules=with_rows)
    assert [note for note in rest.notes if "fresh" in note] == [
        "the state of w starts fresh: row_var has the shape (4, 1) and its parameter (4, 6)"
    ]
    assert not other_optimizer.state[other["w"]]


@pytest.mark.parametrize(
    ("saved", "dtype", "policy", "fault"),
    [
        ([1.0, 1e6], torch.float16, "round", "1 of 2 values are beyond what float16 has, the first at (1,): 1000000.0"),
        ([1.0, 1e6], torch.float16, "saturate", None),
        ([1.0, 0.1], torch.float16, "round", None),
        ([1.0, 0.1], torch.float16, "exact", "1 of 2 values are not in float16, the first at (1,): 0.1"),
        ([1.0, 0.5, torch.inf, torch.nan], torch.float16, "exact", None),
        ([500.0], torch.float8_e4m3fn, "round", "1 of 1 values are beyond what float8_e4m3fn has"),
        ([1.4, 2.6], torch.int8, "round", None),
        ([1.4, 300.0], torch.int8, "round", "1 of 2 values are beyond what int8 has, the first at (1,): 300.0"),
        ([torch.nan], torch.int8, "saturate", "1 of 1 values are no numbers, which int8 does not have"),
        ([0.0, 2.0], torch.bool, "round", "1 of 2 values are beyond what bool has"),
    ],
)
def test_the_policy_of_a_cast_decides_what_values_may_become(tmp_path, saved, dtype, policy, fault):
    tk.save({"a": torch.ones(2), "w": torch.tensor(saved)}, tmp_path / "ckpt")
    into = {"a": torch.zeros(2), "w": torch.zeros(len(saved), dtype=dtype)}
    rules = [tk.Cast("w", policy=policy)]
    if fault is None:
        tk.load(tmp_path / "ckpt", into=into, rules=rules)
        limits = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
        expected = [v if not math.isfinite(v) else min(max(v, limits.min), limits.max) for v in saved]
        wanted = torch.tensor(expected)
        torch.testing.assert_close(
            into["w"], (wanted if dtype.is_floating_point else wanted.round()).to(dtype), equal_nan=True
        )
        return
    with pytest.raises(tk.PlanError) as refused:
        tk.load(tmp_path / "ckpt", into=into, rules=rules)
    assert f"w: {fault}" in str(refused.value)
    assert "1 cast would lose values" in str(refused.value)
    assert not into["a"].any()
    assert not into["w"].any()


def test_adapted_tensors_arrive_in_modules_that_load_by_themselves_and_in_those_on_meta(tmp_path):
    class Own(nn.Linear):
        def _load_from_state_dict(self, *args):
            super()._load_from_state_dict(*args)

    tk.save(nn.Linear(3, 4), tmp_path / "ckpt")
    weight = tk.load(tmp_path / "ckpt")["weight"]
    own = Own(4, 3)
    with torch.device("meta"):
        absent = nn.Linear(4, 3, bias=False)
    for model in (own, absent):
        tk.load(tmp_path / "ckpt", into=model, rules=[Transpose("weight"), tk.Skip("bias")])
        assert torch.equal(model.weight, weight.T)
