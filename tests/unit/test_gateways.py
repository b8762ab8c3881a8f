"""Which gateways the control plane counts on: those that it has heard of lately."""

from __future__ import annotations

from serving.clock import FakeClock
from serving.control.gateways import EXPIRES_S, GatewayInfo, Gateways


def test_nothing_is_confirmed_before_a_gateway_was_heard_of() -> None:
    gateways = Gateways(FakeClock())
    assert not gateways.confirmed(0)
    gateways.see(GatewayInfo("one", rev=4))
    assert gateways.confirmed(4)
    assert not gateways.confirmed(5)


def test_every_gateway_that_is_heard_of_has_to_confirm() -> None:
    gateways = Gateways(FakeClock())
    gateways.see(GatewayInfo("one", rev=5))
    gateways.see(GatewayInfo("two", rev=4))
    assert not gateways.confirmed(5)
    gateways.see(GatewayInfo("two", rev=6))
    assert gateways.confirmed(5)


def test_a_gateway_that_is_gone_is_not_waited_for_while_others_are_there() -> None:
    clock = FakeClock()
    gateways = Gateways(clock)
    gateways.see(GatewayInfo("gone", rev=4))
    clock.advance(EXPIRES_S + 1)
    gateways.see(GatewayInfo("here", rev=5))
    assert gateways.confirmed(5)


def test_the_only_gateway_is_waited_for_while_it_is_gone_and_confirms_when_it_is_back() -> None:
    clock = FakeClock()
    gateways = Gateways(clock)
    gateways.see(GatewayInfo("one", rev=5))
    clock.advance(EXPIRES_S + 1)
    assert not gateways.confirmed(5)
    gateways.see(GatewayInfo("one-again", rev=5))
    assert gateways.confirmed(5)
