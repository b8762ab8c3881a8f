"""The operator console in a real browser, against a mock of the admin API.

Needs Chromium at /usr/bin/chromium (`apt-get install chromium`) and the `playwright` package;
without them the tests are skipped, or fail where CANARIUM_CI is set.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.load import Background
from tests.support.stack import Stack

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

pytestmark = pytest.mark.integration

try:
    from playwright.sync_api import Browser, Page, expect, sync_playwright
except ImportError:
    MISSING = "the Python package playwright"
else:
    MISSING = "" if CHROMIUM.exists() else "the Debian package chromium"

if MISSING and not os.environ.get("CANARIUM_CI"):
    pytest.skip(f"{MISSING} is not installed", allow_module_level=True)


def test_what_the_console_tests_need_is_installed() -> None:
    assert not MISSING, f"{MISSING} is not installed, and CANARIUM_CI is set"


class Mock:
    """The mock control plane, a process of its own."""

    def __init__(self, url: str) -> None:
        self.url = url

    def set(self, **changes: Any) -> None:
        httpx.post(f"{self.url}mock/set", json=changes, timeout=30).raise_for_status()

    def requests(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = httpx.get(f"{self.url}mock/requests", timeout=30).json()
        return found


@pytest.fixture
def mock() -> Iterator[Mock]:
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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
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
        refusal = re.match(r"Failed to load resource: the server responded with a status of (401|409|503)", text)
        if kind in ("error", "warning") and not refusal:
            self.faults.append(text)

    def _on_request(self, url: str, origin: str) -> None:
        if urlsplit(url).netloc != urlsplit(origin).netloc:
            self.foreign.append(url)


@pytest.fixture
def watched(browser: Browser, mock: Mock) -> Iterator[Watched]:
    """The console, opened. Whatever a test does with it: no script error, no CSP violation, no foreign request."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    watched = Watched(page, mock.url)
    expect.set_options(timeout=PATIENCE_MS)
    page.goto(mock.url)
    expect(page.get_by_role("heading", level=1)).to_have_text("moderation")
    yield watched
    page.close()
    assert watched.faults == []
    assert watched.foreign == []


@pytest.fixture
def page(watched: Watched) -> Page:
    return watched.page


def panel(page: Page, title: str) -> Any:
    return page.get_by_role("region", name=title, exact=True)


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


def test_setting_a_share_sends_it_with_the_reason_and_the_epoch_on_screen(page: Page, mock: Mock) -> None:
    page.get_by_role("button", name="Set traffic of distilled", exact=True).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Weight: share of users answered by distilled", exact=True).fill("12.5")
    expect(dialog).to_contain_text("teacher 75 % → 67.5 %")
    dialog.get_by_label("Reason").fill("next step of the ramp")
    dialog.get_by_role("button", name="Set distilled to 12.5 %").click()
    expect(dialog).not_to_be_visible()
    expect(panel(page, "Traffic")).to_contain_text(re.compile(r"distilled\s*12.5 %"))
    assert mock.requests() == [
        {
            "method": "PUT",
            "path": "/admin/v1/models/moderation/traffic",
            "body": {"weights": {"distilled": 12.5}, "reason": "next step of the ramp"},
            "if_match": '"12"',
        }
    ]


def test_an_impossible_share_cannot_be_sent(page: Page, mock: Mock) -> None:
    page.get_by_role("button", name="Set traffic of distilled", exact=True).click()
    dialog = page.get_by_role("dialog")
    weight = dialog.get_by_label("Weight: share of users answered by distilled", exact=True)
    for typed, said in (("81", "81 % is more than the 80 %"), ("x", "give a number"), ("1.005", "smallest step")):
        weight.fill(typed)
        expect(dialog.get_by_role("alert").filter(has_text=said)).to_be_visible()
        expect(dialog.get_by_role("button", name="Set")).to_be_disabled()
    page.keyboard.press("Escape")
    expect(dialog).not_to_be_visible()
    assert mock.requests() == []


