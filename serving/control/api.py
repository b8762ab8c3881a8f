"""The admin API (`/admin/v1`) and the console's files, over one `Plane`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from serving.clock import Clock
from serving.contract import Snapshot
from serving.control import docs_page, http, rollout_api
from serving.control.audit import AuditEntry, Verification, storable
from serving.control.auth import Action, Auth, Principal
from serving.control.events import KEEP_ALIVE_S
from serving.control.idempotency import Answers
from serving.control.monitor_link import Heartbeat
from serving.control.openapi import PREFIX, AdminRoute, Parameter, operation, operation_of
from serving.control.plane import Plane
from serving.control.rollouts import rollout_of
from serving.control.seed import fresh_salt
from serving.control.tables import table_of
from serving.core.commands import ALL, By, Kill, Rearm, Rollback, SetTraffic
from serving.core.rollout_policy import DEFAULT
from serving.errors import ErrorKind, RequestError, bad_request

REASON_MAX = 1000
ACTOR_MAX = 100
#: Seqs stay exact in clients that read JSON numbers as doubles.
SEQ_MAX = 2**53 - 1
#: Seconds of its past that the monitor keeps for the charts.
SERIES_MAX_S = 900
#: Snapshot long-polls parked over HTTP at a time.
PARKED_MAX = 256
#: Rows of the trail by which a rollback has taken a variant out.
_TAKES = ("rollback", "rollout-abort", "rollout-fail")

Handler = Callable[[Request, Principal], Awaitable[Response]]
Body = TypeVar("Body")


# Bounds are described here, and judged where they matter, in better words than a decoder has.
Reason = Annotated[str, msgspec.Meta(extra_json_schema={"minLength": 1, "pattern": r"\S"})]
Actor = Annotated[str, msgspec.Meta(extra_json_schema={"maxLength": ACTOR_MAX, "description": "printable"})]
Percent = Annotated[float, msgspec.Meta(extra_json_schema={"minimum": 0, "maximum": 100, "multipleOf": 0.01})]
Seq = Annotated[int, msgspec.Meta(extra_json_schema={"minimum": 1, "maximum": SEQ_MAX})]


class _Mutation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    reason: Reason
    actor: Actor | None = None


class TrafficBody(_Mutation, frozen=True, forbid_unknown_fields=True, kw_only=True):
    weights: dict[str, Percent] = {}
    shadow: dict[str, Percent] = {}
    reference_percent: Percent | None = None
    override_pause: bool = False


class RollbackBody(_Mutation, frozen=True, forbid_unknown_fields=True, kw_only=True):
    variant: str | None = None
    evidence: dict[str, Any] = {}


class KillBody(_Mutation, frozen=True, forbid_unknown_fields=True, kw_only=True):
    evidence: dict[str, Any] = {}
    kill_seq: Seq | None = None


class RearmBody(_Mutation, frozen=True, forbid_unknown_fields=True, kw_only=True):
    kill_seq: Seq


class AuditPage(msgspec.Struct, frozen=True):
    """A page of the audit log."""

    entries: list[AuditEntry]


def _between(low: int, high: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": low, "maximum": high}


class RolloutBody(_Mutation, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`policy`: the name of a built-in one, or a whole one (see `rollout_policy`); `careful` if absent."""

    model: str
    variant: str
    policy: Any = DEFAULT


class RolloutActionBody(_Mutation, frozen=True, forbid_unknown_fields=True, kw_only=True):
    override: bool = False


