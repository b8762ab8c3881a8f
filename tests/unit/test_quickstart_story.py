"""The demo's story against a world in virtual time: what counts as observed, and what is said if it is not."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from deployments.quickstart.story import Story
from deployments.quickstart.timeline import Plan, Timeline
from loadtests.fake import VirtualTime
from loadtests.openloop import OpenLoop
from loadtests.payloads import Row, infer_requests
from loadtests.transport import Request, Response
from serving.client import Unreachable

Json = dict[str, Any]


class World:
    """A server, its control plane and its monitor, as far as the story can see them."""

    def __init__(self, time: VirtualTime) -> None:
        self.time = time
        self.random = random.Random(5)
        self.weights: dict[str, float] = {"int8": 0.0, "broken": 0.0}
        self.killed = False
        self.entries: list[Json] = [self._entry("cli:ann", "traffic", None, "earlier")]
        self.pairs = 0
        self.trip_after: int | None = 30
        self.trip_action = "rollback"
        self.verdict = "inconclusive"
        self.stale = False
        self.status = 200
        self.served: list[tuple[float, str]] = []
        self.unreachable = 0

    # the server
    async def send(self, request: Request) -> Response:
        draw, variant = self.random.random() * 100, "teacher"
        for name, weight in self.weights.items():
            if not self.killed and draw < weight:
                variant = name
                break
            draw -= weight
        await self.time.sleep(0.003)
        if variant == "broken":
            self.pairs += 1
            if self.trip_after is not None and self.pairs == self.trip_after:
                self._trip()
        self.served.append((self.time.wall_ns() / 1e9, variant))
        _, row = request.tag
        label = "spam" if variant == "broken" else row.label
        return Response(
            self.status,
            {"x-canarium-variant": variant, "x-canarium-reason": "baseline" if variant == "teacher" else "canary"},
            json.dumps({"outputs": [{"name": "label", "data": [label]}]}).encode(),
        )

    async def close(self) -> None: ...

    # the monitor
    def _trip(self) -> None:
        if self.trip_action == "kill":
            self.killed = True
        else:
            self.weights["broken"] = 0.0
        variant = "broken" if self.trip_action == "rollback" else None
        entry = self._entry("monitor", self.trip_action, variant, "broken: 20 flips in 30 pairs")
        self.entries.append(entry | {"evidence": {"guard": "agreement"}})

    def _entry(self, actor: str, action: str, variant: str | None, reason: str) -> Json:
        at = datetime.fromtimestamp(self.time.wall_ns() / 1e9, UTC).isoformat().replace("+00:00", "Z")
        seq = len(getattr(self, "entries", [])) + 1
        return {"seq": seq, "at": at, "actor": actor, "action": action, "variant": variant, "reason": reason}

    # the control plane
    async def model(self, model: str) -> Json:
        variants = [{"name": name, "weight": weight} for name, weight in self.weights.items()]
        return {"model": model, "killed": self.killed, "variants": variants}

    async def verdicts(self, model: str) -> Json:
        row = {"guard": "agreement", "variant": "int8", "verdict": self.verdict, "sentence": "1 flip in 100 pairs"}
        return {"stale": self.stale, "verdicts": [row]}

    async def audit(self, model: str, limit: int) -> list[Json]:
        if self.unreachable and self.pairs:
            self.unreachable -= 1
            raise Unreachable("did not answer within 10 s")
        return list(reversed(self.entries))[:limit]

    async def traffic(self, model: str, weights: Mapping[str, float], reason: str) -> Json:
        self.weights |= weights
        self.entries.append(self._entry("demo", "traffic", None, reason))
        return await self.model(model)


class Listener:
    """A narrator that keeps what it was told."""

    def __init__(self) -> None:
        self.beats: list[int] = []
        self.said: list[str] = []

    def beat(self, number: int, title: str) -> None:
        self.beats.append(number)

    def say(self, line: str) -> None:
        self.said.append(line)

    def now(self, line: str) -> None: ...

    def verdicts(self, rows: list[Json]) -> None:
        self.said += [row["sentence"] for row in rows]


async def tell(world: World, plan: Plan | None = None) -> tuple[Timeline, Listener, list[tuple[str, str]]]:
    listener, labels = Listener(), []
    story = Story(plan or Plan(), world, listener, clock=world.time, sleep=world.time.sleep)
    story.give_label = lambda request_id, label: labels.append((request_id, label))
    rows = [Row(f"mail {number}", "ham" if number % 3 else "spam") for number in range(100)]
    load = OpenLoop(
        world,
        infer_requests("moderation", rows),
        80,
        on_response=story.on_response,
        clock=world.time,
        sleep=world.time.sleep,
    )
    return await world.time.run(story.tell(load)), listener, labels


@pytest.fixture
def world() -> World:
    return World(VirtualTime())


@pytest.mark.parametrize("action", ["rollback", "kill"])
async def test_the_whole_story_is_observed_with_its_numbers(world: World, action: str) -> None:
    world.trip_action = action
    timeline, listener, labels = await tell(world)

    assert timeline.missing == []
    assert timeline.ok
    assert listener.beats == [1, 2, 3, 4]
    broken = [at for at, variant in world.served if variant == "broken"]
    assert timeline.onset_at == pytest.approx(broken[0], abs=1e-3)
    assert timeline.last_candidate_answer_at == pytest.approx(broken[-1], abs=1e-3)
    assert timeline.suspect_answers == timeline.routed_to_candidate == len(broken)
    assert 0 < timeline.wrong_suspect_answers < timeline.suspect_answers
    assert timeline.trip_action == action
    assert timeline.trip_evidence == {"guard": "agreement"}
    assert "broken: 20 flips in 30 pairs" in " ".join(listener.said)
    assert "1 flip in 100 pairs" in listener.said
    assert timeline.onset_to_trip_s == pytest.approx(30 / 8, rel=0.6)
    assert timeline.trip_to_last_candidate_answer_ms == pytest.approx(0, abs=50)
    assert timeline.client_failures == 0
    assert sum(timeline.answers.values()) == len(world.served)
    assert len(labels) == pytest.approx(len(world.served) / 2, rel=0.1)


async def test_the_story_ends_within_its_bound(world: World) -> None:
    await tell(world)
    assert world.time.monotonic_ns() / 1e9 < 90


async def test_no_trip_is_missing_and_the_broken_candidate_is_taken_away(world: World) -> None:
    world.trip_after = None
    timeline, listener, _ = await tell(world)
    assert not timeline.ok
    assert timeline.beats == {"baseline": True, "canary": True, "tripped": False, "recovered": False}
    assert timeline.missing == ["no guard tripped within 45 s"]
    assert world.weights["broken"] == 0
    assert world.time.monotonic_ns() / 1e9 < 90
    assert listener.beats == [1, 2, 3]


async def test_a_failing_guard_on_the_healthy_canary_is_missing(world: World) -> None:
    world.verdict = "fail"
    timeline, _, _ = await tell(world)
    assert timeline.missing == ["a guard failed int8: 1 flip in 100 pairs"]


@pytest.mark.parametrize(
    ("verdict", "stale", "words"), [("no_data", False, "nothing|anything"), ("pass", True, "stale")]
)
async def test_no_data_and_a_silent_monitor_are_no_pass(world: World, verdict: str, stale: bool, words: str) -> None:
    world.verdict, world.stale = verdict, stale
    timeline, _, _ = await tell(world)
    assert not timeline.beats["canary"]
    assert any(word in timeline.missing[0] for word in words.split("|"))


async def test_failed_requests_are_counted_and_fail_the_story(world: World) -> None:
    world.status = 503
    timeline, _, _ = await tell(world)
    assert not timeline.beats["baseline"]
    assert timeline.client_failures == len(world.served) > 0
    assert "requests failed, expected none; the first: 503" in timeline.missing[-1]


async def test_an_older_rollback_is_not_taken_for_the_trip(world: World) -> None:
    world.trip_after = None
    world.entries.append(world._entry("monitor", "rollback", "broken", "from yesterday"))
    timeline, _, _ = await tell(world)
    assert timeline.trip_at is None


async def test_a_control_plane_that_stumbles_is_asked_again(world: World) -> None:
    world.unreachable = 3
    timeline, _, _ = await tell(world)
    assert timeline.ok
    assert world.unreachable == 0


async def test_a_candidate_that_never_answers_is_said_to_get_no_request(world: World) -> None:
    async def ignored(model: str, weights: Mapping[str, float], reason: str) -> Json:
        world.weights |= {name: weight for name, weight in weights.items() if name != "broken"}
        return {}

    world.traffic = ignored  # type: ignore[method-assign]
    timeline, _, _ = await tell(world)
    assert timeline.missing == ["broken got no request in 10 s"]
