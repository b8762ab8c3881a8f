"""The tokens file: `name:role:sha256[:expiry]` lines, read again while processes run, changed under a lock.

A token is 256 random bits, so its SHA-256 is all that has to be kept: there is nothing to guess and nothing to
salt. The file never holds a token, and neither does any message of this module.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from serving.clock import Clock
from serving.errors import ConfigError
from serving.paths import write_private
from serving.roles import MONITOR, ROLES

log = logging.getLogger("canarium.auth")

#: How a token begins, so that scanners for leaked secrets can tell one.
PREFIX = "canarium_"
#: How often a running process looks whether the file has changed, in seconds.
LOOK_S = 1.0
FILE_MAX = 1024 * 1024
HEADER = "# name:role:sha256[:expiry]; changed with 'canarium token', read again within seconds\n"
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")


class Token(msgspec.Struct, frozen=True):
    """What is known of a token. `sha256`: hexadecimal; `expires_s`: seconds since the Unix epoch, or None."""

    name: str
    role: str
    sha256: str
    expires_s: int | None = None

    @property
    def line(self) -> str:
        return ":".join([self.name, self.role, self.sha256, *([self.expiry] if self.expiry else [])])

    @property
    def expiry(self) -> str:
        """ISO 8601 in UTC; empty if it never expires."""
        return "" if self.expires_s is None else f"{datetime.fromtimestamp(self.expires_s, UTC):%Y-%m-%dT%H:%M:%SZ}"

    def expired(self, now_s: float) -> bool:
        return self.expires_s is not None and now_s >= self.expires_s


def new_secret() -> str:
    """A token as its holder gets it."""
    return PREFIX + secrets.token_urlsafe(32)


def hashed(secret: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def parse_tokens(text: str, where: str) -> list[Token]:
    """The lines of a tokens file; blank lines and `#` comments are skipped.

    Raises:
        ConfigError: a line that is not of this form, an unknown role, a name or token given twice, no line at all.
    """
    tokens: list[Token] = []
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        token = _token(line, f"auth.tokens_file: {where} line {number}")
        if any(token.name == other.name or token.sha256 == other.sha256 for other in tokens):
            raise ConfigError(f"auth.tokens_file: {where} line {number}: {token.name} or its token is given twice")
        tokens.append(token)
    if not tokens:
        raise ConfigError(f"auth.tokens_file: {where} holds no token, so nobody could get in")
    return tokens


def _token(line: str, path: str) -> Token:
    parts = line.split(":", 3)
    if len(parts) < 3 or not _NAME.fullmatch(parts[0]):
        raise ConfigError(f"{path}: expected name:role:sha256[:expiry], made with 'canarium token create'")
    name, role, digest = parts[:3]
    if role not in (*ROLES, MONITOR):
        raise ConfigError(f"{path}: unknown role {role!r}, expected one of {', '.join((*ROLES, MONITOR))}")
    if not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        raise ConfigError(f"{path}: the token of {name} is not 64 hexadecimal digits of SHA-256")
    expires_s = None
    if len(parts) == 4:
        try:
            expires_s = int(datetime.strptime(parts[3], "%Y-%m-%dT%H:%M:%S%z").timestamp())
        except ValueError:
            raise ConfigError(f"{path}: the expiry of {name} is not a time such as 2030-01-31T00:00:00Z") from None
    return Token(name, role, digest.lower(), expires_s)


class TokensFile:
    """The tokens of a file as they are by now.

    A file that becomes unusable changes nothing: what was read before stays, and `fault` (and the log) say so.

    Args:
        path: the file.
        clock: for the time between two looks.

    Raises:
        ConfigError: the file cannot be read or used at the start.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path, self._clock = path, clock
        self._content = _read(path)
        self._tokens = parse_tokens(_decoded(self._content, path), str(path))
        self._looked_ns = clock.monotonic_ns()
        self.fault: str | None = None

    def current(self) -> list[Token]:
        """The tokens; looks at the file at most once in `LOOK_S` (it is small and local, so this may block)."""
        now_ns = self._clock.monotonic_ns()
        if now_ns - self._looked_ns >= LOOK_S * 1e9:
            self._looked_ns = now_ns
            self._look()
        return self._tokens

    def _look(self) -> None:
        try:
            content = _read(self._path)
            if content == self._content and self.fault is None:
                return
            self._tokens = parse_tokens(_decoded(content, self._path), str(self._path))
        except ConfigError as error:
            if self.fault != str(error):
                log.error("%s; the %d tokens read before stay in force", error, len(self._tokens))
            self.fault = str(error)
            return
        if content != self._content:
            log.warning("auth.tokens_file: %s was read again: %d tokens", self._path, len(self._tokens))
        self._content, self.fault = content, None


def read(path: Path) -> list[Token]:
    """The tokens of a file. Raises `ConfigError`."""
    return parse_tokens(_decoded(_read(path), path), str(path))


def add(path: Path, token: Token) -> None:
    """Append a token, making the file if it is absent. Raises `ConfigError` (damaged, or the name is taken)."""
    with _changing(path) as (text, tokens):
        if any(token.name == other.name for other in tokens):
            raise ConfigError(f"{path}: there is a token of the name {token.name}: revoke it first")
        _replace(path, (text if not text or text.endswith("\n") else text + "\n") + token.line + "\n")


def remove(path: Path, name: str) -> None:
    """Take a token out. Raises `ConfigError` if it is absent, or the last one: then nobody could get in."""
    with _changing(path) as (text, tokens):
        if all(token.name != name for token in tokens):
            raise ConfigError(f"{path}: there is no token of the name {name}")
        if len(tokens) == 1:
            raise ConfigError(f"{path}: {name} is the last token, without it nobody could get in: create another first")
        kept = [line for line in text.splitlines() if line.strip().partition(":")[0] != name]
        _replace(path, "\n".join(kept) + "\n")


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[tuple[str, list[Token]]]:
    """The file's text and tokens, while no other process changes it. Raises `ConfigError`."""
    try:
        lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be changed: {error.strerror or error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            yield HEADER, []
            return
        text = _decoded(_read(path), path)
        yield text, parse_tokens(text, str(path))
    finally:
        os.close(lock)


def _replace(path: Path, text: str) -> None:
    """Atomically, with the owner that the file had and, at most, the same group to read it. Raises `ConfigError`."""
    try:
        write_private(path, text.encode(), path.stat() if path.exists() else None)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from error


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(FILE_MAX + 1)
    except OSError as error:
        raise ConfigError(f"auth.tokens_file: {path} cannot be read: {error.strerror or error}") from error
    if len(content) > FILE_MAX:
        raise ConfigError(f"auth.tokens_file: {path} is over {FILE_MAX // 1024} KiB")
    return content


def _decoded(content: bytes, path: Path) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"auth.tokens_file: {path} cannot be read: {error.reason}") from error
