"""A real Prometheus (the Debian package) for tests: free loopback port, bounded waits."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import pytest

CONFIG = """\
global: {{scrape_interval: {interval}, scrape_timeout: {interval}, evaluation_interval: {interval}}}
scrape_configs:
  - job_name: canarium
    static_configs: [{{targets: [{targets}]}}]
"""


def need(program: str, package: str) -> str:
    """The path of a program. Absent: skip naming the Debian package, or fail where everything must run."""
    found = shutil.which(program)
    if found:
        return found
    message = f"{program} is missing: apt-get install {package}"
    if os.environ.get("CANARIUM_CI"):
        pytest.fail(message)
    pytest.skip(message)


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RunningPrometheus:
    """Prometheus in a process of its own; use it as a context manager.

    Args:
        targets: addresses to scrape, such as "127.0.0.1:8002".
        interval: scrape and evaluation interval, a Prometheus duration.
        config: a whole configuration instead of `targets` and `interval`; relative `rule_files` are
            looked up beside it, so pass `rules` for those.
        rules: rule files, copied beside the configuration under their own names and loaded.
        start_timeout_s: how long it may take to become ready.

    Raises:
        RuntimeError: it ended or was not ready in time; holds the tail of its log.
    """

    def __init__(
        self,
        targets: Sequence[str] = (),
        *,
        interval: str = "1s",
        config: str | None = None,
        rules: Sequence[Path] = (),
        start_timeout_s: float = 180.0,
    ) -> None:
        self._config = config or CONFIG.format(interval=interval, targets=", ".join(f'"{t}"' for t in targets))
        if rules and config is None:
            self._config += f"rule_files: [{', '.join(path.name for path in rules)}]\n"
        self._rules = rules
        self._start_timeout_s = start_timeout_s
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def start(self) -> RunningPrometheus:
        program = need("prometheus", "prometheus")
        self._folder = tempfile.TemporaryDirectory(prefix="prometheus-")
        folder = Path(self._folder.name)
        (folder / "prometheus.yml").write_text(self._config, encoding="utf-8")
        for path in self._rules:
            shutil.copy(path, folder / path.name)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program,
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End it, by force after 10 s, and remove its files. Safe to call twice."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(timeout=10)
            self._process = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The instant vector of `expr`: [{"metric": labels, "value": [unix seconds, text]}].

        Raises:
            ValueError: Prometheus refuses the expression; says why.
        """
        answer = self._get("/api/v1/query", query=expr)
        data = answer["data"]
        if data["resultType"] == "scalar":
            return [{"metric": {}, "value": data["result"]}]
        return list(data["result"])

    def value(self, expr: str) -> float:
        """The one value of `expr`, once it has any: a scrape that fails takes all series away until the next one.

        Raises:
            AssertionError: there is more than one.
            TimeoutError: there is none.
        """
        result = self.wait_for(expr)
        assert len(result) == 1, f"{expr}: expected one series, got {result}"
        return float(result[0]["value"][1])

    def wait_for(self, expr: str, timeout_s: float = 60.0) -> list[dict[str, Any]]:
        """The result of `expr` as soon as it has one. Raises `TimeoutError` with the state of the targets."""
        deadline = time.monotonic() + timeout_s
        while True:
            result = self.query(expr)
            if result:
                return result
            if time.monotonic() >= deadline:
                raise TimeoutError(f"{expr}: no result in {timeout_s:g} s; targets: {self.targets()}")
            time.sleep(0.2)

    def targets(self) -> dict[str, str]:
        """Health and last error of each scraped target."""
        active = self._get("/api/v1/targets")["data"]["activeTargets"]
        return {target["scrapeUrl"]: f"{target['health']} {target['lastError']}".strip() for target in active}

    def alerts(self) -> list[dict[str, Any]]:
        """The pending and firing alerts."""
        return list(self._get("/api/v1/alerts")["data"]["alerts"])

    def _get(self, path: str, **params: str) -> dict[str, Any]:
        answer = httpx.get(f"{self.url}{path}", params=params, timeout=60, trust_env=False)
        body: dict[str, Any] = answer.json()
        if body.get("status") != "success":
            raise ValueError(f"{params}: {body.get('error', answer.text)}")
        return body

    def _wait_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self._start_timeout_s
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"prometheus ended with status {self._process.returncode}:\n{self._log_tail()}")
            try:
                if httpx.get(f"{self.url}/-/ready", timeout=2, trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise RuntimeError(f"prometheus was not ready in {self._start_timeout_s:g} s:\n{self._log_tail()}")

    def _log_tail(self) -> str:
        assert self._folder is not None
        return (Path(self._folder.name) / "log").read_text(errors="replace")[-2000:]

    def __enter__(self) -> RunningPrometheus:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
