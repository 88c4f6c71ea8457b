"""Every verb is in the guide with an example that is run, and everything that it prints as JSON is in docs/json.md."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from tests.test_documents import blocks_of, commands_of

import torchkeep as tk
from torchkeep.cli import VERBS, main, make_parser
from torchkeep.cli.completion import verbs_of

DOCS = Path(__file__).resolve().parents[2] / "docs"
WITHOUT_JSON = {"completion"}
KINDS = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None), "object": dict}


def undocumented(guide: str, verbs: list[str]) -> list[str]:
    """Give the verbs that have no section in a guide with an example of their own in it."""
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", guide, re.MULTILINE | re.DOTALL))
    return [
        verb
        for verb in verbs
        if not any(
            command.text.startswith(f"torchkeep {verb} ") and command.shown
            for block in blocks_of(sections.get(verb, ""))
            if block.kind == "console"
            for command in commands_of(block)
        )
    ]


def test_every_verb_has_a_section_with_an_executed_example():
    assert undocumented((DOCS / "guide" / "command-line.md").read_text(), list(VERBS)) == []


def test_a_verb_without_an_example_is_noticed():
    guide = (
        "## show\n```console\n$ torchkeep show a\nout\n```\n## ls\n```console\n$ torchkeep show b\nout\n```\n## diff\n"
    )
    assert undocumented(guide, ["show", "ls", "diff", "made-up"]) == ["ls", "diff", "made-up"]


def schemas() -> dict[str, dict[str, tuple[str, bool]]]:
    """Give the type of each member by verb, and whether it is optional."""
    text = (DOCS / "json.md").read_text()
    return {
        verb: {
            member: (kind, "*optional*" in what)
            for member, kind, what in re.findall(r"^\| `(\S+)` \| ([^|]+) \| (.*)\|$", section, re.MULTILINE)
        }
        for verb, section in re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    }


def members_of(value, schema, path=""):
    """Yield every leaf of a value with the path that the document has for it."""
    kind = schema.get(path, ("", False))[0]
    if isinstance(value, dict) and not kind.startswith("map") and kind != "any":
        if kind:
            yield path, value
        for key, inside in value.items():
            yield from members_of(inside, schema, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and kind != "any":
        for inside in value:
            yield from members_of(inside, schema, f"{path}[]")
        if not value:
            yield f"{path}[]", ...
    else:
        yield path, value


def faults_of(printed, schema):
    """Give what is printed and is not documented, or is of another type."""
    faults = []
    for path, value in members_of(printed, schema):
        if value is ... and not any(member.startswith(path) for member in schema):
            faults.append(f"{path} is not documented")
        elif value is None and path not in schema and f"{path}[]" in schema:
            continue  # null in place of a list, as told there
        elif value is not ... and path not in schema:
            faults.append(f"{path} is not documented")
        elif value is not ... and not _is_of(value, schema[path][0]):
            faults.append(f"{path} is {value!r}, not {schema[path][0]}")
    return faults


def _is_of(value, kind):
    if kind == "any":
        return True
    if kind.startswith("map of "):
        return isinstance(value, dict) and all(_is_of(each, kind.removeprefix("map of ")) for each in value.values())
    return any(
        type(value) is bool if name == "boolean" else isinstance(value, KINDS[name]) for name in kind.split(" or ")
    )


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Work beside files with all that there is to print."""
    monkeypatch.chdir(tmp_path)
    shared = torch.tensor([[1.0, float("nan")], [float("inf"), 0.0]])
    torch.save({"model": {"a": shared, "b": shared}, "ema": {"a": shared, "b": shared}, "epoch": 3}, "a.pt")
    torch.save({"model": {"a": shared + 1, "c": torch.ones(3)}, "epoch": 4}, "b.pt")
    torch.save({"epoch": 1}, "none.pt")
    model = torch.nn.Linear(2, 1)
    with tk.CheckpointManager("run", {"model": model, "optimizer": torch.optim.SGD(model.parameters())}) as manager:
        manager.resume()
        for step in range(3):
            with torch.no_grad():
                model.weight.add_(1)
            manager.save(step, metrics={"acc": 0.5 + step, "nan": float("nan")})
    record = tmp_path / "run" / "step-00000002" / "checkpoint.json"
    text = record.read_text()
    record.unlink()
    record.write_text(text[:-9])
    (tmp_path / "nets.py").write_text("import torch\ndef net():\n    return torch.nn.Linear(2, 3)\n")


RUNS = {
    "show": [["a.pt", "--stats"], ["none.pt"], ["run/step-00000001"]],
    "diff": [["a.pt", "b.pt"], ["run/step-00000001"]],
    "ls": [["run", "--keep-last", "1"], ["run"]],
    "plan": [["run/step-00000001", "nets:net", "--suggest"]],
    "verify": [["run"], ["a.pt", "--quick"]],
    "convert": [["a.pt", "c.safetensors", "--dtype", "float16"], ["a.pt", "d.pt", "--dry-run"]],
    "average": [["run/step-00000000", "run/step-00000001", "-o", "soup"]],
    "prune": [["run", "--keep-last", "1", "--dry-run"]],
    "tag": [["run/step-00000000", "paper"]],
    "view": [["run", "--export", "page.html"]],
}


@pytest.mark.parametrize("verb", RUNS)
def test_what_is_printed_as_json_is_what_the_document_says_and_all_of_it(verb, here, capsys):
    schema, seen = schemas()[verb], set()
    for arguments in RUNS[verb]:
        main([verb, *arguments, "--json"])
        printed = json.loads(capsys.readouterr().out)
        assert faults_of(printed, schema) == []
        seen |= {path for path, _ in members_of(printed, schema)}
    absent = {path for path, (_, is_optional) in schema.items() if not is_optional} - seen
    assert {path for path in absent if not any(other.startswith(path) for other in seen)} == set()


def test_every_verb_that_can_print_json_is_in_the_document_and_in_this_test():
    verbs = {name for name, verb in verbs_of(make_parser()).items() if "--json" in verb.options}
    assert verbs == set(VERBS) - WITHOUT_JSON == set(schemas()) == set(RUNS)


def test_what_is_not_documented_is_noticed():
    schema = {"a": ("integer", False), "b[].c": ("string or null", False), "m": ("map of number", False)}
    assert faults_of({"a": 1, "b": [{"c": None}], "m": {"x": 1.5}}, schema) == []
    assert faults_of({"a": "1", "b": [{"d": 1}], "m": {"x": "y"}, "new": 1}, schema) == [
        "a is '1', not integer",
        "b[].d is not documented",
        "m is {'x': 'y'}, not map of number",
        "new is not documented",
    ]
