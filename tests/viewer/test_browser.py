"""The page in a real browser: it opens, draws, is searched and steered, by pointer and by keys, in both schemes.

The fixture `visit` fails a test for any word on the console, any dialog, and any request to another place.
"""

from __future__ import annotations

import re

import pytest
import torch
from playwright.sync_api import expect
from tests.viewer.serving import HOSTILE, serving

import torchkeep as tk
from torchkeep.viewer.export import export_page
from torchkeep.viewer.subject import Subject

pytestmark = pytest.mark.slow
DRAWN = """canvas => {
    const {width, height} = canvas;
    const data = canvas.getContext("2d").getImageData(0, 0, width, height).data;
    const seen = new Set();
    for (let at = 0; at < data.length; at += 4) seen.add((data[at] << 16) | (data[at + 1] << 8) | data[at + 2]);
    return seen.size;
}"""


def texts(page, selector: str) -> list[str]:
    return page.locator(selector).all_inner_texts()


def names(page, view: str) -> list[str]:
    """The names in the rows of a view's list that are drawn."""
    return texts(page, f"#view-{view} .list-row .cell.name")


def test_a_run_opens_with_a_curve_per_metric_and_a_dot_per_checkpoint(server, run, visit):
    page = visit(server.url, ready="#view-run .list-row")

    assert page.title() == f"{run} – torchkeep"
    assert page.inner_text("#summary").startswith("6 checkpoints · steps 100 – 600 · ")
    assert texts(page, ".chart-title h3") == ["loss", "<b>acc</b>", "constructor", "on disk"]
    dots = [path.get_attribute("d").count("M") for path in page.locator(".curve-dots").all()]
    assert dots == [5, 6, 6]
    assert page.locator(".not-finite").count() == 1
    assert page.locator(".curve").first.get_attribute("d").count("M") == 2
    assert page.locator(".bar-whole").get_attribute("d").count("M") == 6
    assert page.locator(".bar-added").bounding_box()["height"] > 10
    assert texts(page, "#view-run .list-row .cell:first-child")[0] == "600"
    assert texts(page, "#view-run .list-row .chips .state") == ["<i>paper"]
    assert "step-00000700: " in page.inner_text("#view-run .note.bad")


def test_a_dot_is_chosen_and_with_shift_compared_with(server, visit):
    page = visit(server.url, ready=".curve")
    chart = page.locator(".chart svg").first
    box = chart.bounding_box()
    chart.hover(position={"x": box["width"] - 14, "y": 60})
    assert page.inner_text("#tip").startswith("step 600\nloss 0.166667")
    chart.click(position={"x": box["width"] * 0.45, "y": 60})
    expect(page.locator(".picker.at select")).to_have_value("step-00000300")
    page.keyboard.down("Shift")
    chart.click(position={"x": box["width"] - 14, "y": 60})
    page.keyboard.up("Shift")
    page.click("#tab-movement")
    assert page.locator(".picker.from select").input_value() == "step-00000600"
    assert "at=step-00000300" in page.url
    assert "from=step-00000600" in page.url


def test_tensors_are_searched_from_anywhere_and_the_address_keeps_it(server, visit):
    page = visit(server.url, ready="#view-run .list-row")
    page.keyboard.press("/")
    page.keyboard.type("blocks*FC weight")
    expect(page.locator("#tab-weights")).to_have_attribute("aria-selected", "true")
    assert set(names(page, "weights")) == {f"model.blocks.{index}.fc.weight" for index in range(4)}
    assert page.inner_text("#view-weights .list-count").startswith("4 of ")

    page.reload()
    page.wait_for_selector("#view-weights .list-row")
    assert page.input_value("#search") == "blocks*FC weight"
    assert len(names(page, "weights")) == 4
    page.fill("#search", "nothing is called so")
    assert page.inner_text("#view-weights .list-empty") == "No tensor has such a name."
    page.focus("#search")
    page.keyboard.press("Escape")
    assert len(names(page, "weights")) > 4


def test_a_tensor_that_is_chosen_shows_values_of_both_checkpoints(server, run, visit):
    page = visit(f"{server.url}#tab=weights", ready="#view-weights .list-row")
    page.click("#view-weights .list-row:has-text('model.blocks.3.fc.weight')")
    page.wait_for_selector("#panel .histogram")

    weight = tk.open(run / "step-00000600").tensors["model.blocks.3.fc.weight"].numpy()
    shown = page.inner_text("#panel")
    assert "16 × 16" in shown
    assert f"{float(weight.max()):.6g}" in shown
    assert page.locator("#panel .histogram path").count() == 2
    assert "relative change" in shown
    assert "tensor=model.blocks.3.fc.weight" in page.url
    page.keyboard.press("Escape")
    assert page.locator("#panel").is_hidden()


