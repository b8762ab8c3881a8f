"""The Grafana dashboard, made from the rows of `panels.py`.

    python -m deployments.grafana.generate            # writes canarium.json
    python -m deployments.grafana.generate --check    # exit 1 if it is out of date

Import canarium.json into Grafana 10 or newer and choose the Prometheus data source.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from deployments.grafana.panels import ROWS, Panel

TARGET = Path(__file__).resolve().parent / "canarium.json"
SCHEMA_VERSION = 39
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24


def expressions() -> list[str]:
    """Every PromQL expression, as declared."""
    return [query.expr for _, panels in ROWS for panel in panels for query in panel.queries]


def concrete(expr: str, model: str, rate_interval: str) -> str:
    """`expr` as Grafana would send it, with its variables filled in."""
    return expr.replace("$model", model).replace("$__rate_interval", rate_interval)


def build() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": y},
                "panels": [],
            }
        )
        y, x = y + 1, 0
        height = 4 if all(panel.kind == "stat" for panel in row) else 8
        for panel in row:
            grid = {"h": height, "w": panel.width, "x": x, "y": y}
            panels.append({"id": len(panels) + 1} | _panel(panel, grid))
            x += panel.width
        y += height
    return {
        "uid": "canarium",
        "title": "Canarium",
        "description": "A model, its cheaper variants and what guards them.",
        "tags": ["canarium"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "templating": {"list": _variables()},
        "panels": panels,
    }


def _variables() -> list[dict[str, Any]]:
    return [
        {
            "name": "datasource",
            "label": "Data source",
            "type": "datasource",
            "query": "prometheus",
            "hide": 0,
            "includeAll": False,
            "multi": False,
        },
        {
            "name": "model",
            "label": "Model",
            "type": "query",
            "datasource": DATASOURCE,
            "query": {"query": "label_values(canarium_requests_total, model)", "refId": "model"},
            "refresh": 2,
            "sort": 1,
            "hide": 0,
            "includeAll": False,
            "multi": False,
        },
    ]


def _panel(panel: Panel, grid: dict[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit}
    if panel.minimum is not None:
        defaults["min"] = panel.minimum
    if panel.maximum is not None:
        defaults["max"] = panel.maximum
    if panel.kind == "stat":
        options: dict[str, Any] = {
            "colorMode": "background" if panel.states else "value",
            "graphMode": "none",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "textMode": "name" if panel.named else "auto",
        }
    else:
        options = {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
        defaults["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 20 if panel.stacked else 0,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        }
    if panel.states:
        defaults["mappings"] = [
            {
                "type": "value",
                "options": {
                    str(value): {"text": text, "color": color, "index": index}
                    for index, (value, text, color) in enumerate(panel.states)
                },
            }
        ]
    overrides = []
    if panel.dashed:
        dashes = {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 8]}}
        overrides.append({"matcher": {"id": "byRegexp", "options": f"/{panel.dashed}/"}, "properties": [dashes]})
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": grid,
        "fieldConfig": {"defaults": defaults, "overrides": overrides},
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATASOURCE,
                "editorMode": "code",
                "expr": query.expr,
                "legendFormat": query.legend or "__auto",
                "range": panel.kind != "stat",
                "instant": panel.kind == "stat",
            }
            for index, query in enumerate(panel.queries)
        ],
    }


def main() -> int:
    text = json.dumps(build(), indent=2) + "\n"
    if "--check" in sys.argv[1:]:
        return 0 if TARGET.exists() and TARGET.read_text(encoding="utf-8") == text else 1
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
