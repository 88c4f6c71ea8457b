from __future__ import annotations

import io
import json
import re
import sys

import pytest
import torch

from torchkeep.cli import main
from torchkeep.cli.plan import rule_of
from torchkeep.rules import Cast, Only, Rename, Skip

MODULE = """
import torch
def narrow(): return torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 3)).half()
def make(): return torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 3))
def leaves(): raise SystemExit(0)
def takes(width): return torch.nn.Linear(width, 2)
def nothing(): return None
made = torch.nn.Linear(2, 5)
number = 3
class Net(torch.nn.Linear):
    def __init__(self): super().__init__(2, 5)
    @staticmethod
    def build(): return Net()
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Be in a folder with a checkpoint of a DataParallel model and a module of factories."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "plan_factories.py").write_text(MODULE)
    monkeypatch.delitem(sys.modules, "plan_factories", raising=False)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 5))
    torch.save({"state_dict": {f"module.{name}": value for name, value in model.state_dict().items()}}, "old.pth")
    return tmp_path


def plan(*arguments: str) -> int:
    return main(["plan", "old.pth", "plan_factories:make", *arguments])


def test_the_plan_is_printed_and_a_difference_exits_with_1(place, capsys):
    assert plan() == 1

    shown = capsys.readouterr()
    assert shown.out.startswith("old.pth -> Sequential\n  2 of 4 tensors matched")
    assert "  shape differs   1.weight        (5, 2) -> (3, 2)" in shown.out
    assert "2 of 4 tensors do not fit\n  hint: --suggest prints rules that would make it fit\n" in shown.err


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_plan_is_as_wide_as_the_terminal_and_folds_where_it_is_wider(width, place, monkeypatch, capsys):
    name = "attention_projection_of_the_encoder_to_the_decoder_of_the_last_layer"
    torch.save({"0.weight": torch.ones(2, 3), name: torch.ones(3)}, "old.pth")
    monkeypatch.setenv("COLUMNS", str(width))
    assert plan("--skip", "nothing.of.this.name") == 1
    shown = capsys.readouterr().out
    least = 74  # the label of a row, and what the other columns keep
    assert max(map(len, shown.splitlines())) <= max(width, least)
    unfolded = re.sub(r"\s", "", "".join(line[22:42] for line in shown.splitlines()[2:]))
    assert name in (shown if width == 200 else unfolded)
    assert ("  shape differs        0.weight " in shown) == (width == 200)  # three apart where there is room
    assert re.search(r"only in checkpoint .* float32 \(3,\) +not loaded", shown)
    assert re.search(r'\n  Skip\("nothing.of.this.name"\) matched\s+nothing\n', shown)


def test_suggested_rules_paste_into_python_and_make_it_fit(place, capsys):
    assert plan("--suggest") == 1
    assert capsys.readouterr().out.endswith(
        '\nrules=[\n    Skip("1"),  # 2 tensors left alone\n]\n'
        "# with these rules 40.0% of the model's elements arrive: is this what was meant?\n"
    )

    assert plan("--skip", "1") == 0
    assert capsys.readouterr().err == ""


def test_nothing_is_suggested_when_it_fits(place, capsys):
    assert plan("--skip", "1", "--suggest") == 0
    assert "rules=" not in capsys.readouterr().out


def test_json_is_the_plans_own_with_what_was_suggested(place, capsys):
    assert plan("--rename", "module.=", "--json", "--suggest") == 1

    values = json.loads(capsys.readouterr().out)
    assert values["schema"] == 1
    assert values["rules"] == [r'Rename(r"^module\.", "")']
    assert values["tensors"] == {"matched": 2, "total": 4}
    assert values["suggested"] == ['Skip("1")']


def test_rules_act_in_the_order_in_which_they_are_given(place, capsys):
    plan(
        "--json", "--skip", "1", "--rename", "module.=a.", "--cast", "--rename", "a=b", "--rename", "b.=", "--only", "0"
    )

    assert json.loads(capsys.readouterr().out)["rules"] == [
        'Skip("1")',
        r'Rename(r"^module\.", "a.")',
        "Cast()",
        r'Rename(r"^a(?=\.|$)", "b")',
        r'Rename(r"^b\.", "")',
        'Only("0")',
    ]


def test_narrowing_needs_cast(place):
    arguments = ["plan", "old.pth", "plan_factories:narrow", "--skip", "1"]

    assert main(arguments) == 1
    assert main([*arguments, "--cast", "1"]) == 1
    assert main([*arguments, "--cast"]) == 0


@pytest.mark.parametrize(
    ("text", "renamed"),
    [
        ("module.=", {"module.fc.weight": "fc.weight", "fc.module.weight": "fc.module.weight"}),
        ("module=", {"module.fc.weight": "fc.weight", "modules.weight": "modules.weight"}),
        (
            "fc=head",
            {"fc.weight": "head.weight", "fc2.weight": "fc2.weight", "a.fc.weight": "a.fc.weight", "fc": "head"},
        ),
        ("head.weight=fc.weight", {"head.weight": "fc.weight", "head.weight_v": "head.weight_v"}),
        (r"fc=a\1b", {"fc.weight": r"a\1b.weight"}),
        (r"layers\.(\d+)=blocks.\1", {"net.layers.12.w": "net.blocks.12.w"}),
        ("(?=fc)=new.", {"fc.weight": "new.fc.weight"}),
    ],
)
def test_a_plain_old_name_is_how_names_begin_and_anything_else_a_regular_expression(text, renamed):
    rule = rule_of("--rename", text)

    assert isinstance(rule, Rename)
    assert {name: rule.apply(name) for name in renamed} == renamed


def test_the_other_options_are_the_rules_of_their_names():
    assert [rule_of("--skip", "a*"), rule_of("--only", "b"), rule_of("--cast", "c"), rule_of("--cast", None)] == [
        Skip("a*"),
        Only("b"),
        Cast("c"),
        Cast(),
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_differences_stand_out_on_a_terminal_unless_no_color_is_set(environment, coloured, place, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)

    assert plan() == 1
    assert ("\x1b[31m  shape differs\x1b[0m   1.weight" in terminal.getvalue()) is coloured
    assert ("\x1b" in terminal.getvalue()) is coloured


def test_into_a_pipe_there_are_no_colours(place, capsys):
    plan()
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("factory", ["Net", "Net.build", "made"])
def test_a_factory_is_a_class_a_function_or_the_model_itself(factory, place):
    assert main(["plan", "old.pth", f"plan_factories:{factory}", "--rename", "module.1=", "--skip", "module"]) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["plan_factories:leaves"], 2, "plan_factories:leaves: calling it without arguments raised SystemExit: 0 ("),
        (["plan_factories:takes"], 2, "missing 1 required positional argument: 'width'"),
        (["plan_factories:number"], 2, "'int' object is not callable"),
        (["plan_factories:nothing"], 2, "plan_factories:nothing: cannot load into NoneType"),
        (
            ["plan_factories:absent"],
            3,
            "is called 'absent'\n  hint: it has Net, leaves, made, make, narrow",
        ),
        (["plan_broken:f"], 2, "plan_broken:f: importing it raised SyntaxError: "),
        (["plan_factories:make", "--rename", "x"], 2, "--rename: OLD=NEW is wanted, not 'x'"),
        (["plan_factories:make", "--rename", "=x"], 2, "--rename: OLD=NEW is wanted, not '=x'"),
        (
            ["plan_factories:make", "--entry", "nope"],
            3,
            "nothing in it is called 'nope'\n  hint: it holds 'state_dict'",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_factory_or_option_that_cannot_be_used_is_a_message(arguments, code, said, place, capsys):
    (place / "plan_broken.py").write_text("def f(:\n")

    assert main(["plan", "old.pth", *arguments]) == code
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.out == ""


def test_an_entry_is_named_where_it_cannot_be_told(place, capsys):
    state = torch.nn.Linear(2, 5).state_dict()
    torch.save({"G": state, "D": state}, "gan.pt")

    assert main(["plan", "gan.pt", "plan_factories:Net"]) == 1
    assert "2 entries could be the weights" in capsys.readouterr().err
    assert main(["plan", "gan.pt", "plan_factories:Net", "--entry", "D"]) == 0


def test_a_plan_is_recorded_replayed_and_refused_when_it_is_another(place, capsys):
    rules = ["--rule", 'ResizeRows("1")']
    assert plan(*rules, "--json") == 0
    (place / "plan.json").write_text(capsys.readouterr().out)
    assert plan("--replay", "plan.json") == 0
    assert "  adapted   3 of 3 rows from 5   2 tensors\n" in capsys.readouterr().out

    assert main(["plan", "old.pth", "plan_factories:Net", "--entry", "state_dict", "--replay", "plan.json"]) == 1
    assert "torchkeep: the plan for old.pth is not the recorded one: " in capsys.readouterr().err
    assert plan("--replay", "absent.json") == 3
    assert capsys.readouterr().err.startswith("torchkeep: absent.json: no such file\n  hint: ")
    assert plan("--replay", "plan_factories.py") == 3
    assert plan("--replay", "plan.json", "--skip", "1") == 2


def test_a_rule_is_any_rule_as_python_that_is_read_and_not_run(place, capsys):
    assert plan("--rule", "__import__('os').mkdir('made')") == 2
    assert "is no rule: it is no call" in capsys.readouterr().err
    assert not (place / "made").exists()