def test_a_kill_needs_a_reason_shows_the_banner_and_is_released_by_its_number(page: Page, mock: Mock) -> None:
    page.get_by_role("button", name="Kill moderation…").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("every request to moderation is answered by the baseline, teacher")
    dialog.get_by_role("button", name="Kill moderation").click()
    expect(dialog.get_by_text("A reason is required.")).to_be_visible()
    assert mock.requests() == []

    dialog.get_by_label("Reason").fill("support reports wrong answers")
    dialog.get_by_label("Your name").fill("maria")
    dialog.get_by_role("button", name="Kill moderation").click()
    banner = page.get_by_role("alert").filter(has_text="KILLED, kill_seq 3.")
    expect(banner).to_contain_text("By maria")
    expect(banner).to_contain_text("support reports wrong answers")
    expect(panel(page, "Traffic").get_by_role("img", name="Traffic in force: teacher 100 %")).to_be_visible()
    expect(panel(page, "Traffic")).to_contain_text("not in force because of the kill")

    banner.get_by_role("button", name="Re-arm…").click()
    expect(dialog).to_contain_text("teacher 75 %, int8 20 %, distilled 5 %")
    dialog.get_by_label("Reason").fill("tokenizer fixed")
    dialog.get_by_role("button", name="Re-arm, releasing kill 3").click()
    expect(banner).not_to_be_visible()
    killed, rearmed = mock.requests()
    assert killed["path"] == "/admin/v1/models/moderation:kill"
    assert killed["body"] == {"reason": "support reports wrong answers", "actor": "maria"}
    assert rearmed["path"] == "/admin/v1/models/moderation:rearm"
    assert rearmed["body"] == {"kill_seq": 3, "reason": "tokenizer fixed", "actor": "maria"}


def test_the_kill_of_all_models_is_seen_on_every_model_and_can_be_released(page: Page, mock: Mock) -> None:
    page.get_by_role("button", name="Kill all models…").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Reason").fill("bad deploy")
    dialog.get_by_role("button", name="Kill all models").click()
    expect(page.get_by_test_id("global-kill")).to_have_text("ON, all models (seq 1)")
    expect(page.get_by_role("navigation", name="Models").get_by_text("Killed")).to_have_count(2)

    page.get_by_role("alert").filter(has_text="ALL MODELS KILLED").get_by_role("button", name="Re-arm all…").click()
    dialog.get_by_label("Reason").fill("rolled forward")
    dialog.get_by_role("button", name="Re-arm, releasing kill 1").click()
    expect(page.get_by_test_id("global-kill")).to_have_text("off")
    killed, rearmed = mock.requests()
    assert killed["path"] == "/admin/v1/kill-switch"
    assert rearmed["path"] == "/admin/v1/kill-switch:rearm"
    assert rearmed["body"] == {"kill_seq": 1, "reason": "rolled forward"}


def test_a_rollback_names_the_variant_and_leaves_its_reason_on_the_page(page: Page, mock: Mock) -> None:
    page.get_by_role("button", name="Roll back int8", exact=True).click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("int8: 20 % → 0 %")
    expect(dialog).to_contain_text("the baseline, teacher: 75 % → 95 %")
    dialog.get_by_label("Reason").fill("slow since noon")
    dialog.get_by_role("button", name="Roll back int8").click()
    row = panel(page, "Variants").get_by_role("row").filter(has_text="moderation/int8:1")
    expect(row).to_contain_text("Rolled back")
    expect(row).to_contain_text("slow since noon")
    assert mock.requests()[0]["body"] == {"variant": "int8", "reason": "slow since noon"}


def test_a_refusal_is_shown_word_for_word_and_a_change_in_flight_cannot_be_sent_twice(page: Page, mock: Mock) -> None:
    refusal = "the table of moderation is at epoch 13, not 12: look again before changing it"
    mock.set(refuse=refusal, hold=True)
    page.get_by_role("button", name="Kill moderation…").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Reason").fill("test")
    dialog.get_by_role("button", name="Kill moderation").click()
    expect(dialog.get_by_role("button", name="Sending…")).to_be_disabled()
    mock.set(hold=False)
    expect(page.get_by_test_id("action-error")).to_have_text(refusal)
    expect(dialog.get_by_role("button", name="Kill moderation")).to_be_enabled()
    assert len(mock.requests()) == 1


def test_a_rollout_says_what_it_waits_for_and_is_approved_with_a_reason(page: Page, mock: Mock) -> None:
    mock.set(scenario="rollout")
    rollout = page.get_by_test_id("rollout-int8-7")
    expect(rollout).to_contain_text("Paused: approval")
    expect(rollout).to_contain_text("waits for the approval of an operator")
    expect(rollout.get_by_role("listitem").filter(has_text="approval (operator)")).to_have_attribute(
        "aria-current", "step"
    )
    rollout.get_by_role("button", name="Approve rollout int8-7").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Reason").fill("the numbers are good")
    dialog.get_by_role("button", name="Approve int8").click()
    expect(rollout).to_contain_text("Ramping")
    (sent,) = mock.requests()
    assert sent["path"] == "/admin/v1/rollouts/int8-7:approve"
    assert sent["body"] == {"reason": "the numbers are good"}


