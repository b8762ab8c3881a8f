"""The environment under which Ray Serve runs for Canarium, set before Ray starts.

Each value was measured or read off Ray 2.60; the reasons are in the README's Architecture section.
On a cluster that is joined instead of started these must already be set on every node.
"""

from __future__ import annotations

from collections.abc import Mapping

MIB = 1 << 20
#: Bytes of the largest batch over a Serve handle, the path between nodes; without it 4 MiB.
HANDLE_LIMIT = "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"
#: The default of `server.max_body_mib`.
BODY_MIB = 64
HANDLE_MIB = 256
#: gRPC counts in 32 bits with a sign.
MOST_MIB = 2047

#: Needed on every node of a cluster; `up` refuses to join one that lacks any of them. The limit may be higher.
REQUIRED: dict[str, str] = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # Throughput mode would have every replica listen on two ports of its own, one of them on all interfaces.
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
    HANDLE_LIMIT: str(HANDLE_MIB * MIB),
}

#: Good defaults for one machine: no telemetry, no request log, a control loop that looks four times a second (ten times
#: by default, at a core's 2.5 % while nothing happens), and workers of the same priority as every other process: by
#: default Ray lowers theirs by 15, so that gateways and the control actor wait for whatever else runs on the machine.
LOCAL: dict[str, str] = {
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.25",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_worker_niceness": "0",
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


def handle_limit(max_body_mib: int) -> int:
    """Bytes of the largest batch over a handle that goes with `server.max_body_mib`."""
    return min(max(HANDLE_MIB, 2 * max_body_mib), MOST_MIB) * MIB


def local_environment(instance: str, token: str, max_body_mib: int = BODY_MIB) -> dict[str, str]:
    """All variables of an instance that starts its own Ray.

    Args:
        token: shared secret of the instance's Ray processes.
        max_body_mib: `server.max_body_mib`.
    """
    return {
        **REQUIRED,
        **LOCAL,
        HANDLE_LIMIT: str(handle_limit(max_body_mib)),
        INSTANCE_VARIABLE: instance,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
    }


def missing(environment: Mapping[str, str], max_body_mib: int = BODY_MIB) -> list[str]:
    """The required settings that an environment lacks, as `NAME=VALUE`."""
    fixed = {name: value for name, value in REQUIRED.items() if name != HANDLE_LIMIT}
    lacking = [f"{name}={value}" for name, value in fixed.items() if environment.get(name) != value]
    least = handle_limit(max_body_mib)
    return lacking if _at_least(environment.get(HANDLE_LIMIT), least) else [*lacking, f"{HANDLE_LIMIT}={least}"]


def _at_least(given: str | None, least: int) -> bool:
    return given is not None and given.isdecimal() and int(given) >= least
