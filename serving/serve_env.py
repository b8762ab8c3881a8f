"""The environment under which Ray Serve runs for Canarium, set before Ray starts.

Each value was measured or read off Ray 2.60; the reasons are in the README's Architecture section.
On a cluster that is joined instead of started these must already be set on every node.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

MIB = 1 << 20
#: Bytes of the largest gRPC message that Serve takes and sends; without it 2 GiB, read before anybody is authenticated.
GRPC_LIMIT = "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE"
#: Bytes of the largest batch over a Serve handle, the path between nodes; without it 4 MiB.
HANDLE_LIMIT = "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"
#: The default of `server.max_body_mib`.
BODY_MIB = 64
HANDLE_MIB = 256
#: gRPC counts in 32 bits with a sign.
MOST_MIB = 2047

#: Needed on every node of a cluster; `up` refuses to join one that lacks any of them. The limits may be higher.
REQUIRED: dict[str, str] = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.serve_env:http_middlewares",
    GRPC_LIMIT: str(BODY_MIB * MIB),
    HANDLE_LIMIT: str(HANDLE_MIB * MIB),
}

#: Good defaults for one machine: short drains, no telemetry, no request log.
LOCAL: dict[str, str] = {
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.5",
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "5",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    # A dead HAProxy is replaced after three failed looks: 10 s apart by default.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "5",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

#: Begins a line of the cluster process that `up` repeats to its user.
NOTE = "note: "

#: Marks every process of an instance, so that `down` finds what a crash left behind.
INSTANCE_VARIABLE = "CANARIUM_INSTANCE"


def did_not_start(model: str, version: int) -> str:
    """How a note begins that says why the workers of a variant do not start."""
    return f"{NOTE}{model} version {version} did not start"


def limits(max_body_mib: int) -> dict[str, str]:
    """The limits on gRPC messages that go with `server.max_body_mib`."""
    handle_mib = min(max(HANDLE_MIB, 2 * max_body_mib), MOST_MIB)
    return {GRPC_LIMIT: str(max_body_mib * MIB), HANDLE_LIMIT: str(handle_mib * MIB)}


def local_environment(
    instance: str, haproxy_dir: Path, ports: Mapping[str, int], token: str, max_body_mib: int = BODY_MIB
) -> dict[str, str]:
    """All variables of an instance that starts its own Ray.

    Args:
        haproxy_dir: short 0700 directory for HAProxy's admin socket and files.
        ports: `stats`, `metrics`, `fallback_http`, `fallback_grpc`: free ports for what HAProxy
            and Serve open beside the advertised ones.
        token: shared secret of the instance's Ray processes.
        max_body_mib: `server.max_body_mib`, which holds for gRPC messages as well.
    """
    return {
        **REQUIRED,
        **LOCAL,
        **limits(max_body_mib),
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


def missing(environment: Mapping[str, str], max_body_mib: int = BODY_MIB) -> list[str]:
    """The required settings that an environment lacks, as `NAME=VALUE`."""
    needed = limits(max_body_mib)
    fixed = {name: value for name, value in REQUIRED.items() if name not in needed}
    return [
        *(f"{name}={value}" for name, value in fixed.items() if environment.get(name) != value),
        *(f"{name}={value}" for name, value in needed.items() if not _at_least(environment.get(name), int(value))),
    ]


def _at_least(given: str | None, least: int) -> bool:
    return given is not None and given.isdecimal() and int(given) >= least


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
