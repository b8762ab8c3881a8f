"""KPIs find the request that they are of, in whatever order and however many there are."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from monitoring.returns import VALUES_MAX, Asked, Returned, Returns

ONE = Asked("int8", unit=7, epoch=3)
HOUR = 3600 * 10**9


@pytest.fixture
def returns() -> Returns:
    return Returns(capacity=100, ttl_ns=24 * HOUR)


def test_a_kpi_finds_its_request_before_and_behind_it(returns: Returns) -> None:
    assert returns.request(8, ONE, 0) == []
    assert returns.kpi(8, 1, 0.5, HOUR) == Returned(ONE, 1, 0.5)
    assert returns.kpi(16, 1, 0.25, HOUR) is None
    assert returns.request(16, ONE, HOUR) == [Returned(ONE, 1, 0.25)]
    assert (returns.joined, returns.unjoined) == (2, 0)


def test_the_first_value_of_each_kpi_and_the_first_request_count(returns: Returns) -> None:
    returns.request(8, ONE, 0)
    returns.request(8, Asked("teacher", 9, 3), 0)
    assert returns.kpi(8, 1, 0.5, 0) is not None
    assert returns.kpi(8, 1, 0.9, 0) is None
    assert returns.kpi(8, 2, 0.9, 0) == Returned(ONE, 2, 0.9)
    assert [returns.kpi(8, kpi, 0.0, 0) is not None for kpi in range(3, 40)].count(True) == VALUES_MAX - 2


def test_a_day_later_a_request_is_forgotten_and_what_waited_for_it_is_counted(returns: Returns) -> None:
    returns.request(8, ONE, 0)
    returns.kpi(16, 1, 0.5, 0)
    returns.request(24, ONE, 25 * HOUR)
    assert len(returns) == 1
    assert returns.unjoined == 1


def test_of_too_many_a_sample_of_the_whole_day_is_kept(returns: Returns) -> None:
    keys = np.random.default_rng(1).integers(0, 2**63, 10_000).tolist()
    for n, key in enumerate(keys):
        returns.request(key, Asked(("teacher", "int8")[n % 2], n + 1, 3), n)
        assert len(returns) <= 100
    found = [n for n, key in enumerate(keys) if returns.kpi(key, 1, 0.0, 10_000) is not None]
    assert len(found) == len(returns) > 30
    assert found[0] < 1000  # the early ones are among them
    assert 0.3 < np.mean(np.array(found) % 2) < 0.7
    assert returns.joined + returns.unjoined == len(keys)


def test_with_less_traffic_every_request_is_remembered_again(returns: Returns) -> None:
    for key in range(1000):
        returns.request(key, ONE, 0)
    for key in range(0, 1 << 20, 1 << 10):
        returns.request(key, ONE, 30 * HOUR + key * 10**9)
    assert returns.request(1, ONE, 60 * HOUR + (1 << 20) * 10**9) == []
    assert returns.kpi(1, 1, 0.0, 60 * HOUR + (1 << 20) * 10**9) is not None


def test_it_survives_storage(returns: Returns) -> None:
    for key in range(300):
        returns.request(key, ONE, key)
        returns.kpi(key, 1, 0.5, key)
        returns.kpi(key + 1024, 1, 0.5, key)
    again = Returns(capacity=100)
    again.load(msgspec.msgpack.decode(msgspec.msgpack.encode(returns.state())))
    assert again.state() == returns.state()
