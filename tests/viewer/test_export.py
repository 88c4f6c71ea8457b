"""The page as one file: what it holds, and that it never leaves half a file or replaces what it should not."""

from __future__ import annotations

import json
import os
import re
import stat

import pytest
import torch

import torchkeep as tk
from torchkeep.errors import ConflictError, NotFoundError
from torchkeep.viewer.answers import key_of
from torchkeep.viewer.export import export_page
from torchkeep.viewer.subject import Subject


def held_by(path):
    """The answers that an exported page holds."""
    text = path.read_text(encoding="utf-8")
    (found,) = re.findall(r'<script type="application/json" id="answers">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)


def test_it_holds_the_run_the_newest_checkpoint_and_its_comparison_with_the_first(run, tmp_path):
    done = []
    written = export_page(Subject(run), tmp_path / "report.html", progress=lambda *told: done.append(told))

    answers = held_by(written.path)
    count = len(tk.open(run / "step-00000600").tensors)
    assert (written.at, written.compared_with) == ("step-00000600", "step-00000100")
    assert written.nbytes == written.path.stat().st_size
    assert len(answers["subject"][0]["checkpoints"]) == 6
    assert key_of("checkpoint", {"of": "step-00000600"}) in answers
    assert key_of("movement", {"from": "step-00000100", "to": "step-00000600"}) in answers
    assert key_of("plan", {"from": "step-00000600", "into": "step-00000100", "rules": "suggested"}) in answers
    assert sum(key.startswith("tensor ") for key in answers) == count
    assert max(done) == (count, count)


def test_two_steps_may_be_named_and_a_file_beside_goes_first(run, tmp_path):
    torch.save(tk.load(run / "step-00000100")["model"], tmp_path / "base.pt")
    subject = Subject(run, [tmp_path / "base.pt"])
    assert export_page(subject, tmp_path / "a.html").compared_with == "beside-1"
    written = export_page(subject, tmp_path / "a.html", compare=("step-00000200", "step-00000300"))
    assert (written.at, written.compared_with) == ("step-00000300", "step-00000200")


def test_a_comparison_that_cannot_be_made_does_not_keep_the_rest_away(tmp_path):
    torch.save({"G": {"w": torch.ones(3)}, "D": {"w": torch.ones(3)}}, tmp_path / "gan.pt")
    torch.save({"w": torch.ones(3)}, tmp_path / "one.pt")
    written = export_page(Subject(tmp_path / "one.pt", [tmp_path / "gan.pt"]), tmp_path / "report.html")
    answers = held_by(written.path)
    assert answers["plan from=file into=beside-1"][0]["fault"]["what"] == "2 entries could be the weights"
    assert "movement from=beside-1 to=file" in answers


NEXT_TO_1 = {
    dtype: 1 + torch.finfo(dtype).eps for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}
GREATEST = {dtype: torch.finfo(dtype).max for dtype in (torch.float32, torch.float16, torch.bfloat16)}


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [
        *((1.0, high, dtype) for dtype, high in NEXT_TO_1.items()),
        *((-high, high, dtype) for dtype, high in GREATEST.items()),
        (0.0, 5e-324, torch.float64),
        (-5e-324, 1e-322, torch.float64),
        (0.0, 1e-45, torch.float32),
        (-6e-8, 6e-8, torch.float16),
        (1e300, 1.5e300, torch.float64),
        (2**53, 2**53 + 2, torch.int64),
        (-(2**63), 2**63 - 1, torch.int64),
        (0, 2**64 - 1, torch.uint64),
        (False, True, torch.bool),
    ],
)
def test_the_ends_of_every_range_are_in_the_first_and_the_last_bin(tmp_path, low, high, dtype):
    tk.save(torch.tensor([low, low, high], dtype=dtype), tmp_path / "ckpt")
    answers = held_by(export_page(Subject(tmp_path / "ckpt"), tmp_path / "report.html").path)
    counts = answers["tensor at=0 of=file"][0]["histogram"]["counts"]
    assert (counts[0], counts[-1], sum(counts)) == (2, 1, 3)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [([2**62, 2**62 - 1], torch.int64), ([1.0, 1.0], torch.float32), ([5e-324, 5e-324], torch.float64)],
)
def test_values_that_are_one_as_doubles_are_in_the_middle_bin(tmp_path, values, dtype):
    tk.save(torch.tensor(values, dtype=dtype), tmp_path / "ckpt")
    answers = held_by(export_page(Subject(tmp_path / "ckpt"), tmp_path / "report.html").path)
    assert answers["tensor at=0 of=file"][0]["histogram"]["counts"][30] == 2


def test_a_range_that_no_double_holds_has_no_histogram(tmp_path):
    greatest = torch.finfo(torch.float64).max
    tk.save(torch.tensor([-greatest, greatest], dtype=torch.float64), tmp_path / "ckpt")
    answers = held_by(export_page(Subject(tmp_path / "ckpt"), tmp_path / "report.html").path)
    told = answers["tensor at=0 of=file"][0]
    assert (told["histogram"], told["statistics"]["maximum"]) == (None, greatest)


def test_a_damaged_tensor_is_said_where_it_stands_and_the_others_are_there(tmp_path):
    path = tk.save({"a": torch.ones(1000), "b": torch.ones(1000)}, tmp_path / "ckpt").path
    shard = next(path.glob("*.safetensors"))
    shard.chmod(0o644)
    with shard.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"damaged!")
    answers = held_by(export_page(Subject(path), tmp_path / "report.html").path)
    assert answers["tensor at=0 of=file"][0]["statistics"]["maximum"] == 1
    assert "differ from their digest" in answers["tensor at=1 of=file"][0]["fault"]["what"]


def test_a_file_that_is_there_is_replaced_in_one_step_and_keeps_to_the_umask(run, tmp_path):
    target = tmp_path / "report.html"
    target.write_text("<!doctype html>old")
    inode = target.stat().st_ino
    export_page(Subject(run), target)
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_ino != inode
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~mask
    assert os.listdir(tmp_path) == ["report.html"]


def test_what_is_no_file_is_left_and_an_absent_folder_is_said(run, tmp_path):
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(ConflictError, match="not a file; it was left as it is"):
        export_page(Subject(run), tmp_path / "folder.html")
    (tmp_path / "weights.html").write_bytes(b"of somebody")
    with pytest.raises(ConflictError, match="not a page; it was left as it is"):
        export_page(Subject(run), tmp_path / "weights.html")
    assert (tmp_path / "weights.html").read_bytes() == b"of somebody"
    with pytest.raises(NotFoundError, match="there is no such folder"):
        export_page(Subject(run), tmp_path / "absent" / "report.html")


def test_a_run_without_a_committed_checkpoint_is_said_and_nothing_is_written(tmp_path):
    (tmp_path / "run" / "step-00000001").mkdir(parents=True)
    with pytest.raises(NotFoundError, match="no committed checkpoint in this run"):
        export_page(Subject(tmp_path / "run"), tmp_path / "report.html")
    assert sorted(os.listdir(tmp_path)) == ["run"]
