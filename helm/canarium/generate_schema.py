"""Write values.schema.json: the chart's own keys by hand, `models`, `governance` and `card` from serving.config.

python helm/canarium/generate_schema.py            # writes values.schema.json
python helm/canarium/generate_schema.py --check    # exit 1 if it is out of date
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serving.config import AuthConfig, ModelConfig, ServerConfig
from serving.governance.settings import GovernanceConfig, SystemCardConfig

HERE = Path(__file__).resolve().parent
TARGET = HERE / "values.schema.json"
QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"
#: A name of a DNS label, or empty where the chart then makes one up.
NAME_OR_EMPTY = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$"
SECRET_KEY = r"^[-._a-zA-Z0-9]+$"
STRING: dict[str, Any] = {"type": "string"}
BOOLEAN: dict[str, Any] = {"type": "boolean"}
#: Parts of Kubernetes objects are passed on as they are; the API server checks them.
FREE: dict[str, Any] = {"type": "object"}
FREE_LIST: dict[str, Any] = {"type": "array", "items": {"type": "object"}}
STRING_MAP: dict[str, Any] = {"type": "object", "additionalProperties": STRING}
DURATION: dict[str, Any] = {"type": "string", "pattern": r"^[1-9][0-9]*(s|m)$"}


def closed(**properties: Any) -> dict[str, Any]:
    """An object that allows the given keys only."""
    return {"type": "object", "additionalProperties": False, "properties": properties}


def text(pattern: str) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern}


def whole(low: int, high: int | None = None) -> dict[str, Any]:
    return {"type": "integer", "minimum": low} | ({} if high is None else {"maximum": high})


def one_of(*values: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(values)}


def from_config(field: str) -> dict[str, Any]:
    """The bounds of a server setting, as serving.config has them."""
    found = ServerConfig.model_json_schema()["properties"][field]
    return {key: found[key] for key in ("type", "minimum", "maximum")}


def build() -> dict[str, Any]:
    """The whole schema. Deterministic, so that `--check` can compare."""
    definitions: dict[str, Any] = {}
    for section in (ModelConfig, GovernanceConfig, SystemCardConfig):
        given = section.model_json_schema(ref_template="#/$defs/{model}")
        definitions |= given.pop("$defs", {}) | {section.__name__: given}
    for node in _walk(list(definitions.values())):
        node.pop("default", None)  # values.yaml says the defaults, canarium.yaml's own apply to models
        node.pop("title", None)
    resources = closed(requests=FREE, limits=FREE, claims=FREE_LIST)
    quantity = text(QUANTITY)
    placement = {"nodeSelector": STRING_MAP, "tolerations": FREE_LIST, "affinity": FREE}
    peers = closed(**{"from": FREE_LIST})
    volume = {
        "enabled": BOOLEAN,
        "existingClaim": text(NAME_OR_EMPTY),
        "size": quantity,
        "storageClassName": text(NAME_OR_EMPTY),
    }
    monitor = closed(enabled=BOOLEAN, interval=DURATION, labels=STRING_MAP)
    schema = closed(
        nameOverride=text(NAME_OR_EMPTY),
        fullnameOverride=text(NAME_OR_EMPTY),
        image=closed(
            repository={"type": "string", "minLength": 1},
            tag=STRING,
            pullPolicy=one_of("Always", "IfNotPresent", "Never"),
            pullSecrets={"type": "array", "items": closed(name=STRING) | {"required": ["name"]}},
        ),
        models={
            "type": "object",
            "propertyNames": {"pattern": "^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"},
            "additionalProperties": {"$ref": "#/$defs/ModelConfig"},
        },
        server=closed(
            gateways=from_config("gateways"),
            maxBodyMib=from_config("max_body_mib"),
            maxInflightMib=from_config("max_inflight_mib"),
        ),
        auth=closed(
            mode=one_of("tokens"),
            dataPlane=one_of(*AuthConfig.model_json_schema()["properties"]["data_plane"]["enum"]),
            tokensSecret=closed(name=text(NAME_OR_EMPTY), tokensKey=text(SECRET_KEY), monitorTokenKey=text(SECRET_KEY)),
        ),
        governance={"$ref": "#/$defs/GovernanceConfig"},
        card={"$ref": "#/$defs/SystemCardConfig"},
        state=closed(
            databaseSecret=closed(name=text(NAME_OR_EMPTY), urlKey=text(SECRET_KEY)),
            persistence=closed(**volume),
            spoolSizeLimit=quantity,
        ),
        registry=closed(
            dir=text("^/.+"),
            persistence=closed(**volume, accessMode=one_of("ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce")),
        ),
        ray=closed(
            version=text(r"^[0-9]+\.[0-9]+\.[0-9]+$"),
            authMode=one_of("token", "disabled"),
            env={"type": "object", "propertyNames": {"pattern": "^[A-Z][A-Z0-9_]*$"}, "additionalProperties": STRING},
            gcsFaultToleranceOptions=FREE,
        ),
        head=closed(resources=resources, **placement),
        worker=closed(
            replicas=whole(1),
            resources=resources,
            terminationGracePeriodSeconds=whole(1),
            readinessProbe=closed(periodSeconds=whole(1), timeoutSeconds=whole(1), failureThreshold=whole(1)),
            **placement,
        ),
        monitor=closed(resources=resources),
        serviceAccount=closed(create=BOOLEAN, name=text(NAME_OR_EMPTY), annotations=STRING_MAP),
        podSecurityContext=FREE,
        containerSecurityContext=FREE,
        podAnnotations=STRING_MAP,
        podLabels=STRING_MAP,
        service=closed(type=one_of("ClusterIP", "LoadBalancer", "NodePort"), annotations=STRING_MAP),
        podDisruptionBudget=closed(
            enabled=BOOLEAN, maxUnavailable={"anyOf": [whole(0), text(r"^(100|[1-9]?[0-9])%$")]}
        ),
        networkPolicy=closed(enabled=BOOLEAN, inference=peers, control=peers, monitor=peers, operator=peers),
        metrics=closed(
            podMonitor=monitor,
            serviceMonitor=monitor,
            prometheusRule=closed(enabled=BOOLEAN, labels=STRING_MAP, groups=FREE_LIST),
        ),
    )
    # Helm lets parent charts pass `global` to every chart.
    schema["properties"]["global"] = FREE
    return {"$schema": "http://json-schema.org/draft-07/schema#", "$defs": definitions} | schema


def _walk(node: Any) -> Iterator[dict[str, Any]]:
    """Every schema in or below `node`, which is a schema, a list or a mapping of names to schemas."""
    if isinstance(node, list):
        for item in node:
            yield from _walk(item)
    elif isinstance(node, dict):
        yield node
        for key, value in node.items():
            # The keys of `properties` are names, so the mapping itself is not a schema.
            yield from _walk(list(value.values()) if key == "properties" else value)


def main() -> int:
    content = json.dumps(build(), indent=2) + "\n"
    if "--check" in sys.argv[1:]:
        return 0 if TARGET.exists() and TARGET.read_text(encoding="utf-8") == content else 1
    TARGET.write_text(content, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