def test_the_treemap_opens_groups_and_shows_a_tensor_by_keys_alone(server, visit):
    page = visit(f"{server.url}#tab=weights", ready="#view-weights .list-row")
    canvas = page.locator("#view-weights .map canvas")
    assert canvas.evaluate(DRAWN) > 8
    canvas.focus()
    page.keyboard.press("ArrowRight")
    first = page.inner_text("#tip strong")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#tip strong") != first
    page.keyboard.press("Shift+Enter")
    assert len(texts(page, ".crumbs button")) == 2
    page.keyboard.press("Backspace")
    assert texts(page, ".crumbs button") == ["everything"]
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    page.wait_for_selector("#panel h2")
    assert page.inner_text("#panel h2").split(".")[0] in {"model", "optimizer"}


def test_movement_draws_a_stack_of_blocks_and_lists_the_farthest_first(server, visit):
    page = visit(f"{server.url}#tab=movement", ready="#view-movement .list-row")
    expect(page.locator("#view-movement .progress")).to_be_hidden()

    assert texts(page, ".stack h3") == ["model.blocks 4 layers", "model.head"]
    canvas = page.locator(".stack canvas").first
    assert canvas.evaluate(DRAWN) > 5
    relative = [float(cell) for cell in texts(page, "#view-movement .list-row .cell:nth-child(3)")]
    assert relative == sorted(relative, reverse=True)
    assert re.search(r"12 changed, 5 bit-equal", page.inner_text("#view-movement"))
    assert names(page, "movement")[0].startswith("model.blocks.")
    canvas.focus()
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#tip").splitlines() == ["model.blocks.0.norm.weight", "bit-equal"]
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    page.wait_for_selector("#panel .histogram, #panel .state.good")

    page.click("#tab-weights")
    page.select_option("#view-weights select", "movement")
    assert page.locator("#view-weights .scale").is_visible()


def test_over_four_gigabytes_are_read_only_when_asked(visit, tmp_path):
    header = b'{"w": {"dtype": "F32", "shape": [1100, 1000000], "data_offsets": [0, 4400000000]}}'
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path in paths:
        with path.open("wb") as file:  # a hole: it takes no room on the disk
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + 4_400_000_000)
    with serving(*paths) as server:
        page = visit(f"{server.url}#tab=movement", ready="#view-movement .note")
        assert page.inner_text("#view-movement .note button") == "Read 4.4 GB"
        assert page.locator("#view-movement .list-row").count() == 0


def test_a_plan_against_another_file_is_filtered_and_fitted_by_the_suggested_rules(run, visit, tmp_path):
    state = {f"net.{name}": value for name, value in tk.load(run / "step-00000600")["model"].items()}
    state["net.head.weight"] = torch.zeros(10, 16)
    torch.save({"state_dict": state}, tmp_path / "other.ckpt")
    with serving(run, tmp_path / "other.ckpt") as server:
        page = visit(f"{server.url}#tab=plan", ready="#view-plan .list-row")
        assert page.locator(".picker.from select option:checked").inner_text() == "other.ckpt"
        assert "Rename(" in page.inner_text("#view-plan pre")
        page.click("text=With these rules")
        page.wait_for_selector("#view-plan .chip:has-text('matched')")
        page.click("#view-plan .chip:has-text('skipped')")
        assert names(page, "plan") == ["net.head.weight"]
        page.click("[aria-label='Exchange the two']")
        expect(page.locator(".picker.at select")).to_have_value("beside-1")
        expect(page.locator("#view-plan")).to_contain_text("other.ckpt into a model like step 600")


def test_keys_lead_everywhere(server, visit):
    page = visit(server.url, ready="#view-run .list-row")
    for key, tab in [("2", "weights"), ("3", "movement"), ("4", "plan"), ("1", "run")]:
        page.keyboard.press(key)
        page.wait_for_selector(f"#view-{tab}:not([hidden])")
    page.focus("#tab-run")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-weights"
    page.keyboard.press("[")
    expect(page.locator(".picker.at select")).to_have_value("step-00000500")
    page.keyboard.press("}")
    assert "from=step-00000200" in page.url

    page.focus("#view-weights [role=grid]")
    for key in ("ArrowDown", "End", "PageUp", "Home", "ArrowDown"):
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    page.wait_for_selector("#panel .histogram")
    page.keyboard.press("?")
    assert page.locator("dialog").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("dialog").is_hidden()


