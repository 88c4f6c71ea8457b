"""Trainings as what changes from save to save, sizes only: how many bytes are written for each byte that changed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial

from torchkeep.folder.partition import ParentShard, partition

SAVES = 200
# One save: the bytes of the group's tensors, and the names of those that changed since the save before.
Save = Mapping[str, tuple[Mapping[str, int], AbstractSet[str]]]


@dataclass
class Written:
    """What a run wrote and what changed in it, in bytes, and the most shards that one save had."""

    written_bytes: int = 0
    changed_bytes: int = 0
    shards: int = 0

    @property
    def ratio(self) -> float:
        return self.written_bytes / self.changed_bytes


def simulate(saves: Iterator[Save]) -> Written:
    """Carry the plans of a run from save to save; the first save counts as written and as changed."""
    total = Written()
    parents: dict[str, list[ParentShard]] = {}
    for save in saves:
        checkpoint_bytes = sum(sum(sizes.values()) for sizes, _ in save.values())
        shards = 0
        for group, (sizes, changed) in save.items():
            known = {name for shard in parents.get(group, ()) for name in shard.names}
            fresh = sizes.keys() - known
            plan = partition(sizes, parents.get(group, []), set(changed) | fresh, checkpoint_bytes)
            total.written_bytes += sum(shard.nbytes for shard in plan if shard.link is None)
            total.changed_bytes += sum(size for name, size in sizes.items() if name in changed or name in fresh)
            parents[group] = [ParentShard(str(at), s.names, s.nbytes, s.splits) for at, s in enumerate(plan)]
            shards += len(plan)
        total.shards = max(total.shards, shards)
    return total


def resnet50(classes: int = 1000) -> dict[str, int]:
    """The bytes of the tensors of torchvision's resnet50 in order, float32, batch-norm counters int64."""
    sizes: dict[str, int] = {}

    def add(name: str, *shape: int, element_bytes: int = 4) -> None:
        numel = 1
        for size in shape:
            numel *= size
        sizes[name] = numel * element_bytes

    def add_norm(name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            add(f"{name}.{part}", channels)
        add(f"{name}.num_batches_tracked", element_bytes=8)

    add("conv1.weight", 64, 3, 7, 7)
    add_norm("bn1", 64)
    into = 64
    for layer, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
        for block in range(blocks):
            prefix = f"layer{layer}.{block}"
            for at, (out, inner, kernel) in enumerate(((width, into, 1), (width, width, 3), (4 * width, width, 1)), 1):
                add(f"{prefix}.conv{at}.weight", out, inner, kernel, kernel)
                add_norm(f"{prefix}.bn{at}", out)
            if block == 0:
                add(f"{prefix}.downsample.0.weight", 4 * width, into, 1, 1)
                add_norm(f"{prefix}.downsample.1", 4 * width)
            into = 4 * width
    add("fc.weight", classes, 2048)
    add("fc.bias", classes)
    return sizes


def llama_7b() -> dict[str, int]:
    """The bytes of the tensors of a transformer of 32 blocks, width 4096, in bfloat16."""
    width, inner, words, element_bytes = 4096, 11008, 32000, 2
    sizes = {"embed_tokens.weight": words * width * element_bytes}
    for block in range(32):
        prefix = f"layers.{block}"
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            sizes[f"{prefix}.self_attn.{part}.weight"] = width * width * element_bytes
        for part in ("gate_proj", "up_proj", "down_proj"):
            sizes[f"{prefix}.mlp.{part}.weight"] = width * inner * element_bytes
        for part in ("input_layernorm", "post_attention_layernorm"):
            sizes[f"{prefix}.{part}.weight"] = width * element_bytes
    return {
        **sizes,
        "norm.weight": width * element_bytes,
        "lm_head.weight": words * width * element_bytes,
    }


def _in(names: Iterable[str], *prefixes: str) -> set[str]:
    return {name for name in names if name.startswith(prefixes)}


def _statistics(names: Iterable[str]) -> set[str]:
    ends = ("running_mean", "running_var", "num_batches_tracked")
    return {name for name in names if name.endswith(ends)}


def head_and_statistics() -> Iterator[Save]:
    """A state dict of which only the new head and the batch-norm statistics change."""
    tensors = resnet50()
    for _ in range(SAVES):
        yield {"model": (tensors, _in(tensors, "fc.") | _statistics(tensors))}


def gradual_unfreezing() -> Iterator[Save]:
    """The head trains; every 40 saves one more stage of the backbone joins it, from the top."""
    tensors = resnet50()
    stages = ("fc.", "layer4.", "layer3.", "layer2.", "layer1.")
    for save in range(SAVES):
        yield {"model": (tensors, _in(tensors, *stages[: 1 + save // 40]) | _statistics(tensors))}


def periods_1_to_6() -> Iterator[Save]:
    """Tensor i changes at every save that 1 + i % 6 divides."""
    tensors = llama_7b()
    for save in range(SAVES):
        yield {"model": (tensors, {name for at, name in enumerate(tensors) if save % (1 + at % 6) == 0})}


def ema_every_fifth() -> Iterator[Save]:
    """All weights change at every save, their moving average at every fifth."""
    tensors = resnet50()
    names = set(tensors)
    for save in range(SAVES):
        yield {"model": (tensors, names), "ema": (tensors, names if save % 5 == 0 else set())}


def lisa(*always: str) -> Iterator[Save]:
    """Between two saves what is named always, and 2 random blocks of 32, are trained."""
    draw = random.Random(0)
    tensors = llama_7b()
    for _ in range(SAVES):
        yield {"model": (tensors, _in(tensors, *always, *(f"layers.{at}." for at in draw.sample(range(32), 2))))}


# A scenario, and the ratio to one hundredth that it gives.
SCENARIOS: Mapping[str, tuple[Callable[[], Iterator[Save]], float]] = {
    "head + batch-norm statistics": (head_and_statistics, 1.05),
    "gradual unfreezing": (gradual_unfreezing, 1.01),
    "tensors with periods 1-6": (periods_1_to_6, 1.02),
    "EMA every fifth save": (ema_every_fifth, 1.00),
    "LISA (2 of 32 blocks, head)": (partial(lisa, "norm.", "lm_head."), 1.10),
    "LISA (2 of 32 blocks, head, embedding)": (partial(lisa, "norm.", "lm_head.", "embed_tokens."), 1.08),
}
