"""What the stand-in control plane shows: models, variants, verdicts and charts that move, by scenario."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from datetime import UTC, datetime
from typing import Any

import mock_rollouts
import msgspec

from monitoring.reliability import Diagram

SILENT_S = 47.0

Json = dict[str, Any]


class Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def mark(reason: str, actor: str) -> Json:
    return {"at": iso(time.time()), "reason": reason, "actor": actor}


def noise(*key: object) -> float:
    """A repeatable number in [-1, 1)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") / 2**31 - 1


def variant(model: str, name: str, version: int, relation: str, accuracy: float, p50: float, size: int) -> Json:
    evaluation = {
        "split": "test",
        "rows": 1158,
        "accuracy": accuracy,
        "accuracy_ci": [accuracy - 0.009, min(1.0, accuracy + 0.008)],
        "teacher_disagreement": 0.0 if relation == "root" else round(abs(0.982 - accuracy) * 0.8 + 0.004, 4),
        "ece": 0.011,
        "latency_ms": {"p50": p50, "p95": p50 * 1.7},
        "bytes": size,
    }
    return {
        "name": name,
        "version": version,
        "artifact": f"{model}/{name}:1",
        "placement": "isolated",
        "runtime": "onnxruntime",
        "relation": relation,
        "role": "baseline" if version == 1 else "candidate",
        "weight": 0.0,
        "shadow": 0.0,
        "vetoed": False,
        "rolled_back": None,
        "evaluation": evaluation,
    }


def settle(model: Json) -> None:
    """Give the baseline what the others leave."""
    model["variants"][0]["weight"] = 100.0 - sum(entry["weight"] for entry in model["variants"][1:])


def new_model(name: str, variants: list[Json], weights: Json, shadow: Json) -> Json:
    for entry in variants:
        entry["weight"], entry["shadow"] = weights.get(entry["name"], 0.0), shadow.get(entry["name"], 0.0)
    model: Json = {"model": name, "epoch": 12, "baseline": "teacher", "teacher": "teacher", "variants": variants}
    model |= {"killed": False, "killed_by": None, "kill_seq": 2, "cleared_seq": 2, "kill": None}
    model |= {"reference_percent": 5.0, "rollback_headroom_ratio": 1.42, "rollouts": []}
    settle(model)
    return model


def verdict(name: str, guard: str, word: str, action: str, sentence: str, observations: int, **numbers: Any) -> Json:
    statistic = {"log_evidence": None, "log_threshold": 7.6, "observations": observations, "events": 0, **numbers}
    found = {"guard": guard, "variant": name, "verdict": word, "action": action, "sentence": sentence}
    keys = ["9f3a6c1d22e0b714", "03bd11f07a5c9e62"] if word == "fail" else []
    return {**found, "at": iso(time.time() - 0.6), "statistic": statistic, "example_request_keys": keys}