def test_reading_again_finds_what_training_has_saved_since(tmp_path, visit):
    model = torch.nn.Linear(4, 2)
    with tk.CheckpointManager(tmp_path / "run", {"model": model}) as manager:
        manager.save(1, metrics={"loss": 2.0}).wait()
        with serving(tmp_path / "run") as server:
            page = visit(server.url, ready="#view-run .list-row")
            assert page.inner_text("#summary").startswith("1 checkpoint · step 1")
            manager.save(2, metrics={"loss": 1.0}).wait()
            page.keyboard.press("r")
            expect(page.locator("#summary")).to_contain_text("2 checkpoints")
            page.keyboard.press("2")
            page.wait_for_selector("#view-weights:not([hidden]) .list-row")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("tab", ["run", "weights", "movement", "plan"])
def test_no_rule_of_accessibility_is_broken_in_either_scheme(server, visit, scheme, tab):
    from axe_playwright_python.sync_playwright import Axe

    place = f"{server.url}#tab={tab}&tensor=model.blocks.3.fc.weight"
    page = visit(place, color_scheme=scheme, bypass_csp=True, ready="#panel .histogram")
    page.wait_for_selector(f"#view-{tab} .list-row, #view-{tab} .card")
    found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa", "best-practice"]})
    assert found.violations_count == 0, found.generate_report()


def test_the_scheme_follows_the_system_until_one_is_chosen(server, visit):
    page = visit(server.url, color_scheme="dark")
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    assert page.evaluate(ground) == "rgb(18, 20, 22)"
    page.keyboard.press("t")
    assert (page.inner_text("#theme"), page.evaluate(ground)) == ("Light", "rgb(246, 246, 243)")
    page.emulate_media(color_scheme="light")
    page.keyboard.press("t")
    assert (page.inner_text("#theme"), page.evaluate(ground)) == ("Dark", "rgb(18, 20, 22)")
    page.keyboard.press("t")
    assert (page.inner_text("#theme"), page.evaluate(ground)) == ("Auto", "rgb(246, 246, 243)")


@pytest.mark.parametrize("width", [360, 768, 1920])
def test_it_fits_any_width_without_scrolling_sideways(server, visit, width):
    page = visit(f"{server.url}#tab=run", width=width, ready=".curve")
    for tab in ("run", "weights", "movement", "plan"):
        page.click(f"#tab-{tab}")
        page.wait_for_selector(f"#view-{tab}:not([hidden])")
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("kind", ["served", "exported"])
def test_hostile_names_and_values_are_shown_as_text_and_run_nothing(hostile, visit, kind, tmp_path):
    with serving(hostile) as server:
        url = server.url
        if kind == "exported":
            url = export_page(Subject(hostile), tmp_path / "report.html").path.as_uri()
        page = visit(url, ready="#view-weights .list-row")
        shown = names(page, "weights")
        assert len(shown) == len(HOSTILE)
        assert "state_dict.<img src=x onerror=alert(1)>.weight" in shown
        assert "state_dict.</script><script>alert(2)</script>" in shown
        assert page.inner_text("h1").endswith("<img src=x onerror=alert(5)> & bad.pt")
        for index in range(len(HOSTILE)):
            page.locator("#view-weights .list-row").nth(index).click()
            page.wait_for_selector("#panel [aria-label='Histogram'], #panel .pairs:has-text('minimum')")
        page.keyboard.press("Escape")
        page.click("text=Values beside the tensors")
        assert "'<script>alert(4)</script>'" in page.inner_text("#view-weights details")
        canvas = page.locator("#view-weights .map canvas")
        canvas.focus()
        for _ in range(4):
            page.keyboard.press("ArrowRight")
        assert page.locator("img, svg svg, main script, h1 *").count() == 0
        assert page.evaluate("typeof ({}).polluted") == "undefined"


def test_an_exported_page_shows_all_of_it_from_a_file_without_any_network(run, visit, tmp_path):
    report = export_page(Subject(run), tmp_path / "report.html").path
    page = visit(report.as_uri(), ready="#view-run .list-row", offline=True)
    page.click("#tab-movement")
    page.wait_for_selector("#view-movement .list-row")
    page.click("#tab-plan")
    page.wait_for_selector("#view-plan .list-row")
    page.click("#tab-weights")
    page.click("#view-weights .list-row:has-text('model.blocks.3.fc.weight')")
    page.wait_for_selector("#panel .histogram")
    assert page.locator("#panel .histogram path").count() == 2
    page.keyboard.press("Escape")
    page.click("#tab-run")
    page.click("#view-run .list-row:nth-child(3)")
    page.wait_for_selector("#notices .note")
    assert "this report does not hold that" in page.inner_text("#notices")


