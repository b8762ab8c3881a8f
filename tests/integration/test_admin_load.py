"""A thousand changes by twenty clients over HTTP: one linear history, nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from test_control_actor import client, settings

from serving.contract import VariantEntry
from serving.control.actor import ControlActor, ControlSettings, VariantFacts
from tests.support.postgres import PostgresServer

pytestmark = pytest.mark.integration

CLIENTS, EACH = 20, 50
#: Several clients change the same one at a time.
MODELS = [f"model-{number}" for number in range(5)]


def many_models(folder: Path) -> ControlSettings:
    """As `settings`, with several models in place of one."""
    given = settings(folder)
    config = msgspec.json.decode(given.config)
    (model,) = config["models"].values()
    model["routing"]["weights"] = {}
    config["models"] = dict.fromkeys(MODELS, model)
    entries = [
        VariantEntry(name, version, f"moderation/{name}:1") for version, name in enumerate(("teacher", "int8"), 1)
    ]
    return msgspec.structs.replace(
        given,
        config=msgspec.json.encode(config).decode(),
        variants={name: {entry.name: VariantFacts(entry) for entry in entries} for name in MODELS},
    )


@pytest.fixture(params=["sqlite", "postgresql"])
def control(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ControlSettings:
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        monkeypatch.setenv("CANARIUM_DATABASE_URL", server.url("t-load"))
    return many_models(tmp_path)


def weight(view: dict[str, Any]) -> float:
    """The share of the candidate, in percent."""
    return next(float(variant["weight"]) for variant in view["variants"] if variant["name"] == "int8")


async def add_one(api: httpx.AsyncClient, model: str, who: str, number: int, conflicts: Counter[str]) -> None:
    """Read, add 0.01 %, write if nobody was quicker; each write is sent twice under one key."""
    path = f"/admin/v1/models/{model}"
    while True:
        seen = (await api.get(path)).json()
        answers = await asyncio.gather(
            *(
                api.put(
                    f"{path}/traffic",
                    json={
                        "weights": {"int8": round(weight(seen) + 0.01, 2)},
                        "actor": who,
                        "reason": f"change {number} of {who}",
                    },
                    headers={"if-match": f'"{seen["epoch"]}"', "idempotency-key": f"{who}-{number}-{seen['epoch']}"},
                )
                for _ in range(2)
            )
        )
        statuses = {answer.status_code for answer in answers}
        assert len(statuses) == 1, statuses
        if statuses == {200}:
            assert answers[0].json() == answers[1].json()
            return
        assert statuses == {412}, answers[0].text
        conflicts[model] += 1


async def test_a_thousand_changes_by_twenty_clients(control: ControlSettings, tmp_path: Path) -> None:
    actor = ControlActor(control)
    start = (await actor.ready())["rev"]
    conflicts = Counter[str]()

    async def work(number: int) -> None:
        model, who = MODELS[number % len(MODELS)], f"client-{number}"
        async with client(control) as api:
            for change in range(EACH):
                await add_one(api, model, who, change, conflicts)

    await asyncio.gather(*(work(number) for number in range(CLIENTS)))

    async with client(control) as api:
        rows: list[dict[str, Any]] = []
        while page := (await api.get("/admin/v1/audit", params={"after": len(rows), "limit": 1000})).json()["entries"]:
            rows += page
        verdict = (await api.get("/admin/v1/audit/verify")).json()
        status = (await api.get("/admin/v1/status")).json()
    await actor.shutdown()

    changes = [row for row in rows if row["action"] == "traffic"]
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
    assert len({row["reason"] for row in changes}) == len(changes) == CLIENTS * EACH  # none lost, none twice
    for model in MODELS:
        history = [row for row in changes if row["model"] == model]
        for earlier, later in itertools.pairwise(history):
            assert later["before"] == earlier["after"]
        assert [row["after"]["epoch"] for row in history] == list(range(2, len(history) + 2))
        assert history[-1]["after"]["weights"]["int8"] == pytest.approx(0.01 * len(history))
    assert status["rev"] == start + CLIENTS * EACH
    assert verdict == {"ok": True, "entries": len(rows), "first_bad": None}
    assert conflicts.total() > CLIENTS  # they did get in each other's way

    again = ControlActor(control)
    await again.ready()
    async with client(control) as api:
        assert (await api.get("/admin/v1/audit/verify")).json()["ok"]
        total = sum([weight((await api.get(f"/admin/v1/models/{model}")).json()) for model in MODELS])
    await again.shutdown()
    assert total == pytest.approx(0.01 * CLIENTS * EACH)
