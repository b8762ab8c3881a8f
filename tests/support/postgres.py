"""A PostgreSQL server of its own for tests: Debian's package, on a Unix socket in a temporary directory."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg

from serving.control.database import Database
from serving.control.store import SqlStore
from tests.support.prometheus import need

START_S = 60.0
#: Not the default, so that a test which forgot its directory finds no server.
PORT = 54399
PASSWORD = "pass word/%"


def programs() -> Path:
    """The folder of the newest installed server's programs; without one the test is skipped, or fails (CANARIUM_CI)."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else Path(need("initdb", "postgresql")).resolve().parent


class PostgresServer:
    """One running server; schemas are made as they are asked for."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder, self._programs = folder, programs
        self._data = folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._made: set[str] = set()
        # The server refuses to run as root: then it runs as the package's own user, or as nobody.
        self._user: str | None = None
        if os.geteuid() == 0:
            names = {entry.pw_name for entry in pwd.getpwall()}
            self._user = "postgres" if "postgres" in names else "nobody"
            shutil.chown(folder, self._user)

    def create(self) -> None:
        """Make the files of the server; whoever connects needs the password."""
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        if self._user:
            shutil.chown(secret, self._user)
        options = ["--username=canarium", f"--pwfile={secret}", "--auth=scram-sha-256", "--encoding=UTF8"]
        subprocess.run(
            [self._programs / "initdb", "--pgdata", self._data, "--no-locale", *options],
            check=True,
            capture_output=True,
            cwd=self.folder,
            timeout=START_S,
            **self._as_user(),
        )

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._programs / "postgres",
                    *("-D", self._data, "-k", self.folder, "-p", str(PORT)),
                    *("-c", "listen_addresses=", "-c", "max_connections=100", "-c", "fsync=off"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                **self._as_user(),
            )
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(psycopg.OperationalError):
                self._connect().close()
                return
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, "PostgreSQL does not answer"
            time.sleep(0.05)

    def stop(self) -> None:
        """At once, connections are broken off: PostgreSQL's fast shutdown, or else its immediate one."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGQUIT)
                process.wait(30)

    def url(self, name: str, password: str = "pass%20word%2F%25") -> str:
        """The URL of a schema of its own in the one database; it is made if it is new."""
        schema = name.replace("-", "_")
        if schema not in self._made:
            with self._connect() as connection:
                connection.execute(f"CREATE SCHEMA {schema}")
            self._made.add(schema)
        secret = f":{password}" if password else ""
        where = f"host={self.folder}&port={PORT}&options=-csearch_path%3D{schema}"
        return f"postgresql+psycopg://canarium{secret}@/postgres?{where}"

    def store(self, folder: Path, holder: str) -> SqlStore:
        """A store in the schema that belongs to a test's folder."""
        name = "t" + hashlib.sha256(str(folder).encode()).hexdigest()[:16]
        return SqlStore(Database.of(self.url(name), folder, {}), holder)

    def _connect(self) -> psycopg.Connection:
        where = {"host": str(self.folder), "port": PORT, "dbname": "postgres", "user": "canarium", "password": PASSWORD}
        return psycopg.connect(**where, autocommit=True, connect_timeout=5)

    def _as_user(self) -> dict[str, object]:
        if self._user is None:
            return {}
        return {"user": self._user, "group": pwd.getpwnam(self._user).pw_gid, "extra_groups": []}


@contextlib.contextmanager
def running(folder_of_programs: Path) -> Iterator[PostgresServer]:
    """A started server that is ended and removed, whatever happens."""
    folder = Path(tempfile.mkdtemp(prefix="canarium-pg-"))
    server = PostgresServer(folder, folder_of_programs)
    try:
        server.create()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
