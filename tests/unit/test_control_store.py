"""The store: one transaction for state and trail, fenced by the lease; the same over either database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import control_kit
import pytest
import sqlalchemy as sa
from control_kit import execute, seeded

from serving.control.store import LeaseHeld, SqlStore, StaleLease, StoreError
from serving.core.commands import AuditDraft
from serving.errors import StartError


def draft(reason: str = "r", model: str = "m") -> AuditDraft:
    return AuditDraft(1_700_000_000_123_000_000, "ann", "traffic", model, None, reason, {}, {"w": 0.1})


def test_each_start_takes_a_higher_lease_and_the_earlier_one_can_write_no_more(tmp_path: Path) -> None:
    first, second = control_kit.open_store(tmp_path), control_kit.open_store(tmp_path)
    assert first.acquire().lease == 1
    first.write(seeded(), [draft()])
    first.renew()
    assert second.acquire().lease == 2
    with pytest.raises(StaleLease, match="lease 2, this one holds 1"):
        first.write(seeded(), [draft()])
    with pytest.raises(StaleLease):
        first.renew()
    assert len(second.audit(None, 10, None)) == 1


def test_the_lead_is_taken_only_from_whom_it_was_seen_with(tmp_path: Path) -> None:
    first, second = control_kit.open_store(tmp_path, "a"), control_kit.open_store(tmp_path, "b")
    first.acquire()
    seen = second.leader()
    assert (seen.lease, seen.holder) == (1, "a")
    first.renew()
    with pytest.raises(LeaseHeld, match="a leads by now, with lease 1"):
        second.acquire(seen)
    assert second.acquire(second.leader()).lease == 2
    first.close()  # lets go of nothing: it leads no more
    assert second.leader().holder == "b"
    second.renew()


def test_one_that_closes_leaves_the_lead_free(tmp_path: Path) -> None:
    first, second = control_kit.open_store(tmp_path, "a"), control_kit.open_store(tmp_path, "b")
    first.acquire()
    first.close()
    assert second.leader().holder == ""
    assert second.acquire(second.leader()).lease == 2


def test_state_and_rows_are_saved_together_and_read_back(tmp_path: Path) -> None:
    store = control_kit.open_store(tmp_path)
    store.acquire()
    written = store.write(seeded(), [draft("one"), draft("two", "*"), draft("three", "other")])
    assert [row.seq for row in written] == [1, 2, 3]
    store.close()
    store = control_kit.open_store(tmp_path)
    assert store.acquire().tables == seeded().tables
    assert store.audit(None, 2, None) == written[:0:-1]
    assert [row.reason for row in store.audit("m", 10, None)] == ["two", "one"]
    assert [row.reason for row in store.audit(None, 10, 2)] == ["one"]
    assert [row.reason for row in store.audit(None, 2, after=1)] == ["two", "three"]
    assert written[0].at == "2023-11-14T22:13:20.123Z"


@contextmanager
def answer_lost(store: SqlStore) -> Iterator[None]:
    """What is written inside is committed, but the answer does not come: the connection broke just then."""
    whole = store._transaction

    @contextmanager
    def broken(engine: sa.Engine) -> Iterator[sa.Connection]:
        with whole(engine) as connection:
            yield connection
        raise StoreError("the state database: server closed the connection unexpectedly")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_transaction", broken)
        yield


def test_what_landed_although_its_answer_was_lost_is_not_written_twice(tmp_path: Path) -> None:
    store = control_kit.open_store(tmp_path)
    store.acquire()
    store.write(seeded(), [draft("one")])
    with answer_lost(store), pytest.raises(StoreError):
        store.write(seeded(), [draft("two"), draft("three")])
    written = store.write(seeded(), [draft("two"), draft("three"), draft("four")])  # the retry, and what came since
    assert [row.seq for row in written] == [2, 3, 4]
    assert [row.reason for row in store.audit(None, 9, after=0)] == ["one", "two", "three", "four"]
    assert store.verify().ok


def test_what_landed_and_was_said_to_have_failed_is_taken_back(tmp_path: Path) -> None:
    store = control_kit.open_store(tmp_path)
    store.acquire()
    with answer_lost(store), pytest.raises(StoreError):
        store.write(seeded(), [draft("kept"), draft("refused")])
    written = store.write(seeded(), [draft("kept"), draft("next")])
    assert [(row.seq, row.action) for row in written] == [(1, "traffic"), (3, "traffic-undone"), (4, "traffic")]
    kept, refused, undone, following = store.audit(None, 9, after=0)
    assert (undone.before, undone.after, undone.at) == (refused.after, refused.before, refused.at)
    assert (kept.reason, following.reason) == ("kept", "next")
    assert store.verify().ok
    assert store.write(seeded(), []) == []


def test_words_that_a_database_cannot_hold_do_not_block_the_trail(tmp_path: Path) -> None:
    store = control_kit.open_store(tmp_path)
    store.acquire()
    odd = AuditDraft(0, "ann\0", "kill", "m", None, "a\0b", {"x": "\0"}, {}, {"y": ["\0"]})
    assert store.write(seeded(), [odd])[0].reason == "a\N{REPLACEMENT CHARACTER}b"
    assert store.audit(None, 1, None)[0].before == {"x": "\0"}
    assert store.verify().ok


def test_a_database_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    control_kit.open_store(tmp_path).close()
    execute(tmp_path, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StartError, match="has schema revision 9999 and this Canarium knows up to"):
        control_kit.open_store(tmp_path)


def test_a_state_that_cannot_be_read_is_said_and_nobody_leads(tmp_path: Path) -> None:
    store = control_kit.open_store(tmp_path)
    execute(tmp_path, "UPDATE state SET document = '{'")
    with pytest.raises(StartError, match=r"cannot be read .* restore a backup"):
        store.acquire()
    assert store.leader().lease == 0