def test_a_file_without_tensors_and_a_run_without_checkpoints_say_so(visit, tmp_path):
    torch.save({"epoch": 1, "rates": [0.1, 0.2]}, tmp_path / "none.pt")
    with serving(tmp_path / "none.pt") as server:
        page = visit(server.url, ready="#view-weights .list-empty")
        assert "no entry looks like weights" in page.inner_text("#view-weights")
        assert page.locator("#view-weights .map").is_hidden()
        page.click("text=Values beside the tensors")
        assert page.inner_text("#view-weights details .pairs").split() == [
            "epoch",
            "1",
            "rates.0",
            "0.1",
            "rates.1",
            "0.2",
        ]

    (tmp_path / "run" / "step-00000001").mkdir(parents=True)
    (tmp_path / "run" / "step-00000001" / "checkpoint.json").write_text("{")
    with serving(tmp_path / "run") as server:
        page = visit(server.url, ready="#view-run .list-empty")
        assert texts(page, "[role=tab]") == ["Run"]
        assert "step-00000001: the record is damaged" in page.inner_text("#view-run")
        assert page.locator(".chart").first.is_hidden()


def test_a_server_that_went_away_is_said_and_what_is_shown_stays(run, visit):
    with serving(run) as server:
        page = visit(server.url, ready="#view-run .list-row", allowed="ERR_CONNECTION_REFUSED")
    page.keyboard.press("[")
    page.wait_for_selector("#notices .note.bad")
    assert "torchkeep view does not answer. start it again" in page.inner_text("#notices")
    assert page.locator("#view-run .list-row").count() == 6


@pytest.fixture(scope="module")
def scripts(browser, server):
    """Give a page for the parts of its scripts that only compute."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(server.url)
    yield page
    context.close()


TREES = [
    ({"a.b": 1, "a.c": 3, "d": 2}, [["a", 4], ["d", 2]]),
    ({"only.child.name": 5}, [["only.child.name", 5]]),
    ({"x": 1, "x.y": 2}, [["x", 3]]),
    ({".".join("a" * 5000): 1}, 1),
    ({"empty": 0}, []),
    ({}, []),
]


@pytest.mark.parametrize(("sizes", "top"), TREES)
def test_areas_of_the_treemap_are_the_sizes_and_stay_inside(scripts, sizes, top):
    found = scripts.evaluate(
        """([names, sizes]) => {
            const root = treemapLayout.grow(names, (index) => sizes[index]);
            const boxes = treemapLayout.rectangles(root, 400, 300).filter((box) => box.depth === 1);
            return boxes.map(({node, x, y, width, height}) => [node.label, node.bytes, x, y, width, height]);
        }""",
        [list(sizes), list(sizes.values())],
    )
    total = sum(sizes.values())
    for _, nbytes, x, y, width, height in found:
        assert width * height == pytest.approx(400 * 300 * nbytes / total)
        assert x >= 0
        assert y >= 0
        assert x + width <= 400.001
        assert y + height <= 300.001
    assert len(found) == top if isinstance(top, int) else [each[:2] for each in found] == top


STACKS = [
    (["h.0.a", "h.1.a", "h.1.b", "e.w"], [["h", ["a", "b"], [0, 1], 3], ["e", ["w"], [""], 1]]),
    (["m.h.10.a", "m.h.2.a", "m.x", "m.y"], [["m.h", ["a"], [2, 10], 2], ["m", ["x", "y"], [""], 2]]),
    (["only.0.w"], [["only.0", ["w"], [""], 1]]),
    (["w", "b"], [["", ["w", "b"], [""], 2]]),
]


@pytest.mark.parametrize(("given", "stacks"), STACKS)
def test_names_that_differ_in_one_number_stand_side_by_side(scripts, given, stacks):
    told = "names => stacks.arrange(names).map(({name, rows, columns, cells}) => [name, rows, columns, cells.length])"
    assert scripts.evaluate(told, given) == stacks


def test_sizes_and_numbers_are_written_as_on_the_command_line(scripts):
    from torchkeep.tensors import format_bytes

    sizes = [0, 1, 999, 1000, 14_200_000, 999_949_999, 10**12, 5 * 10**15]
    assert scripts.evaluate("sizes => sizes.map(text.bytes)", sizes) == [format_bytes(size) for size in sizes]
    numbers = [0, 0.5, -1.25, 123456, 1234567, 1e-7, 0.1 + 0.2]
    shown = scripts.evaluate("numbers => numbers.map((each) => text.number(each))", numbers)
    assert shown == ["0", "0.5", "−1.25", "123456", "1.235e6", "1e−7", "0.3"]
    assert scripts.evaluate("['NaN', 'Infinity', '-Infinity', null].map((each) => text.number(each))") == [
        "NaN",
        "∞",
        "−∞",
        "–",
    ]
