"""Headless Chromium for tests of pages, and pages that are served meanwhile."""

import shutil
import threading
from contextlib import contextmanager

import pytest
from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium: apt-get install chromium"
)
WAIT = 20_000
"""Milliseconds; the machine may be busy."""


@contextmanager
def served(server):
    """A page that is served inside the block, and ends after it."""
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def visitors(browser, server, expect_ready):
    """Opens the page as a visitor of its own; what goes wrong in the browser fails the test.

    ``expect_ready`` is given a page and waits until it is.
    """
    faults, contexts = [], []

    def open_page(address=server.address, **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 1000}, **options})
        contexts.append(context)
        context.set_default_timeout(WAIT)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        page.on("request", lambda asked: elsewhere(asked.url))
        page.goto(address)
        expect_ready(page)
        return page

    def elsewhere(url):
        if not url.startswith((server.address, "data:", "blob:")):
            faults.append(f"asked {url}")

    yield open_page
    for context in contexts:
        context.close()
    assert not faults
