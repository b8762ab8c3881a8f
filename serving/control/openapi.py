"""The admin API as an OpenAPI 3.1 document, made from the routes and the bodies that they decode."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import msgspec
from starlette.requests import Request
from starlette.routing import Route

from serving.control.audit import AuditEntry, Verification
from serving.control.auth import MONITOR, ROLES, Action, Principal
from serving.errors import HTTP_STATUS, ErrorKind

Json = dict[str, Any]
Decorated = TypeVar("Decorated", bound=Callable[..., Any])

PREFIX = "/admin/v1"
REFS = "#/components/schemas/{name}"
#: Answers that any request may get, with what they mean.
ERRORS = {
    ErrorKind.BAD_REQUEST: "a body, header or parameter that cannot be used",
    ErrorKind.UNAUTHENTICATED: "no token, or an unknown or expired one",
    ErrorKind.FORBIDDEN: "the token's role is not enough, or Host or Origin is foreign",
    ErrorKind.NOT_FOUND: "an unknown model, variant or rollout",
    ErrorKind.CONFLICT: "in conflict with the present state: look again first",
    ErrorKind.PRECONDITION: "If-Match: the model's table is not at that epoch any more; nothing was changed",
    ErrorKind.OVERLOADED: "too much at once, or too many failed attempts; see Retry-After",
    ErrorKind.UNAVAILABLE: "the database or the monitor does not answer; nothing was changed",
}


class Parameter(NamedTuple):
    """One parameter of the query. `schema` is JSON Schema."""

    name: str
    schema: Json
    meaning: str


class Operation(msgspec.Struct, frozen=True):
    """What the document says of a handler beside its path and role.

    Args:
        summary: one sentence.
        body: what it decodes.
        answer: what it answers with; None for an object that the sentence describes.
        query: parameters of the query.
        conditional: whether it obeys `If-Match`.
        media: content type of a good answer.
    """

    summary: str
    body: type | None = None
    answer: Any = None
    query: tuple[Parameter, ...] = ()
    conditional: bool = False
    media: str = "application/json"


class AdminRoute(Route):
    """A route that knows who may use it and what it is for."""

    def __init__(
        self, path: str, endpoint: Callable[[Request], Any], method: str, action: Action, operation: Operation | None
    ) -> None:
        super().__init__(path, endpoint, methods=[method])
        self.method, self.action, self.operation = method, action, operation


Handler = Callable[[Request, Principal], Any]


def operation(summary: str, **more: Any) -> Callable[[Decorated], Decorated]:
    """Says what a handler is for; the arguments are those of `Operation`."""

    def mark(handler: Decorated) -> Decorated:
        handler.__dict__["operation"] = Operation(summary, **more)
        return handler

    return mark


def operation_of(handler: Handler) -> Operation | None:
    """What `operation` said of a handler, if anything."""
    found: Operation | None = getattr(handler, "operation", None)
    return found


def document(routes: Iterable[Any], version: str, *, secured: bool) -> Json:
    """The OpenAPI document of the admin routes among `routes`.

    Args:
        routes: those of which to tell.
        version: of this Canarium.
        secured: whether a token is asked for.
    """
    admin = [route for route in routes if isinstance(route, AdminRoute)]
    kinds: list[Any] = [AuditEntry, Verification]
    for route in admin:
        if route.operation is not None:
            kinds += [kind for kind in (route.operation.body, route.operation.answer) if kind is not None]
    _, schemas = msgspec.json.schema_components(kinds, ref_template=REFS)
    schemas["Error"] = {
        "type": "object",
        "properties": {"error": {"type": "string", "description": "what, where, and how to mend it"}},
        "required": ["error"],
    }
    paths: dict[str, Json] = {}
    for route in admin:
        paths.setdefault(PREFIX + route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Canarium admin API",
            "version": version,
            "description": "Looks at and changes what a deployment serves. JSON only; each change is in the audit log.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}] if secured else [],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "made by `canarium token create`; not asked for with auth.mode: none",
                }
            },
        },
    }


def example(schema: Json, schemas: Json) -> Any:
    """The least value that fits a JSON Schema as made above: required properties only."""
    if "$ref" in schema:
        return example(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    if "anyOf" in schema:
        return example(schema["anyOf"][0], schemas)
    if "enum" in schema:
        return schema["enum"][-1]
    kind = schema.get("type")
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: example(properties[name], schemas) for name in schema.get("required", ())}
    return {"string": "…", "integer": 1, "number": 1.0, "boolean": False, "array": []}.get(str(kind))


def _operation(route: AdminRoute) -> Json:
    said = route.operation or Operation(route.action.words)
    changes = route.method not in ("GET", "HEAD")
    roles = [role for role in (*ROLES, MONITOR) if Principal("", role).may(route.action)]
    described: Json = {
        "operationId": _identifier(route),
        "summary": said.summary,
        "description": f"For {', '.join(roles)}.",
        "x-canarium-roles": roles,
        "parameters": [*_path_parameters(route.path), *(_query(parameter) for parameter in said.query)],
        "responses": _responses(said, changes),
    }
    if changes:
        described["parameters"].append(
            _header("Idempotency-Key", "The same request with the same key, within ten minutes, does nothing twice.")
        )
    if said.conditional:
        described["parameters"].append(
            _header("If-Match", 'The epoch that was looked at, such as "7"; refused with 412 if it has moved on.')
        )
    if said.body is not None:
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": _schema(said.body)}}}
    return described


def _responses(said: Operation, changes: bool) -> Json:
    schema = {"type": "object"} if said.answer is None else _schema(said.answer)
    absent = {ErrorKind.CONFLICT: not changes, ErrorKind.PRECONDITION: not said.conditional}
    errors = {HTTP_STATUS[kind]: ERRORS[kind] for kind in ERRORS if not absent.get(kind, False)}
    if changes:
        errors |= {HTTP_STATUS[ErrorKind.TOO_LARGE]: "a body over 1 MiB", 415: "Content-Type is not application/json"}
    content = {"application/json": {"schema": {"$ref": REFS.format(name="Error")}}}
    good = {"200": {"description": "done", "content": {said.media: {"schema": schema}}}}
    return good | {str(status): {"description": errors[status], "content": content} for status in sorted(errors)}


def _schema(kind: Any) -> Json:
    (schema,), _ = msgspec.json.schema_components([kind], ref_template=REFS)
    return schema


def _path_parameters(path: str) -> list[Json]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", path)
    ]


def _query(parameter: Parameter) -> Json:
    return {
        "name": parameter.name,
        "in": "query",
        "description": parameter.meaning,
        "schema": parameter.schema,
    }


def _header(name: str, meaning: str) -> Json:
    return {"name": name, "in": "header", "description": meaning, "schema": {"type": "string"}}


def _identifier(route: AdminRoute) -> str:
    words = re.findall(r"[a-z]+", route.path.replace("{", "").replace("}", ""))
    return "-".join([route.method.lower(), *words])
