"""The description of the admin API is that of its routes: each of them, with the bodies they really take."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from control_kit import ME, Rig
from jsonschema import Draft202012Validator
from starlette.routing import Mount

from serving.control.api import create_app
from serving.control.auth import Auth
from serving.control.openapi import AdminRoute, example
from serving.control.tokens import Token, hashed
from serving.core.commands import StartRollout
from serving.core.rollout_policy import NAMED
from serving.roles import MONITOR, ROLES

ROOT = "/admin/v1"
Json = dict[str, Any]


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    monitor = httpx.MockTransport(lambda _request: httpx.Response(200, json={"model": "moderation"}))
    rig = Rig(tmp_path, transport=monitor)
    await rig.start()
    await rig.plane.execute(StartRollout("moderation", "distilled", NAMED["shadow-only"], "shadow-only", ME))
    return rig


@pytest.fixture
def app(rig: Rig) -> Any:
    tokens = Auth([Token(role, role, hashed(role)) for role in (*ROLES, MONITOR)])
    return create_app(rig.plane, tokens, clock=rig.clock, host="127.0.0.1", port=8003)


@pytest.fixture
async def api(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8003") as client:
        yield client


@pytest.fixture
async def spec(api: httpx.AsyncClient) -> Json:
    answer = await api.get(f"{ROOT}/openapi.json")
    assert answer.status_code == 200
    found: Json = answer.json()
    return found


def admin_routes(app: Any) -> list[AdminRoute]:
    (mount,) = [route for route in app.routes if isinstance(route, Mount) and route.path == ROOT]
    assert all(isinstance(route, AdminRoute) for route in mount.routes)
    return list(mount.routes)


def operations(spec: Json) -> list[tuple[str, str, Json]]:
    return [(method, path, said) for path, methods in spec["paths"].items() for method, said in methods.items()]


def place(path: str) -> str:
    return path.replace("{model}", "moderation").replace("{id}", "distilled-1")


def least(spec: Json, said: Json) -> Json:
    """The least body of an operation that has one."""
    found: Json = example(said["requestBody"]["content"]["application/json"]["schema"], spec["components"]["schemas"])
    return found


async def send(api: httpx.AsyncClient, method: str, path: str, body: Any, role: str = "admin") -> httpx.Response:
    headers = {"authorization": f"Bearer {role}"}
    return await api.request(method, place(path), json=body, headers=headers)


async def test_every_route_is_described_and_nothing_else(app: Any, spec: Json) -> None:
    real = {(route.method.lower(), ROOT + route.path) for route in admin_routes(app)}
    assert {(method, path) for method, path, _ in operations(spec)} == real
    unsaid = [f"{route.method} {route.path}" for route in admin_routes(app) if route.operation is None]
    assert unsaid == [], "say what these are for, with @operation"


async def test_the_document_is_well_formed(spec: Json) -> None:
    assert spec["openapi"] == "3.1.0"
    identifiers = [said["operationId"] for _, _, said in operations(spec)]
    assert len(set(identifiers)) == len(identifiers)
    for schema in spec["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    references = set(re.findall(r'"#/components/schemas/(\w+)"', str(spec).replace("'", '"')))
    assert references <= set(spec["components"]["schemas"])
    for _, path, said in operations(spec):
        named = {one["name"] for one in said["parameters"] if one["in"] == "path"}
        assert named == set(re.findall(r"\{(\w+)\}", path))


async def test_the_described_roles_are_those_that_get_in(api: httpx.AsyncClient, spec: Json) -> None:
    for method, path, said in operations(spec):
        if said["responses"]["200"]["content"].keys() == {"text/event-stream"}:
            continue  # it would not end
        for role in (*ROLES, MONITOR):
            answer = await send(api, method, path, {} if method != "get" else None, role)
            assert (answer.status_code != 403) == (role in said["x-canarium-roles"]), (method, path, role)


async def test_bodies_are_decoded_as_described(api: httpx.AsyncClient, spec: Json) -> None:
    schemas = spec["components"]["schemas"]
    described = [one for one in operations(spec) if "requestBody" in one[2]]
    assert len(described) >= 6
    for method, path, said in described:
        schema = said["requestBody"]["content"]["application/json"]["schema"]
        body = least(spec, said)
        taken = await send(api, method, path, body)
        assert "the body cannot be used" not in taken.text, (method, path, taken.text)
        if schemas[schema["$ref"].rpartition("/")[2]].get("additionalProperties") is False:
            refused = await send(api, method, path, {**body, "nonsense": 1})
            assert (refused.status_code, "unknown field `nonsense`" in refused.text) == (400, True), path
        for name in body:
            refused = await send(api, method, path, {key: value for key, value in body.items() if key != name})
            assert (refused.status_code, f"missing required field `{name}`" in refused.text) == (400, True), path


async def test_every_change_has_a_described_body(spec: Json) -> None:
    assert [path for method, path, said in operations(spec) if method != "get" and "requestBody" not in said] == []


async def test_answers_fit_their_description(api: httpx.AsyncClient, spec: Json) -> None:
    components = {"components": spec["components"]}
    checked = 0
    for method, path, said in operations(spec):
        content = said["responses"]["200"]["content"]
        if method != "get" or "application/json" not in content:
            continue
        answer = await send(api, method, path, None)
        assert answer.status_code == 200, (path, answer.text)
        Draft202012Validator(content["application/json"]["schema"] | components).validate(answer.json())
        checked += 1
    assert checked >= 6
    refused = await api.get(f"{ROOT}/status")
    error = spec["paths"][f"{ROOT}/status"]["get"]["responses"]["401"]["content"]["application/json"]["schema"]
    Draft202012Validator(error | components).validate(refused.json())


async def test_bounds_of_the_query_are_those_that_are_refused(api: httpx.AsyncClient, spec: Json) -> None:
    for method, path, said in operations(spec):
        for one in said["parameters"]:
            if one["in"] == "query" and one["schema"]["type"] == "integer":
                for value in (one["schema"]["minimum"] - 1, one["schema"]["maximum"] + 1):
                    answer = await api.request(
                        method, place(path), params={one["name"]: value}, headers={"authorization": "Bearer admin"}
                    )
                    assert (answer.status_code, answer.json()["error"].startswith(one["name"])) == (400, True), path


async def test_if_match_is_obeyed_where_it_is_described(api: httpx.AsyncClient, spec: Json) -> None:
    conditional = [
        (method, path, said)
        for method, path, said in operations(spec)
        if any(one["name"] == "If-Match" for one in said["parameters"])
    ]
    steered = ("approve", "pause", "promote", "resume", "retry")
    assert [(method, path.removeprefix(ROOT)) for method, path, _ in conditional] == [
        ("put", "/models/{model}/traffic"),
        ("post", "/models/{model}:rearm"),
        ("post", "/rollouts"),
        *(("post", f"/rollouts/{{id}}:{action}") for action in steered),
    ]
    for method, path, said in conditional:
        headers = {"authorization": "Bearer admin", "if-match": '"999"'}
        body = least(spec, said)
        body |= {"model": "moderation", "variant": "int8"} if path.endswith("/rollouts") else {}
        answer = await api.request(method, place(path), json=body, headers=headers)
        assert (answer.status_code, "412" in said["responses"]) == (412, True), (path, answer.text)
        assert "is at epoch 1, not 999: look again first" in answer.json()["error"]


async def test_what_takes_traffic_away_acts_whatever_if_match_says(
    api: httpx.AsyncClient, spec: Json, rig: Rig
) -> None:
    for path in (
        "/models/moderation:rollback",
        "/rollouts/distilled-1:abort",
        "/models/moderation:kill",
        "/kill-switch",
    ):
        said = spec["paths"][f"{ROOT}{path.replace('moderation', '{model}').replace('distilled-1', '{id}')}"]["post"]
        assert "412" not in said["responses"]
        if path != "/kill-switch":
            assert "whatever If-Match says" in said["summary"]
        headers = {"authorization": "Bearer admin", "if-match": '"999"'}
        variant = {"variant": "int8"} if path.endswith("rollback") else {}
        answer = await api.post(f"{ROOT}{path}", json={"reason": "because", **variant}, headers=headers)
        assert answer.status_code == 200, (path, answer.text)
    refused = await api.post(f"{ROOT}/kill-switch:rearm", json={"reason": "because", "kill_seq": 1}, headers=headers)
    assert (refused.status_code, "an epoch is that of one model" in refused.json()["error"]) == (400, True)
    assert rig.plane.state.kills["*"].on


async def test_the_page_for_people_needs_nothing_from_elsewhere(api: httpx.AsyncClient, spec: Json) -> None:
    page = await api.get("/docs")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    for method, path, said in operations(spec):
        assert f'id="{said["operationId"]}"' in page.text
        assert f"<b>{method.upper()}</b> <code>{path}</code>" in page.text
    assert "<script" not in page.text
    loaded = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
    assert set(loaded) == {"/docs.css", "/favicon.svg", f"{ROOT}/openapi.json"}
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    assert (await api.get("/docs.css")).headers["content-type"].startswith("text/css")
