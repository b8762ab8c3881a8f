"""Rendering the chart with the real Helm engine, for the tests beside this file."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from helm_python import Chart

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "canarium"
GOLDEN = Path(__file__).resolve().parent / "golden"
#: Values files of helm/canarium/ci, each with a golden render.
CASES = ("default", "full")


def values(case: str) -> dict[str, Any]:
    """The values of a case, read as Helm reads them."""
    from helm_python import values_from_yaml

    return values_from_yaml((CHART / "ci" / f"{case}-values.yaml").read_text(encoding="utf-8"))


def render(given: dict[str, Any], release: str = "demo") -> dict[str, str]:
    """Template path (without the chart's name) -> text. Raises `HelmError`."""
    with Chart.load(CHART) as chart:
        rendered = chart.render(given, name=release, namespace="ml")
    return {name.removeprefix("canarium/templates/"): text for name, text in sorted(rendered.items())}


@cache
def text_of(case: str) -> str:
    """All manifests of a case as one YAML stream, as `helm template` prints them; the notes are left out."""
    parts = [
        f"---\n# Source: {name}\n{text.strip()}\n"
        for name, text in render(values(case)).items()
        if name.endswith(".yaml") and text.strip()
    ]
    return "".join(parts)


def objects(case: str) -> list[dict[str, Any]]:
    """The Kubernetes objects of a case."""
    return parse(text_of(case))


def parse(text: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(text) if document]


def one(case: str, kind: str, name: str | None = None) -> dict[str, Any]:
    """The only object of a kind (and name)."""
    found = [
        item for item in objects(case) if item["kind"] == kind and (name is None or item["metadata"]["name"] == name)
    ]
    assert len(found) == 1, f"{kind} {name or ''}: {len(found)} objects"
    return found[0]


def script(path: Path) -> ModuleType:
    """A Python file that is in no package, imported."""
    name = f"{path.parent.name}_{path.stem}"
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None
    assert specification.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def with_value(base: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of `base` with one dotted key changed."""
    head, _, rest = path.partition(".")
    return base | {head: with_value(base.get(head) or {}, rest, value) if rest else value}
