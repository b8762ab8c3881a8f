"""The README says what there is, and only what there is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from pydantic import BaseModel
from repository import ROOT, anchors, blocks, code, commands, links, markdown, readme, spans, words_of

from serving import yaml12
from serving.cli import canarium
from serving.config import Config, parse_config
from serving.core.freeze import Window
from serving.core.rollout_policy import (
    Approve,
    Bake,
    Hook,
    Limits,
    Monitor,
    Policy,
    Retry,
    Shadow,
    Step,
    parse_policy,
)

METRIC_FILES = ("monitoring/metrics.py", "monitoring/aggregate_metrics.py", "serving/metrics.py")
METRIC_SOURCES = [path for path in (ROOT / name for name in METRIC_FILES) if path.exists()]
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.fixture(scope="module")
def text() -> str:
    return readme()


# ---------------------------------------------------------------- configuration and metrics


def config_fields(model: type[BaseModel] = Config, path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted path, name) of every key of the configuration file, sections included."""
    for name, field in model.model_fields.items():
        here = f"{path}.{name}" if path else name
        yield here, name
        for inner in _models(field.annotation):
            yield from config_fields(inner, here)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


@pytest.mark.parametrize(("path", "name"), list(config_fields()), ids=lambda value: value)
def test_every_key_of_the_configuration_file_is_in_the_readme(text: str, path: str, name: str) -> None:
    assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", code(text)), f"{path} is not in README.md (as code)"


def metrics() -> list[str]:
    """Names of the metric families: the string literals of the metrics modules."""
    found = set()
    for source in METRIC_SOURCES:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= set(re.findall(r"\Acanarium_[a-z0-9_]+\Z", node.value))
    return sorted(found)


def test_there_are_metrics() -> None:
    assert len(metrics()) > 20


@pytest.mark.parametrize("name", metrics())
def test_every_metric_is_in_the_readme(text: str, name: str) -> None:
    assert re.search(rf"(?<!\w){name}(_total)?(?!\w)", text), f"{name} is not in README.md"


def test_every_metric_of_the_readme_exists(text: str) -> None:
    known = set(metrics())
    suffixes = re.compile(r"_(total|bucket|sum|count|created)$")
    named = set(re.findall(r"(?<![\w/.])canarium_[a-z0-9_]+", text))
    assert sorted(name for name in named if name not in known and suffixes.sub("", name) not in known) == []


# ---------------------------------------------------------------- examples


def test_configuration_examples_are_valid(text: str) -> None:
    whole = [one for one in (yaml12.load(block) for block in blocks(text, "yaml")) if _is_config(one)]
    assert whole, "the README shows no whole configuration file"
    for document in whole:
        parse_config(document)


def _is_config(document: Any) -> bool:
    return isinstance(document, dict) and document.get("apiVersion") == "canarium/v1"


def test_the_rollout_file_of_the_readme_is_valid_and_names_every_key(text: str) -> None:
    (document,) = [one for one in (yaml12.load(block) for block in blocks(text, "yaml")) if "steps" in one]
    parse_policy(document)
    named = set(re.findall(r"[a-z_]+(?=:)", next(block for block in blocks(text, "yaml") if "steps:" in block)))
    parts = (Policy, Step, Shadow, Bake, Approve, Limits, Window, Monitor, Retry, Hook)
    assert {key for part in parts for key in _keys(part)} - named == set()


def _keys(part: type) -> tuple[str, ...]:
    return tuple(part.__struct_fields__)  # type: ignore[attr-defined]


def test_make_targets_of_the_readme_exist(text: str) -> None:
    named = {
        word
        for line in commands(text) + [span for span in spans(text) if span.startswith("make ")]
        for command in re.split(r"&&|\|\||;|\|", line)
        if (words := words_of(command)) and "make" in words[:2]
        for word in words[words.index("make") + 1 :]
        if re.fullmatch(r"[a-z][a-z-]*", word)
    }
    assert {"demo", "test"} <= named, "the README must name make demo and make test"
    assert named - TARGETS == set()


def canarium_commands(text: str) -> list[str]:
    quoted = [span for span in spans(text) if span.startswith("canarium ")]
    return [line for line in commands(text) + quoted if re.match(r"(\S+/)?canarium ", line)]


def test_canarium_commands_of_the_readme_exist_with_their_options(text: str) -> None:
    lines = canarium_commands(text)
    assert lines, "the README shows no command line"
    for line in lines:
        words = words_of(re.split(r"[|&;>]", line)[0])[1:]
        command: click.Command = canarium
        options: set[str] = set()
        following = iter(words)
        for word in following:
            options |= {opt for parameter in command.params for opt in parameter.opts}
            if isinstance(command, click.Group) and not word.startswith("-"):
                assert word in command.commands, f"README.md: `{line}`: there is no {word!r}"
                command = command.commands[word]
            elif word.startswith("-") and word != "-":
                known = {opt for parameter in command.params for opt in parameter.opts} | {"--help", "-h"}
                assert word.partition("=")[0] in known, f"README.md: `{line}`: there is no option {word}"
                valued = {
                    opt
                    for parameter in command.params
                    if not getattr(parameter, "is_flag", True)
                    for opt in parameter.opts
                }
                if isinstance(command, click.Group) and word in valued:
                    next(following)  # the option's value is no command of the group


# ---------------------------------------------------------------- links and paths


@pytest.mark.parametrize("page", markdown(), ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    content = page.read_text(encoding="utf-8")
    broken = []
    for target in links(content):
        if re.match(r"[a-z][a-z+.-]*:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (
            anchor and file.suffix == ".md" and anchor not in anchors(file.read_text(encoding="utf-8"))
        ):
            broken.append(target)
    assert broken == []


def test_paths_in_the_readme_exist(text: str) -> None:
    top = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in (".canarium", ".venv", ".git")}
    named = {span for span in spans(text) if re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", span) and span.split("/")[0] in top}
    named |= {word for line in commands(text) for word in words_of(line) if "/" in word and word.split("/")[0] in top}
    named |= {span for span in spans(text) if re.fullmatch(r"[A-Z][\w-]+\.md|Makefile|LICENSE|pyproject\.toml", span)}
    assert sorted(name for name in named if not (ROOT / name.split(":")[0]).exists()) == []
