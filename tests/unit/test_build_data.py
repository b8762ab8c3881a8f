"""The rows of a text recipe: what is refused, and what the quickstart ships."""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import build_kit
import pytest

from serving.build.cache import BuildError
from serving.build.runner import build
from serving.build.text.data import check_data, near_key, read_rows
from serving.registry.store import Registry

QUICKSTART = Path(__file__).parents[2] / "deployments" / "quickstart"


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [
        ("5/5", "10/10", False),
        ("[url]", "[email]", False),
        ("👍 100%", "👍 50%", False),
        ("[url] 5/5", "5/5", False),
        (" 5/5\n", "5/5", True),
        ("Free money!", "free   MONEY [url] 100%", True),
    ],
)
def test_texts_without_letters_are_near_each_other_only_if_they_are_the_same(
    tmp_path: Path, one: str, other: str, near: bool
) -> None:
    data = build_kit.rows()
    data += [{"text": one, "label": "ham", "split": "train"}, {"text": other, "label": "ham", "split": "test"}]
    build_kit.write(tmp_path, build_kit.recipe(), data)
    (tmp_path / "out").mkdir()
    with (
        pytest.raises(BuildError, match=r"line 306: nearly the same text is in another split")
        if near
        else nullcontext()
    ):
        check_data(tmp_path / "out", {"file": tmp_path / "rows.jsonl.gz"}, {"labels": ["ham", "spam"]}, lambda *_: None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a b c", "label": "odd", "split": "train"}, "label 'odd' is not one of ham, spam"),
        ({"text": "a b c", "label": "ham", "split": "dev"}, "split 'dev' is not one of"),
        ({"text": "a b c", "label": "ham"}, "missing required field `split`"),
    ],
)
def test_unusable_data_is_refused_by_line(tmp_path: Path, row: dict[str, str], message: str) -> None:
    recipe = build_kit.write(tmp_path, build_kit.recipe(), [*build_kit.rows(), row])
    with pytest.raises(BuildError, match="line 305: .*" + re.escape(message)):
        build(recipe, Registry(tmp_path / "registry"), cache_dir=tmp_path / "cache")


def test_a_text_in_two_splits_is_refused(tmp_path: Path) -> None:
    data = build_kit.rows()
    leaked = data[0] | {"split": "test", "text": data[0]["text"].upper() + " [url] 12"}
    recipe = build_kit.write(tmp_path, build_kit.recipe(), [*data, leaked])
    with pytest.raises(BuildError, match="line 305: nearly the same text is in another split"):
        build(recipe, Registry(tmp_path / "registry"), cache_dir=tmp_path / "cache")


def test_missing_data(tmp_path: Path) -> None:
    recipe = build_kit.write(tmp_path, build_kit.recipe(), [])
    (tmp_path / "rows.jsonl.gz").unlink()
    with pytest.raises(BuildError, match=r"step data: cannot read .*rows\.jsonl\.gz: No such file"):
        build(recipe, Registry(tmp_path / "registry"), cache_dir=tmp_path / "cache")


def test_the_shipped_data_is_what_the_documentation_says() -> None:
    path = QUICKSTART / "data" / "mails.jsonl.gz"
    assert path.stat().st_size < 2_000_000
    found = read_rows(path)
    counts = Counter((row.split, row.label) for row in found)
    documented = (QUICKSTART / "DATA.md").read_text()
    assert f"holds {len(found):,} e-mails" in documented
    for split in ("train", "calibration", "validation", "test"):
        assert re.search(rf"\| {split} \| {counts[split, 'ham']:,} \| {counts[split, 'spam']:,} \|", documented)
    assert "PDDL-1.0" in documented
    assert "CC0-1.0" in documented


def test_the_shipped_splits_are_disjoint_even_for_near_duplicates() -> None:
    home: dict[str, str] = {}
    for row in read_rows(QUICKSTART / "data" / "mails.jsonl.gz"):
        assert near_key(row.text) not in home
        home[near_key(row.text)] = row.split


def test_the_shipped_data_names_no_address_and_no_url() -> None:
    found = read_rows(QUICKSTART / "data" / "mails.jsonl.gz")
    address = re.compile(r"\S@\S")
    url = re.compile(r"(?i)\b(?:https?|ftp)://\S|\bwww\.\w|\b[\w-]+\.(?:com|net|org|edu)\b")
    for row in found:
        assert len(row.text) <= 1000
        assert not address.search(row.text), row.text
        assert not url.search(row.text), row.text


@pytest.fixture(scope="module")
def prepare() -> ModuleType:
    spec = importlib.util.spec_from_file_location("quickstart_prepare", QUICKSTART / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_prepare_masks_strips_and_deduplicates(prepare: ModuleType, tmp_path: Path) -> None:
    package = tmp_path / "package"
    head = "From: Grace Hopper <grace@navy.example>\nTo: list@x.example\nReceived: by secret.example\nSubject: "
    bodies = {
        "easy-ham-1/1": head
        + "[ILUG] Moths\n\nGrace Hopper found one, see http://moth.example/a?b or call 555-123-4567.",
        "easy-ham-1/2": head + "[ILUG] Moths\n\nGrace Hopper FOUND one, see http://other.example or call 555-999-0000.",
        "spam-1/3": head
        + "Buy\nContent-Type: text/html\n\n<html><style>p {x}</style><p>Cheap &amp; good pills, mail bob@pills.example",
    }
    for name, text in bodies.items():
        path = package / "data" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        group = name.split("/")[0]
        path.write_text(json.dumps({"text": text, "group": group}))
    found = list(prepare.rows(package))
    assert [row["label"] for row in found] == ["ham", "spam"]
    assert found[0]["text"] == "Moths [name] found one, see [url] or call [phone]."
    assert found[1]["text"] == "Buy Cheap & good pills, mail [email]"
    for name in ("one", "two"):
        prepare.write(tmp_path / name, iter(found))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert len(gzip.decompress((tmp_path / "one").read_bytes()).splitlines()) == 2


def test_the_same_text_always_lands_in_the_same_split(prepare: ModuleType) -> None:
    drawn = Counter(prepare.split_of(str(n)) for n in range(4000))
    assert set(drawn) == {"train", "calibration", "validation", "test"}
    assert drawn["train"] / 4000 == pytest.approx(0.66, abs=0.03)
    assert prepare.split_of("7") == prepare.split_of("7")
