"""What the control plane knows of the monitor: its last heartbeat, its verdicts, its series by proxy."""

from __future__ import annotations

from typing import Any, Literal

import httpx
import msgspec

from serving.clock import Clock
from serving.core.rollout_decide import Facts, Guard
from serving.core.rollout_plan import Assumed
from serving.errors import ErrorKind, RequestError

ALIVE_S = 5.0
PROXY_TIMEOUT_S = 3.0

#: Verdicts of monitors that are told and hold up nothing, whoever they are about.
ADVISORY = ("ood", "embedding", "input_drift")


class Heartbeat(msgspec.Struct, frozen=True):
    """What the monitor posts every second. `loss_ratio` is the share of spool records lost, 0..1."""

    at: float | str
    mode: Literal["ok", "degraded"]
    verdicts: dict[str, list[dict[str, Any]]] = {}
    loss_ratio: float | None = None
    instance: str = ""
    #: Baseline capacity over present traffic, a model, if the monitor knows it.
    headroom: dict[str, float | None] = {}
    #: Rev of the routing snapshot that the verdicts were given under; None before the first.
    rev: int | None = None
    #: By model and candidate: `live`, `pairs` and `suspect` answers in its present attempt, and its `workers`; of the
    #: baseline the workers alone.
    counts: dict[str, dict[str, dict[str, float]]] = {}
    #: By model and candidate: what a prediction for it rests on.
    assumed: dict[str, dict[str, Assumed]] = {}


def _guard(verdict: dict[str, Any], mode: str) -> Guard:
    """One verdict of a heartbeat. What a degraded monitor says is no pass; a failure stays one."""
    statistic, word = verdict.get("statistic"), str(verdict.get("verdict"))
    return Guard(
        name=str(verdict.get("guard")),
        verdict="degraded" if mode == "degraded" and word in ("pass", "inconclusive") else word,
        action=str(verdict.get("action", "none")),
        sentence=str(verdict.get("sentence", "")),
        dry_run=verdict.get("dry_run") is True,
        statistic={
            **(statistic if isinstance(statistic, dict) else {}),
            "example_request_keys": verdict.get("example_request_keys", []),
        },
    )


