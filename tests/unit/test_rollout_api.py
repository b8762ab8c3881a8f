"""Rollouts over the admin API: what a client sends, what it gets, and what is left as it was."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from control_kit import Rig, spec
from rollout_kit import POLICY

from serving.control.api import create_app
from serving.control.auth import Auth
from serving.control.gateways import GatewayInfo
from serving.control.monitor_link import Heartbeat
from serving.control.rollout_driver import RolloutDriver
from serving.control.tokens import Token, hashed
from serving.roles import ROLES

ROOT = "/admin/v1/rollouts"
WHY = {"reason": "because", "actor": "cli:ann"}
INT8 = {**WHY, "model": "moderation", "variant": "int8"}
SHORT = msgspec.to_builtins(POLICY["short"])


def client(rig: Rig, auth: Auth | None = None, **more: Any) -> httpx.AsyncClient:
    app = create_app(rig.plane, auth or Auth(None), clock=rig.clock, host="127.0.0.1", port=8003)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8003", **more)


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path)
    await rig.start({"moderation": spec(weights={}, shadow={})})
    return rig


@pytest.fixture
async def api(rig: Rig) -> AsyncIterator[httpx.AsyncClient]:
    async with client(rig) as api:
        yield api


async def started(api: httpx.AsyncClient, **more: Any) -> str:
    answer = await api.post(ROOT, json={**INT8, "policy": SHORT, **more})
    assert answer.status_code == 200, answer.text
    id_: str = answer.json()["id"]
    return id_


async def tick(
    rig: Rig,
    words: dict[str, str] | None = None,
    times: int = 1,
    headroom: float | None = None,
    ailing: str | None = None,
) -> None:
    """Ten seconds, a heartbeat and a look of the driver, so many times. `ailing`: what the baseline misses."""
    driver = RolloutDriver(rig.plane, rig.clock, salt=lambda: "salt")
    for _ in range(times):
        rig.clock.advance(10)
        found = {"errors": "pass", "latency": "pass", "agreement": "pass"} | (words or {})
        verdicts = [
            {"guard": guard, "variant": "int8", "verdict": word, "sentence": f"{guard} says {word}",
             "action": "pause" if word == "fail" else "none"}
            for guard, word in found.items()
        ]  # fmt: skip
        seen = rig.clock.wall_ns() // 10**8 % 10**6
        if ailing is not None:
            verdicts.append({"guard": "latency_slo", "variant": "teacher", "verdict": "fail", "sentence": ailing})
        counts = {"moderation": {"int8": {"live": seen, "pairs": seen, "suspect": 0.0, "workers": 1}}}
        rev = rig.plane.state.rev
        beat = Heartbeat("now", "ok", {"moderation": verdicts}, rev=rev, counts=counts)
        rig.plane.heartbeat(msgspec.structs.replace(beat, headroom={"moderation": headroom}))
        rig.plane.gateways.see(GatewayInfo("g", rev=rev))
        await driver.tick()


async def test_a_rollout_is_started_by_name_and_shown(api: httpx.AsyncClient) -> None:
    answer = await api.post(ROOT, json={**INT8, "policy": "fast"})
    assert answer.status_code == 200
    view = answer.json()
    assert (view["id"], view["state"], view["step"], view["policy"]) == ("int8-1", "pending", 0, "fast")
    assert view["steps"][1] == {"set_weight": 1.0}
    assert [verdict["guard"] for verdict in view["verdicts"]] == ["errors", "latency", "agreement"]
    assert view.pop("warnings") == []  # nothing is known of the traffic
    assert (await api.get(f"{ROOT}/int8-1")).json() == view
    assert (await api.get(ROOT)).json() == {"rollouts": [view]}
    assert (await api.get(ROOT, params={"model": "other"})).json() == {"rollouts": []}
    assert (await api.get("/admin/v1/models/moderation")).json()["rollouts"] == [view]


async def test_a_rollout_that_names_no_policy_is_careful(api: httpx.AsyncClient) -> None:
    view = (await api.post(ROOT, json=INT8)).json()
    assert (view["policy"], view["steps"][0]["shadow"]["percent"]) == ("careful", 20.0)


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"policy": "slow"}, 400, "policy: unknown policy 'slow', expected one of careful, fast, shadow-only"),
        ({"policy": {"steps": [{"set_weight": 500}]}}, 400,
         "policy.steps[0].set_weight: 500 is not between 0.01 and 100"),
        ({"policy": {"steps": [{"jump": 1}]}}, 400, "policy.steps[0].jump: unknown step"),
        ({"policy": 7}, 400, "policy: expected a mapping with steps, got int"),
        ({"model": "nope"}, 404, "unknown model 'nope'"),
        ({"variant": "nope"}, 404, "unknown variant 'nope'"),
        ({"variant": "teacher"}, 400, "teacher is the baseline already"),
        ({"reason": " "}, 400, "reason: say why"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_refused_and_nothing_is_started(
    api: httpx.AsyncClient, rig: Rig, change: dict[str, Any], status: int, words: str
) -> None:
    answer = await api.post(ROOT, json={**INT8, "policy": "fast", **change})
    assert answer.status_code == status
    assert words in answer.json()["error"]
    assert rig.plane.state.rollouts == {}


async def test_the_same_request_twice_starts_one(api: httpx.AsyncClient, rig: Rig) -> None:
    headers = {"idempotency-key": "k"}
    first = await api.post(ROOT, json={**INT8, "policy": "fast"}, headers=headers)
    again = await api.post(ROOT, json={**INT8, "policy": "fast"}, headers=headers)
    assert (first.json(), again.headers["idempotent-replayed"]) == (again.json(), "true")
    assert len(rig.plane.state.rollouts) == 1
    other = await api.post(ROOT, json={**INT8, "policy": "fast"})
    assert (other.status_code, "end it first" in other.json()["error"]) == (409, True)


ASSUMED = {
    "rate": 80.0, "reference": 1.0, "agreement": 0.02, "disagreement": 0.0, "errors": 0.001, "alpha": 0.002,
    "pass_alpha": 0.05,
}  # fmt: skip


async def test_a_dry_run_predicts_and_starts_nothing(api: httpx.AsyncClient, rig: Rig) -> None:
    asked = {**INT8, "policy": "fast"}
    answer = await api.post(ROOT, json=asked, params={"dry_run": "true"})
    assert (answer.status_code, "the monitor has said nothing of int8" in answer.json()["error"]) == (503, True)
    beat = {"at": 1, "mode": "ok", "assumed": {"moderation": {"int8": ASSUMED}}}
    assert (await api.post("/admin/v1/monitor/heartbeat", json=beat)).status_code == 200
    told = (await api.post(ROOT, json=asked, params={"dry_run": "true"})).json()
    assert (told["assumed"], told["warnings"]) == (ASSUMED, [])
    assert [step["step"] for step in told["steps"]] == [0, 2, 4, 6]
    assert told["steps"][3]["passes"]["errors"]["bound"] == 2995
    assert rig.plane.state.rollouts == {}
    assert [row.action for row in await rig.trail()] == ["model-added"]


async def test_a_dry_run_is_refused_for_what_a_start_is(api: httpx.AsyncClient) -> None:
    dry = {"dry_run": "true"}
    assert (await api.post(ROOT, json={**INT8, "policy": "slow"}, params=dry)).status_code == 400
    assert (await api.post(ROOT, json={**INT8, "variant": "nope", "policy": "fast"}, params=dry)).status_code == 404
    await started(api)
    assert (await api.post(ROOT, json={**INT8, "policy": "fast"}, params=dry)).status_code == 409
    answer = await api.post(ROOT, json={**INT8, "policy": "fast"}, params={"dry_run": "maybe"})
    assert answer.json() == {"error": "dry_run: 'maybe' is neither true nor false"}


async def test_a_rollback_names_a_variant_once_although_it_ends_a_rollout_too(api: httpx.AsyncClient, rig: Rig) -> None:
    await started(api)
    await tick(rig, times=2)
    answer = (await api.post("/admin/v1/models/moderation:rollback", json=WHY)).json()
    assert answer["rolled_back"] == ["int8"]


async def test_a_rollback_names_a_variant_whose_rollout_it_ends_before_it_has_traffic(
    api: httpx.AsyncClient, rig: Rig
) -> None:
    path = "/admin/v1/models/moderation:rollback"
    assert (await api.post(path, json=WHY)).json()["rolled_back"] == []
    for id_ in ("int8-1", "int8-2"):  # the second finds its veto in force
        assert await started(api) == id_
        assert (await api.post(path, json=WHY)).json()["rolled_back"] == ["int8"]
        await tick(rig, times=2)
        assert (await api.get(f"{ROOT}/{id_}")).json()["state"] == "rolled_back"


async def test_pause_resume_and_abort(api: httpx.AsyncClient, rig: Rig) -> None:
    id_ = await started(api)
    await tick(rig, times=2)
    paused = (await api.post(f"{ROOT}/{id_}:pause", json=WHY)).json()
    assert (paused["state"], paused["hold"], paused["held"]) == ("paused", "manual", "shadow")
    await tick(rig, times=3)
    assert (await api.get(f"{ROOT}/{id_}")).json()["state"] == "paused"
    assert (await api.post(f"{ROOT}/{id_}:resume", json=WHY)).json()["state"] == "shadow"
    aborted = (await api.post(f"{ROOT}/{id_}:abort", json=WHY)).json()
    assert (aborted["state"], aborted["shadow"], aborted["why"]) == ("rolling_back", 0.0, "because")
    await tick(rig)
    assert (await api.post(f"{ROOT}/{id_}:abort", json=WHY)).status_code == 409
    retried = (await api.post(f"{ROOT}/{id_}:retry", json=WHY)).json()
    assert (retried["state"], retried["attempt"]) == ("pending", 2)
    assert retried["waiting"].startswith("attempt 2 starts in")


async def test_a_promotion_by_hand_needs_every_pass_or_an_override_in_the_trail(
    api: httpx.AsyncClient, rig: Rig
) -> None:
    id_ = await started(api)
    await tick(rig, {"errors": "inconclusive"}, times=4)
    await tick(rig, {"errors": "inconclusive"})
    answer = await api.post(f"{ROOT}/{id_}:promote", json=WHY)
    assert answer.status_code == 409
    assert "nothing holds, and room to go back: errors, inconclusive (errors says" in answer.json()["error"]
    lacks = (await api.get(f"{ROOT}/{id_}")).json()["promotion_lacks"]
    assert [lack.partition(" (")[0] for lack in lacks] == ["errors, inconclusive"]
    answer = await api.post(f"{ROOT}/{id_}:promote", json={**WHY, "override": True})
    assert (answer.json()["state"], answer.json()["weight"], answer.json()["waived"]) == ("promoting", 95.0, ["errors"])
    row = (await rig.trail())[-1]
    assert (row.action, row.actor, row.evidence) == ("rollout-promote", "cli:ann", {"override": ["errors"]})


async def test_a_start_warns_of_steps_that_cannot_be_done_in_time(api: httpx.AsyncClient, rig: Rig) -> None:
    slow = {"at": 1, "mode": "ok", "assumed": {"moderation": {"int8": ASSUMED | {"rate": 0.1}}}}
    assert (await api.post("/admin/v1/monitor/heartbeat", json=slow)).status_code == 200
    view = (await api.post(ROOT, json={**INT8, "policy": "fast"})).json()
    assert view["state"] == "pending"
    assert any(warning.startswith("step 1 is not done within 10m at 0.1 answers/s") for warning in view["warnings"])


async def test_a_prediction_that_cannot_be_made_does_not_keep_a_rollout_from_starting(
    api: httpx.AsyncClient, rig: Rig
) -> None:
    for changed in ({"alpha": 0.0}, {"rate": 0.0}):
        beat = {"at": 1, "mode": "ok", "assumed": {"moderation": {"int8": ASSUMED | changed}}}
        assert (await api.post("/admin/v1/monitor/heartbeat", json=beat)).status_code == 200
        answer = await api.post(ROOT, json={**INT8, "policy": "fast"})
        assert answer.status_code == 200
        assert all("gets no requests" in warning for warning in answer.json()["warnings"])
        await api.post(f"{ROOT}/{answer.json()['id']}:abort", json=WHY)
        await tick(rig)


async def test_a_prediction_is_not_the_answer_to_the_start_with_its_key(api: httpx.AsyncClient, rig: Rig) -> None:
    beat = {"at": 1, "mode": "ok", "assumed": {"moderation": {"int8": ASSUMED}}}
    assert (await api.post("/admin/v1/monitor/heartbeat", json=beat)).status_code == 200
    asked: dict[str, Any] = {"json": {**INT8, "policy": "fast"}, "headers": {"idempotency-key": "k"}}
    assert "assumed" in (await api.post(ROOT, params={"dry_run": "true"}, **asked)).json()
    assert (await api.post(ROOT, **asked)).json()["id"] == "int8-1"
    again = await api.post(ROOT, params={"dry_run": "true"}, **asked)
    assert ("assumed" in again.json(), again.headers["idempotent-replayed"]) == (True, "true")


async def test_no_human_gives_traffic_that_the_baseline_could_not_take_back_unawares(
    api: httpx.AsyncClient, rig: Rig
) -> None:
    id_ = await started(api)
    await tick(rig, times=12)
    assert (await api.get(f"{ROOT}/{id_}")).json()["hold"] == "approval"
    await tick(rig, headroom=0.5)
    answer = await api.post(f"{ROOT}/{id_}:approve", json=WHY)
    assert answer.status_code == 409
    assert "can do 0.50 times the present traffic alone" in answer.json()["error"]
    answer = await api.post(f"{ROOT}/{id_}:promote", json=WHY)
    assert answer.status_code == 409
    assert "room to go back: teacher can do 0.50 times the present traffic alone" in answer.json()["error"]
    answer = await api.post(f"{ROOT}/{id_}:promote", json={**WHY, "override": True})
    assert answer.json()["state"] == "promoting"
    assert (await rig.trail())[-1].evidence == {"override": ["headroom"]}


async def at_its_approval(api: httpx.AsyncClient, rig: Rig, **policy: Any) -> str:
    """A rollout that waits for an approval, at 1 %, before a step to 50 %."""
    id_ = await started(api, **policy)
    await tick(rig, times=12)
    assert (await api.get(f"{ROOT}/{id_}")).json()["hold"] == "approval"
    return id_


async def refusal_of(answer: httpx.Response) -> str:
    assert answer.status_code == 409, answer.text
    error: str = answer.json()["error"]
    return error


async def test_an_approval_raises_nothing_while_a_guard_pauses_the_ramp(api: httpx.AsyncClient, rig: Rig) -> None:
    id_ = await at_its_approval(api, rig)
    await tick(rig, {"slices": "fail"})
    view = (await api.get(f"{ROOT}/{id_}")).json()
    assert (view["hold"], view["waiting"].endswith("before more traffic: slices says fail")) == ("approval", True)
    error = await refusal_of(await api.post(f"{ROOT}/{id_}:approve", json=WHY))
    assert "it may not get more traffic: slices says fail; approve it when that is over" in error
    assert (await api.get(f"{ROOT}/{id_}")).json()["weight"] == 1.0
    view = (await api.post(f"{ROOT}/{id_}:approve", json={**WHY, "override": True})).json()
    assert (view["state"], view["weight"], view["waived"]) == ("ramping", 50.0, ["slices"])
    assert (await rig.trail())[-1].evidence == {"override": ["slices"]}
    await tick(rig, {"slices": "fail"})
    assert (await api.get(f"{ROOT}/{id_}")).json()["state"] == "ramping"  # what was set aside does not hold it again


async def test_an_approval_raises_nothing_while_the_monitor_is_lost_or_the_baseline_is_not_well(
    api: httpx.AsyncClient, rig: Rig
) -> None:
    id_ = await at_its_approval(api, rig)
    for held, words in (({"ailing": "p99 is 90 ms"}, "the baseline is not well: p99 is 90 ms"), ({}, "been silent")):
        await tick(rig, **held)  # type: ignore[arg-type]
        if not held:
            rig.clock.advance(11)
        for override in (False, True):
            answer = await api.post(f"{ROOT}/{id_}:approve", json={**WHY, "override": override})
            assert words in await refusal_of(answer)
    await tick(rig)
    assert (await api.post(f"{ROOT}/{id_}:approve", json=WHY)).json()["weight"] == 50.0


async def test_an_approval_that_gives_no_traffic_is_taken_and_the_brake_stays(api: httpx.AsyncClient, rig: Rig) -> None:
    policy = {**SHORT, "steps": SHORT["steps"][:4]}
    id_ = await at_its_approval(api, rig, policy=policy)
    await tick(rig, {"slices": "fail"})
    view = (await api.post(f"{ROOT}/{id_}:approve", json=WHY)).json()
    assert (view["state"], view["weight"]) == ("ramping", 1.0)
    await tick(rig, {"slices": "fail"})
    view = (await api.get(f"{ROOT}/{id_}")).json()
    assert (view["hold"], view["why"], view["weight"]) == ("guard", "slices says fail", 1.0)


async def test_a_resume_gives_nothing_back_while_a_guard_pauses_the_ramp(api: httpx.AsyncClient, rig: Rig) -> None:
    id_ = await started(api)
    await tick(rig, times=4)
    assert (await api.get(f"{ROOT}/{id_}")).json()["state"] == "ramping"
    await api.put("/admin/v1/models/moderation/traffic", json={**WHY, "weights": {"int8": 0.5}})
    assert (await api.get(f"{ROOT}/{id_}")).json()["hold"] == "manual"
    await tick(rig, {"slices": "fail"})
    assert "slices says fail; resume it when" in await refusal_of(await api.post(f"{ROOT}/{id_}:resume", json=WHY))
    view = (await api.post(f"{ROOT}/{id_}:resume", json={**WHY, "override": True})).json()
    assert (view["weight"], view["waived"]) == (1.0, ["slices"])


async def test_a_promotion_by_hand_yields_to_what_holds_the_ramp_or_names_it_in_the_trail(
    api: httpx.AsyncClient, rig: Rig
) -> None:
    id_ = await at_its_approval(api, rig)
    await tick(rig, {"slices": "fail"}, ailing="p99 is 90 ms")
    error = await refusal_of(await api.post(f"{ROOT}/{id_}:promote", json=WHY))
    assert "room to go back: the baseline is not well: p99 is 90 ms; slices says fail." in error
    rig.clock.advance(11)
    assert "the monitor has been silent" in await refusal_of(await api.post(f"{ROOT}/{id_}:promote", json=WHY))
    view = (await api.post(f"{ROOT}/{id_}:promote", json={**WHY, "override": True})).json()
    assert (view["state"], view["waived"]) == ("promoting", ["slices"])
    assert (await rig.trail())[-1].evidence == {"override": ["slices", "monitor_lost", "baseline"]}


async def test_a_guards_pause_is_left_by_an_override_only(api: httpx.AsyncClient, rig: Rig) -> None:
    id_ = await started(api)
    await tick(rig, times=2)
    await tick(rig, {"agreement": "fail"})
    answer = await api.post(f"{ROOT}/{id_}:resume", json=WHY)
    assert answer.status_code == 409
    assert "a guard pauses it: agreement says fail" in answer.json()["error"]
    await tick(rig, {"agreement": "fail"})
    answer = await api.post(f"{ROOT}/{id_}:resume", json={**WHY, "override": True})
    assert (answer.json()["state"], answer.json()["waived"]) == ("shadow", ["agreement"])


@pytest.mark.parametrize("override", [False, True])
async def test_a_guard_that_pauses_no_longer_needs_no_override_and_refuses_none(
    api: httpx.AsyncClient, rig: Rig, override: bool
) -> None:
    id_ = await started(api)
    await tick(rig, times=2)
    await tick(rig, {"agreement": "fail"})
    await tick(rig, {"agreement": "pass"})
    answer = await api.post(f"{ROOT}/{id_}:resume", json={**WHY, "override": override})
    assert (answer.json()["state"], answer.json()["waived"]) == ("shadow", [])


async def test_a_rollout_is_steered_at_the_epoch_that_was_looked_at_or_not_at_all(
    api: httpx.AsyncClient, rig: Rig
) -> None:
    stale, fresh = {"if-match": '"7"'}, {"if-match": '"1"'}
    refused = await api.post(ROOT, json={**INT8, "policy": SHORT}, headers=stale)
    assert (refused.status_code, rig.plane.state.rollouts) == (412, {})
    assert (await api.post(ROOT, json={**INT8, "policy": SHORT}, headers=fresh)).status_code == 200
    for action, body in (("pause", WHY), ("promote", {**WHY, "override": True})):
        assert (await api.post(f"{ROOT}/int8-1:{action}", json=body, headers=stale)).status_code == 412
    assert rig.plane.state.rollouts["int8-1"].state == "pending"
    assert (await api.post(f"{ROOT}/int8-1:pause", json=WHY, headers=fresh)).json()["hold"] == "manual"
    assert (await api.post(f"{ROOT}/int8-1:resume", json=WHY, headers={"if-match": "*"})).status_code == 200
    assert (await api.post(f"{ROOT}/int8-1:abort", json=WHY, headers=stale)).json()["state"] == "rolling_back"


async def test_what_is_not_there_and_what_cannot_be(api: httpx.AsyncClient, rig: Rig) -> None:
    for action in ("pause", "resume", "promote", "abort", "approve", "retry"):
        assert (await api.post(f"{ROOT}/int8-9:{action}", json=WHY)).status_code == 404
    assert (await api.get(f"{ROOT}/int8-9")).status_code == 404
    id_ = await started(api)
    for action in ("approve", "resume", "retry"):
        answer = await api.post(f"{ROOT}/{id_}:{action}", json=WHY)
        assert (answer.status_code, "not possible while it is pending" in answer.json()["error"]) == (409, True)
    assert (await api.post(f"{ROOT}/{id_}:jump", json=WHY)).status_code in (404, 405)


def tokens() -> Auth:
    roles = (*ROLES, "monitor")
    return Auth([Token(role, role, hashed(role)) for role in roles])


@pytest.mark.parametrize(
    ("path", "least"),
    [("", "operator"), *((f"/int8-1:{word}", "operator") for word in ("pause", "resume", "abort", "approve", "retry")),
     ("/int8-1:promote", "release-manager")],
)  # fmt: skip
async def test_who_may_do_what(rig: Rig, path: str, least: str) -> None:
    async with client(rig, tokens()) as api:
        assert (await api.post(f"{ROOT}{path}", json=WHY)).status_code == 401
        for role in (*ROLES, "monitor"):
            body = WHY if path else {**INT8, "policy": "fast"}
            answer = await api.post(f"{ROOT}{path}", json=body, headers={"authorization": f"Bearer {role}"})
            allowed = role in ROLES and ROLES.index(role) >= ROLES.index(least)
            assert (answer.status_code != 403) == allowed, (role, answer.text)


async def test_an_approval_asks_for_the_role_of_its_step(rig: Rig) -> None:
    policy = {**SHORT, "steps": [*SHORT["steps"][:3], {"approve": {"role": "admin"}}, *SHORT["steps"][4:]]}
    async with client(rig, tokens(), headers={"authorization": "Bearer release-manager"}) as api:
        id_ = await started(api, policy=policy)
        await tick(rig, times=6)
        assert (await api.get(f"{ROOT}/{id_}")).json()["hold"] == "approval"
        refused = await api.post(f"{ROOT}/{id_}:approve", json=WHY)
        assert (refused.status_code, "admin is needed" in refused.json()["error"]) == (403, True)
        admin = {"authorization": "Bearer admin"}
        assert (await api.post(f"{ROOT}/{id_}:approve", json=WHY, headers=admin)).json()["weight"] == 50.0


async def test_a_promotion_asks_for_the_role_of_each_approval_that_it_skips(rig: Rig) -> None:
    policy = {**SHORT, "steps": [*SHORT["steps"][:3], {"approve": {"role": "admin"}}, *SHORT["steps"][4:]]}
    async with client(rig, tokens(), headers={"authorization": "Bearer release-manager"}) as api:
        admin = {"authorization": "Bearer admin"}
        for times, waits in ((4, False), (7, True)):
            id_ = await started(api, policy=policy)
            await tick(rig, times=times)  # on its way to the approval, or at it
            assert ((await api.get(f"{ROOT}/{id_}")).json()["hold"] == "approval") == waits
            refused = await api.post(f"{ROOT}/{id_}:promote", json={**WHY, "override": True})
            assert (refused.status_code, "admin is needed" in refused.json()["error"]) == (403, True)
            if not waits:
                await api.post(f"{ROOT}/{id_}:abort", json=WHY)
                await tick(rig)
        approved = await api.post(f"{ROOT}/{id_}:approve", json=WHY, headers=admin)
        assert approved.json()["weight"] == 50.0
        await tick(rig)
        assert (await api.post(f"{ROOT}/{id_}:promote", json=WHY)).json()["state"] == "promoting"


async def test_a_rollout_of_what_is_not_approved_is_refused(tmp_path: Path) -> None:
    asked = []

    def refusal(model: str, variant: str, artifact: str) -> str:
        asked.append((model, variant, artifact))
        return "models.moderation.variants.int8: moderation/int8:1 is not approved"

    rig = Rig(tmp_path, refusal=refusal)
    await rig.start({"moderation": spec(weights={}, shadow={})})
    async with client(rig) as api:
        answer = await api.post(ROOT, json={**INT8, "policy": SHORT})
        assert answer.status_code == 409
        assert answer.json() == {"error": "models.moderation.variants.int8: moderation/int8:1 is not approved"}
        assert (await api.get(ROOT)).json() == {"rollouts": []}
        assert asked == [("moderation", "int8", "moderation/int8:1")]
        assert (await api.post(ROOT, json={**INT8, "variant": "absent", "policy": SHORT})).status_code == 404


async def test_a_retry_of_what_is_no_longer_approved_is_refused(tmp_path: Path) -> None:
    fault: list[str] = []
    rig = Rig(tmp_path, refusal=lambda model, variant, artifact: "".join(fault))
    await rig.start({"moderation": spec(weights={}, shadow={})})
    async with client(rig) as api:
        id_ = await started(api)
        await api.post(f"{ROOT}/{id_}:abort", json=WHY)
        await tick(rig)
        fault.append("moderation/int8:1 is not approved")
        assert await refusal_of(await api.post(f"{ROOT}/{id_}:retry", json=WHY)) == fault[0]
        fault.clear()
        assert (await api.post(f"{ROOT}/{id_}:retry", json=WHY)).json()["state"] == "pending"
