"""The admin API in process: what a client sends, what it gets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from control_kit import Rig, until

from serving.control.api import create_app
from serving.control.auth import Auth
from serving.control.http import BODY_MAX, allowed_hosts
from serving.control.tokens import Token, hashed
from serving.errors import HTTP_STATUS

ROOT = "/admin/v1"
ONE = f"{ROOT}/models/moderation"
WHY = {"reason": "because", "actor": "cli:ann"}
ROLES = ("viewer", "tester", "labeller", "operator", "release-manager", "admin", "monitor")


def client(rig: Rig, auth: Auth | None = None, console: Path | None = None, **more: Any) -> httpx.AsyncClient:
    app = create_app(rig.plane, auth or Auth(None), clock=rig.clock, host="127.0.0.1", port=8003, console_dir=console)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8003", **more)


def series(request: httpx.Request) -> httpx.Response:
    if request.url.path == "/v1/calibration/moderation":
        return httpx.Response(200, json={"model": "moderation", "reports": []})
    if request.url.params["model"] != "moderation":
        return httpx.Response(500)
    return httpx.Response(200, json={"model": "moderation", "seconds": request.url.params["seconds"]})


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path, transport=httpx.MockTransport(series))
    await rig.start()
    return rig


@pytest.fixture
async def api(rig: Rig) -> AsyncIterator[httpx.AsyncClient]:
    async with client(rig) as api:
        yield api


# ---------------------------------------------------------------- reading


async def test_the_status_has_all_that_a_reader_needs(api: httpx.AsyncClient, rig: Rig) -> None:
    status = (await api.get(f"{ROOT}/status")).json()
    assert set(status) >= {
        "version", "instance", "started_at", "rev", "lease", "monitor", "gateways", "control", "urls", "models",
    }  # fmt: skip
    assert status["rev"] == rig.plane.state.rev
    assert status["control"]["database"] == "ok"


async def test_a_model_is_shown_with_its_variants(api: httpx.AsyncClient) -> None:
    view = (await api.get(ONE)).json()
    assert (await api.get(f"{ROOT}/models")).json() == {"models": [view]}
    assert set(view) >= {
        "model", "epoch", "baseline", "teacher", "killed", "kill_seq", "cleared_seq", "reference_percent",
        "rollback_headroom_ratio", "variants",
    }  # fmt: skip
    assert [(v["name"], v["role"], v["weight"], v["shadow"]) for v in view["variants"]] == [
        ("teacher", "baseline", 95.0, 0.0),
        ("int8", "candidate", 5.0, 0.0),
        ("distilled", "candidate", 0.0, 20.0),
    ]
    assert view["variants"][1] == {
        "name": "int8", "version": 2, "artifact": "moderation/int8:1", "placement": "isolated",
        "runtime": "onnxruntime", "relation": "quantized", "role": "candidate", "weight": 5.0, "shadow": 0.0,
        "vetoed": False, "rolled_back": None, "evaluation": {"accuracy": 0.97},
    }  # fmt: skip


async def test_the_snapshot_long_poll(api: httpx.AsyncClient, rig: Rig) -> None:
    now = (await api.get(f"{ROOT}/snapshot")).json()
    assert now["rev"] == rig.plane.state.rev
    assert (await api.get(f"{ROOT}/snapshot?rev=-1&wait_s=60")).json() == now
    assert (await api.get(f"{ROOT}/snapshot?rev={now['rev']}&wait_s=0")).json() == now
    parked = asyncio.create_task(api.get(f"{ROOT}/snapshot?rev={now['rev']}&wait_s=60"))
    await until(lambda: bool(rig.plane._changed._waiters))
    await api.post(f"{ONE}:kill", json=WHY)
    assert (await parked).json()["kills"] == {"moderation": {"seq": 1, "cleared": 0}}


async def test_verdicts_and_series_come_from_the_monitor(api: httpx.AsyncClient, rig: Rig) -> None:
    verdict = {"guard": "errors", "variant": "int8", "verdict": "pass"}
    beat = {"at": 1.5, "mode": "degraded", "verdicts": {"moderation": [verdict]}, "loss_ratio": 0.02, "instance": "x"}
    assert (await api.post(f"{ROOT}/monitor/heartbeat", json=beat)).status_code == 200
    assert (await api.get(f"{ONE}/verdicts")).json() == {
        "model": "moderation", "at": 1.5, "stale": False, "verdicts": [verdict],
    }  # fmt: skip
    assert (await api.get(f"{ROOT}/status")).json()["monitor"]["mode"] == "degraded"
    assert (await api.get(f"{ONE}/series?seconds=60")).json() == {"model": "moderation", "seconds": "60"}
    assert (await api.get(f"{ONE}/calibration")).json() == {"model": "moderation", "reports": []}
    rig.clock.advance(6)
    assert (await api.get(f"{ONE}/verdicts")).json()["stale"] is True


async def test_a_monitor_that_does_not_answer_is_named(tmp_path: Path) -> None:
    def refuse(_request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    rig = Rig(tmp_path, transport=httpx.MockTransport(refuse))
    await rig.start()
    async with client(rig) as api:
        response = await api.get(f"{ONE}/series")
    assert response.status_code == 503
    assert response.json() == {"error": "the monitor at http://monitor does not answer: connection refused"}


async def test_the_trail_is_paged_filtered_and_verified(api: httpx.AsyncClient) -> None:
    for percent in (6, 7, 8):
        await api.put(f"{ONE}/traffic", json={"weights": {"int8": percent}, **WHY})
    page = (await api.get(f"{ROOT}/audit?limit=2")).json()["entries"]
    assert [row["seq"] for row in page] == [4, 3]
    assert page[0]["after"]["weights"]["int8"] == 8
    older = (await api.get(f"{ROOT}/audit?limit=2&before=3&model=moderation")).json()["entries"]
    assert [row["seq"] for row in older] == [2, 1]
    assert (await api.get(f"{ROOT}/audit?model=other")).json() == {"entries": []}
    assert (await api.get(f"{ROOT}/audit/verify")).json() == {"ok": True, "entries": 4, "first_bad": None}


async def test_events_follow_every_act(rig: Rig) -> None:
    frames = rig.plane.events.join()
    assert frames is not None
    async with client(rig) as api:
        await api.put(f"{ONE}/traffic", json={"weights": {"int8": 6}, **WHY})
        await api.post(f"{ROOT}/monitor/heartbeat", json={"at": 1, "mode": "ok", "verdicts": {"moderation": []}})
    stream = frames.frames()
    events = [(await anext(stream)).split(b"\n")[0] for _ in range(3)]
    assert events == [b"event: audit", b"event: snapshot", b"event: verdicts"]


# ---------------------------------------------------------------- changing


async def test_traffic_is_set_and_shown(api: httpx.AsyncClient) -> None:
    body = {"weights": {"int8": 12.5}, "shadow": {"distilled": 0}, "reference_percent": 100, **WHY}
    response = await api.put(f"{ONE}/traffic", json=body)
    assert response.status_code == 200
    assert response.json()["variants"][1]["weight"] == 12.5
    assert response.json()["reference_percent"] == 100
    assert response.json()["epoch"] == 2
    row = (await api.get(f"{ROOT}/audit")).json()["entries"][0]
    assert (row["actor"], row["reason"], row["action"]) == ("cli:ann", "because", "traffic")


async def test_kill_and_rearm(api: httpx.AsyncClient) -> None:
    assert (await api.post(f"{ONE}:kill", json=WHY)).json() == {"model": "moderation", "kill_seq": 1}
    assert (await api.post(f"{ONE}:kill", json={**WHY, "kill_seq": 4})).json()["kill_seq"] == 4
    refusal = await api.put(f"{ONE}/traffic", json={"weights": {"int8": 50}, **WHY})
    assert (refusal.status_code, "is killed (kill_seq 4)" in refusal.json()["error"]) == (409, True)
    assert (await api.post(f"{ONE}:rearm", json={**WHY, "kill_seq": 1})).status_code == 409
    view = (await api.post(f"{ONE}:rearm", json={**WHY, "kill_seq": 4})).json()
    assert (view["killed"], view["kill_seq"], view["cleared_seq"]) == (False, 4, 4)


async def test_the_kill_switch_of_all_models(api: httpx.AsyncClient) -> None:
    assert (await api.post(f"{ROOT}/kill-switch", json=WHY)).json() == {"model": "*", "kill_seq": 1}
    assert (await api.get(ONE)).json()["killed"] is True
    response = await api.post(f"{ROOT}/kill-switch:rearm", json={**WHY, "kill_seq": 1})
    assert (response.status_code, response.json()["on"]) == (200, False)
    assert (await api.get(ONE)).json()["killed"] is False


@pytest.mark.parametrize("path", [f"{ONE}:kill", f"{ROOT}/kill-switch"])
async def test_a_kill_answers_with_its_own_number_though_another_comes_while_it_is_written(
    api: httpx.AsyncClient, rig: Rig, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    write, others = rig.plane._word.write, [1]

    async def slow(writes: Any) -> bool:
        if others:
            others.pop()
            assert (await api.post(path, json=WHY)).json()["kill_seq"] == 2
        return await write(writes)

    monkeypatch.setattr(rig.plane._word, "write", slow)
    assert (await api.post(path, json=WHY)).json()["kill_seq"] == 1


async def test_rollback_carries_its_evidence_into_the_trail(api: httpx.AsyncClient, rig: Rig) -> None:
    body = {"variant": "int8", "reason": "flips", "actor": "monitor", "evidence": {"guard": "agreement", "events": 9}}
    assert (await api.post(f"{ONE}:rollback", json=body)).json() == {
        "model": "moderation", "epoch": 2, "rolled_back": ["int8"],
    }  # fmt: skip
    assert (await api.post(f"{ONE}:rollback", json=WHY)).json()["rolled_back"] == ["distilled"]
    await rig.plane.save_pending()
    rows = (await api.get(f"{ROOT}/audit")).json()["entries"]
    assert rows[1]["evidence"] == {"guard": "agreement", "events": 9}
    shown = (await api.get(ONE)).json()["variants"][1]
    assert shown["vetoed"] is True
    assert (shown["rolled_back"]["reason"], shown["rolled_back"]["actor"]) == ("flips", "monitor")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("PUT", f"{ONE}/traffic", {"weights": {"int8": 105}, **WHY}, 400, "weights.int8: 105 is over 100"),
        ("PUT", f"{ONE}/traffic", {"weights": {"int8": 5}}, 400, "missing required field `reason`"),
        ("PUT", f"{ONE}/traffic", {"weights": {"int8": 5}, "reason": "  "}, 400, "reason: say why"),
        ("PUT", f"{ONE}/traffic", {"weights": {"int8": "5"}, **WHY}, 400, "Expected `float`, got `str`"),
        ("PUT", f"{ONE}/traffic", {"weight": {"int8": 5}, **WHY}, 400, "unknown field `weight`"),
        ("PUT", f"{ONE}/traffic", {**WHY, "actor": "x\n"}, 400, "name at least one of weights"),
        ("PUT", f"{ONE}/traffic", {**WHY, "actor": "a\nb"}, 400, "actor: is longer than 100 characters or"),
        ("PUT", f"{ROOT}/models/spam/traffic", WHY, 404, "unknown model 'spam', expected one of: moderation"),
        ("PUT", f"{ONE}/traffic", {"weights": {"int4": 5}, **WHY}, 404, "unknown variant 'int4'"),
        ("POST", f"{ONE}:kill", {**WHY, "kill_seq": 2**60}, 400, "kill_seq: "),
        ("POST", f"{ONE}:rearm", WHY, 400, "missing required field `kill_seq`"),
        ("POST", f"{ONE}:rearm", {**WHY, "kill_seq": 1}, 409, "no kill of moderation is in force"),
        ("POST", f"{ROOT}/monitor/heartbeat", {"at": 1, "mode": "fine"}, 400, "Invalid enum value 'fine'"),
        ("GET", f"{ROOT}/models/spam", None, 404, "unknown model 'spam'"),
        ("GET", f"{ROOT}/models/spam/verdicts", None, 404, "unknown model 'spam'"),
        ("GET", f"{ROOT}/audit?limit=0", None, 400, "limit: 0 is not between 1 and 1000"),
        ("GET", f"{ROOT}/audit?before=x", None, 400, "before: 'x' is not an integer"),
        ("GET", f"{ROOT}/nothing", None, 404, "there is nothing at /admin/v1/nothing"),
        ("GET", "/nothing", None, 404, "there is nothing at /nothing"),
        ("DELETE", ONE, {}, 405, "DELETE is not allowed here"),
        ("POST", f"{ROOT}/status", {}, 405, "POST is not allowed here"),
    ],
)  # fmt: skip
async def test_errors_are_json_and_say_what_is_wrong(
    api: httpx.AsyncClient, method: str, path: str, body: Any, status: int, message: str
) -> None:
    response = await api.request(method, path, json=body)
    assert response.status_code == status
    assert set(response.json()) == {"error"}
    assert message in response.json()["error"]


async def test_a_body_that_is_no_json_or_too_large_is_refused(api: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/json"}
    response = await api.post(f"{ONE}:kill", content=b'{"reason', headers=headers)
    assert (response.status_code, "the body cannot be used" in response.json()["error"]) == (400, True)
    response = await api.post(f"{ONE}:kill", content=b" " * (BODY_MAX + 1), headers=headers)
    assert (response.status_code, response.json()) == (413, {"error": "the body is over 1024 KiB"})

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(17):
            yield b" " * 65536

    assert (await api.post(f"{ONE}:kill", content=chunks(), headers=headers)).status_code == 413


async def test_what_nobody_expected_stays_unsaid(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(rig.plane, "status", fail)
    async with client(rig) as api:
        response = await api.get(f"{ROOT}/status")
    assert (response.status_code, response.json()) == (500, {"error": "internal error: see the control plane's log"})


# ---------------------------------------------------------------- conditional and repeated


async def test_a_long_reason_is_cut_and_does_not_stop_a_kill(api: httpx.AsyncClient, rig: Rig) -> None:
    assert (await api.post(f"{ONE}:kill", json={"reason": "x" * 5000})).status_code == 200
    assert len(rig.plane.state.killed["moderation"].reason) == 1000


async def test_if_match_refuses_a_change_of_a_table_that_has_moved_on(api: httpx.AsyncClient) -> None:
    body = {"weights": {"int8": 6}, **WHY}
    assert (await api.put(f"{ONE}/traffic", json=body, headers={"if-match": '"1"'})).status_code == 200
    body = {"weights": {"int8": 7}, **WHY}
    stale = await api.put(f"{ONE}/traffic", json=body, headers={"if-match": '"1"'})
    assert (stale.status_code, "is at epoch 2, not 1" in stale.json()["error"]) == (412, True)
    assert (await api.put(f"{ONE}/traffic", json=body, headers={"if-match": "x"})).status_code == 400


async def test_an_idempotency_key_repeats_the_answer_and_does_nothing_twice(api: httpx.AsyncClient) -> None:
    headers = {"idempotency-key": "k1"}
    first = await api.post(f"{ONE}:kill", json=WHY, headers=headers)
    await api.post(f"{ONE}:rearm", json={**WHY, "kill_seq": 1})
    again = await api.post(f"{ONE}:kill", json=WHY, headers=headers)
    assert (again.status_code, again.json()) == (first.status_code, first.json())
    assert again.headers["idempotent-replayed"] == "true"
    assert (await api.get(ONE)).json()["killed"] is False
    other = await api.post(f"{ONE}:kill", json={"reason": "another"}, headers=headers)
    assert (other.status_code, "another body" in other.json()["error"]) == (409, True)


async def test_a_refusal_is_not_repeated_and_a_key_expires(api: httpx.AsyncClient, rig: Rig) -> None:
    headers = {"idempotency-key": "k1"}
    assert (await api.post(f"{ONE}:rearm", json={**WHY, "kill_seq": 1}, headers=headers)).status_code == 409
    await api.post(f"{ONE}:kill", json=WHY)
    assert (await api.post(f"{ONE}:rearm", json={**WHY, "kill_seq": 1}, headers=headers)).status_code == 200
    rig.clock.advance(601)
    assert (await api.post(f"{ONE}:rearm", json={**WHY, "kill_seq": 1}, headers=headers)).status_code == 409


# ---------------------------------------------------------------- who may ask


async def test_only_our_own_names_are_served(rig: Rig) -> None:
    async with client(rig) as api:
        for host in ("127.0.0.1:8003", "localhost:8003", "[::1]:8003", "LOCALHOST:8003"):
            assert (await api.get(f"{ROOT}/status", headers={"host": host})).status_code == 200
        for host in ("evil.example:8003", "127.0.0.1", "127.0.0.1:9", "localhost:8003.evil.example", ""):
            response = await api.get(f"{ROOT}/status", headers={"host": host})
            assert response.status_code in (400, 403)
            assert "error" in response.json()


def test_the_configured_host_is_one_of_them_and_a_wildcard_means_any() -> None:
    assert "box.local:8003" in allowed_hosts("box.local", 8003)
    assert allowed_hosts("0.0.0.0", 8003) == frozenset()


async def test_a_foreign_origin_can_do_nothing(api: httpx.AsyncClient, rig: Rig) -> None:
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9999", "http://127.0.0.1:8003.evil.example"):
        response = await api.post(f"{ONE}:kill", json=WHY, headers={"origin": origin})
        assert response.status_code == 403
    assert rig.plane.state.kills == {}
    response = await api.post(f"{ONE}:kill", json=WHY, headers={"origin": "http://localhost:8003"})
    assert response.status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
async def test_a_form_can_do_nothing(api: httpx.AsyncClient, kind: str | None) -> None:
    headers = {"content-type": kind} if kind else {}
    response = await api.post(f"{ONE}:kill", content=json.dumps(WHY).encode(), headers=headers)
    assert response.status_code == 415
    assert "Content-Type must be application/json" in response.json()["error"]


def tokens() -> Auth:
    return Auth([Token(role, role, hashed(role)) for role in ROLES])


@pytest.mark.parametrize(
    ("method", "path", "body", "allowed"),
    [
        ("GET", f"{ROOT}/status", None, ROLES),
        ("PUT", f"{ONE}/traffic", {"weights": {"int8": 6}, **WHY}, ("operator", "release-manager", "admin")),
        ("POST", f"{ONE}:rollback", WHY, ("operator", "release-manager", "admin", "monitor")),
        ("POST", f"{ONE}:kill", WHY, ("operator", "release-manager", "admin", "monitor")),
        ("POST", f"{ROOT}/kill-switch", WHY, ("operator", "release-manager", "admin", "monitor")),
        ("POST", f"{ONE}:rearm", {**WHY, "kill_seq": 1}, ("release-manager", "admin")),
        ("POST", f"{ROOT}/kill-switch:rearm", {**WHY, "kill_seq": 1}, ("release-manager", "admin")),
        ("POST", f"{ROOT}/monitor/heartbeat", {"at": 1, "mode": "ok"},
         ("operator", "release-manager", "admin", "monitor")),
    ],
)  # fmt: skip
async def test_each_role_may_do_what_the_table_says(
    rig: Rig, method: str, path: str, body: Any, allowed: tuple[str, ...]
) -> None:
    async with client(rig, tokens()) as api:
        response = await api.request(method, path, json=body)
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
        for role in ROLES:
            response = await api.request(method, path, json=body, headers={"authorization": f"Bearer {role}"})
            assert (response.status_code != 403) == (role in allowed), (role, response.text)


async def test_the_name_in_the_trail_is_the_tokens_and_a_claimed_one_is_noted(rig: Rig) -> None:
    async with client(rig, tokens(), headers={"authorization": "Bearer operator"}) as api:
        await api.put(f"{ONE}/traffic", json={"weights": {"int8": 6}, **WHY})
        row = (await api.get(f"{ROOT}/audit")).json()["entries"][0]
    assert (row["actor"], row["evidence"]) == ("operator", {"claimed": "cli:ann"})


# ---------------------------------------------------------------- console and health


async def test_the_console_is_served_with_a_strict_policy_and_nothing_beside_it(rig: Rig, tmp_path: Path) -> None:
    console = tmp_path / "console"
    (console / "css").mkdir(parents=True)
    (console / "index.html").write_text("<title>console</title>")
    (console / "css" / "x.css").write_text("body {}")
    (tmp_path / "secret").write_text("hidden")
    (console / "link").symlink_to(tmp_path / "secret")
    async with client(rig, console=console) as api:
        page = await api.get("/")
        assert "<title>console</title>" in page.text
        assert page.headers["content-security-policy"].startswith("default-src 'self'")
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.headers["cache-control"] == "no-cache"
        assert (await api.get("/css/x.css")).headers["content-type"].startswith("text/css")
        for path in ("/../secret", "/%2e%2e/secret", "/css/..%2f..%2fsecret", "/%2e%2e%2fsecret", "/link"):
            response = await api.get(path)
            assert response.status_code == 404
            assert "hidden" not in response.text
        assert (await api.get(f"{ROOT}/nothing")).json() == {"error": "there is nothing at /admin/v1/nothing"}
        assert (await api.put(f"{ONE}:kill", json=WHY)).status_code == 405


async def test_health_needs_no_token(rig: Rig) -> None:
    async with client(rig, tokens()) as api:
        assert (await api.get("/healthz")).json() == {"status": "ok"}


async def test_answers_are_never_cached(api: httpx.AsyncClient) -> None:
    assert (await api.get(f"{ROOT}/status")).headers["cache-control"] == "no-store"


def test_every_status_of_a_refusal_is_mapped() -> None:
    assert set(HTTP_STATUS.values()) >= {400, 401, 403, 404, 409, 413, 429, 503}


async def test_too_many_parked_polls_are_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.control.api.PARKED_MAX", 0)
    async with client(rig) as api:
        response = await api.get(f"{ROOT}/snapshot?rev={rig.plane.state.rev}&wait_s=5")
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")


async def test_with_a_dead_database_the_brakes_work_and_the_rest_says_so(rig: Rig, api: httpx.AsyncClient) -> None:
    rig.store.failing = True
    response = await api.post(f"{ONE}:rollback", json=WHY)
    assert response.status_code == 200
    assert (await api.post(f"{ONE}:kill", json=WHY)).status_code == 200
    response = await api.put(f"{ONE}/traffic", json={"reference_percent": 1, **WHY})
    assert response.status_code == 503
    assert response.json()["error"].startswith("nothing was changed: ")


@pytest.mark.parametrize(
    "odd", ['{"n": 1180591620717411303424}', f'{{"deep": {"[" * 253}1{"]" * 253}}}'], ids=["huge", "deep"]
)  # fmt: skip
async def test_evidence_that_no_row_can_hold_keeps_nobody_from_a_kill(
    api: httpx.AsyncClient, rig: Rig, odd: str
) -> None:
    body = '{"reason": "why", "evidence": %s}' % odd  # noqa: UP031 - braces
    answer = await api.post(f"{ONE}:kill", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    assert await rig.plane.save_pending()
    assert "could not be kept" in (await rig.trail())[-1].evidence["unusable"]
    assert (await rig.plane.verify()).ok


@pytest.mark.parametrize("body", ["[" * 100_000, '{"reason": "\\ud800"}', '{"reason": "x", "nope": 1}', "\ufeff{}", ""])
async def test_an_odd_body_is_the_clients_fault(api: httpx.AsyncClient, body: str) -> None:
    answer = await api.post(f"{ONE}:kill", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert "body cannot be used" in answer.json()["error"]


async def test_a_paused_ramp_is_a_conflict_that_can_be_overridden(api: httpx.AsyncClient, rig: Rig) -> None:
    verdict = {"guard": "agreement", "variant": "int8", "verdict": "fail", "action": "pause", "sentence": "it differs"}
    beat = {"at": 1.0, "mode": "ok", "verdicts": {"moderation": [verdict]}}
    assert (await api.post(f"{ROOT}/monitor/heartbeat", json=beat)).status_code == 200
    answer = await api.put(f"{ONE}/traffic", json={**WHY, "weights": {"int8": 10}})
    assert answer.status_code == 409
    assert "it differs" in answer.json()["error"]
    answer = await api.put(f"{ONE}/traffic", json={**WHY, "weights": {"int8": 10}, "override_pause": True})
    assert answer.status_code == 200


async def test_more_past_than_the_monitor_keeps_is_the_clients_fault(api: httpx.AsyncClient) -> None:
    answer = await api.get(f"{ONE}/series", params={"seconds": 901})
    assert answer.status_code == 400
    assert answer.json()["error"] == "seconds: 901 is not between 1 and 900"


async def test_an_origin_that_is_no_url_can_do_nothing(api: httpx.AsyncClient) -> None:
    assert (await api.get(f"{ROOT}/status", headers={"origin": "http://[oops"})).status_code == 403
