"""Synchronous clients of the admin API and of the inference endpoint, for the command line and for scripts.

ClientError
├── Unreachable   nobody answered: refused, timed out, or broke off
├── Refused       the server answered 401, 403, 409 or 412: not allowed, or not now
└── Failed        any other answer that is not a success
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from serving.clock import Clock, SystemClock
from serving.errors import CanariumError

DEFAULT_CONTROL = "http://127.0.0.1:8003"
DEFAULT_INFERENCE = "http://127.0.0.1:8000"
#: Seconds allowed for a connection and for an answer, unless a caller says otherwise.
CONNECT_TIMEOUT_S = 2.0
ANSWER_TIMEOUT_S = 10.0

Json = dict[str, Any]

#: Then the server has not seen the request. After any other failure it may have, and may be at it.
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout)

#: Audit rows fetched at a time.
PAGE = 1000


class ClientError(CanariumError):
    """A call that did not succeed; the message is one line for people."""


class Unreachable(ClientError):
    """Nobody answered at that address in time."""


class Refused(ClientError):
    """The server understood and declined: no permission (401, 403) or a conflict (409, 412)."""


class Failed(ClientError):
    """The server answered with an error.

    Args:
        message: one line.
        status: the HTTP status of the answer.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Answer:
    """One inference answer. `milliseconds` is the client's own measurement, connection included."""

    body: Json
    variant: str
    reason: str
    epoch: str
    request_id: str
    milliseconds: float


class _Http:
    """The one place where HTTP happens: time limits, JSON, and errors as `ClientError`."""

    def __init__(
        self, url: str, what: str, token: str | None, timeout_s: float, transport: httpx.BaseTransport | None
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ClientError(f"{url!r} is not the address of {what}; use a form such as {DEFAULT_CONTROL}")
        self.url, self._what, self._timeout_s = url.rstrip("/"), what, timeout_s
        token = (token or "").strip()  # what a file or a Secret holds ends in a newline
        if not (token.isascii() and token.isprintable()):  # httpx would quote it in its error
            raise ClientError("the token is not one line of printable ASCII, as `canarium token create` prints it")
        here = parts.hostname in ("127.0.0.1", "localhost", "::1")
        self._client = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s)),
            transport=transport,
            # A proxy from the environment is never the way to this machine itself.
            trust_env=not here,
            # Nothing to verify without TLS; reading the certificates takes longer than a kill (40 to 100 ms).
            verify=parts.scheme == "https" or not here,
        )

    def close(self) -> None:
        self._client.close()

    def send(
        self, method: str, path: str, *, params: Json | None = None, body: Any = None, headers: Json | None = None
    ) -> httpx.Response:
        """Send one request and return a success. Raises `ClientError`."""
        try:
            response = self._client.request(method, path, params=params, json=body, headers=headers)
        except httpx.InvalidURL as error:
            raise Unreachable(f"{self.url!r} is no address of {self._what}: {error}") from None
        except httpx.TransportError as error:
            raise Unreachable(self._lost(error, changing=method != "GET" and path.startswith("/admin/"))) from None
        if response.is_success:
            return response
        message = f"{self._what} refused: {_message(response)}"
        if response.status_code in (401, 403, 409, 412):
            raise Refused(message)
        raise Failed(message, response.status_code)

    def _lost(self, error: httpx.TransportError, changing: bool) -> str:
        """Why there is no answer, and whether what was asked may be done all the same."""
        if isinstance(error, httpx.TimeoutException):
            what = f"{self._what} at {self.url} did not answer within {self._timeout_s:g} s"
        elif isinstance(error, httpx.ConnectError):
            start = "is it running? Start it with `canarium up -f FILE`"
            what = f"cannot reach {self._what} at {self.url} ({error}); {start}"
        else:
            what = f"{self._what} at {self.url} did not answer: the connection broke off ({error})"
        doubt = changing and not isinstance(error, _NEVER_SENT)
        return f"{what}; it may still take effect: look at `canarium audit`" if doubt else what

    def json(self, method: str, path: str, *, params: Json | None = None, body: Any = None) -> Json:
        """`send`, decoded: every answer of the admin API is a JSON object."""
        response = self.send(method, path, params=params, body=body)
        return self.decode(response)

    def decode(self, response: httpx.Response) -> Json:
        try:
            value = response.json()
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise Failed(f"{self.url} answered {path_of(response)} with something that is not {self._what}'s JSON", 502)
        return value


