"""Listening sockets that outlive the gateways that use them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import processes
from serving.errors import StartError
from serving.transport.listeners import ListenerHolder, Sockets, claim, listen
from tests.support.stack import ROOT, wait_for

pytestmark = pytest.mark.integration


@pytest.fixture
def ports() -> tuple[int, int]:
    http, grpc = processes.free_ports(2)
    return http, grpc


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "listeners.sock"


@contextlib.contextmanager
def holding(path: Path, ports: tuple[int, int], count: int) -> Iterator[ListenerHolder]:
    holder = ListenerHolder(path, "127.0.0.1", *ports, count)
    try:
        yield holder
    finally:
        holder.close()


def inode(listener: socket.socket) -> int:
    return os.fstat(listener.fileno()).st_ino


def ask(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=5)


def take(sockets: Sockets) -> socket.socket:
    """The next client of the HTTP port."""
    sockets.http.settimeout(5)
    return sockets.http.accept()[0]


def test_each_claimant_gets_a_pair_of_its_own_while_there_are_enough(path: Path, ports: tuple[int, int]) -> None:
    with holding(path, ports, 2):
        first, second = claim(path, "127.0.0.1", *ports), claim(path, "127.0.0.1", *ports)
        assert len({inode(first.http), inode(first.grpc), inode(second.http), inode(second.grpc)}) == 4
        assert {each.http.getsockname()[1] for each in (first, second)} == {ports[0]}
        assert {each.grpc.getsockname()[1] for each in (first, second)} == {ports[1]}
        third = claim(path, "127.0.0.1", *ports)  # more gateways than configured share
        assert inode(third.http) in (inode(first.http), inode(second.http))
        for each in (first, second, third):
            each.close()


def test_descriptors_are_not_passed_on_to_children(path: Path, ports: tuple[int, int]) -> None:
    with holding(path, ports, 1):
        got = claim(path, "127.0.0.1", *ports)
        assert not any(os.get_inheritable(each.fileno()) for each in got if each is not None)
        got.close()


def test_clients_wait_while_there_is_no_gateway(path: Path, ports: tuple[int, int]) -> None:
    with holding(path, ports, 1):
        client = ask(ports[0])  # nobody has claimed anything yet
        client.sendall(b"asked early")
        first = claim(path, "127.0.0.1", *ports)
        with take(first) as served:
            assert served.recv(100) == b"asked early"
        first.close()
        client = ask(ports[0])
        client.sendall(b"asked between")
        second = claim(path, "127.0.0.1", *ports)
        with take(second) as served:
            assert served.recv(100) == b"asked between"
        second.close()


CLAIMANT = """
import sys, time
from pathlib import Path
from serving.transport.listeners import claim
sockets = claim(Path(sys.argv[1]), "127.0.0.1", int(sys.argv[2]), int(sys.argv[3]))
print("claimed", flush=True)
time.sleep(60)
"""


def test_the_pair_of_a_claimant_that_is_killed_goes_to_its_successor(path: Path, ports: tuple[int, int]) -> None:
    with holding(path, ports, 2) as holder:
        stays = claim(path, "127.0.0.1", *ports)
        command = [sys.executable, "-c", CLAIMANT, str(path), *map(str, ports)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as dies:
            assert dies.stdout is not None
            assert dies.stdout.readline() == b"claimed\n"
            os.kill(dies.pid, signal.SIGKILL)
            dies.wait(10)
        wait_for(lambda: len(holder._claims) == 1)  # until the holder has heard of it
        successor = claim(path, "127.0.0.1", *ports)
        assert inode(successor.http) != inode(stays.http)
        waiting = [ask(ports[0]) for _ in range(20)]  # the kernel spreads them over both
        served = 0
        for each in (stays, successor):
            each.http.settimeout(0.2)
            with contextlib.suppress(TimeoutError):
                while True:
                    each.http.accept()[0].close()
                    served += 1
        assert served == len(waiting)
        for each in (*waiting, stays, successor):
            each.close()


def test_a_gateway_goes_on_when_the_holder_is_closed_and_the_port_is_free_after_both(
    path: Path, ports: tuple[int, int]
) -> None:
    with holding(path, ports, 1):
        got = claim(path, "127.0.0.1", *ports)
    assert not path.exists()
    client = ask(ports[0])
    take(got).close()
    client.close()
    got.close()
    with pytest.raises(ConnectionRefusedError):
        ask(ports[0])


@pytest.mark.parametrize("stale", [False, True])
def test_without_a_holder_a_gateway_opens_its_own(path: Path, ports: tuple[int, int], stale: bool) -> None:
    if stale:  # what a holder that was killed leaves behind
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
    first, second = claim(path, "127.0.0.1", *ports), claim(path, "127.0.0.1", *ports)
    assert inode(first.http) != inode(second.http)
    assert first.claim is None
    for each in (first, second):
        each.close()


def test_a_holder_that_does_not_answer_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets of its own would leave the clients that the kernel gives to the others' without an answer."""
    monkeypatch.setattr("serving.transport.listeners.CLAIM_TIMEOUT_S", 0.2)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        with pytest.raises(StartError, match="cannot get the listening sockets"):
            claim(path, "127.0.0.1", *processes.free_ports(2))


def test_a_port_that_is_taken_is_named_and_nothing_stays_open(path: Path, ports: tuple[int, int]) -> None:
    with socket.create_server(("127.0.0.1", ports[1])):
        with pytest.raises(StartError, match=f"cannot listen on port {ports[1]} of 127.0.0.1"):
            ListenerHolder(path, "127.0.0.1", *ports, 2)
        with pytest.raises(StartError, match=f"port {ports[1]}"):
            claim(path, "127.0.0.1", *ports)
    with pytest.raises(ConnectionRefusedError):
        ask(ports[0])
    assert "canarium-listeners" not in [thread.name for thread in threading.enumerate()]


def test_an_address_of_another_machine_is_named(path: Path) -> None:
    with pytest.raises(StartError, match=r"cannot listen on port 0 of 192\.0\.2\.1"):
        listen("192.0.2.1", 0)
    with pytest.raises(StartError, match=r"server\.host: no\.such\.host\.invalid"):
        listen("no.such.host.invalid", 0)


def test_a_client_that_vanishes_is_noticed_by_the_kernel() -> None:
    with listen("127.0.0.1", 0) as listener, ask(listener.getsockname()[1]):
        listener.setblocking(True)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
