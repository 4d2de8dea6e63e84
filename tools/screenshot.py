"""Draw README's picture: the HTML report of a verification, as a browser shows it.

A hook scales what the second block's MLP returns, so that there is something to see.
Needs what ``make test-browser`` installs. Run ``python -m tools.screenshot``.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import recon
from recon.inputs import batches
from recon.models import load_model
from recon.report.html import verification_html

PICTURE = Path(__file__).parents[1] / "docs" / "img" / "report.png"
NAMES = ("chromium", "chromium-browser", "google-chrome")


def report() -> str:
    """Verify the bundled model, with one hook that edits what it sees, as HTML."""
    loaded = load_model("bundled")
    batch = next(batches(loaded))
    mlp = loaded.model.transformer.h[1].mlp
    with mlp.register_forward_hook(lambda module, args, output: output * 1.01):
        found = recon.verify(loaded.model, **batch.inputs)
    return verification_html(found, model=loaded.name, source=batch.source)


def photograph(text: str, picture: Path) -> None:
    """Show a page in headless Chromium, and keep its first 1,330 pixels."""
    from playwright.sync_api import sync_playwright

    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        sys.exit(f"none of {', '.join(NAMES)} is installed: make test-browser")
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as running:
        page = Path(folder, "report.html")
        page.write_text(text, encoding="utf-8")
        made = running.chromium.launch(executable_path=browser, args=root)
        tab = made.new_page(viewport={"width": 1000, "height": 1330})
        tab.goto(page.as_uri())
        tab.screenshot(path=picture)
        made.close()


if __name__ == "__main__":
    photograph(report(), PICTURE)
