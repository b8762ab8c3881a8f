"""Prometheus rules from a deployment's SLOs and the alerts that every deployment has.

    python -m deployments.prometheus.generate                     # rewrites the committed files
    python -m deployments.prometheus.generate --check             # exit 1 and name the files out of date
    python -m deployments.prometheus.generate helm-values FILE    # the same as values of the Helm chart

The rules of any other deployment: `canarium slo export -f FILE --format prometheus`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from serving.config import load_config
from serving.exports.prometheus_rules import alert_groups, dump, slo_groups

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
QUICKSTART = ROOT / "deployments" / "quickstart" / "canarium.yaml"
RULES = HERE / "rules.yml"
HELM_ALERTS = ROOT / "helm" / "canarium" / "files" / "alerts.yaml"
HEADER = "# Written by deployments/prometheus/generate.py from {source}; do not edit.\n"


def committed() -> dict[Path, str]:
    """Every generated file of the repository, with what it should hold."""
    config = load_config(QUICKSTART)
    source = QUICKSTART.relative_to(ROOT)
    return {
        RULES: HEADER.format(source=source) + dump({"groups": slo_groups(config) + alert_groups()}),
        HELM_ALERTS: HEADER.format(source="its list of alerts") + dump({"groups": alert_groups()}),
    }


def main(arguments: list[str]) -> int:
    match arguments:
        case [] | ["--check"]:
            stale = [path for path, text in committed().items() if not path.exists() or path.read_text() != text]
            if arguments:
                for path in stale:
                    print(f"{path.relative_to(ROOT)} is out of date: run {Path(__file__).relative_to(ROOT)}")
                return 1 if stale else 0
            for path, text in committed().items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
        case ["helm-values", file]:
            print(
                dump({"metrics": {"prometheusRule": {"enabled": True, "groups": slo_groups(load_config(file))}}}),
                end="",
            )
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
