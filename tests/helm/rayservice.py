"""The part of KubeRay's RayService that the chart may use, as a JSON schema.

Field names, types and required fields are those of the custom resource `rayservices.ray.io/v1` of KubeRay 1.5. Every
object is closed, so that a misspelt field, or one that nobody has looked up there, fails.
"""

from __future__ import annotations

from typing import Any

TEXT: dict[str, Any] = {"type": "string"}
WHOLE: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
TEXTS: dict[str, Any] = {"type": "object", "additionalProperties": TEXT}
#: Kubernetes' own schema judges what is in a pod.
POD: dict[str, Any] = {"type": "object", "required": ["metadata", "spec"]}


def closed(*required: str, **properties: Any) -> dict[str, Any]:
    """An object that has the required fields and no others than those given."""
    return {"type": "object", "required": list(required), "properties": properties, "additionalProperties": False}


SECRET = closed("valueFrom", valueFrom=closed("secretKeyRef", secretKeyRef=closed("key", "name", key=TEXT, name=TEXT)))
CLUSTER = closed(
    "headGroupSpec",
    rayVersion=TEXT,
    authOptions=closed(mode={"enum": ["disabled", "token"]}),
    gcsFaultToleranceOptions=closed("redisAddress", redisAddress=TEXT, redisPassword=SECRET),
    headGroupSpec=closed("template", rayStartParams=TEXTS, template=POD),
    workerGroupSpecs={
        "type": "array",
        "items": closed(
            *("groupName", "minReplicas", "maxReplicas", "template"),
            groupName=TEXT,
            replicas=WHOLE,
            minReplicas=WHOLE,
            maxReplicas=WHOLE,
            rayStartParams=TEXTS,
            template=POD,
        ),
    },
)
RAYSERVICE = closed(
    *("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayService"},
    metadata={"type": "object", "required": ["name"]},
    spec=closed(
        "rayClusterConfig",
        upgradeStrategy=closed(type={"enum": ["NewCluster", "None"]}),
        excludeHeadPodFromServeSvc={"type": "boolean"},
        serveConfigV2=TEXT,
        rayClusterConfig=CLUSTER,
    ),
)
