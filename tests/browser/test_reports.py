"""Reports in a real browser: by mouse, by keyboard, on a narrow screen, in the dark.

``make test-browser`` installs what this needs; elsewhere it is skipped, with a reason.
"""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import recon
from recon.report.html import (
    audit_html,
    baseline_html,
    profile_html,
    verification_html,
)
from tests import made_up

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: make test-browser"
)
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason=f"none of {', '.join(NAMES)} is installed"
)
QUIET = (
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as running:
        made = running.chromium.launch(executable_path=CHROMIUM, args=[*QUIET, *root])
        yield made
        made.close()


@pytest.fixture
def opened(browser, tmp_path):
    """``opened(html, width=, scheme=)``: a tab that shows it; errors of it fail."""
    errors, tabs = [], []

    def opened(text, width=1200, scheme="light"):
        file = tmp_path / "report.html"
        file.write_text(text, encoding="utf-8")
        tab = browser.new_page(
            viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on(
            "request",
            lambda asked: (
                errors.append(asked.url) if asked.url.startswith("http") else None
            ),
        )
        tab.goto(file.as_uri())
        tabs.append(tab)
        return tab

    yield opened
    for tab in tabs:
        tab.close()
    assert errors == []


def online(url: str) -> bool:
    return url.startswith(("http", "ws"))


def verified(*damaged, depth=4):
    report = made_up.verification(depth, *damaged)
    return verification_html(report, model="random:tiny", source="a prompt")


def profiled(report):
    return profile_html(report, model="random:tiny", source="a prompt")


def test_a_click_on_a_cell_opens_what_was_found_there_and_escape_closes_it(opened):
    tab = opened(verified((2, "z")))
    tab.click("button.diverged")
    dialog = tab.locator("dialog")
    assert dialog.is_visible()
    assert "h.2 z" in dialog.inner_text()
    assert "2.5e+05" in dialog.inner_text()
    tab.keyboard.press("Escape")
    assert not dialog.is_visible()


def test_the_map_is_one_stop_of_the_tab_key_and_arrows_move_in_it(opened):
    tab = opened(verified((1, "ln_1")))
    assert tab.locator("button.cell[tabindex='0']").count() == 1
    tab.focus("header a")
    tab.keyboard.press("Tab")
    label = "document.activeElement.getAttribute('aria-label')"
    assert tab.evaluate(label).startswith("embed")
    for key in ("ArrowDown", "ArrowDown"):
        tab.keyboard.press(key)
    assert tab.evaluate(label).startswith("h.1 ln_1")
    assert "h.1.ln_1" in tab.inner_text("#says")
    tab.keyboard.press("End")
    assert tab.evaluate(label).startswith("h.1 resid_post")
    tab.keyboard.press("Enter")
    assert tab.locator("dialog").is_visible()
    tab.keyboard.press("Escape")
    tab.keyboard.press("Tab")
    assert not tab.evaluate("document.activeElement.matches('button.cell')")


def test_the_verdict_leads_to_the_findings(opened):
    tab = opened(verified((2, "z"), depth=48))
    seen = """() => document.querySelector('#findings').getBoundingClientRect().top
        < innerHeight"""
    assert not tab.evaluate(seen)
    tab.click("header a")
    assert tab.evaluate(seen)


def test_rows_are_low_where_there_are_many(opened):
    row = "document.querySelector('.map tbody tr').getBoundingClientRect().height"
    few, many = (opened(verified(depth=n)).evaluate(row) for n in (4, 48))
    assert many < 20 < few


def test_hovering_says_the_numbers_where_they_are_seen(opened):
    # Below a map of 48 blocks they would be off the screen.
    tab = opened(verified((0, "qkv"), depth=48))
    tab.hover("button.diverged")
    assert "2.5e+05" in tab.inner_text("#says")
    shown = "document.querySelector('#says').getBoundingClientRect()"
    assert tab.evaluate(f"{shown}.bottom <= innerHeight && {shown}.top > 0")


@pytest.mark.parametrize("width", [360, 800])
def test_a_narrow_screen_scrolls_the_map_and_not_the_page(opened, width):
    for text in (
        verified(depth=48),
        audit_html(made_up.audit(12, "x" * 90 + "{}")),
        profiled(made_up.profile(48, "x" * 90)),
        baseline_html(made_up.baseline(48, 3)),
    ):
        tab = opened(text, width=width)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_on_a_phone_a_map_of_thirteen_places_needs_no_scrolling(opened):
    loaded = recon.load_model("random:tiny")
    ids = torch.tensor([[1, 2, 3, 4]])
    report = recon.verify(loaded.model, ids)
    text = verification_html(report, model=loaded.name, source="four tokens")
    tab = opened(text, width=390)
    assert tab.locator(".map thead th").count() == 14
    box = "document.querySelector('.map .scroll')"
    assert tab.evaluate(f"{box}.scrollWidth <= {box}.clientWidth")


def test_on_a_phone_the_words_of_a_chart_are_as_large_as_elsewhere(opened):
    text = verified(depth=12)
    heights = [
        opened(text, width=width).locator("svg .tick").first.bounding_box()["height"]
        for width in (390, 1200)
    ]
    assert heights[0] >= 0.8 * heights[1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_either_scheme(opened, scheme):
    tab = opened(verified((2, "z")), scheme=scheme)
    for target in ("body", "header h1", "button.rounding", "button.diverged"):
        ink, ground = tab.evaluate(
            """(at) => {
                const style = getComputedStyle(document.querySelector(at));
                let node = document.querySelector(at), ground = style.backgroundColor;
                while (ground === "rgba(0, 0, 0, 0)") {
                    node = node.parentElement;
                    ground = getComputedStyle(node).backgroundColor;
                }
                return [style.color, ground];
            }""",
            target,
        )
        assert contrast(ink, ground) >= 4.5, (target, ink, ground)


def contrast(ink: str, ground: str) -> float:
    """The ratio of WCAG 2.2, section 1.4.3."""
    light, dark = sorted((luminance(ink), luminance(ground)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [float(p) / 255 for p in colour[4:].strip("()").split(",")[:3]]
    linear = [
        p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
    ]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_grey_on_grey_would_not_pass_for_readable():
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)
    assert contrast("rgb(120, 120, 120)", "rgb(150, 150, 150)") < 4.5


def test_5000_findings_open_and_can_be_filtered(opened):
    tab = opened(audit_html(made_up.audit(5000)))
    said = tab.locator("p.filter:has([data-filters=findings]) output")
    assert said.inner_text() == "200 of 5000 shown"
    tab.fill("input[data-filters=findings]", "blocks.4321.")
    assert said.inner_text() == "1 of 1 shown"
    shown = "[...document.querySelectorAll('#findings > li')].filter(e => !e.hidden)"
    assert tab.evaluate(f"{shown}.length") == 1
    assert "blocks.4321." in tab.evaluate(f"{shown}[0].textContent")


def test_a_name_that_is_a_script_does_not_run(opened):
    name = "<img src=x onerror=document.title='hacked'>{}"
    tab = opened(audit_html(made_up.audit(3, name)))
    tab.click("button.cell >> nth=0")
    assert "hacked" not in tab.title()
    assert "<img" in tab.locator("dialog").inner_text()


def test_the_map_of_a_profile_opens_the_bytes_of_a_place(opened):
    tab = opened(profiled(made_up.profile(4, "hooks.kept[1]")))
    tab.click("button.excess >> nth=1")
    dialog = tab.locator("dialog")
    assert "h.1.attn.z" in dialog.inner_text()
    assert "1,024 bytes" in dialog.inner_text()
    tab.keyboard.press("Escape")
    tab.keyboard.press("ArrowDown")
    assert tab.inner_text("#says").startswith("h.2.attn.z")


def test_the_map_of_a_baseline_opens_how_far_a_site_moved(opened):
    tab = opened(baseline_html(made_up.baseline(4, 2)))
    tab.focus("button.changed")
    tab.keyboard.press("Enter")
    said = tab.locator("dialog").inner_text()
    assert "h.2.mlp.post" in said
    assert "its inputs moved" in said


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_kind_of_cell_is_readable(opened, scheme):
    for text, kinds in (
        (profiled(made_up.profile(2)), ("needed", "excess")),
        (baseline_html(made_up.baseline(3, 2)), ("equal", "follows", "changed")),
    ):
        tab = opened(text, scheme=scheme)
        for kind in kinds:
            ink, ground = tab.locator(f"button.{kind}").first.evaluate(
                "e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]"
            )
            assert contrast(ink, ground) >= 4.5, (kind, ink, ground)
