"""The README's tables are those of the code, and every command is in it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click
import pytest
from reference import MEANINGS, TABLES, between, settings
from repository import code, readme

from serving.cli import canarium
from serving.errors import HTTP_STATUS
from serving.gateway.recorder import reason_header


def test_every_setting_has_a_meaning_and_every_meaning_a_setting() -> None:
    assert {path for path, _, _ in settings()} == set(MEANINGS)


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_those_of_the_code(name: str) -> None:
    found = between(name).search(readme())
    assert found, f"README.md has no <!-- {name} --> … <!-- /{name} -->"
    assert TABLES[name]() in found[0], "README.md is out of date: run python tests/docs/reference.py"


def test_every_row_of_a_table_has_the_columns_of_its_head() -> None:
    odd, columns = [], 0
    for line in readme().splitlines():
        found = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        if found and columns and found != columns:
            odd.append(line)
        columns = found and (columns or found)
    assert odd == []


def commands(group: click.Group = canarium, path: str = "canarium") -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}"


@pytest.mark.parametrize("command", list(commands()))
def test_every_command_is_in_the_readme(command: str) -> None:
    assert command in code(readme())


def test_every_status_and_reason_is_in_the_readme() -> None:
    from serving.contract import Cause, Reason

    text = code(readme())
    assert [status for status in HTTP_STATUS.values() if f"{status}" not in readme()] == []
    reasons = {reason_header(reason, cause) for reason in Reason for cause in Cause if cause is not Cause.NONE}
    reasons.add(reason_header(Reason.KILLED, Cause.NONE, monitor_lost=True))
    assert [reason for reason in sorted(reasons) if reason not in text] == []
