"""Rollout files: what is accepted, and that what is not is refused with its path."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from serving import yaml12
from serving.core.rollout_policy import NAMED, parse_policy
from serving.errors import ConfigError

GOOD = """
steps:
  - shadow: {percent: 50, min_requests: 500, max_duration: 2h}
  - set_weight: 1
  - bake: {until: time, min_duration: 10m, max_duration: 1h}
  - set_weight: 25
  - bake: {until: pass, max_duration: 6h, on_inconclusive: rollback}
  - approve: {role: admin}
required: [errors, latency, agreement, invalid_output]
holdback: 10
limits: {max_weight: 25, max_suspect_responses: 200, max_duration: 3d}
freeze:
  - {cron: "0 18 * * 5", duration: 62h, time_zone: Europe/Berlin}
monitor: {duration: 2h, min_requests: 1000}
retry: {max_attempts: 2, cooldown: 4h, backoff: 3}
notify:
  - {url: "https://hooks.example.org/canarium", secret_file: /run/secrets/hook}
"""


def faults(document: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_policy(document)
    return str(caught.value).splitlines()


def test_a_whole_file_is_read() -> None:
    policy = parse_policy(yaml12.load(GOOD))
    assert policy.promotes
    assert policy.steps[4].bake is not None
    assert policy.steps[4].bake.on_inconclusive == "rollback"
    assert (policy.holdback, policy.limits.max_suspect_responses, policy.freeze[0].time_zone) == (
        10,
        200,
        "Europe/Berlin",
    )


@pytest.mark.parametrize("name", NAMED)
def test_the_named_policies_stand_their_own_checks(name: str) -> None:
    assert parse_policy(msgspec.to_builtins(NAMED[name])) == NAMED[name]


def test_shadow_only_never_gives_live_traffic() -> None:
    assert not NAMED["shadow-only"].promotes
    assert NAMED["careful"].promotes
    assert NAMED["fast"].promotes


FIRST = {"set_weight": 1}
STEPS = [FIRST, {"bake": {}}]


@pytest.mark.parametrize(
    ("document", "fault"),
    [
        ([], "expected a mapping with steps, got list"),
        ({}, "steps: is required"),
        ({"steps": []}, "steps: needs at least one entry"),
        ({"steps": STEPS, "step": []}, "step: unknown key"),
        ({"steps": [{"bakes": {}}]}, "steps[0].bakes: unknown step, expected one of shadow, set_weight, bake, approve"),
        ({"steps": [{"set_weight": 1, "bake": {}}]},
         "steps[0]: names set_weight and bake, expected one of shadow, set_weight, bake, approve"),
        ({"steps": [{"set_weight": "10"}]}, "steps[0].set_weight: expected `float`, got `str`"),
        ({"steps": [{"set_weight": 0}]}, "steps[0].set_weight: 0 is not between 0.01 and 100"),
        ({"steps": [{"set_weight": float("nan")}]}, "steps[0].set_weight: nan is not between 0.01 and 100"),
        ({"steps": [{"set_weight": 0.005}]}, "steps[0].set_weight: 0.005 is not between 0.01 and 100"),
        ({"steps": [{"set_weight": 1.005}]}, "steps[0].set_weight: 1.005 is not a multiple of 0.01, the smallest step"),
        ({"steps": [{"set_weight": 10}, {"set_weight": 5}]},
         "steps[1].set_weight: 5 is not over the 10 of the step before"),
        ({"steps": [{"set_weight": 97}]}, "steps[0].set_weight: 97 is over the 95 that the holdback leaves"),
        ({"steps": [{"set_weight": 50}], "limits": {"max_weight": 20}},
         "steps[0].set_weight: 50 is over limits.max_weight, 20"),
        ({"steps": [{"bake": {}}]}, "steps[0].bake: the candidate has no traffic yet, put a set_weight before it"),
        ({"steps": [*STEPS, {"shadow": {"percent": 5}}]}, "steps[2].shadow: may only be the first step"),
        ({"steps": [{"shadow": {}}]}, "steps[0].shadow.percent: is required"),
        ({"steps": [{"shadow": {"percent": 101}}]}, "steps[0].shadow.percent: 101 is not between 0.01 and 100"),
        ({"steps": [{"shadow": {"percent": 5}}, *STEPS], "required": ["errors"]},
         "steps[0].shadow.until: no required guard can pass in a shadow (agreement, harm, saturation can), use time"),
        ({"steps": [FIRST, {"bake": {"min_duration": "-5m"}}]},
         "steps[1].bake.min_duration: '-5m' is not a duration such as 90s, 10m, 2h or 1d"),
        ({"steps": [FIRST, {"bake": {"max_duration": "0s"}}]}, "steps[1].bake.max_duration: 0s is not over 0"),
        ({"steps": [FIRST, {"bake": {"min_duration": "2h"}}]},
         "steps[1].bake.max_duration: 1h is under min_duration, 2h"),
        ({"steps": [FIRST, {"bake": {"min_requests": -1}}]}, "steps[1].bake.min_requests: -1 is under 0"),
        ({"steps": [FIRST, {"bake": {"until": "maybe"}}]}, "steps[1].bake.until: invalid enum value 'maybe'"),
        ({"steps": [FIRST, {"approve": {"role": "boss"}}]}, "steps[1].approve.role: invalid enum value 'boss'"),
        ({"steps": STEPS, "required": ["speed"]},
         "required: unknown guard 'speed', expected some of invalid_output, errors, latency, agreement, harm, "
         "saturation, interference, srm, kpi"),
        ({"steps": STEPS, "required": []}, "required: a promotion needs at least one guard that must pass"),
        ({"steps": STEPS, "holdback": 60}, "holdback: 60 is not between 0 and 50"),
        ({"steps": STEPS, "limits": {"max_suspect_responses": 0}}, "limits.max_suspect_responses: 0 is under 1"),
        ({"steps": STEPS, "limits": {"max_duration": "soon"}},
         "limits.max_duration: 'soon' is not a duration such as 90s, 10m, 2h or 1d"),
        ({"steps": STEPS, "freeze": [{"cron": "61 * * * *", "duration": "1h"}]},
         "freeze[0].cron: minute '61' is not within 0-59"),
        ({"steps": STEPS, "freeze": [{"cron": "0 0 * * *", "duration": "40d"}]}, "freeze[0].duration: 40d is over 31d"),
        ({"steps": STEPS, "freeze": [{"cron": "0 0 * * *", "duration": "1h", "time_zone": "Mars/Olympus"}]},
         "freeze[0].time_zone: 'Mars/Olympus' is no time zone known here, such as UTC or Europe/Berlin"),
        ({"steps": STEPS, "monitor": {"min_requests": 0}}, "monitor.min_requests: 0 is under 1"),
        ({"steps": STEPS, "retry": {"max_attempts": -1}}, "retry.max_attempts: -1 is under 0"),
        ({"steps": STEPS, "retry": {"backoff": 0.5}}, "retry.backoff: 0.5 is not between 1 and 100"),
        ({"steps": STEPS, "notify": [{"url": "ftp://x"}]}, "notify[0].url: 'ftp://x' is no http or https address"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_with_its_path(document: Any, fault: str) -> None:
    assert fault in faults(document)


def test_all_faults_of_a_file_are_told_at_once() -> None:
    document = {"steps": [{"set_weight": 97}], "holdback": -1, "retry": {"cooldown": "x"}}
    assert [fault.partition(":")[0] for fault in faults(document)] == ["holdback", "retry.cooldown"]
