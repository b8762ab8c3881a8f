"""The operator console in a real browser: what it shows, and what it does when it hears nothing."""

from __future__ import annotations

import os
import re
from pathlib import Path

import httpx
import pytest

from tests.support.console import Browser, Mock, Page, Watched, expect, panel
from tests.support.load import Background
from tests.support.stack import Stack

pytestmark = pytest.mark.integration


def test_a_model_is_shown_with_its_traffic_and_the_guards_own_sentence(page: Page, mock: Mock) -> None:
    expect(page.get_by_test_id("connection")).to_have_text("Live")
    expect(panel(page, "Traffic").get_by_role("listitem").nth(0)).to_have_text(re.compile(r"teacher\s*75 %\s*baseline"))
    verdicts = httpx.get(f"{mock.url}admin/v1/models/moderation/verdicts", timeout=30).json()["verdicts"]
    sentence = next(v["sentence"] for v in verdicts if v["guard"] == "harm" and v["variant"] == "int8")
    expect(panel(page, "Verdicts").get_by_text(sentence, exact=True)).to_be_visible()
    expect(panel(page, "Variants").get_by_text("moderation/distilled-int8:1")).to_be_visible()
    expect(panel(page, "Live").locator(".plot path.line.v1[d^=M]").first).to_be_visible()
    expect(panel(page, "Timeline").get_by_text("shadow only, after the fix")).to_be_visible()
    expect(panel(page, "Objectives").get_by_text("99.321 %")).to_be_visible()


def test_a_whole_policy_in_the_trail_is_shown_to_whoever_asks(page: Page, mock: Mock) -> None:
    entry = panel(page, "Timeline").get_by_role("listitem").filter(has_text="try again").first
    expect(entry.get_by_text("pending")).to_be_visible()
    expect(entry.get_by_text("set_weight")).not_to_be_visible()
    entry.get_by_text("1 more").click()
    expect(entry.get_by_text("set_weight")).to_be_visible()


def test_a_failing_guard_is_the_headline_and_comes_first(page: Page, mock: Mock) -> None:
    mock.set(scenario="failing")
    expect(page.get_by_test_id("health")).to_contain_text("Guard failing")
    expect(page.get_by_test_id("health")).to_contain_text("over the limit of 3.6 %")
    first = panel(page, "Verdicts").locator("tbody tr:not(.group)").first
    expect(first).to_contain_text("Fail")
    expect(first.get_by_role("meter")).to_have_attribute("aria-valuetext", re.compile("over the threshold"))
    expect(panel(page, "Traffic")).to_contain_text("The baseline can carry only 0.84× of the present traffic")


def test_losing_the_control_plane_makes_the_page_say_that_it_is_old(page: Page, mock: Mock) -> None:
    expect(page.get_by_test_id("connection")).to_have_text("Live")
    mock.set(down=True)
    expect(page.get_by_test_id("connection")).to_have_text("Stale")
    banner = page.get_by_role("alert").filter(has_text="This page is out of date.")
    expect(banner).to_contain_text("the control plane is shutting down")
    mock.set(down=False)
    expect(page.get_by_test_id("connection")).to_have_text("Live")
    expect(banner).not_to_be_visible()


def test_numbers_of_a_monitor_that_does_not_answer_any_more_do_not_stand_as_live(page: Page, mock: Mock) -> None:
    objectives, variant = panel(page, "Objectives"), panel(page, "Variants").get_by_role("row").nth(2)
    expect(page.get_by_text("requests/s")).to_be_visible()
    expect(objectives.get_by_text("99.321 %")).to_be_visible()
    expect(variant.locator('[data-label="p50 now"]')).to_contain_text(re.compile(r"^\d.* ms"))
    mock.set(monitor_away=True)
    expect(page.get_by_text("request rate unknown")).to_be_visible()
    expect(objectives).to_contain_text("These numbers are not current. the monitor at http://127.0.0.1:8002")
    expect(objectives).to_have_class(re.compile("stale"))
    expect(variant.locator('[data-label="p50 now"]')).to_contain_text(re.compile("^–"))
    mock.set(monitor_away=False)
    expect(page.get_by_text("requests/s")).to_be_visible()
    expect(objectives).not_to_contain_text("not current")


def test_a_hidden_tab_does_not_go_on_saying_that_all_is_well(page: Page, mock: Mock) -> None:
    hide = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true});"
    tell = "document.dispatchEvent(new Event('visibilitychange'))"
    expect(page).to_have_title("quickstart · Canarium")
    page.evaluate(hide % "true" + tell)
    expect(page).to_have_title("⏸ paused · Canarium")
    mock.set(scenario="killed")
    page.evaluate(hide % "false" + tell)
    expect(page).to_have_title("■ moderation: Killed · Canarium")


