"""The page as one document: markup, styles and scripts of `assets/`, allowed by their digests and nothing else.

The document that is served and the one that is exported differ only in the answers they carry.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files

STYLES = ("theme.css", "frame.css", "parts.css", "charts.css")
SCRIPTS = (
    "text.js",
    "elements.js",
    "answers.js",
    "state.js",
    "colours.js",
    "axes.js",
    "steering.js",
    "line_chart.js",
    "bar_chart.js",
    "treemap_layout.js",
    "treemap.js",
    "long_list.js",
    "histogram.js",
    "tensor_panel.js",
    "run_view.js",
    "weights_view.js",
    "stacks.js",
    "heat_map.js",
    "movement_view.js",
    "plan_view.js",
    "subject.js",
    "frame.js",
    "main.js",
)


def render(answers: Mapping[str, Sequence[Mapping[str, object]]] | None = None) -> str:
    """The whole document.

    Args:
        answers: Lines by `answers.key_of` for a page that stands alone; None for one that asks its server.
    """
    styles, scripts = [_asset(name) for name in STYLES], [_asset(name) for name in SCRIPTS]
    markup = _asset("page.html")
    policy = policy_of(styles, scripts, alone=answers is not None)
    parts = {
        "<!-- policy -->": f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        "<!-- styles -->": "\n".join(f"<style>{style}</style>" for style in styles),
        "<!-- scripts -->": "\n".join(f"<script>{script}</script>" for script in scripts),
        "<!-- answers -->": f'<script type="application/json" id="answers">{_embedded(answers)}</script>',
    }
    for place, text in parts.items():
        before, found, after = markup.partition(place)
        if not found:
            raise AssertionError(f"page.html has no {place}")
        markup = before + text + after
    return markup


def policy_of(styles: Sequence[str], scripts: Sequence[str], *, alone: bool) -> str:
    """The Content-Security-Policy: our own styles and scripts by digest, our own server, and no markup from text."""
    allowed = {kind: " ".join(map(_digest, of)) for kind, of in (("style", styles), ("script", scripts))}
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {allowed['script']}",
            f"style-src {allowed['style']}",
            "connect-src 'none'" if alone else "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )


def _asset(name: str) -> str:
    return (files(__package__) / "assets" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _embedded(answers: Mapping[str, object] | None) -> str:
    """JSON that cannot end the element it stands in, whatever a checkpoint's names are."""
    return json.dumps(answers, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
