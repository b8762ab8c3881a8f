"""The audit chain: nothing can be altered, taken out, put in or cut off without showing."""

from __future__ import annotations

from pathlib import Path

import control_kit
import pytest
from control_kit import execute, seeded

from serving.control.audit import GENESIS, chained, digest, iso
from serving.control.store import SqlStore
from serving.core.commands import AuditDraft


def draft(number: int) -> AuditDraft:
    return AuditDraft(number * 10**9, "ann", "kill", "m", "int8", f"reason {number}", {"a": 1}, {"b": [0.1, None]}, {})


@pytest.fixture
def store(tmp_path: Path) -> SqlStore:
    store = control_kit.open_store(tmp_path)
    store.acquire()
    store.write(seeded(), [draft(number) for number in range(1, 6)])
    store.write(seeded(), [])
    return store


def test_each_row_is_bound_to_the_one_before_it() -> None:
    first = chained(draft(1), 1, GENESIS)
    second = chained(draft(2), 2, first.hash)
    assert second.prev_hash == first.hash == digest(first)
    assert len(first.hash) == 64


def test_the_hash_is_pinned() -> None:
    """Chains written by earlier releases must stay verifiable."""
    expected = "133266c389d6cabdd9ae6befdc041015543bed0bb0cd369a70f37b931256c05b"
    assert chained(draft(1), 1, GENESIS).hash == expected


def test_a_whole_chain_verifies(store: SqlStore) -> None:
    verification = store.verify()
    assert (verification.ok, verification.entries, verification.first_bad) == (True, 5, None)


def test_an_empty_chain_verifies(tmp_path: Path) -> None:
    assert control_kit.open_store(tmp_path).verify().ok


@pytest.mark.parametrize(
    ("tampering", "first_bad"),
    [
        ("UPDATE audit SET reason = 'another' WHERE seq = 3", 3),
        ("UPDATE audit SET actor = 'bob', hash = 'f00' WHERE seq = 2", 2),
        ("UPDATE audit SET after = '{}' WHERE seq = 5", 5),
        ("UPDATE audit SET evidence = 'no json' WHERE seq = 1", 1),
        ("DELETE FROM audit WHERE seq = 2", 2),
        ("DELETE FROM audit WHERE seq = 1", 1),
        ("DELETE FROM audit WHERE seq >= 4", 4),
        ("DELETE FROM audit", 1),
        ("UPDATE audit SET seq = 9 WHERE seq = 5", 5),
        ("INSERT INTO audit SELECT 6, at, actor, action, model, variant, reason, before, after, evidence, "
         "prev_hash, hash FROM audit WHERE seq = 5", 6),
    ],
)  # fmt: skip
def test_tampering_is_found_at_its_row(store: SqlStore, tmp_path: Path, tampering: str, first_bad: int) -> None:
    execute(tmp_path, tampering)
    verification = store.verify()
    assert (verification.ok, verification.first_bad) == (False, first_bad)


def test_times_are_iso_8601_in_utc() -> None:
    assert iso(1_700_000_000_999_999_999) == "2023-11-14T22:13:20.999Z"