class AdminClient:
    """The control plane's admin API (`/admin/v1`), one method a call.

    Args:
        url: scheme, host and port of the control plane.
        token: bearer token, if the deployment uses tokens; white space around it is dropped.
        timeout_s: limit on each answer, seconds.
        actor: who is named in the audit log next to what the server knows itself.
        transport: an httpx transport, for tests.

    Every method raises `Unreachable`, `Refused` or `Failed`.
    """

    def __init__(
        self,
        url: str = DEFAULT_CONTROL,
        *,
        token: str | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
        actor: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = _Http(url, "the control plane", token, timeout_s, transport)
        self.url = self._http.url
        self._actor = actor

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # ------------------------------------------------------------ reading

    def status(self) -> Json:
        return self._get("status")

    def models(self) -> list[Json]:
        return self._list("models", "models")

    def model(self, model: str) -> Json:
        return self._get(f"models/{_part(model)}")

    def verdicts(self, model: str) -> Json:
        return self._get(f"models/{_part(model)}/verdicts")

    def series(self, model: str, seconds: int = 600) -> Json:
        return self._get(f"models/{_part(model)}/series", seconds=seconds)

    def calibration(self, model: str) -> Json:
        return self._get(f"models/{_part(model)}/calibration")

    def audit(self, model: str | None = None, *, limit: int = 100, before: int | None = None) -> list[Json]:
        """Audit rows, newest first; `before` continues from an earlier page's last `seq`."""
        return self._list("audit", "entries", model=model, limit=limit, before=before)

    def audit_export(self) -> Iterator[Json]:
        """Every audit row, oldest first, fetched page by page."""
        after = 0
        while page := self._list("audit", "entries", limit=PAGE, after=after):
            yield from page
            after = int(page[-1]["seq"])

    def audit_verify(self) -> Json:
        """`{"ok", "entries", "first_bad"}`: whether the hash chain of the audit log is whole."""
        return self._get("audit/verify")

    def rollouts(self, model: str | None = None) -> list[Json]:
        """Every rollout (of one model) that is kept, the latest first."""
        return self._list("rollouts", "rollouts", model=model)

    # ------------------------------------------------------------ changing

    def start_rollout(self, model: str, variant: str, policy: str | Json, *, reason: str) -> Json:
        """Start a staged rollout; `policy` is the name of a built-in one or a whole rollout file, decoded.

        The view of the rollout, and the `warnings` of its prediction, such as of steps that cannot be done in time.
        """
        return self._change("POST", "rollouts", reason, {"model": model, "variant": variant, "policy": policy})

    def plan_rollout(self, model: str, variant: str, policy: str | Json) -> Json:
        """What a rollout would take, step by step, at the present traffic; nothing is started."""
        body = {"model": model, "variant": variant, "policy": policy}
        return self._change("POST", "rollouts", "what would it take?", body, params={"dry_run": "true"})

    def ask_rollout(self, id_: str, action: str, *, reason: str, override: bool = False) -> Json:
        """`pause`, `resume`, `promote`, `abort`, `approve` or `retry` a rollout; its view afterwards."""
        body = {"override": True} if override else {}
        return self._change("POST", f"rollouts/{_part(id_)}:{action}", reason, body)

    def traffic(
        self,
        model: str,
        *,
        reason: str,
        weights: Mapping[str, float] | None = None,
        shadow: Mapping[str, float] | None = None,
        reference_percent: float | None = None,
        override_pause: bool = False,
    ) -> Json:
        """Set percentages; only what is named changes. `override_pause` raises a candidate that a guard has paused."""
        body = {
            "weights": weights,
            "shadow": shadow,
            "reference_percent": reference_percent,
            "override_pause": override_pause or None,
        }
        named = {key: value for key, value in body.items() if value is not None}
        return self._change("PUT", f"models/{_part(model)}/traffic", reason, named)

    def rollback(self, model: str, variant: str | None = None, *, reason: str) -> Json:
        """Take all traffic from one candidate, or from every one."""
        return self._change(
            "POST", f"models/{_part(model)}:rollback", reason, {"variant": variant} if variant is not None else {}
        )

    def kill(self, model: str, *, reason: str) -> Json:
        """Put one model on its baseline until it is re-armed."""
        return self._change("POST", f"models/{_part(model)}:kill", reason, {})

    def rearm(self, model: str, kill_seq: int, *, reason: str) -> Json:
        """Release the kill that has this number; a newer one stays in force (`Refused`)."""
        return self._change("POST", f"models/{_part(model)}:rearm", reason, {"kill_seq": kill_seq})

    def kill_all(self, *, reason: str) -> Json:
        return self._change("POST", "kill-switch", reason, {})

    def rearm_all(self, kill_seq: int, *, reason: str) -> Json:
        return self._change("POST", "kill-switch:rearm", reason, {"kill_seq": kill_seq})

    def _get(self, path: str, **params: Any) -> Json:
        given = {name: value for name, value in params.items() if value is not None}
        return self._http.json("GET", f"/admin/v1/{path}", params=given)

    def _list(self, path: str, key: str, **params: Any) -> list[Json]:
        rows = self._get(path, **params).get(key)
        if not isinstance(rows, list):
            raise Failed(f"{self.url} answered /admin/v1/{path} without {key!r}", 502)
        return rows

    def _change(self, method: str, path: str, reason: str, body: Json, params: Json | None = None) -> Json:
        body = body | {"reason": reason}
        if self._actor:
            body["actor"] = self._actor
        return self._http.json(method, f"/admin/v1/{path}", params=params, body=body)


class InferenceClient:
    """The inference endpoint, over the Open Inference Protocol's JSON form.

    Args: as for `AdminClient`; `url` is the HTTP inference address.
    """

    def __init__(
        self,
        url: str = DEFAULT_INFERENCE,
        *,
        token: str | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
        transport: httpx.BaseTransport | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._http = _Http(url, "the inference server", token, timeout_s, transport)
        self._clock = clock or SystemClock()

    def __enter__(self) -> InferenceClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def infer_text(
        self, model: str, texts: Sequence[str], *, input_name: str = "text", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Classify texts: one BYTES input of shape [n]. `headers` may carry the sticky key or an override."""
        tensor = {"name": input_name, "datatype": "BYTES", "shape": [len(texts)], "data": list(texts)}
        return self.infer(model, [tensor], headers=headers)

    def metadata(self, model: str) -> Json:
        """What a model takes and gives."""
        return self._http.json("GET", f"/v2/models/{_part(model)}")

    def infer(self, model: str, inputs: Sequence[Json], *, headers: Mapping[str, str] | None = None) -> Answer:
        """Ask with tensors of the protocol's JSON form: `name`, `datatype`, `shape`, `data`."""
        path = f"/v2/models/{_part(model)}/infer"
        started = self._clock.monotonic_ns()
        response = self._http.send("POST", path, body={"inputs": list(inputs)}, headers=dict(headers or {}))
        elapsed_ns = self._clock.monotonic_ns() - started
        body = self._http.decode(response)
        return Answer(
            body=body,
            variant=response.headers.get("x-canarium-variant", ""),
            reason=response.headers.get("x-canarium-reason", ""),
            epoch=response.headers.get("x-canarium-epoch", ""),
            request_id=body.get("id") or response.headers.get("x-request-id", ""),
            milliseconds=elapsed_ns / 1e6,
        )

    def feedback(self, model: str, request_id: str, label: str) -> None:
        """Tell the truth about an earlier answer; joined by its request id."""
        self._http.send("POST", f"/v2/models/{_part(model)}/feedback", body={"id": request_id, "label": label})

    def ready(self) -> bool:
        """Whether the server says that it is ready; False too if nobody answers."""
        try:
            self._http.send("GET", "/v2/health/ready")
        except ClientError:
            return False
        return True


def path_of(response: httpx.Response) -> str:
    """Method and path of the request that was answered."""
    return f"{response.request.method} {response.request.url.path}"


def _part(name: str) -> str:
    return quote(name, safe="")


def _message(response: httpx.Response) -> str:
    """The server's own words, or the status and what was asked."""
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        error = None
    if isinstance(error, str) and error:
        return error
    return f"{response.status_code} {response.reason_phrase} for {path_of(response)}"
