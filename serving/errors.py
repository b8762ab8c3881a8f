"""Every error a user can meet, and the two tables that map it to a status.

CanariumError
├── ConfigError            a configuration file that cannot be used (carries the path)
├── RegistryError          a missing, damaged or refused artifact
├── GovernanceError        a key, a signature or an approval that cannot be used, or is missing
├── StartError             the server cannot start here (port taken, missing setting)
├── BuildError             a recipe or a step of a build that fails (build/cache.py)
├── StoreError             the control plane's database cannot be used (control/store.py)
├── WorkerFailure          a worker did not answer a batch (gateway/worker_base.py)
├── FrameError             bytes on a worker's socket that are no frame (gateway/frames.py)
└── RequestError           one request cannot be answered; carries an ErrorKind
"""

from __future__ import annotations

from enum import Enum


class ErrorKind(Enum):
    """Why a request was not answered. Mapped totally to HTTP and gRPC below."""

    BAD_REQUEST = "bad_request"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    PRECONDITION = "precondition"
    TOO_LARGE = "too_large"
    OVERLOADED = "overloaded"
    UNAVAILABLE = "unavailable"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    INTERNAL = "internal"


HTTP_STATUS: dict[ErrorKind, int] = {
    ErrorKind.BAD_REQUEST: 400,
    ErrorKind.UNAUTHENTICATED: 401,
    ErrorKind.FORBIDDEN: 403,
    ErrorKind.NOT_FOUND: 404,
    ErrorKind.CONFLICT: 409,
    ErrorKind.PRECONDITION: 412,
    ErrorKind.TOO_LARGE: 413,
    ErrorKind.OVERLOADED: 429,
    ErrorKind.UNAVAILABLE: 503,
    ErrorKind.DEADLINE: 504,
    ErrorKind.CANCELLED: 499,
    ErrorKind.INTERNAL: 500,
}

#: Numbers of google.rpc.Code, kept as integers so that nothing here imports gRPC.
GRPC_STATUS: dict[ErrorKind, int] = {
    ErrorKind.BAD_REQUEST: 3,  # INVALID_ARGUMENT
    ErrorKind.UNAUTHENTICATED: 16,  # UNAUTHENTICATED
    ErrorKind.FORBIDDEN: 7,  # PERMISSION_DENIED
    ErrorKind.NOT_FOUND: 5,  # NOT_FOUND
    ErrorKind.CONFLICT: 10,  # ABORTED
    ErrorKind.PRECONDITION: 9,  # FAILED_PRECONDITION
    ErrorKind.TOO_LARGE: 8,  # RESOURCE_EXHAUSTED
    ErrorKind.OVERLOADED: 8,  # RESOURCE_EXHAUSTED
    ErrorKind.UNAVAILABLE: 14,  # UNAVAILABLE
    ErrorKind.DEADLINE: 4,  # DEADLINE_EXCEEDED
    ErrorKind.CANCELLED: 1,  # CANCELLED
    ErrorKind.INTERNAL: 13,  # INTERNAL
}


class CanariumError(Exception):
    """The root of everything Canarium raises on purpose."""


class ConfigError(CanariumError):
    """A configuration that cannot be used; the message starts with the path of the fault."""


class RegistryError(CanariumError):
    """An artifact that is missing, damaged or refused."""


class GovernanceError(CanariumError):
    """A key, an envelope or an approval that cannot be used, or an approval that is missing."""


class StartError(CanariumError):
    """The server cannot start on this machine as configured."""


class RequestError(CanariumError):
    """One request cannot be answered.

    Args:
        kind: what went wrong, as a status-independent kind.
        message: what, where and how to fix it; shown to the client as is.
        retry_after_s: seconds after which a retry may succeed; sent as `Retry-After`.
    """

    def __init__(self, kind: ErrorKind, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.retry_after_s = retry_after_s

    @property
    def http_status(self) -> int:
        return HTTP_STATUS[self.kind]

    @property
    def grpc_status(self) -> int:
        return GRPC_STATUS[self.kind]


def bad_request(message: str) -> RequestError:
    """Shorthand for the commonest kind: the client sent something unusable."""
    return RequestError(ErrorKind.BAD_REQUEST, message)
