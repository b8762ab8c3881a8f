"""A deployment's service level objectives as OpenSLO v1 documents. Pure.

Source: the OpenSLO specification, version v1 (github.com/OpenSLO/OpenSLO). Its alert conditions know one window each:
of every multi-window burn-rate alert the long one is written, and the short one as the time to wait; `prometheus_rules`
has both.
"""

from __future__ import annotations

from typing import Any

from monitoring import slo as slo_policy
from serving.config import Config, SloConfig
from serving.exports.prometheus_rules import BURNS, bad_and_total, good_and_total

API = "openslo/v1"
SOURCE, TARGET = "prometheus", "on-call"


def documents(config: Config, prometheus_url: str) -> list[dict[str, Any]]:
    """One data source, one notification target, then for each model its service, its SLOs and their alert policies.

    Args:
        prometheus_url: where the exporter's metrics are kept.
    """
    found = [
        _document("DataSource", SOURCE, type="Prometheus", connectionDetails={"url": prometheus_url}),
        _document("AlertNotificationTarget", TARGET, target="webhook", description="whoever is on call"),
    ]
    for model, entry in sorted(config.models.items()):
        if entry.slo:
            found.append(_document("Service", model, description=f"the model {model}, served by Canarium"))
        for slo in entry.slo:
            policies = [_policy(model, slo, at) for at in range(len(BURNS))]
            found += [_slo(model, slo, [policy["metadata"]["name"] for policy in policies]), *policies]
    return found


def _document(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": API, "kind": kind, "metadata": {"name": name}, "spec": spec}


def _slo(model: str, slo: SloConfig, policies: list[str]) -> dict[str, Any]:
    name = f"{model}-{slo.name}"
    what = f"answers under {slo.threshold_ms:g} ms" if slo.threshold_ms else "requests answered"
    if slo.name == "latency":
        good, total = good_and_total(model, slo)
        ratio = {"counter": True, "good": _query(good), "total": _query(total)}
    else:
        bad, total = bad_and_total(model, slo, "model", "%s")
        ratio = {"counter": True, "bad": _query(bad), "total": _query(total)}
    return _document(
        "SLO",
        name,
        description=f"{slo.objective:.6g} of {what} over {slo.window}",
        service=model,
        indicator={"metadata": {"name": f"{name}-ratio"}, "spec": {"ratioMetric": ratio}},
        timeWindow=[{"duration": slo.window, "isRolling": True}],
        budgetingMethod="Occurrences",
        objectives=[{"displayName": what, "target": slo.objective}],
        alertPolicies=[{"alertPolicyRef": policy} for policy in policies],
    )


def _query(query: str) -> dict[str, Any]:
    return {"metricSource": {"metricSourceRef": SOURCE, "type": "Prometheus", "spec": {"query": query}}}


def _policy(model: str, slo: SloConfig, at: int) -> dict[str, Any]:
    burn = BURNS[at]
    factor = burn.factor_for(slo)
    name = f"{model}-{slo.name}-burn-{burn.long}"
    spends = f"the error budget of {slo.window} burns {factor:.4g} times too fast over {burn.long}"
    condition = {
        "kind": "AlertCondition",
        "metadata": {"name": f"{name}-condition"},
        "spec": {
            "description": f"{spends}: {burn.share_for(slo):.0%} of it is gone in that time",
            "severity": burn.severity,
            "condition": {
                "kind": "burnrate",
                "threshold": float(f"{factor:.6g}"),
                "lookbackWindow": burn.long,
                "alertAfter": f"{slo_policy.WINDOWS[burn.short] / 60:.0f}m",
            },
        },
    }
    return _document(
        "AlertPolicy",
        name,
        description=spends,
        alertWhenBreaching=True,
        alertWhenResolved=False,
        alertWhenNoData=False,
        conditions=[condition],
        notificationTargets=[{"targetRef": TARGET}],
    )
