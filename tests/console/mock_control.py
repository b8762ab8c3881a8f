"""A stand-in for the control plane: the console's static files and an admin API whose data moves.

For looking at the console while working on it, and for its tests:

    python tests/console/mock_control.py --port 8003 --scenario failing

Scenarios: normal, failing, killed, all_killed, monitor_down, empty, rollout, rollout_later, rollout_paused,
rollout_waived, rollout_braked. They can be changed while it runs by
`POST /mock/set {"scenario": ..., "down": bool, "monitor_away": bool, "token": str, "locked": bool, "refuse": str,
"hold": bool}` and `{"restore": true}`, which puts another trail in place of the one that is there; with `hold` no
change is answered until it is taken back;
`GET /mock/requests` lists the mutations that came in.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import mock_rollouts
import uvicorn
from mock_world import Refused, World, mark, settle
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

CONSOLE = Path(__file__).parents[2] / "monitoring" / "console"
#: At least as strict as what the control plane sends.
CSP = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"

Json = dict[str, Any]


def model_of(world: World, path: str, body: Json) -> Json | None:
    """The model that a mutation is about; None for the kill-switch of all and for what is not known."""
    section, _, rest = path.partition("/")
    name = rest.partition(":")[0].partition("/")[0]
    if section == "models":
        return world.models.get(name)
    asked = [one["model"] for model in world.models.values() for one in model["rollouts"] if one["id"] == name]
    return world.models.get(body.get("model") or next(iter(asked), ""))


def change(world: World, path: str, body: Json, if_match: str | None) -> Json:
    """One mutation, as the control plane would decide it."""
    model = model_of(world, path, body)
    if if_match is not None and model is not None and if_match.strip('"') != str(model["epoch"]):
        raise Refused(412, f"the table of {model['model']} is at epoch {model['epoch']}, not {if_match}")
    who = (body.get("actor") or "anonymous", str(body.get("reason", "")).strip())
    if not who[1]:
        raise Refused(400, "reason: say why, it goes into the audit trail")
    if world.refuse:
        raise Refused(409, world.refuse)
    if path.startswith("kill-switch"):
        return change_switch(world, path.endswith(":rearm"), who, body)
    if path.startswith("rollouts"):
        rollout, action = mock_rollouts.change(world.models, path, who[1], body)
        world.record(who, f"rollout-{action}", (rollout["model"], rollout["variant"]), {}, {"rollout": rollout["id"]})
        return rollout
    name, _, verb = path.removeprefix("models/").replace("/traffic", ":traffic").partition(":")
    if name not in world.models:
        raise Refused(404, f"unknown model {name!r}, expected one of: {', '.join(world.models)}")
    model = world.models[name]
    if verb == "kill":
        return {"model": name, "kill_seq": world.kill(name, *who)}
    if verb == "rearm":
        if body.get("kill_seq") != model["kill_seq"] or not model["killed"]:
            raise Refused(409, f"kill_seq {body.get('kill_seq')} is not the one in force ({model['kill_seq']})")
        model |= {"killed": False, "killed_by": None, "kill": None, "cleared_seq": model["kill_seq"]}
        world.record(who, "rearm", (name, None), {"killed": True}, {"killed": False})
        return world.view(name)
    before = {entry["name"]: entry["weight"] for entry in model["variants"]}
    changed = (roll_back if verb == "rollback" else set_traffic)(model, body, who)
    settle(model)
    model["epoch"] += 1
    after = {entry["name"]: entry["weight"] for entry in model["variants"]}
    world.record(who, verb, (name, body.get("variant")), {"weights": before}, {"weights": after})
    world.publish("snapshot", {"rev": world.rev})
    return {"model": name, "epoch": model["epoch"], "rolled_back": changed} if verb == "rollback" else world.view(name)


def change_switch(world: World, release: bool, who: tuple[str, str], body: Json) -> Json:
    switch = world.kill_switch
    if not release:
        world.kill_all(*who)
        return {"model": "*", **switch}
    if body.get("kill_seq") != switch["kill_seq"]:
        raise Refused(409, f"kill_seq {body.get('kill_seq')} is not the one in force ({switch['kill_seq']})")
    before = switch["on"]
    switch |= {"on": False, "cleared_seq": switch["kill_seq"]}
    world.record(who, "rearm", ("*", None), {"on": before}, {"on": False})
    return {"model": "*", **switch}


def roll_back(model: Json, body: Json, who: tuple[str, str]) -> list[str]:
    live = [entry for entry in model["variants"][1:] if entry["weight"] or entry["shadow"]]
    targets = [entry for entry in live if body.get("variant") in (None, entry["name"])]
    for entry in targets:
        entry |= {"weight": 0.0, "shadow": 0.0, "vetoed": True, "rolled_back": mark(who[1], who[0])}
    return [entry["name"] for entry in targets]


def set_traffic(model: Json, body: Json, who: tuple[str, str]) -> list[str]:
    weights, shadow = body.get("weights", {}), body.get("shadow", {})
    total = sum(weights.get(entry["name"], entry["weight"]) for entry in model["variants"][1:])
    if total > 100:
        raise Refused(400, f"weights: they add up to {total:g}, over 100")
    if model["killed"]:
        raise Refused(409, f"{model['model']} is killed (kill_seq {model['kill_seq']}): re-arm it first")
    for entry in model["variants"][1:]:
        if entry["name"] in weights or entry["name"] in shadow:
            entry |= {"vetoed": False, "rolled_back": None}
        entry["weight"] = float(weights.get(entry["name"], entry["weight"]))
        entry["shadow"] = float(shadow.get(entry["name"], entry["shadow"]))
    model["reference_percent"] = float(body.get("reference_percent", model["reference_percent"]))
    return []


# ---------------------------------------------------------------- HTTP


async def stream(world: World) -> AsyncIterator[str]:
    queue: asyncio.Queue[tuple[str, Json]] = asyncio.Queue(100)
    world.listeners.add(queue)
    count = 0
    queue.put_nowait(("snapshot", {"rev": world.rev}))
    try:
        while not world.down:
            try:
                event, data = await asyncio.wait_for(queue.get(), 1.0)
            except TimeoutError:
                event, data = "verdicts", world.verdicts("moderation")
            count += 1
            yield f": keep-alive\n\nevent: {event}\nid: {count}\ndata: {json.dumps(data)}\n\n"
    finally:
        world.listeners.discard(queue)


def read(world: World, path: str, query: dict[str, str]) -> Json:
    if path == "status":
        return world.status()
    if path == "audit":
        before = int(query.get("before", 10**9))
        entries = [entry for entry in world.audit if entry["seq"] < before]
        return {"entries": entries[: int(query.get("limit", 100))]}
    if path == "audit/verify":
        return {"ok": True, "entries": len(world.audit), "first_bad": None}
    parts = path.split("/")
    if len(parts) == 3 and parts[0] == "models" and parts[1] in world.models:
        if world.monitor_away and parts[2] in ("series", "calibration"):
            raise Refused(503, "the monitor at http://127.0.0.1:8002 does not answer: connection refused")
        if parts[2] == "verdicts":
            return world.verdicts(parts[1])
        if parts[2] == "calibration":
            return world.calibration(parts[1])
        if parts[2] == "series":
            return world.series(parts[1], int(query.get("seconds", 600)))
    raise Refused(404, f"unknown path /admin/v1/{path}")


def create_app(world: World) -> Starlette:
    """The whole mock: `/admin/v1`, `/mock` and the console."""

    async def admin(request: Request) -> Response:
        path = request.path_params["path"]
        try:
            if world.down:
                raise Refused(503, "the control plane is shutting down")
            if world.token and request.headers.get("authorization") != f"Bearer {world.token}":
                if world.locked:
                    raise Refused(429, "too many failed attempts, try again later")
                raise Refused(401, "a bearer token is required: Authorization: Bearer TOKEN")
            if path == "events":
                return StreamingResponse(stream(world), media_type="text/event-stream")
            if request.method == "GET":
                return JSONResponse(read(world, path, dict(request.query_params)))
            if request.headers.get("content-type") != "application/json":
                raise Refused(415, "Content-Type must be application/json")
            body = await request.json()
            seen = {"method": request.method, "path": f"/admin/v1/{path}", "body": body}
            world.requests.append(seen | {"if_match": request.headers.get("if-match")})
            while world.hold:  # noqa: ASYNC110 - set from outside
                await asyncio.sleep(0.02)
            return JSONResponse(change(world, path, body, request.headers.get("if-match")))
        except Refused as refused:
            return JSONResponse({"error": str(refused)}, refused.status)

    async def requests(_: Request) -> Response:
        return JSONResponse(world.requests)

    async def adjust(request: Request) -> Response:
        body = await request.json()
        for key in ("down", "monitor_away", "token", "locked", "refuse", "hold"):
            setattr(world, key, body.get(key, getattr(world, key)))
        if "restore" in body:
            world.restore()
        if "scenario" in body:
            world.play(body["scenario"])
        return JSONResponse({"ok": True})

    async def secured(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = CSP
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    return Starlette(
        routes=[
            Route("/admin/v1/{path:path}", admin, methods=["GET", "PUT", "POST"]),
            Route("/mock/requests", requests),
            Route("/mock/set", adjust, methods=["POST"]),
            Mount("/", StaticFiles(directory=CONSOLE, html=True)),
        ],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=secured)],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one, which is printed")
    parser.add_argument("--scenario", default="normal")
    arguments = parser.parse_args()
    with socket.create_server(("127.0.0.1", arguments.port)) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}/", flush=True)
        config = uvicorn.Config(create_app(World(arguments.scenario)), log_level="warning", timeout_graceful_shutdown=1)
        uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    main()
