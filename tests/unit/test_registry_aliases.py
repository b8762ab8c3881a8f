"""Names for revisions: what they mean, who changed it, and that a server keeps to what they meant at its start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from registry_kit import faults, made_from, put

from serving.artifacts import in_use, pinned
from serving.clock import FakeClock
from serving.config import Config, parse_config
from serving.errors import ConfigError, RegistryError
from serving.paths import Paths
from serving.registry.aliases import Change, remove_alias, set_alias
from serving.registry.collect import collect
from serving.registry.store import Registry

A = ("m", "a")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = Registry(tmp_path / "registry", FakeClock())
    for content in ("one", "two", "three"):
        put(registry, "a", content)
    return registry


def move(registry: Registry, alias: str, which: str, reason: str = "why") -> Change:
    return set_alias(registry, A, alias, which, by="cli:ann", reason=reason)


def test_an_alias_names_a_revision_until_it_is_moved(registry: Registry) -> None:
    assert move(registry, "production", "1").old is None
    assert registry.resolve("m/a:production").revision == 1
    assert registry.open("m/a:production")[0].ref == "m/a:1"
    put(registry, "a", "four")
    assert registry.resolve("m/a:production").revision == 1
    assert move(registry, "candidate", "latest").new == 4
    assert move(registry, "production", "candidate").new == 4
    assert registry.resolve("m/a:production").revision == 4


def test_every_change_is_in_the_log_with_who_when_and_why(registry: Registry) -> None:
    move(registry, "production", "1", "the first")
    move(registry, "production", "2", "better")
    assert move(registry, "production", "2", "again").old == 2  # no change, no line
    remove_alias(registry, A, "production", by="cli:bob", reason="over")
    at = "2023-11-14T22:13:20+00:00"
    assert list(registry.aliases.history("m", "a")) == [
        Change(at, "cli:ann", "m", "a", "production", None, 1, "the first"),
        Change(at, "cli:ann", "m", "a", "production", 1, 2, "better"),
        Change(at, "cli:bob", "m", "a", "production", 2, None, "over"),
    ]
    assert registry.aliases.history("n") == []
    assert registry.aliases.of(*A) == {}
    line = json.loads((registry.root / "aliases.jsonl").read_text().splitlines()[1])
    assert (line["from"], line["to"], line["reason"]) == (1, 2, "better")


def test_the_log_is_only_appended_to_and_an_edit_is_noticed(registry: Registry) -> None:
    log = registry.root / "aliases.jsonl"
    move(registry, "production", "1", "the first")
    before = log.read_bytes()
    move(registry, "production", "2", "better")
    assert log.read_bytes().startswith(before)
    assert faults(registry) == []
    log.write_bytes(log.read_bytes().replace(b"the first", b"the worst"))
    assert faults(registry) == [f"{log}:2: does not follow the line before it; a line was edited or lost"]


def test_an_unfinished_line_does_not_count_and_gives_way(registry: Registry) -> None:
    log = registry.root / "aliases.jsonl"
    move(registry, "production", "1")
    with log.open("ab") as stream:
        stream.write(b'{"at": "2026')
    assert registry.resolve("m/a:production").revision == 1
    assert faults(registry) == []
    move(registry, "production", "2")
    assert registry.resolve("m/a:production").revision == 2
    assert faults(registry) == []


@pytest.mark.parametrize(
    ("alias", "which", "message"),
    [
        ("latest", "1", "alias 'latest' always means the newest revision"),
        ("7", "1", "alias '7': start with a lower-case letter"),
        ("Prod", "1", "alias 'Prod': start with a lower-case letter"),
        ("../up", "1", "alias '../up': start with a lower-case letter"),
        ("production", "9", r"m/a:9: m/a has no revision 9 \(it has: 1, 2, 3\)"),
        ("production", "other", r"m/a:other: m/a has no alias 'other' \(it has: nothing\)"),
        ("production", "../1", "is not MODEL/VARIANT:REVISION"),
    ],
)
def test_what_cannot_be_an_alias_is_refused(registry: Registry, alias: str, which: str, message: str) -> None:
    with pytest.raises(RegistryError, match=message):
        move(registry, alias, which)
    assert not (registry.root / "aliases.jsonl").exists()


def test_an_alias_that_is_not_there_cannot_be_removed(registry: Registry) -> None:
    move(registry, "production", "1")
    with pytest.raises(RegistryError, match=r"m/a has no alias 'prod' \(it has: production\)"):
        remove_alias(registry, A, "prod", by="t", reason="r")


# ---------------------------------------------------------------- in a configuration


def config(registry: Registry, artifact: str) -> Config:
    document: dict[str, Any] = {
        "apiVersion": "canarium/v1",
        "registry": {"dir": str(registry.root)},
        "state": {"dir": str(registry.root.parent / "state")},
        "models": {"m": {"baseline": "a", "variants": {"a": {"artifact": artifact}}}},
    }
    return parse_config(document)


def test_a_configuration_keeps_to_what_its_aliases_meant_at_the_start(registry: Registry) -> None:
    move(registry, "production", "2")
    for artifact, ref in (("m/a:production", "m/a:2"), ("m/a", "m/a:3"), ("m/a:latest", "m/a:3"), ("m/a:1", "m/a:1")):
        started = pinned(config(registry, artifact), registry)
        move(registry, "production", "1")
        assert started.models["m"].variants["a"].artifact == ref
        assert pinned(started, registry) == started
        move(registry, "production", "2")


def test_a_configuration_with_an_alias_that_is_not_there_says_how_to_set_it(registry: Registry) -> None:
    with pytest.raises(RegistryError, match=r"set it with `canarium registry alias m/a production REVISION`"):
        pinned(config(registry, "m/a:production"), registry)


@pytest.mark.parametrize("artifact", ["m/a:Production", "m/a:-x", "m/a:01", "m/a:", "m/a@production", "m/a:a/b"])
def test_a_reference_that_cannot_be_is_refused_when_the_file_is_read(registry: Registry, artifact: str) -> None:
    with pytest.raises(ConfigError, match="is not MODEL/VARIANT:REVISION"):
        config(registry, artifact)


def test_what_an_instance_was_started_with_is_in_use_after_its_alias_moved(registry: Registry) -> None:
    move(registry, "production", "1")
    given = config(registry, "m/a:production")
    assert in_use(given, registry) == {"m/a:1"}
    paths = Paths.of(given.state.dir)
    paths.run_dir.mkdir(parents=True)
    paths.instance_file.write_text(pinned(given, registry).model_dump_json())
    move(registry, "production", "3")
    assert in_use(given, registry) == {"m/a:1", "m/a:3"}
    paths.instance_file.write_text("{")
    with pytest.raises(ConfigError, match=r"instance\.json: cannot be read, so it is not known"):
        in_use(given, registry)


def test_the_siblings_that_other_processors_would_serve_are_in_use(registry: Registry) -> None:
    teacher = put(registry, "a", "teacher")
    about: dict[str, Any] = {"lineage": made_from(teacher), "quantization": {"weights": "QInt8"}}
    flags = (["asimddp"], ["avx512_vnni"], ["avx2"], ["avx512_vnni"], ["avx2"])
    for number, of in enumerate(flags):
        cpu = {"machine": "x86_64", "flags": of}
        put(registry, "int8", f"{number}", validated_on=[{"cpu": cpu}], **about)
    assert in_use(config(registry, "m/int8:2"), registry) == {"m/int8:2", "m/int8:1", "m/int8:5"}
    assert in_use(config(registry, teacher.ref), registry) == {teacher.ref}
    kept = in_use(config(registry, "m/int8:4"), registry)
    gone = [one.ref for one in collect(registry, keep=1, used=kept).revisions]
    assert [ref for ref in gone if ref.startswith("m/int8")] == ["m/int8:3", "m/int8:2"]
