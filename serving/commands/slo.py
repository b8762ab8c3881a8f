"""Service level objectives in other tools' formats: `slo export`."""

from __future__ import annotations

from pathlib import Path

import click

from serving.commands.common import OK, file_option


@click.group()
def slo() -> None:
    """The service level objectives of a configuration file."""


@slo.command()
@file_option("path", "The configuration file.", default="canarium.yaml")
@click.option(
    "--format",
    "form",
    type=click.Choice(["openslo", "prometheus"]),
    default="openslo",
    show_default=True,
    help="OpenSLO v1 documents, or a file of Prometheus rules.",
)
@click.option(
    "--prometheus",
    "url",
    default="http://localhost:9090",
    show_default=True,
    help="Where the metrics are kept; written into the OpenSLO data source.",
)
def export(path: Path, form: str, url: str) -> int:
    """Print the objectives as YAML.

    `canarium slo export -f canarium.yaml --format prometheus > rules.yml`; needs no server.
    """
    from serving.config import load_config
    from serving.exports import openslo, prometheus_rules

    config = load_config(path)
    if form == "prometheus":
        groups = prometheus_rules.slo_groups(config) + prometheus_rules.alert_groups()
        click.echo(prometheus_rules.dump({"groups": groups}), nl=False)
        return OK
    click.echo("---\n".join(prometheus_rules.dump(document) for document in openslo.documents(config, url)), nl=False)
    return OK


COMMANDS = (slo,)
