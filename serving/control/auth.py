"""Who is asking and what they may do; used by the control plane and by the gateways."""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec

from serving.clock import Clock, SystemClock
from serving.control.tokens import Token, TokensFile, hashed
from serving.errors import ErrorKind, RequestError
from serving.roles import MONITOR, ROLES

__all__ = ["ANYBODY", "MONITOR", "ROLES", "VISITOR", "Action", "Auth", "Principal"]

FAILURES_PER_MINUTE = 10
CLIENTS_MAX = 1024


class Action(Enum):
    """What can be asked of the admin API and of the gateways; the value is the least role for it."""

    READ = ("read", "viewer")
    OVERRIDE = ("choose the variant that answers", "tester")
    LABEL = ("give guard-grade feedback", "labeller")
    TRAFFIC = ("change traffic", "operator")
    ROLLBACK = ("roll back", "operator")
    KILL = ("kill", "operator")
    HEARTBEAT = ("report as the monitor", "operator")
    REARM = ("re-arm", "release-manager")
    PROMOTE = ("promote a candidate", "release-manager")

    @property
    def words(self) -> str:
        return self.value[0]

    @property
    def role(self) -> str:
        return self.value[1]


#: What the role `monitor` may do, outside the order of the others.
MONITOR_ACTIONS = frozenset({Action.READ, Action.HEARTBEAT, Action.ROLLBACK, Action.KILL})


class Principal(msgspec.Struct, frozen=True):
    """Who is asking. `verified`: by a token; otherwise nobody was asked for one."""

    name: str
    role: str
    verified: bool = True

    def require(self, role: str) -> None:
        """Raises `RequestError` FORBIDDEN unless this role is `role` or above it; of nobody in particular a token
        is asked for (UNAUTHENTICATED)."""
        if self.role not in ROLES or ROLES.index(self.role) < ROLES.index(role):
            raise self._refusal("which is not enough", role)

    def may(self, action: Action) -> bool:
        if self.role == MONITOR:
            return action in MONITOR_ACTIONS
        return ROLES.index(self.role) >= ROLES.index(action.role)

    def permit(self, action: Action) -> None:
        """Raises `RequestError` FORBIDDEN unless this role may do `action`."""
        if not self.may(action):
            raise self._refusal(f"which may not {action.words}", action.role)

    def _refusal(self, why: str, role: str) -> RequestError:
        if not self.verified:
            return RequestError(ErrorKind.UNAUTHENTICATED, f"a token is needed for this, of the role {role} or above")
        message = f"{self.name} has the role {self.role}, {why}: {role} is needed"
        return RequestError(ErrorKind.FORBIDDEN, message)


#: Everybody, where no authentication is configured (which is allowed on loopback only).
ANYBODY = Principal("local", "admin", verified=False)
#: Whoever sends no token to gateways that are open (`auth.data_plane: open`).
VISITOR = Principal("anonymous", "viewer", verified=False)


class Auth:
    """Turns an `Authorization` header into a `Principal`.

    Failures are counted by client. A client with too many is answered 429 in place of 401,
    which also silences the log; a valid token is always let in, so that nobody can lock an
    operator out of the kill-switch by failing in their name.

    Args:
        tokens: those that are known, or what gives them at each call; None means that anybody is an admin.
        clock: for the count of failures and for expiry.
        visitor: who one is without any token; None if one is needed.
    """

    def __init__(
        self,
        tokens: Iterable[Token] | Callable[[], list[Token]] | None,
        clock: Clock | None = None,
        visitor: Principal | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._file: TokensFile | None = None
        self._tokens = tokens if tokens is None or callable(tokens) else list(tokens).copy
        self._visitor = visitor
        self._failures = _Failures(self._clock)

    @classmethod
    def from_config(
        cls, mode: str, tokens_file: str | Path | None, clock: Clock | None = None, visitor: Principal | None = None
    ) -> Auth:
        """Follows the tokens file from now on. Raises `ConfigError` if it cannot be read or used."""
        if mode == "none":
            return cls(None, clock)
        file = TokensFile(Path(tokens_file or ""), clock or SystemClock())
        auth = cls(file.current, clock, visitor)
        auth._file = file
        return auth

    def view(self) -> dict[str, Any]:
        """What the status says of it: `mode`, and of tokens their number and what is wrong with their file."""
        if self._tokens is None:
            return {"mode": "none"}
        return {"mode": "tokens", "tokens": len(self._tokens()), "fault": self._file.fault if self._file else None}

    @property
    def needed(self) -> bool:
        """Whether a token is asked for at all."""
        return self._tokens is not None

    def identify(self, authorization: str | None, client: str = "") -> Principal:
        """Who sent this `Authorization` header.

        Args:
            authorization: the header's value, or None.
            client: where the request came from, for the count of failures.

        Raises:
            RequestError: UNAUTHENTICATED, or OVERLOADED after too many failures.
        """
        if self._tokens is None:
            return ANYBODY
        scheme, _, token = (authorization or "").partition(" ")
        found: Token | None = None
        if scheme.lower() == "bearer" and token:
            digest = hashed(token.strip())
            for known in self._tokens():  # all of them, always: time tells nothing
                if hmac.compare_digest(known.sha256, digest):
                    found = known
        elif authorization is None and self._visitor is not None:
            return self._visitor
        expired = found is not None and found.expired(self._clock.wall_ns() / 1e9)
        if found is not None and not expired:
            return Principal(found.name, found.role)
        retry_after_s = self._failures.add(client)
        if retry_after_s:
            raise RequestError(ErrorKind.OVERLOADED, "too many failed attempts, try again later", retry_after_s)
        if authorization is None:
            raise RequestError(ErrorKind.UNAUTHENTICATED, "a token is needed: send 'Authorization: Bearer TOKEN'")
        if found is not None:
            raise RequestError(ErrorKind.UNAUTHENTICATED, f"the token of {found.name} expired at {found.expiry}")
        raise RequestError(ErrorKind.UNAUTHENTICATED, "this token is not known here")


class _Failures:
    """Failures a client in the current minute; the longest quiet clients are forgotten first."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._counts: OrderedDict[str, tuple[int, int]] = OrderedDict()

    def add(self, client: str) -> int:
        """Count one; seconds to wait if there were too many, else 0."""
        now_s = self._clock.monotonic_ns() // 1_000_000_000
        since_s, count = self._counts.pop(client, (now_s, 0))
        if now_s - since_s >= 60:
            since_s, count = now_s, 0
        self._counts[client] = (since_s, count + 1)
        if len(self._counts) > CLIENTS_MAX:
            self._counts.popitem(last=False)
        return 60 - (now_s - since_s) if count >= FAILURES_PER_MINUTE else 0
