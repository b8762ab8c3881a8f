"""Cards and bills of materials: other tools read them, and nothing is said that was not measured."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from governance_kit import AVX2, EVIDENCE, INT8, VNNI, key_at, put, registry_at
from huggingface_hub import EvalResult, ModelCard
from registry_kit import edit, made_from

from serving.cli import main
from serving.contract import GUARDS
from serving.governance.approve import approve
from serving.governance.policy import BUILT_IN
from serving.registry.store import Registry

SLICES = {
    "slices": {
        "long": {"rows": 400, "accuracy": 0.95, "accuracy_ci": [0.92, 0.97]},
        "short": {"rows": 600, "accuracy": 0.98, "accuracy_ci": None},
    },
    "overall": -0.01,
    "worst": None,
    "lowest": {"slice": "long", "rows": 400, "accuracy": 0.95, "accuracy_ci": [0.91, 0.98]},
}
DATA = {"source": "a corpus", "licence": "CC0-1.0", "pii": "names masked", "sha256": "a" * 64}
CARD = {"owner": "trust and safety", "intended_use": "mail", "limitations": ["English only", "<b>no</b> | *pipes*"]}


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    registry = registry_at(tmp_path)
    teacher = registry.resolve("m/teacher:1")
    put(
        registry,
        "int8",
        "with a card",
        lineage=made_from(teacher),
        quantization=INT8,
        evaluation=EVIDENCE | {"slices": SLICES},
        data=DATA,
        card=CARD,
        build={"versions": {"onnxruntime": "1.30.0"}, "seed": 7},
    )
    monkeypatch.setenv("CANARIUM_REGISTRY", str(registry.root))
    return registry


@pytest.fixture
def run(registry: Registry, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str, code: int = 0) -> str:
        assert main(["card", *arguments]) == code
        shown = capsys.readouterr()
        return shown.err if code else shown.out

    return run


def configuration(registry: Registry, governance: str = "") -> Path:
    path = registry.root.parent / "mail.yaml"
    path.write_text(
        f"apiVersion: canarium/v1\nregistry: {{dir: {registry.root}}}\n{governance}"
        "card: {name: Mail desk, owner: platform, limitations: [no guarantees]}\n"
        "models:\n  m:\n    baseline: teacher\n    card: {purpose: finds spam}\n"
        "    variants:\n      teacher: {artifact: 'm/teacher:1'}\n"
        "      int8: {artifact: m/int8, placement: colocated}\n"
        "    routing: {weights: {int8: 5}, shadow: {int8: 20}}\n"
        "    slo: [{name: latency, objective: 0.99, threshold_ms: 100}]\n"
        "    guards: {dry_run: [harm]}\n"
    )
    return path


# ---------------------------------------------------------------- of an artifact


def test_hugging_face_reads_the_metadata(run: Any) -> None:
    card = ModelCard(run("m/int8"))
    assert card.data.model_name == "m-int8"
    assert card.data.library_name == "onnx"
    assert card.data.tags == ["canarium", "quantized", "onnx"]
    results = card.data.eval_results
    assert results
    assert all(isinstance(one, EvalResult) for one in results)
    assert {one.metric_type: one.metric_value for one in results}["accuracy"] == 0.97
    assert {(one.dataset_name, one.dataset_split) for one in results} == {("a corpus", "test")}
    card.data.to_yaml()
    assert "# m/int8:2" in card.text


def test_an_artifact_without_measurements_has_a_card_that_says_so(run: Any, registry: Registry) -> None:
    put(registry, "bare", evaluation={}, calibration={}, validated_on=[])
    shown = run("m/bare")
    assert ModelCard(shown).data.eval_results is None
    for text in ("- **Owner:** not stated", "Nothing was measured.", "Nowhere.", "Nobody has approved it."):
        assert text in shown


def test_the_card_says_what_the_manifest_says(run: Any, registry: Registry, tmp_path: Path) -> None:
    approve(
        registry, "m/int8", BUILT_IN["limited"], key_at(tmp_path / "key"), by="alice", role="reviewer", reason="fine"
    )
    manifest = registry.resolve("m/int8")
    shown = run("m/int8", "--policy", "limited")
    for text in (
        "- **Owner:** trust and safety",
        "- English only",
        manifest.digest,
        manifest.files["model.onnx"].sha256,
        "| source | m/teacher:1 |",
        "| `accuracy` | 0.97 (0.96 – 0.98) |",
        "| `recall.spam` | 0.95 |",
        "### Slices\n\n|  | accuracy | rows |\n| --- | --- | --- |\n| long | 0.95 (0.92 – 0.97) | 400 |",
        "| short | 0.98 | 600 |",
        "| `slices.overall` | -0.01 |",
        "| `slices.lowest.slice` | long |",
        "| `slices.lowest.accuracy` | 0.95 (0.91 – 0.98) |",
        "| `licence` | CC0-1.0 |",
        "a processor (avx2, avx512f, avx512_vnni)",
        "- alice as reviewer on 2023-11-14T22:13:20+00:00 under policy limited: fine (key ed25519:",
        "| `evaluation.accuracy_ci.0 >= 0.8` | pass |",
        "| `versions.onnxruntime` | 1.30.0 |",
    ):
        assert text in shown, text


def test_numbers_that_were_inherited_are_not_passed_off_as_measured(run: Any, registry: Registry) -> None:
    put(registry, "broken", evaluation=EVIDENCE | {"inherited_from": "m/int8:1"})
    assert "These are the numbers of m/int8:1; this artifact itself was not measured." in run("m/broken")


def test_numbers_that_were_edited_after_the_registration_are_in_no_card(run: Any, registry: Registry) -> None:
    was, now = edit(registry, "m/int8", '"ece_debiased": 0.004', '"ece_debiased": 0.001')
    said = f"canarium: m/int8:2: its manifest is damaged: registered with sha256 {was}, got {now} in "
    assert run("m/int8", code=1).startswith(said)
    assert run("m/int8", "--format", "cyclonedx", code=1).startswith(said)
    assert run("--system", str(configuration(registry)), code=1).startswith(said)


class Page(HTMLParser):
    """Texts by tag, and tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_html_is_whole_and_shows_markup_as_text(run: Any, tmp_path: Path) -> None:
    target = tmp_path / "card.html"
    assert run("m/int8", "--format", "html", "-o", str(target)) == ""
    page = Page()
    page.feed(target.read_text(encoding="utf-8"))
    assert page.open == []
    assert not page.tags & {"script", "b", "link", "img"}
    assert "<b>no</b> | *pipes*" in page.text
    assert "model_name" not in page.text  # metadata is for machines


