"""The operator console in a real browser, against a mock of the admin API: what its tests share.

Needs Chromium at /usr/bin/chromium (`apt-get install chromium`) and the `playwright` package; without them a test
module that imports this one is skipped, or fails where CANARIUM_CI is set.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

CHROMIUM = Path("/usr/bin/chromium")
MOCK = Path(__file__).parents[1] / "console" / "mock_control.py"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_MS = 30_000

try:
    from playwright.sync_api import Browser, Page, expect, sync_playwright
except ImportError:
    MISSING = "the Python package playwright"
else:
    MISSING = "" if CHROMIUM.exists() else "the Debian package chromium"

if MISSING and os.environ.get("CANARIUM_CI"):
    raise RuntimeError(f"{MISSING} is not installed, and CANARIUM_CI is set")
if MISSING:
    pytest.skip(f"{MISSING} is not installed", allow_module_level=True)

__all__ = ["Browser", "Mock", "Page", "Watched", "chromium", "expect", "panel", "roll_back", "running_mock"]


class Mock:
    """The mock control plane, a process of its own."""

    def __init__(self, url: str) -> None:
        self.url = url

    def set(self, **changes: Any) -> None:
        httpx.post(f"{self.url}mock/set", json=changes, timeout=30).raise_for_status()

    def requests(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = httpx.get(f"{self.url}mock/requests", timeout=30).json()
        return found


@contextmanager
def running_mock() -> Iterator[Mock]:
    process = subprocess.Popen([sys.executable, str(MOCK)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url, "the mock control plane did not start"
        yield Mock(url)
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()


@contextmanager
def chromium() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE_MS)  # for whatever is shown in it
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield browser
        browser.close()


class Watched:
    """A page and everything it did that it should not have done."""

    def __init__(self, page: Page, origin: str) -> None:
        self.page = page
        self.faults: list[str] = []
        self.foreign: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: self.faults.append(f"uncaught: {error}"))
        page.on("console", lambda message: self._on_console(message.type, message.text))
        page.on("request", lambda request: self._on_request(request.url, origin))

    def _on_console(self, kind: str, text: str) -> None:
        refused = r"Failed to load resource: the server responded with a status of (401|409|412|429|503)"
        if kind in ("error", "warning") and not re.match(refused, text):
            self.faults.append(text)

    def _on_request(self, url: str, origin: str) -> None:
        if urlsplit(url).netloc != urlsplit(origin).netloc:
            self.foreign.append(url)


def panel(page: Page, title: str) -> Any:
    return page.get_by_role("region", name=title, exact=True)


def roll_back(mock: Mock, variant: str) -> None:
    """Somebody else does, or a guard."""
    told = {"variant": variant, "reason": "flips", "actor": "monitor"}
    httpx.post(f"{mock.url}admin/v1/models/moderation:rollback", json=told, timeout=30).raise_for_status()
