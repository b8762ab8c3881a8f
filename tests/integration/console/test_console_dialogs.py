"""What can be changed from the console: each dialog, what it sends, and what it refuses to send."""

from __future__ import annotations

import re

import httpx
import pytest

from tests.support.console import Mock, Page, Watched, expect, panel, roll_back

pytestmark = pytest.mark.integration


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


def test_a_table_that_was_changed_under_an_open_dialog_is_not_changed_by_it(page: Page, mock: Mock) -> None:
    page.get_by_role("button", name="Set traffic of int8", exact=True).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Weight: share of users answered by int8", exact=True).fill("10")
    dialog.get_by_label("Reason").fill("half of it")
    expect(dialog.get_by_role("button", name="Set int8 to 10 %")).to_be_enabled()
    roll_back(mock, "int8")
    expect(dialog.get_by_role("alert")).to_contain_text("changed since you opened this (epoch 12, now 13)")
    expect(dialog).to_contain_text("int8 was rolled back by monitor: flips. Giving it traffic lifts that.")
    expect(dialog.get_by_role("button", name="Set int8 to 10 %")).to_be_disabled()
    page.keyboard.press("Enter")
    dialog.get_by_label("Weight: share of users answered by int8", exact=True).fill("20")  # what it was at opening
    expect(dialog).not_to_contain_text("→")
    assert [seen["path"].rpartition(":")[2] for seen in mock.requests()] == ["rollback"]


def test_a_change_that_the_page_has_not_heard_of_is_not_overwritten(page: Page, mock: Mock) -> None:
    old = httpx.get(f"{mock.url}admin/v1/status", timeout=30).json()
    page.route("**/admin/v1/status", lambda route: route.fulfill(json=old))
    page.get_by_role("button", name="Reference share…").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Reference share", exact=True).fill("50")
    dialog.get_by_label("Reason").fill("faster verdicts")
    roll_back(mock, "int8")
    dialog.get_by_role("button", name="Set to 50 %").click()
    expect(dialog.get_by_role("alert").filter(has_text="Not done (HTTP 412)")).to_contain_text("is at epoch 13")


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


def test_a_rearm_of_one_model_promises_no_traffic_while_all_are_killed(page: Page) -> None:
    dialog = page.get_by_role("dialog")
    for button in ("Kill moderation", "Kill all models"):
        page.get_by_role("button", name=f"{button}…").click()
        dialog.get_by_label("Reason").fill("bad deploy")
        dialog.get_by_role("button", name=button).click()
        expect(dialog).not_to_be_visible()
    banner = page.get_by_role("alert").filter(has_text="KILLED, kill_seq 3.")
    banner.get_by_role("button", name="Re-arm…").click()
    expect(dialog).to_contain_text("teacher answers everything until that kill is released too")
    expect(dialog).not_to_contain_text("at once")


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


def test_a_change_whose_answer_was_lost_is_not_said_to_be_undone(watched: Watched, mock: Mock) -> None:
    page = watched.page
    page.route("**:kill", lambda route: (route.fetch(), route.abort()))
    page.get_by_role("button", name="Kill moderation…").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Reason").fill("test")
    dialog.get_by_role("button", name="Kill moderation").click()
    refusal = dialog.get_by_role("alert").filter(has_text="cannot be reached")
    expect(refusal).to_contain_text("It is not known whether this was done: look at the timeline.")
    expect(refusal).to_contain_text('canarium kill moderation --reason "…"')
    expect(page.get_by_text("KILLED, kill_seq 3.")).to_be_visible()
    watched.faults = [fault for fault in watched.faults if "net::ERR_FAILED" not in fault]


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
    assert sent["if_match"] == '"12"'


def test_an_open_approval_is_none_of_a_later_step(page: Page, mock: Mock) -> None:
    mock.set(scenario="rollout")
    page.get_by_role("button", name="Approve rollout int8-7").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Reason").fill("the numbers are good")
    expect(dialog.get_by_role("button", name="Approve int8")).to_be_enabled()
    mock.set(scenario="rollout_later")
    expect(dialog.get_by_role("alert")).to_contain_text("has moved on since you opened this")
    expect(dialog.get_by_role("button", name="Approve int8")).to_be_disabled()


def test_a_rollout_that_has_moved_on_can_still_be_ended(page: Page, mock: Mock) -> None:
    mock.set(scenario="rollout")
    page.get_by_role("button", name="Abort rollout int8-7").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Reason").fill("enough")
    roll_back(mock, "distilled")
    mock.set(scenario="rollout_later")
    expect(page.get_by_test_id("rollout-int8-7")).to_contain_text("50 % of the traffic")
    dialog.get_by_role("button", name="Abort int8").click()
    expect(page.get_by_test_id("rollout-int8-7")).to_contain_text("Rolled back")
    assert mock.requests()[-1]["if_match"] is None


def test_a_box_that_was_ticked_for_one_guard_is_not_for_another(page: Page, mock: Mock) -> None:
    mock.set(scenario="rollout_paused")
    page.get_by_role("button", name="Approve rollout int8-7").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Reason").fill("a known slice")
    dialog.get_by_label("Go on all the same").check()
    mock.set(scenario="rollout_braked")
    expect(dialog).to_contain_text("ood is beyond its limit")
    expect(dialog.get_by_label("Go on all the same")).not_to_be_checked()
    expect(dialog.get_by_role("button", name="Approve int8")).to_be_disabled()


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
