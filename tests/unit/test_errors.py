"""Every kind of error has a status on both protocols, and carries what its client needs."""

from __future__ import annotations

import grpc
import pytest

from serving.errors import (
    GRPC_STATUS,
    HTTP_STATUS,
    CanariumError,
    ConfigError,
    ErrorKind,
    RegistryError,
    RequestError,
    StartError,
    bad_request,
)

#: The names of the gRPC statuses as a client sees them, written out once more by hand.
NAMES = {
    ErrorKind.BAD_REQUEST: "INVALID_ARGUMENT",
    ErrorKind.UNAUTHENTICATED: "UNAUTHENTICATED",
    ErrorKind.FORBIDDEN: "PERMISSION_DENIED",
    ErrorKind.NOT_FOUND: "NOT_FOUND",
    ErrorKind.CONFLICT: "ABORTED",
    ErrorKind.PRECONDITION: "FAILED_PRECONDITION",
    ErrorKind.TOO_LARGE: "RESOURCE_EXHAUSTED",
    ErrorKind.OVERLOADED: "RESOURCE_EXHAUSTED",
    ErrorKind.UNAVAILABLE: "UNAVAILABLE",
    ErrorKind.DEADLINE: "DEADLINE_EXCEEDED",
    ErrorKind.CANCELLED: "CANCELLED",
    ErrorKind.INTERNAL: "INTERNAL",
}


def test_both_tables_are_total() -> None:
    assert set(HTTP_STATUS) == set(GRPC_STATUS) == set(NAMES) == set(ErrorKind)


@pytest.mark.parametrize("kind", ErrorKind)
def test_a_kind_has_its_statuses(kind: ErrorKind) -> None:
    error = RequestError(kind, "why")
    status = next(code for code in grpc.StatusCode if code.value[0] == error.grpc_status)
    assert status.name == NAMES[kind]
    assert 400 <= error.http_status <= 599


def test_only_our_own_fault_is_a_500() -> None:
    assert [kind for kind, status in HTTP_STATUS.items() if status == 500] == [ErrorKind.INTERNAL]


def test_http_statuses_tell_the_kinds_apart() -> None:
    assert len(set(HTTP_STATUS.values())) == len(ErrorKind)


def test_an_error_shows_its_message_as_it_is() -> None:
    error = RequestError(ErrorKind.OVERLOADED, "the queue of m is full (256 rows)", retry_after_s=2)
    assert (str(error), error.message, error.retry_after_s) == (error.message, "the queue of m is full (256 rows)", 2)


def test_bad_request_is_the_client_fault() -> None:
    assert (bad_request("x").kind, bad_request("x").http_status) == (ErrorKind.BAD_REQUEST, 400)


@pytest.mark.parametrize("error", [ConfigError, RegistryError, StartError, RequestError])
def test_one_root(error: type[Exception]) -> None:
    assert issubclass(error, CanariumError)
