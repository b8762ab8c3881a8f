"""The environment under which Ray Serve runs for Canarium, set before Ray starts.

Each value was measured or read off Ray 2.60; the reasons are in the README's Architecture section.
On a cluster that is joined instead of started these must already be set on every node.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: Needed on every node of a cluster; `up` refuses to join one that lacks any of them.
REQUIRED: dict[str, str] = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.serve_env:http_middlewares",
}

#: Good defaults for one machine: short drains, no telemetry, no request log.
LOCAL: dict[str, str] = {
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.5",
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "5",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

#: Begins a line of the cluster process that `up` repeats to its user.
NOTE = "note: "

#: Marks every process of an instance, so that `down` finds what a crash left behind.
INSTANCE_VARIABLE = "CANARIUM_INSTANCE"


def local_environment(instance: str, haproxy_dir: Path, ports: Mapping[str, int], token: str) -> dict[str, str]:
    """All variables of an instance that starts its own Ray.

    Args:
        haproxy_dir: short 0700 directory for HAProxy's admin socket and files.
        ports: `stats`, `metrics`, `fallback_http`, `fallback_grpc`: free ports for what HAProxy
            and Serve open beside the advertised ones.
        token: shared secret of the instance's Ray processes.
    """
    return {
        **REQUIRED,
        **LOCAL,
        INSTANCE_VARIABLE: instance,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(haproxy_dir / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy_dir / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy_dir),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy_dir / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports["stats"]),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports["metrics"]),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports["fallback_http"]),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(ports["fallback_grpc"]),
    }


def missing(environment: Mapping[str, str]) -> list[str]:
    """The required settings that an environment lacks, as `NAME=VALUE`."""
    return [f"{name}={value}" for name, value in REQUIRED.items() if environment.get(name) != value]


class NoDisconnectWatch:
    """Tells Serve not to watch for disconnects: a task a request, which the gateway does for slow ones only."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scope["headers"] = [*scope["headers"], (b"x-request-disconnect-disabled", b"?1")]
        await self._app(scope, receive, send)


def http_middlewares() -> list[Any]:
    """Entry point for RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH."""
    from starlette.middleware import Middleware

    return [Middleware(NoDisconnectWatch)]