class MonitorLink:
    """The monitor as seen from here. The dead-man's switch itself is the gateways' to apply.

    Args:
        url: the monitor's address, such as http://127.0.0.1:8002.
        clock: for the age of the heartbeat (monotonic).
        transport: an httpx transport, for tests.
    """

    def __init__(self, url: str, clock: Clock, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._url = url.rstrip("/")
        self._clock = clock
        self._beat: Heartbeat | None = None
        self._beat_ns = 0
        self._since_ns = clock.monotonic_ns()
        self._http = httpx.AsyncClient(timeout=PROXY_TIMEOUT_S, trust_env=False, transport=transport)

    def listen(self) -> None:
        """Heartbeats can come from now on: what is missed before counts for nothing."""
        self._since_ns = self._clock.monotonic_ns()

    def beat(self, heartbeat: Heartbeat) -> None:
        self._beat, self._beat_ns = heartbeat, self._clock.monotonic_ns()

    @property
    def age_s(self) -> float | None:
        """Seconds since the last heartbeat; None if there was none."""
        return None if self._beat is None else (self._clock.monotonic_ns() - self._beat_ns) / 1e9

    @property
    def alive(self) -> bool:
        age = self.age_s
        return age is not None and age < ALIVE_S

    def view(self) -> dict[str, Any]:
        """The `monitor` part of the status."""
        age, beat = self.age_s, self._beat
        return {
            "alive": self.alive,
            "heartbeat_age_s": None if age is None else round(age, 3),
            "mode": beat.mode if beat else None,
            "loss_ratio": beat.loss_ratio if beat else None,
        }

    def verdicts(self, model: str) -> dict[str, Any]:
        """The model's verdicts as last heard; `stale` once the monitor has fallen silent."""
        beat = self._beat
        return {
            "model": model,
            "at": beat.at if beat else None,
            "stale": not self.alive,
            "verdicts": beat.verdicts.get(model, []) if beat else [],
        }

    def pauses(self, model: str) -> dict[str, str]:
        """Variants whose ramp a guard has paused, with its sentence; none once the monitor is silent."""
        beat = self._beat if self.alive else None
        return {
            str(verdict.get("variant")): f"{verdict.get('sentence')} (guard {verdict.get('guard')})"
            for verdict in (beat.verdicts.get(model, []) if beat else [])
            if verdict.get("verdict") == "fail" and verdict.get("action") == "pause"
        }

    def facts(self, model: str, variant: str, baseline: str, since_rev: int) -> Facts:
        """What the last heartbeat says of a candidate and its baseline.

        Of the candidate nothing but the workers if the heartbeat is older than `since_rev`.
        """
        beat = self._beat
        counts = beat.counts.get(model, {}).get(variant, {}) if beat else {}
        workers = int(counts["workers"]) if "workers" in counts else None
        headroom, ailing = self.headroom(model), self._ailing(model, baseline)
        listened_s = (self._clock.monotonic_ns() - self._since_ns) / 1e9
        if beat is None or beat.rev is None or beat.rev < since_rev:
            return Facts(silent_s=self.age_s, listened_s=listened_s, workers=workers, headroom=headroom, ailing=ailing)
        verdicts = [verdict for verdict in beat.verdicts.get(model, []) if verdict.get("variant") == variant]
        return Facts(
            fresh=True,
            guards={guard.name: guard for guard in (_guard(verdict, beat.mode) for verdict in verdicts)},
            silent_s=self.age_s,
            listened_s=listened_s,
            workers=workers,
            live=int(counts.get("live", 0)),
            pairs=int(counts.get("pairs", 0)),
            suspect=float(counts.get("suspect", 0.0)),
            headroom=headroom,
            ailing=ailing,
        )

    def _ailing(self, model: str, baseline: str) -> str:
        """Why the baseline is not well: no worker, or an objective or golden rows that it misses; "" if it is."""
        beat = self._beat
        if beat is None:
            return ""
        if beat.counts.get(model, {}).get(baseline, {}).get("workers") == 0:
            return f"the baseline {baseline} has no worker"
        for verdict in beat.verdicts.get(model, []):
            if verdict.get("guard") in ADVISORY:
                continue
            if verdict.get("variant") == baseline and verdict.get("verdict") == "fail":
                return f"the baseline is not well: {verdict.get('sentence')}"
        return ""

    def assumed(self, model: str, variant: str) -> Assumed:
        """What a prediction rests on. Raises `RequestError` UNAVAILABLE if the monitor has not been heard of it."""
        found = self._beat.assumed.get(model, {}).get(variant) if self._beat and self.alive else None
        if found is None:
            raise RequestError(ErrorKind.UNAVAILABLE, f"the monitor has said nothing of {variant} of {model} lately", 2)
        return found

    def headroom(self, model: str) -> float | None:
        return self._beat.headroom.get(model) if self._beat and self.alive else None

    async def series(self, model: str, seconds: int) -> bytes:
        """The monitor's time series of a model, as JSON. Raises `RequestError` UNAVAILABLE."""
        return await self._ask("/v1/series", "the series", {"model": model, "seconds": seconds})

    async def calibration(self, model: str) -> bytes:
        """How calibrated the variants of a model are, as JSON. Raises `RequestError` UNAVAILABLE."""
        return await self._ask(f"/v1/calibration/{model}", "the calibration", {})

    async def _ask(self, path: str, what_for: str, query: dict[str, str | int]) -> bytes:
        try:
            answer = await self._http.get(f"{self._url}{path}", params=query)
        except httpx.HTTPError as error:
            what = str(error) or type(error).__name__
            raise RequestError(
                ErrorKind.UNAVAILABLE, f"the monitor at {self._url} does not answer: {what}", 2
            ) from error
        if answer.status_code != 200:
            raise RequestError(
                ErrorKind.UNAVAILABLE, f"the monitor at {self._url} answered {answer.status_code} for {what_for}", 2
            )
        return answer.content

    async def close(self) -> None:
        await self._http.aclose()