class World:
    """The state behind the mock; everything that moves is a function of time."""

    def __init__(self, scenario: str) -> None:
        self.t0 = time.time()
        self.rev, self.seq, self.hold = 40, 0, False
        self.down, self.token, self.refuse, self.scenario = False, "", "", scenario
        self.monitor_away, self.locked = False, False
        self.requests: list[Json] = []
        self.audit: list[Json] = []
        self.listeners: set[asyncio.Queue[tuple[str, Json]]] = set()
        self.kill_switch: Json = {"on": False, "kill_seq": 0, "cleared_seq": 0, "kill": None}
        moderation = [
            variant("moderation", "teacher", 1, "root", 0.979, 2.6, 19_400_000),
            variant("moderation", "int8", 2, "quantized", 0.978, 1.5, 4_900_000),
            variant("moderation", "distilled", 3, "distilled", 0.962, 0.31, 640_000),
            variant("moderation", "distilled-int8", 4, "qad", 0.959, 0.24, 180_000),
        ]
        anomaly = [
            variant("anomaly", "teacher", 1, "root", 0.998, 0.9, 560_000),
            variant("anomaly", "distilled", 2, "distilled", 0.997, 0.12, 2_100),
        ]
        weights, shadow = {"int8": 20.0, "distilled": 5.0}, {"distilled-int8": 10.0}
        self.models = {
            "moderation": new_model("moderation", moderation, weights, shadow),
            "anomaly": new_model("anomaly", anomaly, {"distilled": 50.0}, {}),
        }
        self._seed_audit()
        self.play(scenario)

    def play(self, scenario: str) -> None:
        self.scenario = scenario
        moderation = self.models["moderation"]
        if scenario == "killed":
            sentence = "int8 gave 3 invalid outputs in 412 live answers, the limit is 3"
            evidence = {"guard": "invalid_output", "sentence": sentence, "statistic": {"events": 3, "limit": 3}}
            self.kill("moderation", "monitor", sentence, evidence)
        elif scenario == "all_killed":
            self.kill_all("maria", "bad deploy of the tokenizer")
        elif scenario == "empty":
            for entry in moderation["variants"][1:]:
                entry["weight"] = entry["shadow"] = 0.0
            settle(moderation)
        elif scenario == "rollout":
            moderation["rollouts"] = [mock_rollouts.new("moderation", "int8", "fast", 7)]
        elif scenario == "rollout_later":
            moderation["rollouts"] = [mock_rollouts.later(mock_rollouts.new("moderation", "int8", "fast", 7))]
        elif scenario in ("rollout_paused", "rollout_waived", "rollout_braked"):
            waived = {"rollout_waived": ["ood", "slices"], "rollout_paused": ["ood"]}.get(scenario, [])
            moderation["rollouts"] = [mock_rollouts.braked(mock_rollouts.new("moderation", "int8", "fast", 7), *waived)]
        elif scenario == "failing":
            moderation["rollback_headroom_ratio"] = 0.84
            moderation["variants"][1]["placement"] = "colocated"
        self.publish("snapshot", {"rev": self.rev})

    def record(
        self, who: tuple[str, str], action: str, target: tuple[str, str | None], before: Json, after: Json, **more: Any
    ) -> None:
        """Add an audit row. `who` is (actor, reason), `target` (model, variant)."""
        self.seq += 1
        entry = {"seq": self.seq, "at": iso(more.get("at") or time.time()), "actor": who[0], "action": action}
        entry |= {"model": target[0], "variant": target[1], "reason": who[1], "before": before, "after": after}
        entry |= {
            "evidence": more.get("evidence") or {},
            "prev_hash": self.audit[0]["hash"] if self.audit else "0" * 64,
        }
        entry["hash"] = hashlib.sha256(repr(entry).encode()).hexdigest()
        self.audit.insert(0, entry)
        self.rev += 1
        self.publish("audit", entry)

    def restore(self) -> None:
        """The trail of a copy: the same numbers, other rows."""
        old, self.audit, self.seq = self.audit[::-1], [], 0
        for entry in old:
            self.record(("backup", f"as it was: {entry['seq']}"), "traffic", (entry["model"], None), {}, {})

    def _seed_audit(self) -> None:
        start = self.t0 - 7200
        for step in range(120):
            at = start - 60 * (120 - step)
            self.record(("canarium", f"start {step + 1}"), "model-changed", ("moderation", None), {}, {}, at=at)
        for step, (low, high) in enumerate([(0, 1), (1, 5), (5, 10), (10, 20)]):
            before = {"epoch": 7 + step, "weights": {"int8": low, "teacher": 100 - low}}
            after = {"epoch": 8 + step, "weights": {"int8": high, "teacher": 100 - high}}
            who = ("maria", f"ramp step {step + 1}: all guards pass")
            self.record(who, "traffic", ("moderation", "int8"), before, after, at=start + step * 1200)
        sentence = (
            "distilled-int8 caused 61 of 88 slow events (69.3 %) with 5.0 % of the traffic, over the limit of 6.2 %"
        )
        statistic = {"log_evidence": 9.4, "log_threshold": 7.6, "observations": 88, "events": 61}
        evidence = {"guard": "latency", "sentence": sentence, "statistic": statistic}
        before, after = {"weight": 5, "shadow": 0, "vetoed": False}, {"weight": 0, "shadow": 0, "vetoed": True}
        target = ("moderation", "distilled-int8")
        self.record(("monitor", sentence), "rollback", target, before, after, evidence=evidence, at=start + 5400)
        created = {"state": "pending", "policy": {"steps": [{"shadow": {"percent": 20}}, {"set_weight": 1}]}}
        self.record(("maria", "try again"), "rollout-create", target, {}, created, at=start + 6000)
        shadow = {"shadow": {"distilled-int8": 10}}
        self.record(("maria", "shadow only, after the fix"), "traffic", target, {"shadow": {}}, shadow, at=start + 6300)

    def kill(self, model: str, actor: str, reason: str, evidence: Json | None = None) -> int:
        view = self.models[model]
        before = {"killed": view["killed"], "kill_seq": view["kill_seq"]}
        if not view["killed"]:
            view["kill_seq"] += 1
            view |= {"killed": True, "killed_by": "model", "kill": mark(reason, actor)}
        after = {"killed": True, "kill_seq": view["kill_seq"]}
        self.record((actor, reason), "kill", (model, None), before, after, evidence=evidence)
        return int(view["kill_seq"])

    def kill_all(self, actor: str, reason: str) -> None:
        switch, before = self.kill_switch, self.kill_switch["on"]
        switch |= {"on": True, "kill_seq": switch["kill_seq"] + 1, "kill": mark(reason, actor)}
        self.record((actor, reason), "kill", ("*", None), {"on": before}, {"on": True})

    def publish(self, event: str, data: Json) -> None:
        for queue in list(self.listeners):
            if not queue.full():
                queue.put_nowait((event, data))

    # ------------------------------------------------------------ what readers see

    def view(self, model: str) -> Json:
        view = dict(self.models[model])
        return view | {"killed": view["killed"] or self.kill_switch["on"]}

    def verdicts(self, model: str) -> Json:
        silent = self.scenario == "monitor_down"
        found = [] if self.scenario == "empty" else self._verdicts(model)
        return {"model": model, "at": iso(time.time() - SILENT_S * silent), "stale": silent, "verdicts": found}

    def _verdicts(self, model: str) -> list[Json]:
        now = time.time()
        seen = int(1800 + (now - self.t0) * 9)
        bad = self.scenario == "failing" and model == "moderation"
        found = []
        for entry in self.models[model]["variants"][1:]:
            name, share = entry["name"], f"{entry['weight']:.1f} % of the traffic"
            if not entry["weight"] and not entry["shadow"]:
                continue
            breached = bad and name == "distilled"
            rows = seen // 20
            flips = rows // 9 if breached else rows // 120
            text = f"{name} disagrees with teacher on {flips} of {rows} scored answers ({flips / rows:.1%})"
            limits = {"events": flips, "limit": 0.036, "gross_limit": 0.108, "rows": rows}
            if breached:
                text += ", over the limit of 3.6 %: evidence e^9.1 ≥ e^7.6"
                agreement = ("fail", "pause", text, rows)
                limits |= {"log_evidence": 2.2, "log_limit_evidence": 9.1}
            else:
                evidence = 1.1 + noise(int(now), name) * 0.1
                text += f", held to the limit of 3.6 %: not conclusive, evidence against it e^{evidence:.1f} < e^7.6"
                agreement = ("inconclusive", "none", text, rows)
                limits |= {"log_evidence": evidence}
            found.append(verdict(name, "agreement", *agreement, **limits))
            found.append(verdict(name, "harm", "no_data", "none", f"{name} has no labelled pair yet", 0))
            if entry["weight"]:
                text = f"{name} gave 0 invalid outputs in {seen} live answers, under the limit of 3"
                found.append(verdict(name, "invalid_output", "pass", "none", text, seen, limit=3))
                text = f"{name} caused 2 of 31 error events (6.5 %) with {share}, held to the limit of 23.8 %"
                found.append(verdict(name, "errors", "pass", "none", text, 31, events=2, log_evidence=-0.7))
                text = f"{name} caused 18 of 96 slow events (18.8 %) with {share}, held to the limit of 24.0 %"
                found.append(verdict(name, "latency", "pass", "none", text, 96, events=18, log_evidence=2.4))
        for slo in self.slos():
            word, action = ("fail", "alert") if slo["alerts"] else ("pass", "none")
            does = "burns its budget 6.1 times too fast for" if slo["alerts"] else "keeps"
            text = f"the model {does} its {slo['name']} objective of {slo['objective'] * 100:g} %"
            statistic = {"objective": slo["objective"], "budget_remaining": slo["budget_remaining"]}
            found.append(verdict("*", f"{slo['name']}_slo", word, action, text, 0) | {"statistic": statistic})
        return found

    def slos(self) -> list[Json]:
        bad = self.scenario == "failing"
        burn = {"5m": 7.3, "1h": 6.4, "6h": 6.1, "3d": 0.9} if bad else {"5m": 0.4, "1h": 0.3, "6h": 0.6, "3d": 0.5}
        alert = {"severity": "page", "factor": 6.0, "long_s": 21600.0, "short_s": 1800.0, "long_burn": 6.1}
        latency = {"name": "latency", "variant": "*", "objective": 0.99, "threshold_ms": 100.0, "ratio": 0.99321}
        latency |= {"budget_remaining": 0.07 if bad else 0.86, "burn_rates": burn, "alerts": [alert] if bad else []}
        available = {"name": "availability", "variant": "*", "objective": 0.999, "threshold_ms": None, "ratio": 0.99994}
        rates = {"5m": 0.0, "1h": 0.1, "6h": 0.2, "3d": 0.1}
        available |= {"budget_remaining": 0.93, "burn_rates": rates, "alerts": []}
        return [latency, available]

    def series(self, model: str, seconds: int) -> Json:
        if not 1 <= seconds <= 900:
            raise Refused(503, "the monitor at http://127.0.0.1:8002 answered 400 for the series")
        end = int(time.time() - SILENT_S * (self.scenario == "monitor_down"))
        at = [] if self.scenario == "empty" else list(range(end - seconds, end))
        view = self.view(model)
        variants = {entry["name"]: self._columns(entry, at, view["killed"]) for entry in view["variants"]}
        return {"model": model, "step_s": 1, "at": at, "variants": variants, "slo": self.slos()}

    def calibration(self, model: str) -> Json:
        """Made-up answers through the monitor's own arithmetic: good models, and one that is too sure of itself."""
        variants = [entry["name"] for entry in self.view(model)["variants"]]
        reports = []
        shown = [] if self.scenario == "empty" else variants[:4]
        for name, by_labels in [(name, by) for name in shown for by in (True, False)]:
            sure = name == "distilled"
            diagram = Diagram([0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99], 2)
            for n in range(1500):
                prob = 0.5 + 0.5 * (0.5 + 0.5 * noise(n, name)) ** 0.2
                truth = prob - (0.09 if sure and prob < 0.95 else 0.01)
                outcome = float(0.5 + 0.5 * noise(n, name, "luck") < truth) if by_labels else truth
                diagram.add(n % 3 % 2, prob, outcome)
            reports.append(diagram.report(name, by_labels, ["ham", "spam"], [0.0] * 8, 1.1))
        coverage = [{"variant": name, "answers": 40_000, "labels": 1500, "delays": []} for name in variants]
        return {"model": model, "teacher": "teacher", "reports": msgspec.to_builtins(reports), "coverage": coverage}

    def _columns(self, entry: Json, at: list[int], killed: bool) -> dict[str, list[float | None]]:
        name, p50, baseline = entry["name"], entry["evaluation"]["latency_ms"]["p50"], entry["role"] == "baseline"
        share = float(baseline) if killed else entry["weight"] / 100
        slow = 30.0 if self.scenario == "failing" and name == "int8" else 0.0
        flipping = 0.1 if self.scenario == "failing" and name == "distilled" else 0.0
        columns: dict[str, list[float | None]] = {
            k: [] for k in ("rps", "p50_ms", "p99_ms", "error_ratio", "agreement")
        }
        for t in at:
            quiet = name == "distilled" and t % 1000 < 40  # a gap comes by
            load = 1 + 0.15 * math.sin(t / 90) + 0.08 * noise(t, name)
            rate = 0.0 if quiet else round(240 * share * load)
            tail = p50 * 4.2 * load * (1 + 0.5 * max(0.0, noise(t, "p99", name))) + slow
            agrees = 0.985 + 0.01 * noise(t // 3, name) - flipping
            columns["rps"].append(rate)
            columns["p50_ms"].append(round(p50 * load, 3) if rate else None)
            columns["p99_ms"].append(round(tail, 3) if rate else None)
            columns["error_ratio"].append(round(max(0.0, 0.002 * noise(t // 7, name)), 5) if rate else None)
            columns["agreement"].append(round(agrees, 5) if rate and not baseline and t % 3 == 0 else None)
        return columns

    def status(self) -> Json:
        silent = self.scenario == "monitor_down"
        age = SILENT_S if silent else round(time.time() % 1, 2)
        return {
            "version": "0.1.0",
            "instance": "quickstart",
            "started_at": iso(self.t0 - 86_400),
            "rev": self.rev,
            "lease": 3,
            "monitor": {"alive": not silent, "heartbeat_age_s": age, "mode": "ok", "loss_ratio": 0.0},
            "gateways": [{"id": "gateway-0", "node": "node-a", "pid": 4242, "rev": self.rev, "seen_age_s": 0.4}],
            "control": {"database": "ok", "audit_rows_pending": 0, "audit_rows_lost": 0},
            "urls": {"http": "http://127.0.0.1:8000", "control": "http://127.0.0.1:8003"},
            "kill_switch": self.kill_switch,
            "models": [self.view(model) for model in self.models],
        }


# ---------------------------------------------------------------- changing
