"""The page's own files: all in use, none over a screenful of its kind, and nothing that turns text into markup."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

import pytest

from torchkeep.viewer.page import SCRIPTS, STYLES, policy_of, render

ASSETS = files("torchkeep.viewer") / "assets"
TEXTS = {each.name: each.read_text(encoding="utf-8") for each in ASSETS.iterdir()}
MOST_LINES, MOST_COLUMNS = 400, 120
FORBIDDEN = [
    r"\.(inner|outer)HTML",
    r"insertAdjacentHTML",
    r"document\.write",
    r"\beval\(",
    r"new Function",
    r"setAttribute\(.on",
    r"javascript:",
    r"https?://(?!www\.w3\.org/2000/svg)",
    r"\bimport\b",
    r"localStorage|sessionStorage|document\.cookie|WebSocket|XMLHttpRequest|sendBeacon",
]


def test_every_file_is_part_of_the_page():
    assert set(TEXTS) == {"page.html", *STYLES, *SCRIPTS}


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_a_file_is_short_plain_and_makes_no_markup_from_text(name):
    text = TEXTS[name]
    assert len(text.splitlines()) <= MOST_LINES
    assert max(map(len, text.splitlines())) <= MOST_COLUMNS
    assert text.isascii() or not re.search(r"[\u200b-\u200f\u202a-\u202e\u2060-\u2064]", text)
    if name.endswith(".js"):
        assert text.startswith('"use strict";\n// ')
        assert [pattern for pattern in FORBIDDEN if re.search(pattern, text)] == []
    assert "</script" not in text or name == "page.html"


def test_the_policy_allows_our_own_scripts_and_styles_by_digest_and_nothing_else():
    page = render()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["connect-src"] == "'self'"
    assert (rules["require-trusted-types-for"], rules["trusted-types"]) == ("'script'", "'none'")
    assert not re.search(r"unsafe|\*|http", policy)

    for kind, pattern in [("script-src", r"<script>(.*?)</script>"), ("style-src", r"<style>(.*?)</style>")]:
        found = re.findall(pattern, page, re.DOTALL)
        digests = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found}
        assert rules[kind].split() == [each for each in rules[kind].split() if each[8:-1] in digests]
        assert len(rules[kind].split()) == len(found)


def test_a_page_that_stands_alone_may_not_even_ask_its_own_place():
    assert "connect-src 'none'" in policy_of([], [], alone=True)
    assert "connect-src 'none'" in render({})


@pytest.mark.parametrize(
    "text", ["</script><script>alert(1)</script>", "<!--<script>", "]]>", "\u2028", "<!-- scripts -->"]
)
def test_answers_cannot_end_the_element_they_stand_in(text):
    page = render({"subject": [{"path": text}]})
    (held,) = re.findall(r'<script type="application/json" id="answers">(.*?)</script>', page, re.DOTALL)
    assert "<" not in held
    assert page.count("<script") == render({}).count("<script")
