"""Two whole instances, each started once: the quickstart, and tiny models with real faults."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving import yaml12
from tests.support import postgres as postgresql
from tests.support import tiny
from tests.support.monitor import Control, Monitor
from tests.support.stack import ROOT, Stack, running

QUICKSTART = ROOT / "deployments" / "quickstart" / "canarium.yaml"
REGISTRY = ROOT / ".canarium" / "registry"
#: Of `routing.queue`: the tests that use it are not about deadlines, and the machine may stand still for seconds.
PATIENT = {"default_timeout_ms": 20_000, "max_wait_ms": 10_000}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The quickstart's tests in a row, after the others of this folder, so that it need not run beside those."""
    here = [item for item in items if item.path.is_relative_to(Path(__file__).parent)]
    ordered = iter(sorted(here, key=_uses_quickstart))
    among = set(here)
    items[:] = [next(ordered) if item in among else item for item in items]


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Ends the quickstart after the last test that uses it."""
    if _uses_quickstart(item) and not (nextitem and _uses_quickstart(nextitem)):
        started: Stack | None = getattr(item, "funcargs", {}).get("quickstart")
        if started is not None:
            started.stop()


def _uses_quickstart(item: pytest.Item) -> bool:
    return "quickstart" in getattr(item, "fixturenames", ())


def tiny_document(registry: Path, faults: dict[str, str], **variant: dict[str, Any]) -> dict[str, Any]:
    """A configuration of the model `tiny` over freshly registered artifacts; `name?` faults need the word "boom"."""
    graphs = {"teacher": tiny.graph()}
    graphs |= {name: tiny.graph(fault.rstrip("?"), always=not fault.endswith("?")) for name, fault in faults.items()}
    tiny.build(registry, graphs)
    return {
        "apiVersion": "canarium/v1",
        "registry": {"dir": str(registry)},
        "models": {
            "tiny": {
                "baseline": "teacher",
                "variants": {name: {"artifact": f"tiny/{name}:1", **variant.get(name, {})} for name in graphs},
                "routing": {"reference_percent": 100, "queue": dict(PATIENT)},
                "slo": [
                    {"name": "latency", "objective": 0.99, "threshold_ms": 100},
                    {"name": "availability", "objective": 0.999},
                ],
            }
        },
    }


@pytest.fixture(scope="session")
def postgres() -> Iterator[postgresql.PostgresServer]:
    """One server for all tests; each has a schema of its own in it."""
    with postgresql.running(postgresql.programs()) as server:
        yield server


@pytest.fixture(scope="module")
def tiny_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The model `tiny`: a healthy candidate in each placement and transport, and one of each fault."""
    folder = tmp_path_factory.mktemp("tiny")
    document = tiny_document(
        folder / "registry",
        {"good": "", "near": "", "far": "", "raises": "raises", "nan": "nan", "hangs": "hangs?", "slow": "slow"},
        near={"placement": "colocated"},
        far={"transport": "handle"},
        hangs={"hang_timeout_s": 3},
    )
    with running(document, folder) as stack:
        yield stack


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The quickstart, patient, and its torch sibling, over the registry that `make test` has built, on free ports."""
    if not (REGISTRY / "models" / "moderation").is_dir():
        pytest.fail(
            "the quickstart is not built: run `canarium build deployments/quickstart/recipe.yaml` (`make test` does)"
        )
    document = yaml12.load(QUICKSTART.read_text())
    document["registry"] = {"dir": str(REGISTRY)}
    document["models"]["moderation"]["routing"]["queue"] |= PATIENT
    document["models"]["moderation"]["variants"]["distilled-torch"] = {
        "artifact": "moderation/distilled-torch:1",
        "runtime": "torch",
    }
    with running(document, tmp_path_factory.mktemp("quickstart")) as stack:
        yield stack


@pytest.fixture
def control() -> Iterator[Control]:
    server = Control()
    yield server
    server.close()


@pytest.fixture
def monitor(tmp_path: Path, control: Control) -> Iterator[Monitor]:
    process = Monitor(tmp_path, control)
    yield process
    if process.process is not None and process.process.poll() is None:
        process.process.kill()
        process.process.wait()
