"""The comparison's own machinery against the one server that needs no further environment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loadtests.load import Result
from loadtests.peers import cases, models, registry, visit
from loadtests.peers.visit import Plan
from serving.registry.store import Registry

pytestmark = pytest.mark.integration

(PEER,) = registry.named(("uvicorn",))
OVERHEAD = [case for case in cases.CASES if case.model == "mlp"]
#: The open loop is a share of what was measured at 32 connections.
PLAN = Plan(connections=(1, 32), seconds=0.4, warmup=0.1, open_shares=(0.5,))


@pytest.fixture(autouse=True)
def _built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "FOLDER", tmp_path / "models")
    monkeypatch.setattr(models, "REGISTRY", tmp_path / "registry")
    models.build(tmp_path / "no quickstart", only=("mlp",))


def lively(record: dict[str, Any]) -> bool:
    result = Result(**record["result"])
    return result.count + result.unsent > 20  # a machine that stands still leaves some unsent


def visited() -> list[dict[str, Any]]:
    """Visited again, four times at most, while a machine that stands still leaves too little in so short a time."""
    for _ in range(4):
        records = [record for _, record in visit.visit(PEER, "mlp", OVERHEAD, PLAN)]
        assert all(Result(**record["result"]).failed == 0 for record in records)
        if len(records) == 3 * len(OVERHEAD) and all(lively(record) for record in records):
            break
    return records


def test_a_visit_measures_every_case_and_leaves_no_process() -> None:
    records = visited()
    assert [(record["case"], record["connections"], record["share"]) for record in records] == [
        (case.name, connections, share)
        for case in OVERHEAD
        for connections, share in ((1, None), (32, None), (visit.OPEN_CONNECTIONS, 0.5))
    ]
    for record in records:
        assert lively(record)
        assert record["memory_mib"] > 10
    assert sum(records[1]["cpu_s"].values()) > 0.02  # it was busy for half a second
    assert records[2]["target_rate"] == pytest.approx(records[1]["result"]["rate"] / 2)


def test_a_server_that_ends_at_once_is_reported_with_its_words() -> None:
    broken = replace(PEER, launch=lambda start: (["sh", "-c", "echo no such thing >&2; exit 3"], {}))
    records = [record for _, record in visit.visit(broken, "mlp", OVERHEAD, PLAN)]
    assert [record["case"] for record in records] == [case.name for case in OVERHEAD]
    assert all("did not start" in record["error"] and "no such thing" in record["error"] for record in records)


def test_a_server_with_other_answers_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = cases.expected(OVERHEAD[0])
    monkeypatch.setattr(cases, "expected", lambda case: tuple(values + 1 for values in right))
    (first, *_) = [record for _, record in visit.visit(PEER, "mlp", OVERHEAD, PLAN)]
    assert first["error"].startswith("row 0: ")


def test_both_registrations_hold_one_file(tmp_path: Path) -> None:
    baseline, candidate = (Registry(tmp_path / "registry").resolve(f"mlp/{name}") for name in ("baseline", "candidate"))
    assert baseline.files == candidate.files
    assert baseline.ref != candidate.ref
