"""The admin API for people: one static page made from the OpenAPI document. No script, nothing from elsewhere."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from html import escape
from importlib.metadata import version
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from serving.control.openapi import PREFIX, document, example

Json = dict[str, Any]

STYLE = """\
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font: 13px/1.5 ui-monospace, monospace; }
pre { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; padding: .6rem .8rem; }
details { border: 1px solid var(--line); border-radius: 6px; margin: .5rem 0; padding: .5rem .8rem; }
summary { cursor: pointer; }
summary b { display: inline-block; min-width: 3.5rem; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); padding: .25rem .8rem .25rem 0; }
.muted { opacity: .7; }
"""


def routes(admin: Sequence[BaseRoute], *, secured: bool) -> list[BaseRoute]:
    """The routes that describe these, for programs and for people. They tell of the deployment only whether it
    asks for tokens (`secured`)."""
    spec = document(admin, version("canarium"), secured=secured)
    page, encoded = render(spec), msgspec.json.encode(spec)

    async def openapi(_request: Request) -> Response:
        return Response(encoded, media_type="application/json")

    async def docs(_request: Request) -> Response:
        return HTMLResponse(page)

    async def style(_request: Request) -> Response:
        return Response(STYLE, media_type="text/css")

    return [Route(f"{PREFIX}/openapi.json", openapi), Route("/docs", docs), Route("/docs.css", style)]


def render(spec: Json) -> str:
    """The page of an OpenAPI document as `openapi.document` makes it."""
    info, schemas = spec["info"], spec["components"]["schemas"]
    operations = [
        _operation(path, method, said, schemas)
        for path, methods in spec["paths"].items()
        for method, said in methods.items()
    ]
    models = [_model(name, schema) for name, schema in sorted(schemas.items())]
    title = escape(f"{info['title']} {info['version']}")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="/favicon.svg" type="image/svg+xml">
<link rel="stylesheet" href="/docs.css">
</head>
<body>
<h1>{title}</h1>
<p>{escape(info["description"])} The same for programs: <a href="{PREFIX}/openapi.json">openapi.json</a> (OpenAPI 3.1).
Errors are <code>{{"error": "…"}}</code>.</p>
<h2>Operations</h2>
{"".join(operations)}
<h2>Models</h2>
{"".join(models)}
</body>
</html>
"""


def _operation(path: str, method: str, said: Json, schemas: Json) -> str:
    name = escape(said["operationId"])
    rows = "".join(
        f"<tr><td><code>{escape(one['name'])}</code></td><td>{escape(one['in'])}</td>"
        f"<td>{escape(one.get('description', ''))} <span class=muted>{escape(_kind(one['schema']))}</span></td></tr>"
        for one in said["parameters"]
    )
    answers = "".join(
        f"<tr><td>{escape(status)}</td><td>{escape(answer['description'])}{_link(answer)}</td></tr>"
        for status, answer in said["responses"].items()
    )
    body = said.get("requestBody")
    return (
        f'<details id="{name}"><summary><b>{method.upper()}</b> <code>{escape(path)}</code> '
        f"<span class=muted>{_words(said['summary'])}</span></summary>"
        f"<p>{escape(said['description'])}{' Body: ' + _reference(body['content']) if body else ''}</p>"
        + (f"<table>{rows}</table>" if rows else "")
        + f"<pre>{escape(_curl(path, method, body, schemas))}</pre><table>{answers}</table></details>\n"
    )


def _words(text: str) -> str:
    """Prose in which backticks stand for code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _curl(path: str, method: str, body: Json | None, schemas: Json) -> str:
    words = ["curl", "-H", "Authorization: Bearer $TOKEN"]
    if method != "get":
        words += ["-X", method.upper()]
    if body is not None:
        value = example(body["content"]["application/json"]["schema"], schemas)
        words += ["-H", "Content-Type: application/json", "-d", json.dumps(value, ensure_ascii=False)]
    quoted = [f'"{word}"' if "$" in word else shlex.quote(word) for word in words]
    return " ".join([*quoted, shlex.quote(f"http://127.0.0.1:8003{path}")])


def _model(name: str, schema: Json) -> str:
    text = json.dumps({key: value for key, value in schema.items() if key != "title"}, indent=2, ensure_ascii=False)
    head = f'<details id="model-{escape(name)}"><summary><code>{escape(name)}</code></summary>'
    return f"{head}<pre>{escape(text)}</pre></details>\n"


def _link(answer: Json) -> str:
    found = _reference(answer["content"])
    return f": {found}" if found else ""


def _reference(content: Json) -> str:
    (media,) = content.values()
    name = media["schema"].get("$ref", "").rpartition("/")[2]
    return f'<a href="#model-{escape(name)}"><code>{escape(name)}</code></a>' if name else ""


def _kind(schema: Json) -> str:
    bounds = [f"{sign} {schema[key]}" for key, sign in (("minimum", "≥"), ("maximum", "≤")) if key in schema]
    return ", ".join([str(schema.get("type", "")), *bounds])
