"""Policies: every rule has a verdict with its number; what was not measured fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from governance_kit import EVIDENCE, policy

from serving.errors import ConfigError
from serving.governance.gate import failures, judge
from serving.governance.policy import BUILT_IN, load_policy

DERIVED = {"lineage": {"parents": [{"role": "source"}]}}


def verdict(evaluation: Any, *, document: dict[str, Any] | None = None, **rule: Any) -> tuple[str, float | None, str]:
    chosen = policy(rules=[{"evidence": "evaluation.found", **rule}])
    (one,) = judge(chosen, {"evaluation": evaluation, **(document or {})})
    return one.verdict, one.found, one.why


def test_a_limit_includes_itself() -> None:
    assert verdict({"found": 0.9}, at_least=0.9) == ("pass", 0.9, "evaluation.found is 0.9")
    assert verdict({"found": 0.899}, at_least=0.9) == ("fail", 0.899, "evaluation.found is 0.899, under 0.9")
    assert verdict({"found": 0.02}, at_most=0.02)[0] == "pass"
    assert verdict({"found": 0.021}, at_most=0.02) == ("fail", 0.021, "evaluation.found is 0.021, over 0.02")
    assert verdict({"found": 0}, at_most=1)[0] == "pass"  # zero was measured


def test_a_limit_that_no_artifact_could_keep_on_so_few_clips_says_so() -> None:
    evaluation = {"found": 0.08, "bounds_if_perfect": {"found": 0.07}}
    assert verdict(evaluation, at_most=0.05)[2] == (
        "evaluation.found is 0.08, over 0.05 (without any error it would be 0.07: too few clips, measure on more)"
    )
    assert verdict(evaluation, at_most=0.075)[2] == "evaluation.found is 0.08, over 0.075"
    lower = {"found": {"*": 0.8}, "bounds_if_perfect": {"found": 0.9}}
    assert verdict(lower, at_least=0.95, evidence="evaluation.found.*")[2] == "evaluation.found.* is 0.8, under 0.95"


@pytest.mark.parametrize("evaluation", [{}, {"found": None}, {"found": {}}, {"found": ""}, None])
def test_what_was_not_measured_fails(evaluation: Any) -> None:
    assert verdict(evaluation, at_least=0.5) == ("fail", None, "evaluation.found: not measured")
    assert verdict(evaluation)[0] == "fail"


@pytest.mark.parametrize("value", ["high", True, float("nan"), float("inf"), {"a": 1}])
def test_what_cannot_be_compared_fails(value: Any) -> None:
    word, _, why = verdict({"found": value}, at_least=0.5)
    assert word == "fail"
    assert "is not a number that could be compared" in why


def test_a_star_stands_for_all_and_the_worst_decides() -> None:
    slices = {"found": {"a": {"x": 0.9}, "b": {"x": 0.7}, "c": {"x": 0.8}}}
    star = {"evidence": "evaluation.found.*.x"}
    assert verdict(slices, at_least=0.7, **star) == ("pass", 0.7, "evaluation.found.b.x is 0.7")
    assert verdict(slices, at_least=0.75, **star) == ("fail", 0.7, "evaluation.found.b.x is 0.7, under 0.75")
    assert verdict(slices, at_most=0.85, **star) == ("fail", 0.9, "evaluation.found.a.x is 0.9, over 0.85")
    slices["found"]["d"] = {}
    assert verdict(slices, at_least=0.1, **star) == ("fail", None, "evaluation.found.d.x: not measured")
    assert verdict({"found": {}}, **star)[0] == "fail"


def test_each_of_several_stars_must_find_something() -> None:
    stars = {"evidence": "evaluation.found.*.*"}
    measured = {"typos": {"flip_rate": 0.01}}
    assert verdict({"found": measured}, at_most=0.1, **stars)[0] == "pass"
    for nothing in ({}, [], None, 0.5):
        assert verdict({"found": measured | {"case": nothing}}, at_most=0.1, **stars) == (
            "fail",
            None,
            "evaluation.found.case.*: not measured",
        )


def test_a_number_in_a_list_is_named_by_its_place() -> None:
    place = {"evidence": "evaluation.found.1"}
    assert verdict({"found": [0.1, 0.2]}, at_most=0.2, **place)[:2] == ("pass", 0.2)
    assert verdict({"found": [0.1]}, **place) == ("fail", None, "evaluation.found.1: not measured")


def test_rules_for_derived_artifacts_do_not_judge_a_root() -> None:
    assert verdict({}, applies_to="derived")[0] == "skip"
    assert verdict({}, applies_to="derived", document=DERIVED)[0] == "fail"
    assert verdict({"found": 1}, applies_to="root", document=DERIVED)[0] == "skip"


def test_the_built_in_tiers_grow_stricter() -> None:
    document = {"evaluation": EVIDENCE, **DERIVED}
    assert failures(judge(BUILT_IN["low"], document)) == []
    assert failures(judge(BUILT_IN["limited"], document)) == []
    assert failures(judge(BUILT_IN["high"], document)) == [
        "evaluation.slices.lowest.accuracy: not measured",
        "evaluation.slices.worst.change: not measured",
        "evaluation.perturbations.*.flip_rate: not measured",
        "data.licence: not measured",
        "data.pii: not measured",
    ]
    assert all(failures(judge(chosen, {})) for chosen in BUILT_IN.values())


def test_a_policy_file_is_read_and_its_digest_is_that_of_its_meaning(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(
        "apiVersion: canarium/policy/v1\nname: ours\ntier: low\nrules:\n  - {evidence: evaluation.a, at_most: 1}\n"
    )
    first = load_policy(str(path))
    path.write_text(
        "# why\ntier: low\nname: ours\napprovals: [{count: 1}]\nrules: [{at_most: 1.0, evidence: evaluation.a}]\n"
        "apiVersion: canarium/policy/v1\n"
    )
    assert load_policy(str(path)).digest == first.digest
    path.write_text(path.read_text().replace("1.0", "1.5"))
    assert load_policy(str(path)).digest != first.digest
    assert len({one.digest for one in BUILT_IN.values()}) == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rules": [{"evidence": "a..b"}]}, "rules.0.evidence: 'a..b' is no path in a manifest"),
        ({"rules": [{"evidence": "a", "at_least": 2, "at_most": 1}]}, "rules.0: at_least 2 is over at_most 1"),
        ({"rules": [{"evidence": "a", "minimum": 2}]}, "rules.0.minimum: unknown key"),
        ({"rules": [{}]}, "rules.0.evidence: is required"),
        ({"approvals": []}, "approvals: "),
        ({"approvals": [{"role": "The Boss"}]}, "approvals.0.role: 'The Boss': use lower-case letters"),
        ({"tier": "huge"}, "tier: 'huge'"),
    ],
)
def test_a_policy_that_cannot_be_used_says_where(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    import yaml

    path = tmp_path / "policy.yaml"
    path.write_text(yaml.safe_dump({"apiVersion": "canarium/policy/v1", "name": "ours", "tier": "low", **changes}))
    with pytest.raises(ConfigError) as refused:
        load_policy(str(path))
    assert f"{path}: {said}" in str(refused.value)


def test_an_unknown_policy_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match="expected a policy file or one of low, limited, high"):
        load_policy("strict")
