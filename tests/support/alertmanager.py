"""A real Alertmanager (the Debian package) for tests, with the shipped routing, and a webhook that remembers."""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.support.prometheus import free_port, need


class Webhook:
    """What Alertmanager posts, as (receiver, notification). Use it as a context manager."""

    def __init__(self) -> None:
        self.received: list[tuple[str, dict[str, Any]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.received.append((self.path.strip("/"), body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Webhook:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def wait_for(self, alert: str, timeout_s: float = 180.0) -> tuple[str, dict[str, Any]]:
        """(receiver, alert) of the first notification of an alert. Raises `TimeoutError` with what there was."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for receiver, notification in list(self.received):
                for found in notification["alerts"]:
                    if found["labels"]["alertname"] == alert:
                        return receiver, found
            time.sleep(0.2)
        seen = [found["labels"] for _, notification in self.received for found in notification["alerts"]]
        raise TimeoutError(f"no {alert} within {timeout_s:g} s; notified: {seen}")


class RunningAlertmanager:
    """Alertmanager in a process of its own; use it as a context manager.

    Args:
        config: its configuration; each receiver gets `webhook`, with the receiver's name as path, and groups wait 1 s.
    """

    def __init__(self, config: Path, webhook: Webhook) -> None:
        self._document = yaml.safe_load(config.read_text(encoding="utf-8"))
        self._document["route"]["group_wait"] = "1s"
        for receiver in self._document["receivers"]:
            receiver["webhook_configs"] = [{"url": f"{webhook.url}/{receiver['name']}", "send_resolved": False}]
        self._folder = tempfile.TemporaryDirectory(prefix="alertmanager-")
        self._process: subprocess.Popen[bytes] | None = None
        self.address = f"127.0.0.1:{free_port()}"

    def __enter__(self) -> RunningAlertmanager:
        folder = Path(self._folder.name)
        (folder / "alertmanager.yml").write_text(yaml.safe_dump(self._document), encoding="utf-8")
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    need("prometheus-alertmanager", "prometheus-alertmanager"),
                    f"--config.file={folder / 'alertmanager.yml'}",
                    f"--storage.path={folder / 'data'}",
                    f"--web.listen-address={self.address}",
                    "--cluster.listen-address=",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if httpx.get(f"http://{self.address}/-/ready", timeout=2, trust_env=False).status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        tail = (folder / "log").read_text(errors="replace")[-2000:]
        self.__exit__()
        raise RuntimeError(f"alertmanager is not ready:\n{tail}")

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(timeout=10)
        self._folder.cleanup()