class Admin:
    """The handlers; each gets an authenticated principal that may do what it asks for."""

    def __init__(self, plane: Plane, auth: Auth, clock: Clock, keep_alive_s: float = KEEP_ALIVE_S) -> None:
        self._plane, self._auth, self._keep_alive_s = plane, auth, keep_alive_s
        self._answers = Answers(clock)
        self._parked = 0

    def routes(self) -> list[BaseRoute]:
        """Everything below `/admin/v1`."""
        one = "/models/{model}"
        return [
            self._route("GET", "/status", Action.READ, self._status),
            self._route("GET", "/models", Action.READ, self._models),
            self._route("GET", "/snapshot", Action.READ, self._snapshot),
            self._route("GET", "/events", Action.READ, self._events),
            self._route("GET", "/audit", Action.READ, self._audit),
            self._route("GET", "/audit/verify", Action.READ, self._verify),
            self._route("POST", "/monitor/heartbeat", Action.HEARTBEAT, self._heartbeat),
            self._route("POST", "/kill-switch", Action.KILL, self._kill),
            self._route("POST", "/kill-switch:rearm", Action.REARM, self._rearm_all),
            self._route("GET", f"{one}/verdicts", Action.READ, self._verdicts),
            self._route("GET", f"{one}/series", Action.READ, self._series),
            self._route("GET", f"{one}/calibration", Action.READ, self._calibration),
            self._route("PUT", f"{one}/traffic", Action.TRAFFIC, self._traffic),
            self._route("POST", f"{one}:rollback", Action.ROLLBACK, self._rollback),
            self._route("POST", f"{one}:kill", Action.KILL, self._kill),
            self._route("POST", f"{one}:rearm", Action.REARM, self._rearm),
            self._route("GET", one, Action.READ, self._model),
            self._route("GET", "/rollouts", Action.READ, self._rollouts),
            self._route("POST", "/rollouts", Action.TRAFFIC, self._start_rollout),
            *(self._rollout_action(action) for action in rollout_api.ACTIONS),
            self._route("GET", "/rollouts/{id}", Action.READ, self._rollout),
        ]

    def _rollout_action(self, action: str) -> AdminRoute:
        conditional = action != "abort"

        @operation(rollout_api.ACTIONS[action], body=RolloutActionBody, conditional=conditional)
        async def handler(request: Request, principal: Principal) -> Response:
            body = await self._body(request, RolloutActionBody)
            by, id_ = _by(body, principal), request.path_params["id"]
            epoch = _if_match(request) if conditional else None
            return http.answer(await rollout_api.ask(self._plane, principal, by, id_, action, body.override, epoch))

        permission = Action.PROMOTE if action == "promote" else Action.TRAFFIC
        return self._route("POST", f"/rollouts/{{id}}:{action}", permission, handler)

    def _route(self, method: str, path: str, action: Action, handler: Handler) -> AdminRoute:
        async def endpoint(request: Request) -> Response:
            try:
                principal = self._identified(request)
                principal.permit(action)
                key = request.headers.get("idempotency-key")
                if key is None or request.method in http.SAFE_METHODS:
                    return await handler(request, principal)
                request.state.body = await http.read_body(request)
                target = (request.url.path, request.url.query)
                where = (principal.name, request.method, *target, key)
                return await self._answers.once(where, request.state.body, lambda: handler(request, principal))
            except Exception as error:
                return http.of_error(error)

        return AdminRoute(path, endpoint, method, action, operation_of(handler))

    def _identified(self, request: Request) -> Principal:
        """Who asks. Raises `RequestError`."""
        client = request.client.host if request.client else ""
        return self._auth.identify(request.headers.get("authorization"), client)

    def _may_read(self, request: Request) -> bool:
        """Whether who asked may do so still."""
        try:
            return self._identified(request).may(Action.READ)
        except RequestError:
            return False

    # ------------------------------------------------------------ reading

    @operation("The whole deployment: models, gateways, monitor, kill-switch, database.")
    async def _status(self, _request: Request, _principal: Principal) -> Response:
        return http.answer({**self._plane.status(), "auth": self._auth.view()})

    @operation("Every model with its variants and their shares: `models`.")
    async def _models(self, _request: Request, _principal: Principal) -> Response:
        return http.answer({"models": [self._plane.view(model) for model in self._plane.state.tables]})

    @operation("One model with its variants and their shares; `epoch` is what If-Match takes.")
    async def _model(self, request: Request, _principal: Principal) -> Response:
        return http.answer(self._plane.view(request.path_params["model"]))

    @operation("What the guards said of a model in the monitor's last heartbeat.")
    async def _verdicts(self, request: Request, _principal: Principal) -> Response:
        return http.answer(self._plane.monitor.verdicts(self._known(request)))

    @operation(
        "Recent rates and latencies of a model, from the monitor.",
        query=(Parameter("seconds", _between(1, SERIES_MAX_S), "how far back; 600 without it"),),
    )
    async def _series(self, request: Request, _principal: Principal) -> Response:
        seconds = http.integer(request, "seconds", 600, 1, SERIES_MAX_S) or 600
        return http.answer(await self._plane.monitor.series(self._known(request), seconds))

    @operation("How calibrated the variants of a model are, by labels and by the teacher, from the monitor.")
    async def _calibration(self, request: Request, _principal: Principal) -> Response:
        return http.answer(await self._plane.monitor.calibration(self._known(request)))

    @operation(
        "A page of the audit log, newest first.",
        answer=AuditPage,
        query=(
            Parameter("model", {"type": "string"}, "rows of this model and of all models only"),
            Parameter("limit", _between(1, 1000), "rows; 100 without it"),
            Parameter("before", _between(1, SEQ_MAX), "rows older than this one"),
            Parameter("after", _between(0, SEQ_MAX), "rows newer than this one, oldest first"),
        ),
    )
    async def _audit(self, request: Request, _principal: Principal) -> Response:
        limit = http.integer(request, "limit", 100, 1, 1000) or 100
        before = http.integer(request, "before", None, 1, SEQ_MAX)
        after = http.integer(request, "after", None, 0, SEQ_MAX)
        entries = await self._plane.audit(request.query_params.get("model") or None, limit, before, after)
        return http.answer(AuditPage(entries))

    @operation("Check the hash chain of the whole audit log.", answer=Verification)
    async def _verify(self, _request: Request, _principal: Principal) -> Response:
        return http.answer(await self._plane.verify())

    @operation(
        "The routing that gateways obey; with `rev`, once it is another than that.",
        answer=Snapshot,
        query=(
            Parameter("rev", _between(-1, SEQ_MAX), "what the caller has; without it the answer comes at once"),
            Parameter("wait_s", _between(0, 60), "seconds to wait for a change; 10 without it"),
        ),
    )
    async def _snapshot(self, request: Request, _principal: Principal) -> Response:
        rev = http.integer(request, "rev", None, -1, SEQ_MAX)
        wait_s = http.integer(request, "wait_s", 10, 0, 60) or 0
        if rev is None or not wait_s:
            return http.answer(self._plane.snapshot)
        with self._parking():
            return http.answer(await self._plane.wait(rev, wait_s))

    @contextmanager
    def _parking(self) -> Iterator[None]:
        if self._parked >= PARKED_MAX:
            raise RequestError(ErrorKind.OVERLOADED, f"{PARKED_MAX} clients wait for a snapshot already", 1)
        self._parked += 1
        try:
            yield
        finally:
            self._parked -= 1

    @operation("Server-sent events: `snapshot`, `audit`, `verdicts`, as they happen.", media="text/event-stream")
    async def _events(self, request: Request, _principal: Principal) -> Response:
        if self._plane.events.full:
            raise RequestError(ErrorKind.OVERLOADED, "too many clients follow the events already", 5)
        headers = {"x-accel-buffering": "no"}
        return StreamingResponse(self._stream(request), headers=headers, media_type="text/event-stream")

    async def _stream(self, request: Request) -> AsyncIterator[bytes]:
        """Frames for as long as the token may read: one that is revoked or expires is refused here too."""
        events = self._plane.events
        if (watcher := events.join()) is None:
            return
        try:
            events.greet(watcher, "snapshot", self._plane.snapshot)
            async for frame in watcher.frames(self._keep_alive_s):
                if not self._may_read(request):
                    return
                yield frame
        finally:
            events.leave(watcher)

    # ------------------------------------------------------------ changing

    @operation("Set shares of live traffic, shadow copies and reference scoring.", body=TrafficBody, conditional=True)
    async def _traffic(self, request: Request, principal: Principal) -> Response:
        body = await self._body(request, TrafficBody)
        model = self._known(request)
        command = SetTraffic(
            model=model,
            by=_by(body, principal),
            salt=fresh_salt(),
            weights=body.weights,
            shadow=body.shadow,
            reference_percent=body.reference_percent,
            expect_epoch=_if_match(request),
            override_pause=body.override_pause,
        )
        await self._plane.execute(command)
        return http.answer(self._plane.view(model))

    @operation(
        "Take a candidate, or each of them, out of all traffic, and keep it out. It acts whatever If-Match says.",
        body=RollbackBody,
    )
    async def _rollback(self, request: Request, principal: Principal) -> Response:
        body = await self._body(request, RollbackBody)
        model = self._known(request)
        command = Rollback(model, _by(body, principal, body.evidence), body.variant)
        outcome = await self._plane.execute(command)
        epoch = table_of(outcome.state, model).epoch
        # A rollout that it ends has a row of its own, and no other if its variant was out of traffic already.
        taken = dict.fromkeys(row.variant for row in outcome.audit if row.action in _TAKES)
        return http.answer({"model": model, "epoch": epoch, "rolled_back": list(taken)})

    @operation("Only the baseline answers, until re-armed. It acts whatever If-Match says.", body=KillBody)
    async def _kill(self, request: Request, principal: Principal) -> Response:
        body = await self._body(request, KillBody)
        model = self._known(request)
        seq = body.kill_seq or 0
        if not 0 <= seq <= SEQ_MAX:
            raise bad_request(f"kill_seq: {seq} is not between 1 and {SEQ_MAX}")
        outcome = await self._plane.execute(Kill(model, _by(body, principal, body.evidence), seq))
        # By now another kill may have come: whoever re-arms by this answer must not release that one.
        return http.answer({"model": model, "kill_seq": outcome.state.kills[model].seq})

    @operation("Release the kill of this number, and no other.", body=RearmBody, conditional=True)
    async def _rearm(self, request: Request, principal: Principal) -> Response:
        body = await self._body(request, RearmBody)
        model = self._known(request)
        await self._plane.execute(Rearm(model, _by(body, principal), body.kill_seq, _if_match(request)))
        return http.answer(self._plane.view(model))

    @operation(
        "Release the kill of all models that has this number. It knows no If-Match: epochs are the models'.",
        body=RearmBody,
    )
    async def _rearm_all(self, request: Request, principal: Principal) -> Response:
        body = await self._body(request, RearmBody)
        if _if_match(request) is not None:
            raise bad_request("If-Match: an epoch is that of one model, and this is about all of them: leave it out")
        await self._plane.execute(Rearm(ALL, _by(body, principal), body.kill_seq))
        return http.answer(self._plane.status()["kill_switch"])

    @operation(
        "Rollouts, the latest first: `rollouts`.",
        query=(Parameter("model", {"type": "string"}, "those of this model only"),),
    )
    async def _rollouts(self, request: Request, _principal: Principal) -> Response:
        return http.answer({"rollouts": rollout_api.listed(self._plane, request.query_params.get("model") or None)})

    @operation("One rollout: its state, its step, what it waits for, what the guards say.")
    async def _rollout(self, request: Request, _principal: Principal) -> Response:
        return http.answer(self._plane.rollout_view(rollout_of(self._plane.state, request.path_params["id"])))

    @operation(
        "Start a rollout of a candidate; `policy` is the name of one or a whole one, `careful` if absent. Answers with "
        "the rollout and the `warnings` of its prediction.",
        body=RolloutBody,
        query=(Parameter("dry_run", {"type": "boolean"}, "predict what it would take, and start nothing"),),
        conditional=True,
    )
    async def _start_rollout(self, request: Request, principal: Principal) -> Response:
        body = await self._body(request, RolloutBody)
        asked = (self._plane, _by(body, principal), body.model, body.variant, body.policy, _if_match(request))
        if _flag(request, "dry_run"):
            return http.answer(rollout_api.predict(*asked))
        return http.answer(await rollout_api.start(*asked))

    @operation("The monitor's report.", body=Heartbeat)
    async def _heartbeat(self, request: Request, _principal: Principal) -> Response:
        self._plane.heartbeat(await self._body(request, Heartbeat))
        return http.answer({"rev": self._plane.state.rev, "lease": self._plane.state.lease})

    def _known(self, request: Request) -> str:
        """The model in the path ("*" for the kill-switch of all). Raises `RequestError` NOT_FOUND."""
        model: str = request.path_params.get("model", ALL)
        if model != ALL or "model" in request.path_params:
            table_of(self._plane.state, model)
        return model

    async def _body(self, request: Request, kind: type[Body]) -> Body:
        content = getattr(request.state, "body", None)
        if content is None:
            content = await http.read_body(request)
        try:
            return msgspec.json.decode(content, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise bad_request(f"the body cannot be used: {error}") from None
        except RecursionError:
            raise bad_request("the body cannot be used: it is nested too deep") from None


def create_app(
    plane: Plane, auth: Auth, *, clock: Clock, host: str, port: int, console_dir: str | Path | None = None
) -> Starlette:
    """The control plane's HTTP application.

    Args:
        plane: a started plane.
        auth: who may do what.
        clock: for the lifetime of idempotency keys.
        host: the configured address, which `Host` may name beside the loopback names.
        port: the port that `Host` must name.
        console_dir: the console's static files, served at `/`; None, empty or absent: no console.
    """

    async def healthz(_request: Request) -> Response:
        return http.answer({"status": "ok"})

    admin = Admin(plane, auth, clock).routes()
    routes: list[BaseRoute] = [
        Route("/healthz", healthz, methods=["GET"]),
        *docs_page.routes(admin, secured=auth.needed),
        Mount(PREFIX, routes=admin),
    ]
    if console_dir and Path(console_dir).is_dir():
        routes.append(Mount("/", StaticFiles(directory=console_dir, html=True)))
    return Starlette(
        routes=routes,
        middleware=[Middleware(http.Guard, hosts=http.allowed_hosts(host, port))],
        exception_handlers={HTTPException: http.on_http_exception, Exception: http.on_exception},
    )


def _by(body: _Mutation, principal: Principal, evidence: dict[str, Any] | None = None) -> By:
    """Who asks, as the trail records it: a name that was proved, or else the one that was claimed."""
    reason = body.reason.strip()
    if not reason:
        raise bad_request("reason: say why, it goes into the audit trail")
    if len(reason) > REASON_MAX:  # cut, not refused: nobody may be kept from a kill by their own words
        reason = reason[: REASON_MAX - 1] + "…"
    claimed = (body.actor or "").strip()
    if len(claimed) > ACTOR_MAX or not claimed.isprintable():
        raise bad_request(f"actor: is longer than {ACTOR_MAX} characters or not printable")
    facts = dict(storable(evidence or {}))
    if not principal.verified:
        return By(claimed or principal.name, reason, facts)
    if claimed and claimed != principal.name:
        facts["claimed"] = claimed
    return By(principal.name, reason, facts)


def _flag(request: Request, name: str) -> bool:
    text = request.query_params.get(name, "false")
    if text not in ("true", "false"):
        raise bad_request(f"{name}: {text!r} is neither true nor false")
    return text == "true"


def _if_match(request: Request) -> int | None:
    text = request.headers.get("if-match")
    if text is None or text.strip() == "*":
        return None
    digits = text.strip().strip('"')
    if not digits.isdecimal() or len(digits) > 15:
        raise bad_request(f'If-Match: {text!r} is not an epoch such as "7"')
    return int(digits)
