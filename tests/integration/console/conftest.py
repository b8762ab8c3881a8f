"""A page of the console over a mock of its own. What needs a browser is imported late: it may not be there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.console import Browser, Mock, Page, Watched


@pytest.fixture
def mock() -> Iterator[Mock]:
    from tests.support.console import running_mock

    with running_mock() as mock:
        yield mock


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from tests.support.console import chromium

    with chromium() as browser:
        yield browser


@pytest.fixture
def watched(browser: Browser, mock: Mock) -> Iterator[Watched]:
    """The console, opened. Whatever a test does with it: no script error, no CSP violation, no foreign request."""
    from tests.support.console import Watched, expect

    page = browser.new_page(viewport={"width": 1440, "height": 900})
    watched = Watched(page, mock.url)
    page.goto(mock.url)
    expect(page.get_by_role("heading", level=1)).to_have_text("moderation")
    yield watched
    page.close()
    assert watched.faults == []
    assert watched.foreign == []


@pytest.fixture
def page(watched: Watched) -> Page:
    return watched.page
