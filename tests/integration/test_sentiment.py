"""The sentiment example as a user runs it. Opt-in: `make sentiment` fetches data and model, builds it, runs this."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.http

from serving import yaml12
from serving.build.runner import build
from serving.registry.store import Registry
from tests.support.stack import ROOT, Stack, running

pytestmark = [pytest.mark.integration, pytest.mark.opt_in, pytest.mark.timeout(1800)]

EXAMPLE = ROOT / "deployments" / "examples" / "sentiment"
#: Sentences of nobody's review, told apart by anyone.
TEXTS = {
    "positive": [b"A wonderful, moving and beautifully acted film.", b"I loved every minute of it, simply brilliant."],
    "negative": [b"Dull, lifeless and far too long.", b"A terrible waste of time; the worst thing I saw this year."],
}


@pytest.fixture(scope="module")
def registry() -> Registry:
    """Built once in the repository's own state folder; a second build finds it done."""
    if not (EXAMPLE / "models" / "minilm.safetensors").is_file():
        pytest.fail(f"no data and model: run python {EXAMPLE / 'prepare.py'} first")
    found = Registry(ROOT / ".canarium" / "registry")
    result = build(EXAMPLE / "recipe.yaml", found, cache_dir=found.root.parent / "build")
    assert not result.refused
    return found


@pytest.fixture(scope="module")
def stack(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    document = yaml12.load((EXAMPLE / "canarium.yaml").read_text())
    with running(
        {**document, "registry": {"dir": str(registry.root)}}, tmp_path_factory.mktemp("sentiment")
    ) as started:
        yield started


def test_the_teacher_is_fine_tuned_and_names_where_it_comes_from(registry: Registry) -> None:
    teacher = registry.resolve("sentiment/teacher:1")
    assert teacher.lineage.relation == "finetuned"
    assert teacher.data["pretrained"]["licence"] == "Apache-2.0"
    assert teacher.evaluation["accuracy_ci"][0] > 0.78


def test_int8_is_a_quarter_of_the_size_and_answers_nearly_the_same(registry: Registry) -> None:
    teacher, int8 = (registry.resolve(f"sentiment/{name}:1").evaluation for name in ("teacher", "int8"))
    assert int8["model_bytes"] < 0.3 * teacher["model_bytes"]
    assert int8["teacher_disagreement"] < 0.06
    assert int8["batch_neighbour_delta"] < 0.01


def test_every_variant_tells_praise_from_blame(stack: Stack) -> None:
    client = tritonclient.http.InferenceServerClient(f"127.0.0.1:{stack.http_port}")
    for variant in ("teacher", "int8", "distilled", "distilled-int8", "distilled-qad"):
        for label, rows in TEXTS.items():
            text = tritonclient.http.InferInput("text", [len(rows)], "BYTES")
            text.set_data_from_numpy(np.array(rows, dtype=object))
            answer = client.infer("sentiment", [text], headers={"x-canarium-variant": variant})
            assert answer.as_numpy("label").tolist() == [label.encode()] * len(rows), variant
