"""A token bucket: what is admitted on average, at once, and after a debt."""

from __future__ import annotations

import pytest

from serving.core.rate import BURST_S, TokenBucket

SECOND = 1_000_000_000


def test_it_admits_its_rate_on_average() -> None:
    bucket = TokenBucket()
    taken = sum(not bucket.take(1, 100.0, at * SECOND // 1000) for at in range(10_000))
    assert taken == pytest.approx(100 * 10 + 100 * BURST_S, abs=2)


def test_it_says_how_long_to_wait_and_keeps_its_word() -> None:
    bucket = TokenBucket()
    assert bucket.take(50, 100.0, 0) == 0.0  # the burst
    wait_s = bucket.take(10, 100.0, 0)
    assert wait_s == pytest.approx(0.1)
    assert bucket.take(10, 100.0, int(wait_s * 0.9 * SECOND)) > 0
    assert bucket.take(10, 100.0, int(wait_s * SECOND) + 1) == 0.0


def test_a_large_request_goes_through_a_full_bucket_and_is_paid_for_afterwards() -> None:
    bucket = TokenBucket()
    assert bucket.take(200, 100.0, 0) == 0.0
    assert bucket.take(1, 100.0, SECOND) > 0  # 150 owed, 100 paid
    assert bucket.take(1, 100.0, 2 * SECOND) == 0.0


def test_a_rate_below_one_a_second_still_admits() -> None:
    bucket = TokenBucket()
    assert bucket.take(1, 0.1, 0) == 0.0
    assert bucket.take(1, 0.1, 0) == pytest.approx(10.0)
