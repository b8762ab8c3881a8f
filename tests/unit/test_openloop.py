"""The load generator: schedules, honest latencies, bounded work, and what is recorded. Time is virtual."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import islice, repeat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.command import summary, table
from loadtests.fake import VirtualTime
from loadtests.openloop import ClosedLoop, OpenLoop, Outcome, Recorder
from loadtests.payloads import Row, feedback_request, infer_requests, read_rows
from loadtests.percentiles import Histogram
from loadtests.transport import MAX_RETRY_AFTER_S, PatientTransport, Request, Response, TransportError, parse_head

REQUEST = Request("/v2/models/m/infer")


class Fake:
    """A server in virtual time: answers after `service_s`, stalls completely in [stall_from, stall_to)."""

    def __init__(
        self, time: VirtualTime, service_s: float = 0.001, stall: tuple[float, float] = (0.0, 0.0), status: int = 200
    ) -> None:
        self.time, self.service_s, self.stall, self.status = time, service_s, stall, status
        self.sent_at: list[float] = []
        self.active = self.most_active = 0
        self.closed = False

    async def send(self, request: Request) -> Response:
        now = self.time.monotonic_ns() / 1e9
        self.sent_at.append(now)
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        if self.stall[0] <= now < self.stall[1]:
            await self.time.sleep(self.stall[1] - now)
        await self.time.sleep(self.service_s)
        self.active -= 1
        if self.status == 0:
            raise TransportError("connection refused")
        return Response(self.status, {"x-canarium-variant": "teacher", "x-canarium-reason": "baseline"})

    async def close(self) -> None:
        self.closed = True


async def run_open(time: VirtualTime, fake: Fake, rate: float, **options: object) -> Recorder:
    load = OpenLoop(fake, repeat(REQUEST), rate, clock=time, sleep=time.sleep, **options)  # type: ignore[arg-type]
    load.start()
    await time.run(load.wait())
    return load.recorder


# ---------------------------------------------------------------- open loop


async def test_constant_arrivals_keep_their_schedule() -> None:
    time = VirtualTime()
    fake = Fake(time)
    recorder = await run_open(time, fake, 100, poisson=False, seconds=1)
    assert fake.sent_at == pytest.approx([0.01 * (i + 1) for i in range(99)], abs=1e-6)
    assert recorder.all.count == 99
    assert recorder.codes == {"200": 99}


async def test_poisson_arrivals_have_the_rate_and_exponential_gaps() -> None:
    time = VirtualTime()
    fake = Fake(time)
    await run_open(time, fake, 50, seconds=60, seed=1)
    gaps = [late - early for early, late in zip(fake.sent_at, fake.sent_at[1:], strict=False)]
    assert len(fake.sent_at) == pytest.approx(3000, abs=4 * 3000**0.5)
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(1 / 50, rel=0.1)
    assert (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5 == pytest.approx(mean, rel=0.1)


async def test_a_stall_is_charged_to_every_request_that_was_due_in_it() -> None:
    """Closed-loop generators see one slow request here; users would have seen a hundred."""
    time = VirtualTime()
    fake = Fake(time, stall=(1.0, 2.0))
    recorder = await run_open(time, fake, 100, poisson=False, seconds=4)
    p50, p90, largest = (recorder.all.quantile(q) for q in (0.5, 0.9, 1.0))
    assert p50 == pytest.approx(1_000, rel=0.02)
    # A quarter of the requests fall into the stalled second, with 0..1 s still to wait.
    assert p90 == pytest.approx(600_000, rel=0.1)
    assert largest == pytest.approx(1_001_000, rel=0.02)
    assert fake.most_active == pytest.approx(100, abs=2)


async def test_latency_counts_from_the_schedule_even_if_the_generator_itself_is_late() -> None:
    time = VirtualTime()
    fake = Fake(time)

    async def oversleeps(seconds: float) -> None:
        await time.sleep(seconds + 0.05)

    load = OpenLoop(fake, repeat(REQUEST), 10, poisson=False, seconds=2, clock=time, sleep=oversleeps)
    load.start()
    await time.run(load.wait())
    assert load.recorder.all.quantile(0.5) == pytest.approx(51_000, rel=0.02)


async def test_too_much_in_flight_is_counted_and_not_sent() -> None:
    time = VirtualTime()
    fake = Fake(time, service_s=1.0)
    recorder = await run_open(time, fake, 100, poisson=False, seconds=1, max_inflight=10)
    assert fake.most_active == 10
    assert (recorder.all.count, recorder.unsent) == (10, 89)
    assert "not sent (too much in flight) 89" in table(recorder)


async def test_stop_waits_for_the_answers_under_way_and_reports_each() -> None:
    time = VirtualTime()
    fake = Fake(time, service_s=0.5)
    seen: list[Outcome] = []
    load = OpenLoop(fake, repeat(REQUEST), 10, poisson=False, clock=time, sleep=time.sleep, on_response=seen.append)

    async def a_while() -> Recorder:
        load.start()
        await time.sleep(2.05)
        return await load.stop()

    recorder = await time.run(a_while())
    assert recorder.all.count == len(seen) == len(fake.sent_at) == 20
    assert load.inflight == 0
    assert not fake.closed  # a transport that was given is its owner's to close
    assert all(one.latency_us == pytest.approx(500_000) and one.variant == "teacher" for one in seen)


async def test_it_ends_with_the_requests() -> None:
    time = VirtualTime()
    fake = Fake(time)
    load = OpenLoop(fake, [REQUEST] * 3, 10, clock=time, sleep=time.sleep)
    load.start()
    await time.run(load.wait())
    assert load.recorder.all.count == 3
    with pytest.raises(RuntimeError, match="make another one"):
        load.start()


async def test_a_broken_callback_is_raised_and_not_swallowed() -> None:
    time = VirtualTime()

    def broken(outcome: Outcome) -> None:
        raise KeyError("no such answer")

    load = OpenLoop(Fake(time), repeat(REQUEST), 10, clock=time, sleep=time.sleep, on_response=broken)
    load.start()
    with pytest.raises(KeyError):
        await time.run(load.wait())


@pytest.mark.parametrize(("status", "code"), [(503, "503"), (0, "connection refused")])
async def test_failures_are_counted_by_their_code(status: int, code: str) -> None:
    time = VirtualTime()
    recorder = await run_open(time, Fake(time, status=status), 10, poisson=False, seconds=1)
    assert recorder.codes == {code: 9}
    assert recorder.failures == 9
    assert recorder.by_answer == {}
    assert recorder.all.count == 9  # a failure takes users' time as well


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="over 0"):
        OpenLoop("http://127.0.0.1:1", [], 0)


# ---------------------------------------------------------------- closed loop


async def test_closed_loop_keeps_each_connection_busy() -> None:
    time = VirtualTime()
    fake = Fake(time, service_s=0.1)
    load = ClosedLoop(fake, repeat(REQUEST), 4, seconds=1, clock=time)
    load.start()
    await time.run(load.wait())
    assert fake.most_active == 4
    assert load.recorder.all.count == 40
    assert load.recorder.rate == pytest.approx(40, rel=0.05)


# ---------------------------------------------------------------- percentiles


@given(st.lists(st.integers(min_value=0, max_value=10**9), min_size=1, max_size=300), st.floats(0, 1))
def test_a_quantile_is_the_nearest_rank_within_its_cell(values: list[int], q: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    rank = max(1, -(-q * len(values) // 1))
    true = sorted(values)[int(rank) - 1]
    found = histogram.quantile(q)
    assert found is not None
    assert true <= found <= true + true / 128 + 1


def test_merging_is_the_same_as_counting_together() -> None:
    draw = random.Random(3)
    parts, whole = [Histogram() for _ in range(3)], Histogram()
    for number in range(3000):
        value = draw.expovariate(1 / 4000)
        parts[number % 3].add(value)
        whole.add(value)
    assert Histogram().merge(parts).milliseconds() == whole.milliseconds()


def test_nothing_counted_has_no_percentiles() -> None:
    assert Histogram().milliseconds() == {
        "count": 0, "mean": None, "p50": None, "p90": None, "p99": None, "p99.9": None, "max": None,
    }  # fmt: skip
    assert "no answers" in table(Recorder())


async def test_the_summary_breaks_down_by_variant_and_reason() -> None:
    time = VirtualTime()
    recorder = await run_open(time, Fake(time, service_s=0.004), 100, poisson=False, seconds=1)
    found = summary(recorder)
    (answer,) = found["answers"]
    assert (answer["variant"], answer["reason"], answer["latency_ms"]["count"]) == ("teacher", "baseline", 99)
    assert found["latency_ms"]["p99"] == pytest.approx(4, rel=0.01)
    assert json.loads(json.dumps(found)) == found


# ---------------------------------------------------------------- requests and answers


def test_requests_carry_distinct_ids_sticky_users_and_the_row() -> None:
    rows = [Row("hello", "ham"), Row("win", "spam")]

    def some() -> Iterator[Request]:
        return islice(infer_requests("moderation", rows, users=3, prefix="t"), 60)

    requests = list(some())
    bodies = [json.loads(request.body) for request in requests]
    assert len({one["id"] for one in bodies}) == 60
    assert {dict(one.headers)["x-user-id"] for one in requests} == {"user-0", "user-1", "user-2"}
    assert {one["inputs"][0]["data"][0] for one in bodies} == {"hello", "win"}
    for request, one in zip(requests, bodies, strict=True):
        request_id, row = request.tag
        assert (request_id, row.text) == (one["id"], one["inputs"][0]["data"][0])
    assert [one.body for one in some()] == [one.body for one in requests]  # seeded
    feedback = feedback_request("moderation", "t-1", "spam")
    assert (feedback.path, json.loads(feedback.body)) == (
        "/v2/models/moderation/feedback",
        {"id": "t-1", "label": "spam"},
    )


def test_rows_of_one_split_are_read_and_faults_name_their_line(tmp_path: Path) -> None:
    file = tmp_path / "mails.jsonl"
    file.write_text(
        '{"text": "a", "label": "ham", "split": "test"}\n{"text": "b", "label": "spam", "split": "train"}\n'
    )
    assert read_rows(tmp_path) == [Row("a", "ham")]
    assert len(read_rows(file, None)) == 2
    with pytest.raises(ValueError, match="no rows of split 'validation'"):
        read_rows(file, "validation")
    file.write_text('{"text": "a", "split": "test"}\n')
    with pytest.raises(ValueError, match=r"mails\.jsonl:1: expected"):
        read_rows(file)


def test_the_head_of_an_answer_is_parsed_and_garbage_refused() -> None:
    head = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nX-Canarium-Variant:teacher\r\n\r\n"
    assert parse_head(head) == (503, {"retry-after": "1", "x-canarium-variant": "teacher"})
    with pytest.raises(ValueError, match="status line"):
        parse_head(b"SSH-2.0-OpenSSH\r\n\r\n")


class Scripted:
    """Gives these answers, one after the other."""

    def __init__(self, *answers: Response) -> None:
        self.answers, self.closed = list(answers), False

    async def send(self, request: Request) -> Response:
        return self.answers.pop(0)

    async def close(self) -> None:
        self.closed = True


async def test_a_patient_client_sends_again_what_the_server_had_no_room_for() -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    full, busy = Response(429, {"retry-after": "2"}), Response(503, {"retry-after": "3600"})
    inner = Scripted(full, busy, Response(200), *[full] * 4, Response(500, {"retry-after": "1"}), Response(429))
    client = PatientTransport(inner, attempts=4, sleep=sleep)
    assert [(await client.send(Request("/"))).status for _ in range(4)] == [200, 429, 500, 429]
    assert waited == [2, MAX_RETRY_AFTER_S, 2, 2, 2]
    assert (client.sent_again, inner.answers) == (5, [])
    await client.close()
    assert inner.closed


async def test_a_patient_client_may_take_nobody_being_there_for_an_answer() -> None:
    async def sleep(_: float) -> None: ...

    wait = {"retry-after": "1"}
    client = PatientTransport(Scripted(Response(429, wait), Response(503, wait)), statuses=(429,), sleep=sleep)
    assert (await client.send(Request("/"))).status == 503
