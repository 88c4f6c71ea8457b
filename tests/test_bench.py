"""The benchmark measures what it says: every tool on a small state, and bars that can fail."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

BENCH = Path(__file__).parent.parent / "bench"
MODULES = ("bars", "keepers", "measures", "page", "rows", "states", "tools")


@pytest.fixture
def bench(monkeypatch):
    """Give the modules of the benchmark by name, which are no package."""
    monkeypatch.syspath_prepend(BENCH)
    yield {name: __import__(name) for name in MODULES}
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def state(bench):
    """Give a model of 1.3 MB, whose step changes all of it."""
    model = nn.Sequential(nn.Linear(256, 256), nn.BatchNorm1d(256), nn.Linear(256, 256))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def train():
        optimizer.zero_grad()
        model(torch.randn(4, 256)).sum().backward()
        optimizer.step()

    train()
    return bench["states"].State("small", model, optimizer, train, train)


def test_every_tool_saves_and_loads_what_the_others_do(bench, state, tmp_path):
    said = []
    tools = bench["tools"].tools()
    rows = bench["measures"].measure_waiting(state, tmp_path, tools, 2, said.append)
    assert said == []
    names = bench["rows"]
    assert {names.TORCHKEEP, names.RESUME, names.TORCH, names.SAFETENSORS, names.DCP, names.BARE_WRITE} <= rows.keys()
    for tool in tools:
        assert len(rows[tool.name].durable) == 2
        assert rows[tool.name].disk >= state.nbytes
        for name in tool.loads:
            assert (len(rows[name].warm), len(rows[name].cold)) == (2, 2)
    assert list(tmp_path.iterdir()) == []


def test_a_tool_that_fails_is_left_out_and_said(bench, state, tmp_path):
    def refuse(state, path):
        raise OSError("no")

    tools = [bench["tools"].Tool("broken", refuse, {"broken": refuse}), *bench["tools"].tools()[:1]]
    said = []
    rows = bench["measures"].measure_waiting(state, tmp_path, tools, 1, said.append)
    assert said == ["without broken: OSError: no"]
    assert "broken" not in rows


def test_what_raises_in_its_turn_is_not_tried_again(bench):
    done, said = [], []
    acts = {"fails": lambda: done.append("fails") or 1 / 0, "works": lambda: done.append("works")}
    for number in range(2):
        bench["measures"].take_turns(acts, number, said.append)
    assert done == ["fails", "works", "works"]
    assert said == ["without fails: ZeroDivisionError: division by zero"]


def test_saves_beside_training_are_measured_from_the_third_on(bench, state, tmp_path):
    keepers = bench["keepers"].keepers(state)
    rows = bench["measures"].measure_beside(state, tmp_path, keepers[:3], 4, 1, pytest.fail)
    names = bench["rows"]
    assert list(rows) == [names.TORCHKEEP, names.OVERLAPPED, names.TORCH]
    for row in rows.values():
        assert (len(row.held), len(row.durable), row.checkpoints) == (2, 2, 4)


@pytest.mark.parametrize(
    ("held", "warm", "said"),
    [
        (0.02, 0.1, {"(c) held, against torch.save": "yes", "(a) load, warm, against torch.load + ": "yes"}),
        (0.2, 0.5, {"(c) held, against torch.save": "**no**", "(a) load, warm, against torch.load + ": "**no**"}),
        (None, None, {"(c) held, against torch.save": "not measured", "(a) load, cold": "not measured"}),
    ],
)
def test_a_bar_holds_fails_or_was_not_measured(bench, capsys, held, warm, said):
    figures, names = bench["measures"].Figures, bench["rows"]
    state = bench["measures"].Results(least_bytes=1)
    if held is not None:
        state.beside = {names.TORCHKEEP: figures(held=[held]), names.TORCH: figures(held=[1.0, 1.0])}
        state.waiting = {names.TORCHKEEP: figures(warm=[warm]), names.TORCH: figures(warm=[1.0])}
    measured = bench["bars"].Measured(dict.fromkeys("abc", state), {})
    page = bench["page"].Page()
    page.bars(bench["bars"].judge(measured))
    for what, outcome in said.items():
        (line,) = (line for line in page.lines if what in line)
        assert line.endswith(f"| {outcome} |")
    assert capsys.readouterr().out.splitlines() == "\n".join(page.lines).splitlines()


def test_the_bare_write_writes_the_bytes_of_the_state_and_says_when_it_cannot(bench, state, tmp_path):
    bare = bench["tools"].BareWrite(state)
    bare.write(tmp_path / "bare")
    flat = [tensor.detach().contiguous().view(-1).view(torch.uint8) for tensor in state.tensors.values()]
    assert (tmp_path / "bare").read_bytes()[: state.nbytes] == torch.cat(flat).numpy().tobytes()
    with pytest.raises(OSError, match="No space left on device"):
        bare.write(Path("/dev/full"))
