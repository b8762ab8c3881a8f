"""Who is asking and what they may do; used by the control plane and by the gateways."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections import OrderedDict
from collections.abc import Iterable
from enum import Enum
from pathlib import Path

import msgspec

from serving.clock import Clock, SystemClock
from serving.errors import ConfigError, ErrorKind, RequestError

#: From least to most: each role may do all that the ones before it may.
ROLES: tuple[str, ...] = ("viewer", "tester", "labeller", "operator", "release-manager", "admin")
#: A role of its own, for the monitor: it reads, reports, and pulls the brakes.
MONITOR = "monitor"
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
        """Raises `RequestError` FORBIDDEN unless this role is `role` or above it."""
        if self.role not in ROLES or ROLES.index(self.role) < ROLES.index(role):
            raise RequestError(
                ErrorKind.FORBIDDEN, f"{self.name} has the role {self.role}, which is not enough: {role} is needed"
            )

    def may(self, action: Action) -> bool:
        if self.role == MONITOR:
            return action in MONITOR_ACTIONS
        return ROLES.index(self.role) >= ROLES.index(action.role)

    def permit(self, action: Action) -> None:
        """Raises `RequestError` FORBIDDEN unless this role may do `action`."""
        if not self.may(action):
            raise RequestError(
                ErrorKind.FORBIDDEN,
                f"{self.name} has the role {self.role}, which may not {action.words}: {action.role} is needed",
            )


#: Everybody, where no authentication is configured (which is allowed on loopback only).
ANYBODY = Principal("local", "admin", verified=False)


class Auth:
    """Turns an `Authorization` header into a `Principal`.

    Failures are counted by client. A client with too many is answered 429 in place of 401,
    which also silences the log; a valid token is always let in, so that nobody can lock an
    operator out of the kill-switch by failing in their name.

    Args:
        tokens: (name, role, SHA-256 of the token as hex); None means that anybody is an admin.
        clock: for the count of failures.
    """

    def __init__(self, tokens: Iterable[tuple[str, str, str]] | None, clock: Clock | None = None) -> None:
        self._tokens = None if tokens is None else [(bytes.fromhex(h), Principal(n, r)) for n, r, h in tokens]
        self._failures = _Failures(clock or SystemClock())

    @classmethod
    def from_config(cls, mode: str, tokens_file: str | Path | None, clock: Clock | None = None) -> Auth:
        """Raises `ConfigError` if the tokens file cannot be read or used."""
        if mode == "none":
            return cls(None, clock)
        try:
            text = Path(tokens_file or "").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"auth.tokens_file: {tokens_file} cannot be read: {reason}") from error
        return cls(parse_tokens(text, str(tokens_file)), clock)

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
        found: Principal | None = None
        if scheme.lower() == "bearer" and token:
            digest = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
            for known, principal in self._tokens:  # all of them, always: time tells nothing
                if hmac.compare_digest(known, digest):
                    found = principal
        if found is not None:
            return found
        retry_after_s = self._failures.add(client)
        if retry_after_s:
            raise RequestError(ErrorKind.OVERLOADED, "too many failed attempts, try again later", retry_after_s)
        if authorization is None:
            raise RequestError(ErrorKind.UNAUTHENTICATED, "a token is needed: send 'Authorization: Bearer TOKEN'")
        raise RequestError(ErrorKind.UNAUTHENTICATED, "this token is not known here")


def parse_tokens(text: str, where: str) -> list[tuple[str, str, str]]:
    """The `name:role:sha256` lines of a tokens file; blank lines and `#` comments are skipped.

    Raises:
        ConfigError: a line that is not of this form, an unknown role, a name or token given twice.
    """
    tokens: list[tuple[str, str, str]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        path = f"auth.tokens_file: {where} line {number}"
        parts = line.split(":")
        if len(parts) != 3 or not re.fullmatch(r"[A-Za-z0-9._@-]{1,64}", parts[0]):
            raise ConfigError(f"{path}: expected name:role:sha256, made with 'canarium token'")
        name, role, digest = parts
        if role not in (*ROLES, MONITOR):
            raise ConfigError(f"{path}: unknown role {role!r}, expected one of {', '.join((*ROLES, MONITOR))}")
        if not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
            raise ConfigError(f"{path}: the token of {name} is not 64 hexadecimal digits of SHA-256")
        if any(name == other or digest.lower() == known for other, _, known in tokens):
            raise ConfigError(f"{path}: {name} or its token is given twice")
        tokens.append((name, role, digest.lower()))
    if not tokens:
        raise ConfigError(f"auth.tokens_file: {where} holds no token, so nobody could get in")
    return tokens


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