HOSTILE = (
    "![x](https://evil.example/x.png)",
    "`![x](https://evil.example/x.png)",
    "`a` ![x](https://evil.example/x.png)",
    "``` ` [x](https://evil.example)",
    "\\![x](https://evil.example/x.png)",
    "\\\\[x](https://evil.example)",
    "a | [x](https://evil.example) \\| <a href='https://evil.example'>x</a>",
    "<https://evil.example>",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_in_a_manifest_becomes_markup(run: Any, registry: Registry, tmp_path: Path, text: str) -> None:
    """It may be of an import: a page that loads a picture tells somebody that it was looked at."""
    put(
        registry,
        "hostile",
        data={"source": text, text: "value"},
        evaluation=EVIDENCE
        | {"split": text, "inherited_from": text, text: 0.5, "per": {text: {text: 0.5}, "other": {text: 0.25}}},
        calibration={"nested": {text: [text, text]}},
        validated_on=[{"cpu": {"model": text, "flags": [text]}, text: 1.0}],
        card={"owner": text, "purpose": text, "limitations": [text]},
        build={"versions": {text: text}},
    )
    target = tmp_path / "card.html"
    run("m/hostile", "--format", "html", "-o", str(target))
    page = Page()
    page.feed(target.read_text(encoding="utf-8"))
    assert page.open == []
    assert not page.tags & {"script", "a", "link", "img"}
    assert page.text.count(text) >= 10  # and is shown as it is


# ---------------------------------------------------------------- of a deployment


def test_the_system_card_describes_the_deployment(run: Any, registry: Registry) -> None:
    shown = run("--system", str(configuration(registry)))
    for text in (
        "# Mail desk",
        "- **Owner:** platform",
        "- no guarantees",
        "- **Purpose:** finds spam",
        "| `m` | teacher | teacher | int8 | platform |",
        "m/int8:2, version 3",
        "colocated, 1 × 1 threads, batches of 16",
        "The variants do not share one placement",
        "int8 5 %; the rest to teacher",
        "| copied in shadow | int8 20 % |",
        "rolled back by mistake with a chance of at most 0.01",
        "| `agreement` | answers that differ from the teacher's | margin 0.02, limit –, gross_factor 3 |",
        "| observes only |",
        "| latency | 99.0000% | 100 ms | 30d |",
        "Mode `off`: whatever is in the registry is served.",
        *(f"| `{guard}` |" for guard in GUARDS),
    ):
        assert text in shown, text


def test_the_system_card_says_what_is_not_approved(run: Any, registry: Registry, tmp_path: Path) -> None:
    key = key_at(tmp_path / "key")
    governance = f"governance: {{mode: warn, trusted_keys: [{{name: alice, key: '{key.public.text}'}}]}}\n"
    path = configuration(registry, governance)
    approve(registry, "m/teacher:1", BUILT_IN["low"], key, by="alice", role="approver", reason="fine")
    shown = run("--system", str(path))
    assert "- alice (approver)" in shown
    assert "| m/teacher | approved | – |" in shown
    assert "| m/int8 | not approved | models.m.variants.int8: m/int8:2 (sha256 " in shown


def test_the_system_card_and_its_bill_are_about_what_this_host_would_serve(
    run: Any, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `up`, the monitor and the applications of a cluster choose: the sibling that was validated here."""
    on_avx2 = [{"cpu": AVX2, "accuracy": 0.97}]
    teacher = registry.resolve("m/teacher:1")
    put(registry, "int8-avx2", lineage=made_from(teacher), quantization=INT8, validated_on=on_avx2)
    path = str(configuration(registry))
    monkeypatch.setattr("serving.loading.cpu_info", lambda: AVX2)
    shown = run("--system", path)
    assert "| `int8` | m/int8-avx2:1, version 4 |" in shown
    assert "this host has x86_64 without 8-bit dot products; its sibling m/int8-avx2:1 is served instead" in shown
    bill = valid(run("--system", path, "--format", "cyclonedx"))
    models = [part for part in bill["components"] if part["type"] == "machine-learning-model"]
    assert {(part["name"], part["version"]) for part in models} == {("teacher", "1"), ("int8-avx2", "1")}
    monkeypatch.setattr("serving.loading.cpu_info", lambda: VNNI)
    shown = run("--system", path)
    assert "m/int8:2, version 3" in shown
    assert "sibling" not in shown


def test_the_system_card_names_the_policy_of_each_model(run: Any, registry: Registry) -> None:
    path = configuration(registry, "governance: {policy: limited}\n")
    assert "Policy `limited`." in run("--system", str(path))
    whole = path.read_text()
    path.write_text(whole.replace("    baseline: teacher\n", "    baseline: teacher\n    policy: high\n"))
    assert "Policy `high` for model `m`." in run("--system", str(path))
    other = "  n: {baseline: teacher, variants: {teacher: {artifact: 'm/teacher:1'}}}\n"
    path.write_text(path.read_text() + other)
    assert "Policy `limited`; `high` for model `m`." in run("--system", str(path))


# ---------------------------------------------------------------- bills of materials


def valid(text: str) -> dict[str, Any]:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    document: dict[str, Any] = json.loads(text)
    refs = [part["bom-ref"] for part in (*document["components"], document["metadata"]["component"])]
    assert len(set(refs)) == len(refs)
    assert len({one["ref"] for one in document["dependencies"]}) == len(document["dependencies"])
    known = {part["bom-ref"] for part in (*document["components"], document["metadata"]["component"])}
    for one in document["dependencies"]:
        assert {one["ref"], *one["dependsOn"]} <= known
    return document


def test_the_bill_of_an_artifact_is_valid_and_names_all_its_parts(run: Any, registry: Registry) -> None:
    text = run("m/int8", "--format", "cyclonedx")
    document = valid(text)
    assert run("m/int8", "--format", "cyclonedx") == text
    model = document["metadata"]["component"]
    manifest = registry.resolve("m/int8")
    assert model["hashes"] == [{"alg": "SHA-256", "content": manifest.files["model.onnx"].sha256}]
    metrics = {one["type"]: one for one in model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]}
    assert metrics["accuracy"]["confidenceInterval"] == {"lowerBound": "0.96", "upperBound": "0.98"}
    assert model["modelCard"]["considerations"]["technicalLimitations"] == CARD["limitations"]
    kinds = [part["type"] for part in document["components"]]
    assert sorted(kinds) == ["data", "file", "library", "machine-learning-model"]
    valid(run("m/teacher:1", "--format", "cyclonedx"))


def test_an_imported_model_is_not_passed_off_as_trained_here(run: Any, registry: Registry) -> None:
    imported = {"origin": "a package", "licence": "MIT", "sha256": "b" * 64}
    source = put(registry, "theirs", data=DATA | {"imported": imported})
    put(registry, "smaller", data=DATA | {"imported": imported}, lineage=made_from(source), quantization=INT8)
    assert "A variant of **m**, imported as it is." in run("m/theirs")
    assert "| `imported.origin` | a package |" in run("m/theirs")
    assert "A variant of **m**, quantized." in run("m/smaller")
    for name in ("theirs", "smaller"):
        model = valid(run(f"m/{name}", "--format", "cyclonedx"))["metadata"]["component"]
        assert model["licenses"] == [{"license": {"name": "MIT"}}]
        assert model["pedigree"] == {"notes": f"Weights of a package, SHA-256 {'b' * 64}"}
        assert "approach" not in model["modelCard"]["modelParameters"]
    model = valid(run("m/teacher:1", "--format", "cyclonedx"))["metadata"]["component"]
    assert model["modelCard"]["modelParameters"]["approach"] == {"type": "supervised"}
    assert not {"licenses", "pedigree"} & set(model)


def test_the_bill_of_a_deployment_holds_its_models(run: Any, registry: Registry) -> None:
    document = valid(run("--system", str(configuration(registry)), "--format", "cyclonedx"))
    assert document["metadata"]["component"]["name"] == "Mail desk"
    models = [part for part in document["components"] if part["type"] == "machine-learning-model"]
    assert [(part["group"], part["name"]) for part in models] == [("m", "teacher"), ("m", "int8")]
    assert all("modelCard" in part for part in models)


def test_a_model_that_is_served_twice_is_one_component(run: Any, registry: Registry) -> None:
    path = configuration(registry)
    other = "  n: {baseline: again, variants: {again: {artifact: 'm/teacher:1'}}}\n"
    path.write_text(path.read_text() + other)
    document = valid(run("--system", str(path), "--format", "cyclonedx"))
    models = [part["name"] for part in document["components"] if part["type"] == "machine-learning-model"]
    assert models == ["teacher", "int8"]


def test_a_library_that_was_not_there_is_no_part(run: Any, registry: Registry) -> None:
    put(registry, "odd", build={"versions": {"onnxruntime": "1.30.0", "torch": "absent"}})
    document = valid(run("m/odd", "--format", "cyclonedx"))
    assert [part["purl"] for part in document["components"] if part["type"] == "library"] == [
        "pkg:pypi/onnxruntime@1.30.0"
    ]


def test_wrong_usage_is_2(run: Any, registry: Registry) -> None:
    assert "give either REF or --system" in run(code=2)
    assert "give either REF or --system" in run("m/int8", "--system", str(configuration(registry)), code=2)
    assert "--policy goes with REF" in run("--system", str(configuration(registry)), "--policy", "low", code=2)
