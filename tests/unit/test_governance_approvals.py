"""Approvals: what is signed, what voids it, who counts, and that it travels with the artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from governance_kit import AVX2, CALIBRATION, EVIDENCE, INT8, VNNI, config, key_at, policy, put, registry_at
from registry_kit import dies_at, faults, made_from

from serving.artifacts import in_use, started
from serving.clock import FakeClock
from serving.config import Started
from serving.errors import GovernanceError, RegistryError
from serving.governance.admission import Admission, Trusted, lacking, standing
from serving.governance.approve import approve
from serving.governance.dsse import sign
from serving.governance.keys import PrivateKey
from serving.governance.policy import BUILT_IN, Approvals, Policy, load_policy
from serving.governance.statement import PAYLOAD_TYPE, digests_of
from serving.loading import Loader
from serving.registry.approvals import Signed
from serving.registry.collect import collect
from serving.registry.export import export
from serving.registry.importing import import_layout
from serving.registry.manifest import Manifest
from serving.registry.store import Registry

LIMITED = BUILT_IN["limited"]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return registry_at(tmp_path)


@pytest.fixture
def key(tmp_path: Path) -> PrivateKey:
    return key_at(tmp_path / "alice.key")


def give(
    registry: Registry, key: PrivateKey, policy: Policy = LIMITED, ref: str = "m/int8:1", role: str = "reviewer"
) -> None:
    approve(registry, ref, policy, key, by="alice", role=role, reason="the numbers are fine")


def trusting(*pairs: tuple[str, PrivateKey, str]) -> dict[str, Trusted]:
    return {key.public.text: Trusted(name, frozenset(roles.split())) for name, key, roles in pairs}


def enforcing(key: PrivateKey, **changes: Any) -> dict[str, Any]:
    trusted = [{"name": "alice", "key": key.public.text, "roles": ["reviewer"]}]
    return {"mode": "enforce", "policy": "limited", "trusted_keys": trusted, **changes}


def counted(registry: Registry, manifest: Manifest, key: PrivateKey, policy: Policy = LIMITED) -> tuple[int, list[str]]:
    found = standing(registry.approvals.of(manifest), manifest, policy, trusting(("alice", key, "reviewer")))
    return len(found.counted), found.void


# ---------------------------------------------------------------- what is signed


def test_an_approval_is_an_in_toto_statement_of_four_digests(registry: Registry, key: PrivateKey) -> None:
    give(registry, key)
    (signed,) = registry.approvals.of(registry.resolve("m/int8:1"))
    statement, signer = signed.opened()
    document = json.loads(statement.encode())
    digests = digests_of(registry.resolve("m/int8:1"), LIMITED.digest)
    assert signer.text == key.public.text
    assert document["_type"] == "https://in-toto.io/Statement/v1"
    assert document["subject"] == [{"name": "m/int8", "digest": {"sha256": digests.subject}}]
    assert document["predicate"]["digests"] == msgspec.to_builtins(digests)
    assert (document["predicate"]["policy"], document["predicate"]["verdict"]) == ("limited", "pass")
    assert len(set(document["predicate"]["digests"].values())) == 4


def test_a_policy_that_is_not_fulfilled_cannot_be_approved(registry: Registry, key: PrivateKey) -> None:
    with pytest.raises(GovernanceError, match=r"m/int8:1: policy 'high' is not fulfilled: .*pii: not measured"):
        give(registry, key, BUILT_IN["high"])
    assert registry.approvals.all() == []
    with pytest.raises(GovernanceError, match="role 'The Boss'"):
        give(registry, key, role="The Boss")


@pytest.mark.parametrize(
    ("about", "changed"),
    [
        ({"evaluation": EVIDENCE | {"accuracy": 0.98}}, "evaluation"),
        ({"calibration": CALIBRATION | {"temperature": 1.3}}, "calibration"),
        ({"quantization": INT8 | {"per_channel": True}}, "artifact"),
        ({"content": "other weights"}, "artifact"),
        ({"validated_on": []}, "artifact"),
    ],
)
def test_any_change_voids_an_approval(registry: Registry, key: PrivateKey, about: dict[str, Any], changed: str) -> None:
    give(registry, key)
    was = registry.resolve("m/int8:1")
    assert counted(registry, was, key) == (1, [])
    teacher = registry.resolve("m/teacher:1")
    put(registry, "other", **{"content": "int8", "lineage": made_from(teacher), "quantization": INT8, **about})
    now = msgspec.structs.replace(registry.resolve("m/other:1"), variant="int8", revision=1)
    assert counted(registry, now, key) == (0, [f"alice as reviewer on {was.created_at}: the {changed} changed since"])


def test_a_changed_policy_voids_an_approval(registry: Registry, key: PrivateKey) -> None:
    give(registry, key)
    stricter = LIMITED.model_copy(update={"rules": LIMITED.rules[1:]})
    number, void = counted(registry, registry.resolve("m/int8:1"), key, stricter)
    assert number == 0
    assert void[0].endswith("the policy changed since (it was given under 'limited')")


# ---------------------------------------------------------------- who counts


def test_only_trusted_keys_in_their_roles_count(registry: Registry, key: PrivateKey, tmp_path: Path) -> None:
    stranger = key_at(tmp_path / "stranger.key")
    give(registry, stranger)
    give(registry, key, role="risk-owner")
    manifest = registry.resolve("m/int8:1")
    number, void = counted(registry, manifest, key)
    assert number == 0
    assert f"key {stranger.public.text} is not among governance.trusted_keys" in void[0]
    assert "alice has no role 'risk-owner'" in void[1]


@pytest.mark.parametrize("body", [b'{"_type": "\xff"}', b"[" * 100_000, b"{"])
def test_what_somebody_signed_that_is_no_statement_counts_for_nothing(
    registry: Registry, key: PrivateKey, body: bytes
) -> None:
    give(registry, key)
    junk = Signed("2026-01-31T12:00:00+00:00", "eve", "m/int8:1", key.public.text, sign(PAYLOAD_TYPE, body, key))
    registry.approvals.journal.append(msgspec.to_builtins(junk))
    number, (void,) = counted(registry, registry.resolve("m/int8:1"), key)
    assert number == 1
    assert void.startswith("the one of 2026-01-31T12:00:00+00:00: the envelope holds no approval: ")
    (fault,) = faults(registry)
    assert "the envelope holds no approval" in fault


@pytest.mark.parametrize(
    ("counted", "missing"),
    [
        ([], ["1 approval by a reviewer missing", "1 approval by a risk-owner missing"]),
        ([("a", "reviewer")], ["1 approval by a risk-owner missing"]),
        ([("a", "reviewer"), ("a", "risk-owner")], ["1 approval by a risk-owner missing"]),
        ([("a", "reviewer"), ("a", "risk-owner"), ("b", "reviewer")], []),
        ([("a", "reviewer"), ("b", "risk-owner")], []),
    ],
)
def test_one_person_fills_one_place(counted: list[tuple[str, str]], missing: list[str]) -> None:
    assert lacking(BUILT_IN["high"].approvals, counted) == missing


def test_an_approval_by_anybody_is_not_taken_from_a_role() -> None:
    wanted = (Approvals(), Approvals(role="reviewer"))
    assert lacking(wanted, [("a", "reviewer"), ("b", "tester")]) == []
    assert lacking(wanted, [("a", "reviewer")]) == ["1 approval missing"]
    assert lacking((Approvals(count=3),), [("a", "x"), ("a", "y")]) == ["2 approvals missing"]


# ---------------------------------------------------------------- what is served


def test_only_an_approved_sibling_takes_the_place_of_an_approved_artifact(registry: Registry, key: PrivateKey) -> None:
    about: dict[str, Any] = {"lineage": made_from(registry.resolve("m/teacher:1")), "quantization": INT8}
    for content in ("reviewed", "built since"):
        put(registry, "int8", content, validated_on=[{"cpu": AVX2}], **about)
    for mode in ("enforce", "warn"):
        asked = config(registry, governance=enforcing(key, mode=mode), teacher="m/teacher:1", int8="m/int8:1")
        loader = Loader(asked, registry, AVX2)
        fitted, notes = loader.fitted(asked)
        served = fitted.models["m"].variants["int8"].artifact
        assert served == ("m/int8:1" if mode == "enforce" else "m/int8:3")
        assert ("m/int8:3 is not served instead: " in notes[0]) is (mode == "enforce")
    give(registry, key, ref="m/int8:2")
    for mode in ("enforce", "warn"):
        asked = config(registry, governance=enforcing(key, mode=mode), teacher="m/teacher:1", int8="m/int8:1")
        fitted, notes = Loader(asked, registry, AVX2).fitted(asked)
        assert fitted.models["m"].variants["int8"].artifact == "m/int8:2"
        assert notes[0].endswith("its sibling m/int8:2 is served instead")
    # What would be served there is kept, whatever was built since.
    assert in_use(asked, registry) == {"m/teacher:1", "m/int8:1", "m/int8:2"}


def test_enforce_names_variant_digest_and_what_is_missing(registry: Registry, key: PrivateKey) -> None:
    manifest = registry.resolve("m/int8:1")
    admission = Admission(config(registry, governance=enforcing(key)), registry)
    with pytest.raises(GovernanceError) as refused:
        admission.check("m", "int8", manifest)
    assert str(refused.value) == (
        f"models.m.variants.int8: m/int8:1 (sha256 {manifest.digest}) is not approved under policy 'limited': "
        "1 approval by a reviewer missing; governance.mode is enforce"
    )
    give(registry, key)
    assert admission.check("m", "int8", manifest) == ""


def test_warn_says_and_off_is_silent(registry: Registry, key: PrivateKey) -> None:
    manifest = registry.resolve("m/int8:1")
    warning = Admission(config(registry, governance=enforcing(key, mode="warn")), registry)
    assert "1 approval by a reviewer missing" in warning.check("m", "int8", manifest)
    assert Admission(config(registry), registry).check("m", "int8", manifest) == ""


def test_every_process_of_an_instance_judges_by_the_policy_that_it_was_started_with(
    registry: Registry, key: PrivateKey, tmp_path: Path
) -> None:
    path = tmp_path / "policy.yaml"
    lines = "apiVersion: canarium/policy/v1\nname: ours\ntier: low\nrules:\n  - {evidence: evaluation.accuracy"
    path.write_text(f"{lines}, at_least: 0.9}}\n")
    give(registry, key, load_policy(str(path)))
    asked = config(registry, governance=enforcing(key, policy=str(path)), int8="m/int8:1")
    given = started(asked, registry)
    received = given.model_dump_json()
    assert Loader(Started.model_validate_json(received), registry, VNNI).refusal("m", "int8", "m/int8:1") == ""
    for edited in (f"{lines}, at_least: 0.99}}\n", "apiVersion: can", ""):
        path.write_text(edited)
        # A gateway that is replaced now.
        loader = Loader(Started.model_validate_json(received), registry, VNNI)
        assert loader.open("m", "int8", "m/int8:1")
        assert loader.fitted(given) == (given, [])
    path.write_text(f"{lines}, at_least: 0.99}}\n")
    again = started(asked, registry)
    assert "accuracy is 0.97, under 0.99" in Loader(again, registry, VNNI).refusal("m", "int8", "m/int8:1")


def test_evidence_is_judged_again_when_something_is_served(registry: Registry, key: PrivateKey, tmp_path: Path) -> None:
    lenient, path = policy(rules=[{"evidence": "evaluation.accuracy"}]), tmp_path / "policy.yaml"
    give(registry, key, lenient)
    path.write_text(
        "apiVersion: canarium/policy/v1\nname: ours\ntier: low\n"
        "rules: [{evidence: evaluation.accuracy, at_least: 0.99}]\n"
    )
    admission = Admission(config(registry, governance=enforcing(key, policy=str(path))), registry)
    why = admission.refusal("m", "int8", registry.resolve("m/int8:1"))
    assert "evaluation.accuracy is 0.97, under 0.99; 1 approval missing; not counted: alice" in why


# ---------------------------------------------------------------- in the registry


def test_verify_finds_a_void_and_a_forged_approval(registry: Registry, key: PrivateKey) -> None:
    give(registry, key)
    assert faults(registry) == []
    path = registry.approvals.journal.path
    line = json.loads(path.read_text())
    line["envelope"]["payload"] = line["envelope"]["payload"][:-8] + "AAAAAAA="
    path.write_text(json.dumps(line) + "\n")
    (fault,) = faults(registry)
    assert fault.startswith("m/int8:1: its approval of ")
    assert "is void: no signature of the envelope is valid" in fault
    path.write_text("{}\n")
    assert "not a log of approvals" in faults(registry)[0]


def test_an_approval_outlives_garbage_collection_and_its_artifact(registry: Registry, key: PrivateKey) -> None:
    give(registry, key)
    put(registry, "int8", "better", lineage=made_from(registry.resolve("m/teacher:1")), quantization=INT8)
    assert [one.ref for one in collect(registry, keep=1).revisions] == ["m/int8:1"]
    assert [one.ref for one in registry.approvals.all()] == ["m/int8:1"]
    assert faults(registry) == []


def test_approvals_travel_with_their_artifact(registry: Registry, key: PrivateKey, tmp_path: Path) -> None:
    give(registry, key)
    give(registry, key, BUILT_IN["low"], "m/teacher:1")
    folder, target = tmp_path / "out", Registry(tmp_path / "elsewhere", FakeClock())
    put(target, "int8", "already there, so numbers differ", evaluation={})
    export(registry, ["m/int8", "m/teacher"], folder)
    import_layout(target, folder)
    moved = target.resolve("m/int8")
    assert moved.revision == 2
    assert counted(target, moved, key) == (1, [])
    assert len(target.approvals.all()) == 2
    import_layout(target, folder)
    assert len(target.approvals.all()) == 2
    assert faults(target) == []


def test_an_approval_travels_to_a_registry_that_has_the_same_content(
    registry: Registry, key: PrivateKey, tmp_path: Path
) -> None:
    """Built there as well, at another time: an approval is of that one build, so it comes with its own revision."""
    give(registry, key)
    folder, clock = tmp_path / "out", FakeClock()
    clock.advance(3600.0)
    (tmp_path / "elsewhere").mkdir()
    target = Registry(tmp_path / "elsewhere" / "registry", clock)
    teacher = put(target, "teacher")
    put(target, "int8", lineage=made_from(teacher), quantization=INT8)
    export(registry, ["m/int8", "m/teacher"], folder)
    for new in (True, False):
        done = import_layout(target, folder)
        assert [(one.manifest.ref, one.new) for one in done] == [("m/teacher:1", False), ("m/int8:2", new)]
        assert counted(target, target.resolve("m/int8:2"), key) == (1, [])
    assert counted(target, target.resolve("m/int8:1"), key) == (0, [])
    assert len(target.approvals.all()) == 1
    assert faults(target) == []


def test_a_tampered_approval_is_not_imported(registry: Registry, key: PrivateKey, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    give(registry, key)
    (signed,) = registry.approvals.all()
    foreign = msgspec.structs.replace(signed, ref="m/teacher:1")
    registry.approvals.journal.append(msgspec.to_builtins(foreign))
    export(registry, ["m/teacher"], folder)
    with pytest.raises(RegistryError, match=r"an approval of m/teacher:1 is void: it approves another .*artifact"):
        import_layout(Registry(tmp_path / "elsewhere", FakeClock()), folder)


def test_a_process_that_dies_while_approving_leaves_a_whole_registry(registry: Registry, key: PrivateKey) -> None:
    number = 1
    while dies_at(number, lambda: give(registry, key)):
        assert faults(registry) == []
        number += 1
    assert counted(registry, registry.resolve("m/int8:1"), key)[0] == 1
