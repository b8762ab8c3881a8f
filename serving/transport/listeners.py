"""The sockets on which gateways listen, and how a gateway that is replaced gets them back.

On one machine the process that outlives gateways (`canarium up`) opens the sockets, a pair for each gateway, and hands
them out over a Unix socket. It never accepts anything: while a gateway is away, clients wait in the kernel's queue
instead of being refused, and the next gateway answers them. Elsewhere a gateway opens its own. Either way the sockets
of one port share it (SO_REUSEPORT), so that the kernel spreads connections over the gateways.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
from pathlib import Path
from typing import NamedTuple

from serving.errors import StartError

#: Connections that may wait to be accepted.
BACKLOG = 2048
#: A client that is gone without a word is noticed after about two minutes, whatever protocol it spoke.
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
)
#: Seconds for the holder to answer.
CLAIM_TIMEOUT_S = 2.0


class Sockets(NamedTuple):
    """The listening sockets of one gateway, and what keeps its claim on them (closed: somebody else may have them)."""

    http: socket.socket
    grpc: socket.socket
    claim: socket.socket | None = None

    def close(self) -> None:
        for each in self:
            if each is not None:
                each.close()


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket that shares its port with those of the other gateways. Raises `StartError`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise StartError(f"server.host: {host} is no address of this machine ({error})") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        for level, option, value in _KEEPALIVE:  # connections inherit it
            listener.setsockopt(level, option, value)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise StartError(f"cannot listen on port {port} of {host}: {error.strerror}") from None
    listener.setblocking(False)
    return listener


def claim(path: Path, host: str, http_port: int, grpc_port: int) -> Sockets:
    """The sockets of one gateway: from the holder at `path` if there is one, else its own.

    Raises:
        StartError: a port cannot be listened on, or the holder is there and does not answer.
    """
    return _held(path) or _own(host, http_port, grpc_port)


def _own(host: str, http_port: int, grpc_port: int) -> Sockets:
    http = listen(host, http_port)
    try:
        return Sockets(http, listen(host, grpc_port))
    except StartError:
        http.close()
        raise


def _held(path: Path) -> Sockets | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(CLAIM_TIMEOUT_S)
        connection.connect(os.fspath(path))
        _, descriptors, _, _ = socket.recv_fds(connection, 1, 2)
    except (FileNotFoundError, ConnectionError):
        connection.close()
        return None  # nobody holds any, or nobody does any more
    except OSError as error:
        connection.close()
        # Sockets of our own beside those that are held would leave the clients of those without an answer.
        raise StartError(f"cannot get the listening sockets from {path}: {error}") from None
    if len(descriptors) != 2:
        for descriptor in descriptors:
            os.close(descriptor)
        connection.close()
        return None
    http, grpc = (socket.socket(fileno=descriptor) for descriptor in descriptors)
    for listener in (http, grpc):
        listener.set_inheritable(False)  # as sockets are that Python makes itself
        listener.setblocking(False)
    return Sockets(http, grpc, connection)


class ListenerHolder:
    """Opens the sockets of `count` gateways and lends each pair to one claimant at a time, in a thread of its own.

    Raises:
        StartError: a port cannot be listened on, or `path` cannot be used.
    """

    def __init__(self, path: Path, host: str, http_port: int, grpc_port: int, count: int) -> None:
        self._path = path
        self._pairs: list[Sockets] = []
        self._selector = selectors.DefaultSelector()
        self._claims: dict[socket.socket, int] = {}
        self._thread: threading.Thread | None = None
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._stop, self._stopped = socket.socketpair()
        try:
            for _ in range(count):
                self._pairs.append(_own(host, http_port, grpc_port))
            path.unlink(missing_ok=True)
            self._server.bind(os.fspath(path))
            path.chmod(0o600)
            self._server.listen(64)
        except OSError as error:
            self.close()
            raise StartError(f"cannot listen on {path}: {error.strerror}") from None
        except StartError:
            self.close()
            raise
        self._selector.register(self._server, selectors.EVENT_READ)
        self._selector.register(self._stopped, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="canarium-listeners", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let go of the sockets; those that were handed out stay with whom they were handed to."""
        if self._thread is not None:
            self._stop.close()
            self._thread.join(CLAIM_TIMEOUT_S)
        self._path.unlink(missing_ok=True)
        for each in (*self._claims, self._server, self._stop, self._stopped):
            each.close()
        for pair in self._pairs:
            pair.close()
        self._pairs.clear()
        self._selector.close()

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                source = key.fileobj
                assert isinstance(source, socket.socket)
                if source is self._stopped:
                    return
                if source is self._server:
                    self._lend()
                else:  # whatever it says: a claimant says nothing until it is gone
                    self._selector.unregister(source)
                    del self._claims[source]
                    source.close()

    def _lend(self) -> None:
        """Give a newcomer the pair with the fewest claimants."""
        with contextlib.suppress(OSError):
            connection, _ = self._server.accept()
            taken = list(self._claims.values())
            index = min(range(len(self._pairs)), key=taken.count)
            pair = self._pairs[index]
            try:
                socket.send_fds(connection, [b"!"], [pair.http.fileno(), pair.grpc.fileno()])
            except OSError:
                connection.close()
                return
            self._claims[connection] = index
            self._selector.register(connection, selectors.EVENT_READ)