def test_the_trail_of_a_restored_copy_takes_the_place_of_the_old_one(page: Page, mock: Mock) -> None:
    timeline = panel(page, "Timeline")
    expect(timeline.get_by_text("shadow only, after the fix")).to_be_visible()
    mock.set(restore=True)
    expect(timeline.get_by_text("as it was: 127")).to_be_visible()
    expect(timeline.get_by_text("shadow only, after the fix")).not_to_be_visible()


@pytest.mark.parametrize(
    ("scenario", "headline", "said"),
    [
        ("monitor_down", "Not watched", "Verdicts are not current."),
        ("empty", "Baseline only", "No data is not a pass."),
    ],
)
def test_missing_data_is_never_shown_as_a_pass(page: Page, mock: Mock, scenario: str, headline: str, said: str) -> None:
    mock.set(scenario=scenario)
    expect(page.get_by_test_id("health")).to_contain_text(headline)
    expect(panel(page, "Verdicts")).to_contain_text(said)


def test_with_the_monitor_silent_the_split_is_not_said_to_be_in_force(page: Page, mock: Mock) -> None:
    traffic = panel(page, "Traffic")
    expect(traffic.get_by_role("img", name="Traffic in force")).to_be_visible()
    mock.set(scenario="monitor_down")
    expect(traffic.get_by_role("img", name="Traffic by the table")).to_be_visible()
    expect(traffic).to_contain_text("gateways answer with teacher alone until it is back")


def test_a_token_is_asked_for_sent_and_kept_in_the_session_only(page: Page, mock: Mock) -> None:
    mock.set(token="s3cret")
    expect(page.get_by_test_id("auth-error")).to_have_text("a bearer token is required: Authorization: Bearer TOKEN")
    page.get_by_label("Bearer token").fill("s3cret")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_test_id("connection")).to_have_text("Live")
    assert page.evaluate("[localStorage.length, sessionStorage.getItem('canarium.token'), document.cookie]") == [
        0,
        "s3cret",
        "",
    ]


def test_a_token_can_be_entered_after_too_many_failures(page: Page, mock: Mock) -> None:
    mock.set(token="s3cret", locked=True)
    page.reload()
    expect(page.get_by_test_id("auth-error")).to_have_text("too many failed attempts, try again later")
    page.get_by_label("Bearer token").fill("s3cret")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_test_id("connection")).to_have_text("Live")


def test_nothing_overflows_a_narrow_screen(browser: Browser, mock: Mock) -> None:
    page = browser.new_page(viewport={"width": 400, "height": 850})
    page.goto(mock.url)
    page.get_by_role("heading", level=1).wait_for()
    page.locator(".chart").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    page.close()


def test_the_console_of_a_running_instance_sets_a_canary(browser: Browser, quickstart: Stack, tmp_path: Path) -> None:
    """The same page, served by the real control plane over a real instance under load."""
    quickstart.post("/models/moderation:rollback", reason="a calm start").raise_for_status()
    url = f"http://127.0.0.1:{quickstart.control_port}/"
    page = browser.new_page(viewport={"width": 1440, "height": 1800})
    watched = Watched(page, url)
    with Background(f"http://127.0.0.1:{quickstart.http_port}", "moderation", 2):
        page.goto(url)
        expect(page.get_by_role("heading", level=1)).to_have_text("moderation")
        expect(page.get_by_test_id("connection")).to_have_text("Live")
        page.get_by_role("button", name="Set traffic of int8", exact=True).click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Weight: share of users answered by int8", exact=True).fill("30")
        dialog.get_by_label("Reason").fill("from the console")
        dialog.get_by_role("button", name="Set int8 to 30 %").click()
        expect(dialog).not_to_be_visible()
        expect(panel(page, "Timeline").get_by_text("from the console")).to_be_visible()
        expect(panel(page, "Verdicts").get_by_text(re.compile("int8 disagrees with teacher on"))).to_be_visible()
        expect(panel(page, "Live").locator(".plot path.line[d^=M]").first).to_be_visible()
        page.screenshot(path=os.environ.get("CANARIUM_SCREENSHOT", str(tmp_path / "console.png")), full_page=True)
    page.close()
    shares = {variant["name"]: variant["weight"] for variant in quickstart.model("moderation")["variants"]}
    assert shares["int8"] == 30
    assert watched.faults == []
    assert watched.foreign == []
