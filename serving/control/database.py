"""Which database holds the state, and how it is reached: SQLite in a file, or PostgreSQL by URL.

What may carry a password never leaves `Database`: everything shown goes through `shown` or `redacted`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import QueuePool, StaticPool

from serving.errors import StartError

DATABASE_FILE = "canarium.db"
#: Environment variable whose URL stands in for `state.database`; a password in it is never written anywhere.
URL_VARIABLE = "CANARIUM_DATABASE_URL"
DRIVER = "postgresql+psycopg"

#: How long a lock of another writer is waited for, in seconds.
BUSY_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_S = 5
#: A connection whose other end is silent for so long is given up, in seconds.
SILENCE_S = 10
SECRET_QUERY = ("password", "sslpassword")
_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class Database:
    """Where the state is. `path` is the file of SQLite, None for PostgreSQL."""

    def __init__(self, url: sa.URL) -> None:
        self.url = url
        self.path = Path(url.database or "") if url.get_backend_name() == "sqlite" else None
        secrets = [url.password, *(url.query.get(key) for key in SECRET_QUERY)]
        self._secrets = [str(secret) for secret in secrets if secret]

    @classmethod
    def in_file(cls, path: Path) -> Database:
        return cls(sa.URL.create("sqlite", database=str(path)))

    @classmethod
    def of(cls, setting: str, state_dir: str | Path, environment: Mapping[str, str] = os.environ) -> Database:
        """The database that `state.database` names.

        Args:
            setting: `sqlite`, or a PostgreSQL URL in which `${NAME}` stands for an environment variable.
            state_dir: where the file of SQLite is.
            environment: gives the values, and `CANARIUM_DATABASE_URL` in place of the setting.

        Raises:
            StartError: a variable is not set, or the URL cannot be used; never shows a value.
        """
        given = environment.get(URL_VARIABLE, "").strip()
        source = URL_VARIABLE if given else "state.database"
        text = given or _expanded(setting, environment)
        if text == "sqlite":
            return cls.in_file(Path(state_dir) / DATABASE_FILE)
        try:
            url = sa.make_url(text)
        except (ArgumentError, ValueError):
            raise StartError(f"{source}: not a URL such as {DRIVER}://USER@HOST/DATABASE") from None
        if url.drivername not in (DRIVER, "postgresql") or not url.database:
            raise StartError(f"{source}: expected sqlite or {DRIVER}://USER@HOST/DATABASE")
        return cls(url.set(drivername=DRIVER))

    @property
    def shown(self) -> str:
        """The file, or the URL without what is secret in it."""
        if self.path is not None:
            return str(self.path)
        hidden = self.url.update_query_dict({key: "***" for key in SECRET_QUERY if key in self.url.query})
        return hidden.render_as_string(hide_password=True)

    @property
    def plain_url(self) -> str:
        """The URL for PostgreSQL's own tools, without any password."""
        url = self.url.set(drivername="postgresql").difference_update_query(SECRET_QUERY)
        bare = sa.URL.create("postgresql", url.username, None, url.host, url.port, url.database, url.query)
        return bare.render_as_string()

    def redacted(self, text: str) -> str:
        """`text` in one line, without the password should a driver repeat it."""
        for secret in self._secrets:
            for form in {secret, quote(secret), quote(secret, safe=""), quote(secret, safe=" +")}:
                text = text.replace(form, "***")
        return " ".join(text.split())

    def probe(self) -> None:
        """Connect, and change nothing. Raises `StartError` if it does not answer."""
        engine = self.reader()
        try:
            with engine.connect() as connection:
                connection.exec_driver_sql("SELECT 1")
        except SQLAlchemyError as error:
            raise StartError(f"{self.shown}: {self.redacted(str(getattr(error, 'orig', None) or error))}") from None
        finally:
            engine.dispose()

    def writer(self) -> sa.Engine:
        """One connection for changes; its transactions exclude each other from their first statement or row on."""
        return _sqlite(self.url, "BEGIN IMMEDIATE") if self.path is not None else _postgresql(self.url)

    def reader(self) -> sa.Engine:
        """One connection for reading; a transaction sees one moment, and holds up no writer."""
        if self.path is not None:
            return _sqlite(self.url, "BEGIN")
        return _postgresql(self.url, isolation_level="REPEATABLE READ")


def _expanded(setting: str, environment: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        found = environment.get(match[1], "").rstrip("\r\n")  # a Secret made of a file ends in a newline
        if not found:
            raise StartError(f"state.database: the environment variable {match[1]} is not set")
        return quote(found, safe="")

    return _REFERENCE.sub(value, setting)


def _sqlite(url: sa.URL, begin: str) -> sa.Engine:
    """One connection to the file (WAL, an fsync at every commit); its transactions start with `begin`."""
    engine = sa.create_engine(
        url, connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False}, poolclass=StaticPool
    )

    def on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions are begun below, not by the driver
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")

    def on_begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)

    sa.event.listen(engine, "connect", on_connect)
    sa.event.listen(engine, "begin", on_begin)
    return engine


def _postgresql(url: sa.URL, **options: Any) -> sa.Engine:
    """One connection at a time, made anew when the server was restarted. Raises `StartError` without the driver."""
    connect = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "application_name": "canarium",
        "tcp_user_timeout": SILENCE_S * 1000,
        "keepalives_idle": SILENCE_S // 2,
        "keepalives_interval": SILENCE_S // 5,
        "keepalives_count": 2,
        "prepare_threshold": None,  # a pooler between us and the server may not know prepared statements
    }
    try:
        engine = sa.create_engine(
            url,
            connect_args=connect,
            poolclass=QueuePool,
            pool_size=1,
            max_overflow=0,
            pool_timeout=CONNECT_TIMEOUT_S,
            pool_pre_ping=True,
            **options,
        )
    except ModuleNotFoundError:
        raise StartError(
            "state.database: PostgreSQL needs the driver psycopg: pip install 'canarium[postgres]'"
        ) from None

    def on_connect(connection: Any, _record: Any) -> None:
        timeout_ms = STATEMENT_TIMEOUT_S * 1000
        connection.execute(f"SET statement_timeout = {timeout_ms}")
        connection.execute(f"SET lock_timeout = {timeout_ms}")
        connection.execute(f"SET idle_in_transaction_session_timeout = {2 * timeout_ms}")
        connection.commit()

    sa.event.listen(engine, "connect", on_connect)
    return engine
