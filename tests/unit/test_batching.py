"""The queue's policy: who shares a batch, who goes first, who is shed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.core.arrays import Layout, chunk_rows, join, merge, rows_of, shape_of, split
from serving.core.batching import BatchQueue, Entry

SOON = 10**12


def entry(
    rows: int = 1, *, signature: object = "s", live: bool = True, deadline: int = SOON, width: int = 0, size: int = 8
) -> Entry:
    return Entry(None, {}, rows, size, signature, deadline, live, width)


def queue(max_batch: int = 4, max_rows: int = 16, **options: float) -> BatchQueue:
    return BatchQueue(max_batch=max_batch, max_rows=max_rows, **options)  # type: ignore[arg-type]


def offer(target: BatchQueue, *entries: Entry, now: int = 0) -> None:
    for item in entries:
        assert target.offer([item], now).admitted


def test_a_batch_takes_the_oldest_and_its_like_up_to_max_batch() -> None:
    target = queue(max_batch=4)
    first, other, mate, big, late = entry(2), entry(signature="t"), entry(1), entry(2), entry(1)
    offer(target, first, other, mate, big, late)

    assert list(target.take(0).entries) == [first, mate, late]  # big does not fit, late does
    assert list(target.take(0).entries) == [other]
    assert list(target.take(0).entries) == [big]
    assert target.rows == 0


def test_a_batch_is_bounded_in_bytes_but_one_entry_always_runs() -> None:
    target = queue(max_batch=8, max_bytes=100)
    offer(target, entry(size=300), entry(size=60), entry(size=60))
    assert [len(target.take(0).entries) for _ in range(3)] == [1, 1, 1]


def test_live_work_goes_before_shadow_work_and_never_shares_a_batch_with_it() -> None:
    target = queue()
    shadow, live = entry(live=False), entry()
    offer(target, shadow, live)
    assert list(target.take(0).entries) == [live]
    assert list(target.take(0).entries) == [shadow]


def test_a_full_queue_gives_up_its_oldest_shadow_work_for_live_work() -> None:
    target = queue(max_rows=4)
    old, new = entry(2, live=False), entry(2, live=False)
    offer(target, old, new)
    result = target.offer([entry(1)], 0)
    assert result.admitted
    assert list(result.evicted) == [old]
    assert target.rows == 3


def test_a_full_queue_refuses_shadow_work_and_live_work_that_shadow_cannot_make_room_for() -> None:
    target = queue(max_rows=4)
    kept = entry(1, live=False)
    offer(target, entry(3), kept)
    assert not target.offer([entry(1, live=False)], 0).admitted
    refused = target.offer([entry(2)], 0)
    assert not refused.admitted
    assert not refused.evicted  # nothing is thrown away in vain
    assert kept.queued


def test_expired_work_makes_room_and_is_dropped_when_a_batch_closes() -> None:
    target = queue(max_rows=2)
    stale, fresh = entry(deadline=10), entry(deadline=10)
    offer(target, stale, fresh)
    result = target.offer([entry()], 10)
    assert result.admitted
    assert list(result.expired) == [stale, fresh]

    offer(target, entry(deadline=20))
    taken = target.take(20)
    assert len(taken.entries) == 1
    assert len(taken.expired) == 1


def test_a_split_request_is_queued_whole_or_not_at_all() -> None:
    target = queue(max_rows=5)
    assert not target.offer([entry(4), entry(2)], 0).admitted
    assert target.rows == 0
    assert target.offer([entry(4), entry(1)], 0).admitted


def test_a_free_worker_never_waits_unless_told_to() -> None:
    target = queue()
    assert target.wait_ns(0) is None
    offer(target, entry())
    assert target.wait_ns(0) == 0


def test_the_delay_ends_when_the_batch_is_full_or_the_oldest_has_waited() -> None:
    target = queue(max_batch=2, max_queue_delay_ns=100)
    offer(target, entry(), now=0)
    assert target.wait_ns(30) == 70
    assert target.wait_ns(150) == 0
    offer(target, entry(), now=30)
    assert target.wait_ns(30) == 0


def test_waiting_for_company_takes_at_most_half_of_the_time_left() -> None:
    target = queue(max_queue_delay_ns=100)
    offer(target, entry(deadline=60), now=0)
    assert target.wait_ns(0) == 30


def test_short_sequences_do_not_join_a_batch_that_would_be_mostly_padding() -> None:
    target = queue(max_batch=8, max_padding=1.5)
    long, short, similar = entry(width=96), entry(width=16), entry(width=80)
    offer(target, long, short, similar)
    assert list(target.take(0).entries) == [long, similar]
    assert list(target.take(0).entries) == [short]


def test_little_padding_is_the_default() -> None:
    target = queue(max_batch=8)
    offer(target, entry(width=100), entry(width=70), entry(width=90))
    assert [sorted(mate.width for mate in target.take(0).entries) for _ in range(2)] == [[90, 100], [70]]


def test_a_share_bounds_a_batch_but_never_a_single_entry() -> None:
    target = queue(max_batch=8)
    large, *small = entry(rows=5), entry(), entry(), entry()
    offer(target, large, *small)
    assert list(target.take(0, 2).entries) == [large]
    assert list(target.take(0, 2).entries) == small[:2]
    assert list(target.take(0, 99).entries) == small[2:]


def test_a_withdrawn_entry_is_gone() -> None:
    target = queue()
    gone = entry()
    offer(target, gone)
    assert target.remove(gone)
    assert not target.remove(gone)
    assert not target.take(0).entries


@pytest.mark.parametrize("bad", [{"max_batch": 0}, {"max_rows": 0}, {"max_padding": 0.5}, {"max_queue_delay_ns": -1}])
def test_senseless_bounds_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        queue(**bad)  # type: ignore[arg-type]


requests = st.builds(
    entry,
    st.integers(1, 4),
    signature=st.sampled_from("st"),
    live=st.booleans(),
    deadline=st.integers(1, 60),
    width=st.sampled_from([0, 8, 16, 64]),
    size=st.integers(1, 90),
)
steps = st.lists(
    st.one_of(
        requests,
        st.tuples(st.just("take"), st.just(0)),
        st.tuples(st.just("remove"), st.integers(0, 50)),
    ),
    max_size=60,
)


@given(steps, st.integers(4, 12))
def test_every_entry_leaves_once_and_no_bound_is_ever_broken(script: list[object], max_rows: int) -> None:
    target = queue(max_batch=4, max_rows=max_rows, max_bytes=100)
    waiting: list[Entry] = []  # in order of arrival: the model

    def leave(entries: object) -> None:
        for item in entries:  # type: ignore[attr-defined]
            waiting.remove(item)  # raises if it left before
            assert not item.queued

    for now, step in enumerate(script):
        if isinstance(step, Entry):
            result = target.offer([step], now)
            leave(result.expired)
            leave(result.evicted)
            assert all(not item.live for item in result.evicted)
            assert step.live or not result.evicted
            if result.admitted:
                waiting.append(step)
            else:
                held = sum(item.rows for item in waiting if item.live or not step.live)
                assert held + step.rows > max_rows
        elif step[0] == "remove" and waiting:  # type: ignore[index]
            chosen = waiting[step[1] % len(waiting)]  # type: ignore[index]
            assert target.remove(chosen)
            waiting.remove(chosen)
        elif step[0] == "take":  # type: ignore[index]
            alive = [item for item in waiting if item.deadline_ns > now]
            taken = target.take(now)
            assert all(item.deadline_ns <= now for item in taken.expired)
            leave(taken.expired)
            leave(taken.entries)
            assert bool(taken.entries) == bool(alive)  # work-conserving
            if taken.entries:
                lanes = [item for item in alive if item.live] or alive
                assert taken.entries[0] is lanes[0]  # the oldest always runs: nobody starves
                assert len({(item.signature, item.live) for item in taken.entries}) == 1
                assert len(taken.entries) == 1 or (
                    sum(item.rows for item in taken.entries) <= 4 and sum(item.bytes for item in taken.entries) <= 100
                )
                widest = max(item.width for item in taken.entries)
                rows = sum(item.rows for item in taken.entries)
                assert widest * rows <= 1.5 * sum(item.rows * item.width for item in taken.entries)
        assert target.rows == sum(item.rows for item in waiting) <= max_rows
    assert target.clear() == waiting
    assert target.rows == 0


# ---------------------------------------------------------------- arrays


def test_only_equal_dtypes_and_trailing_shapes_match_and_input_order_does_not_matter() -> None:
    def of(**arrays: np.ndarray) -> object:
        return shape_of(arrays, 2).signature

    a, b = np.zeros((2, 3), np.float32), np.zeros((2,), np.int64)
    assert of(a=a, b=b) == of(b=b, a=a)
    assert of(a=a) != of(a=a.astype(np.float64))
    assert of(a=a) != of(a=np.zeros((2, 4), np.float32))
    assert of(a=a) != of(c=a)


def test_paddable_inputs_match_over_different_lengths_only_on_axis_one() -> None:
    def of(*shape: int) -> object:
        return shape_of({"ids": np.zeros(shape, np.int64)}, 2, Layout(pad=frozenset({"ids"}))).signature

    assert of(2, 3) == of(2, 9)
    assert of(2, 3) != of(2, 3, 1)


@pytest.mark.parametrize("array", [np.float32(1).reshape(()), np.zeros((3, 2))])
def test_an_input_without_the_row_axis_is_not_batchable(array: np.ndarray) -> None:
    assert shape_of({"x": array}, 2).signature is None


def test_bytes_count_the_elements_not_their_pointers() -> None:
    texts = np.array([b"x" * 1000, b""], object)
    assert shape_of({"text": texts}, 2).bytes == 1008


def test_chunks_respect_rows_and_bytes() -> None:
    assert chunk_rows(40, 400, 16, 1000) == 16
    assert chunk_rows(40, 4000, 16, 1000) == 10
    assert chunk_rows(1, 4000, 16, 1000) == 1


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6)), min_size=1, max_size=6),
    st.sampled_from([np.int64, np.float32]),
)
def test_merge_pads_with_zeros_and_split_gives_each_its_own_rows(
    shapes: list[tuple[int, int]], dtype: type[np.generic]
) -> None:
    parts = [{"ids": np.full((rows, length), number + 1, dtype)} for number, (rows, length) in enumerate(shapes)]
    merged = merge(parts)["ids"]
    assert merged.dtype == dtype
    assert merged.sum() == sum(part["ids"].sum() for part in parts)
    shares = split({"y": merged, "z": merged[:, 0]}, [rows for rows, _ in shapes])
    assert shares is not None
    for share, part in zip(shares, parts, strict=True):
        rows, length = part["ids"].shape
        assert np.array_equal(share["y"][:, :length], part["ids"])
        assert not share["y"][:, length:].any()
        assert share["z"].shape == (rows,)


def test_bytes_inputs_merge() -> None:
    parts = [{"t": np.array([b"a", b"b"], object)}, {"t": np.array([b"c"], object)}]
    assert merge(parts)["t"].tolist() == [b"a", b"b", b"c"]


def test_outputs_that_do_not_match_the_rows_are_not_shared_out() -> None:
    assert split({"y": np.zeros((3, 2))}, [1, 1]) is None
    assert split({"y": np.float32(1).reshape(())}, [1, 1]) is None
    whole = split({"y": np.zeros((3, 2))}, [1])
    assert whole is not None
    assert whole[0]["y"].shape == (3, 2)  # one caller: the gateway's check will judge it


def test_rows_on_another_axis_are_stacked_and_shared_out_there_and_shared_values_must_be_equal() -> None:
    layout = Layout(inputs={"state": 1, "rate": None}, outputs={"stateN": 1, "rate": None})

    def request(rows: int, value: float, rate: int = 16000) -> dict[str, np.ndarray]:
        return {
            "x": np.full((rows, 3), value, np.float32),
            "state": np.full((2, rows, 4), value, np.float32),
            "rate": np.array(rate),
        }

    one, two = request(1, 1.0), request(2, 2.0)
    assert shape_of(one, 1, layout).signature == shape_of(two, 2, layout).signature is not None
    assert shape_of(request(1, 1.0, 8000), 1, layout).signature != shape_of(one, 1, layout).signature
    # Without the layout two rows would pass for the two layers of the state.
    assert shape_of(one, 1).signature is None
    merged = merge([one, two], layout.inputs)
    assert merged["x"].shape == (3, 3)
    assert merged["state"].shape == (2, 3, 4)
    assert merged["rate"] == 16000
    outputs = {"y": merged["x"][:, 0], "stateN": merged["state"], "rate": merged["rate"]}
    shares = split(outputs, [1, 2], layout.outputs)
    assert shares is not None
    assert (shares[1]["stateN"] == 2).all()
    assert shares[1]["stateN"].shape == (2, 2, 4)
    assert shares[0]["y"].tolist() == [1]
    assert split({**outputs, "stateN": merged["state"][:, :2]}, [1, 2], layout.outputs) is None
    joined = join([rows_of(outputs, 0, 1, layout.outputs), rows_of(outputs, 1, 3, layout.outputs)], layout.outputs)
    assert all(np.array_equal(joined[name], outputs[name]) for name in outputs)


def test_a_request_without_any_rows_runs_alone() -> None:
    assert shape_of({"rate": np.array(1)}, 1, Layout(inputs={"rate": None})).signature is None