def test_an_approval_while_a_guard_pauses_needs_a_box_that_names_the_guard(page: Page, mock: Mock) -> None:
    mock.set(scenario="rollout_paused")
    page.get_by_role("button", name="Approve rollout int8-7").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Guards pause it: slices is beyond its limit")
    expect(dialog).not_to_contain_text("ood")  # someone has set it aside
    dialog.get_by_label("Reason").fill("a known slice")
    expect(dialog.get_by_role("button", name="Approve int8")).to_be_disabled()
    dialog.get_by_label("Go on all the same").check()
    dialog.get_by_role("button", name="Approve int8").click()
    expect(page.get_by_test_id("rollout-int8-7")).to_contain_text("Ramping")
    assert mock.requests()[0]["body"] == {"reason": "a known slice", "override": True}


def test_an_approval_needs_no_box_for_guards_that_were_set_aside(page: Page, mock: Mock) -> None:
    mock.set(scenario="rollout_waived")
    page.get_by_role("button", name="Approve rollout int8-7").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Reason").fill("the numbers are good")
    expect(dialog.get_by_label("Go on all the same")).not_to_be_visible()
    dialog.get_by_role("button", name="Approve int8").click()
    expect(page.get_by_test_id("rollout-int8-7")).to_contain_text("Ramping")
    assert mock.requests()[0]["body"] == {"reason": "the numbers are good"}


def test_a_promotion_without_every_pass_needs_a_box_that_says_so(page: Page, mock: Mock) -> None:
    mock.set(scenario="rollout")
    page.get_by_role("button", name="Promote rollout int8-7").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("errors, inconclusive")
    dialog.get_by_label("Reason").fill("urgent")
    expect(dialog.get_by_role("button", name="Promote int8")).to_be_disabled()
    dialog.get_by_label("Go on all the same").check()
    dialog.get_by_role("button", name="Promote int8").click()
    expect(page.get_by_test_id("rollout-int8-7")).to_contain_text("Promoting")
    assert mock.requests()[0]["body"] == {"reason": "urgent", "override": True}


def test_a_rollout_is_started_for_a_candidate_without_traffic(page: Page, mock: Mock) -> None:
    expect(panel(page, "Rollouts")).to_contain_text("No candidate is being rolled out.")
    page.get_by_role("button", name="Start a rollout…").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("alert").filter(has_text="int8 has 20 % of the traffic")).to_be_visible()
    dialog.get_by_label("Candidate").select_option("distilled-int8")
    dialog.get_by_label("Policy").select_option("careful")
    dialog.get_by_label("Reason").fill("ready")
    dialog.get_by_role("button", name="Start rolling out distilled-int8").click()
    expect(page.get_by_test_id("rollout-distilled-int8-8")).to_be_visible()
    (sent,) = mock.requests()
    assert sent["path"] == "/admin/v1/rollouts"
    wanted = {"model": "moderation", "variant": "distilled-int8", "policy": "careful", "reason": "ready"}
    assert sent["body"] == wanted


def test_losing_the_control_plane_makes_the_page_say_that_it_is_old(page: Page, mock: Mock) -> None:
    expect(page.get_by_test_id("connection")).to_have_text("Live")
    mock.set(down=True)
    expect(page.get_by_test_id("connection")).to_have_text("Stale")
    banner = page.get_by_role("alert").filter(has_text="This page is out of date.")
    expect(banner).to_contain_text("the control plane is shutting down")
    mock.set(down=False)
    expect(page.get_by_test_id("connection")).to_have_text("Live")
    expect(banner).not_to_be_visible()


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
        expect(panel(page, "Verdicts").get_by_text(re.compile("int8 disagrees with teacher on"))).to_be_visible(
            timeout=20_000
        )
        expect(panel(page, "Live").locator(".plot path.line[d^=M]").first).to_be_visible()
        page.screenshot(path=os.environ.get("CANARIUM_SCREENSHOT", str(tmp_path / "console.png")), full_page=True)
    page.close()
    shares = {variant["name"]: variant["weight"] for variant in quickstart.model("moderation")["variants"]}
    assert shares["int8"] == 30
    assert watched.faults == []
    assert watched.foreign == []
