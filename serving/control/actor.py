"""The control plane as one actor: its plane, its HTTP server, and the long-poll of the gateways.

A plain class; `serving.app` makes it a detached Ray actor with unlimited restarts. It comes
back from a crash with its state, because everything it needs is in the settings it was
created with and in the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import uvicorn

from serving import processes
from serving.clock import SystemClock
from serving.config import Config, Started
from serving.contract import ControlWord
from serving.control import kill_notes
from serving.control.api import create_app
from serving.control.auth import Auth
from serving.control.backup import seen_lease
from serving.control.database import Database
from serving.control.gateways import GatewayInfo
from serving.control.monitor_link import MonitorLink
from serving.control.notify import Notifier
from serving.control.plane import Plane
from serving.control.rollout_driver import RolloutDriver
from serving.control.seed import VariantFacts, specs
from serving.control.store import ONLY, SqlStore, StoreError
from serving.control.word import WordLink
from serving.errors import StartError
from serving.loading import Loader
from serving.paths import Paths
from serving.registry.store import Registry

__all__ = ["ControlActor", "ControlSettings", "VariantFacts"]

log = logging.getLogger("canarium.control")

BACKLOG = 128
START_TIMEOUT_S = 20.0
SHUTDOWN_S = 3.0


class ControlSettings(msgspec.Struct, frozen=True):
    """All that a control plane is created with; JSON-able, paths absolute.

    `config` is the JSON of `Started`. `variants` holds the facts of every configured variant,
    by model and name. `urls` is shown by the status as it is.
    """

    instance: str
    config: str
    variants: dict[str, dict[str, VariantFacts]]
    state_dir: str
    word_path: str
    host: str
    port: int
    monitor_url: str
    console_dir: str = ""
    urls: dict[str, str] = {}
    version: str = "0.1.0"

    def digest(self) -> str:
        """The same for the same settings."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


class ControlActor:
    """Starts at once inside a running loop (a Ray actor's), else with the first call."""

    def __init__(self, settings: ControlSettings) -> None:
        self._settings = settings
        self._plane: Plane | None = None
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._notifier: Notifier | None = None
        self._working: list[asyncio.Task[None]] = []
        self._differences: tuple[str, ...] = ()
        self._starting: asyncio.Task[Plane] | None = None
        self._closed = False
        self._lock = processes.InstanceLock(Paths.of(settings.state_dir).control_lock)
        with contextlib.suppress(RuntimeError):
            self._starting = asyncio.get_running_loop().create_task(self._start())

    async def ready(self) -> dict[str, Any]:
        """Wait until it serves.

        Returns:
            `rev`, `lease`, `url`, and `differences`: lines that say where file and store differ.

        Raises:
            StartError: the port is taken, or the state or the control word cannot be used.
        """
        plane = await self.start()
        url = f"http://{self._settings.host}:{self._settings.port}"
        state = plane.state
        return {"rev": state.rev, "lease": state.lease, "url": url, "differences": list(self._differences)}

    async def settings_digest(self) -> str:
        """`ControlSettings.digest` of what it was created with, by which a changed configuration is noticed."""
        return self._settings.digest()

    async def poll(self, rev: int, gateway: dict[str, Any], timeout_s: float = 20.0) -> bytes:
        """The snapshot as JSON (`contract.Snapshot`), for one gateway.

        Args:
            rev: what the gateway has in force; the call parks while that is the newest.
            gateway: `id`, `node`, `pid` and `rev` of the gateway, for the status.
            timeout_s: after this many seconds the same snapshot is returned again; at most 60.
        """
        plane = await self.start()
        info = msgspec.convert(gateway, GatewayInfo)
        plane.gateways.see(info)
        encoded = await plane.wait(rev, timeout_s)
        plane.gateways.see(info)
        return encoded

    async def shutdown(self) -> None:
        """Stop serving, save what is unsaved, release the port and the files."""
        self._closed = True
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)
        await self._stop()

    async def start(self) -> Plane:
        """Start unless started; a failed start is tried again by the next call. Raises `StartError`."""
        if self._closed:
            raise StartError("the control plane is shutting down")
        if self._starting is None or (self._starting.done() and _failed(self._starting)):
            self._starting = asyncio.get_running_loop().create_task(self._start())
        return await asyncio.shield(self._starting)

    async def _start(self) -> Plane:
        settings, clock = self._settings, SystemClock()
        listener = _listen(settings.host, settings.port)
        try:
            await asyncio.to_thread(self._hold)
            config = Started.model_validate_json(settings.config)
            models = specs(config, settings.variants)
            auth = Auth.from_config(config.auth.mode, config.auth.tokens_file, clock)
            try:
                word = ControlWord.open(settings.word_path)
            except OSError as error:
                raise StartError(f"the control word {settings.word_path} cannot be opened: {error}") from error
            notifier = self._notifier = Notifier(httpx.AsyncClient(trust_env=False))
            plane = self._plane = Plane(
                store=await asyncio.to_thread(_open_store, settings, config),
                word=WordLink(word, kill_notes.beside(settings.word_path)),
                clock=clock,
                monitor=MonitorLink(settings.monitor_url, clock),
                facts=settings.variants,
                about={"version": settings.version, "instance": settings.instance, "urls": settings.urls},
                notifier=notifier,
                refusal=Loader(config, Registry(config.registry.dir)).refusal,
            )
            try:
                self._differences = await plane.start(models)
            except StoreError as error:
                raise StartError(str(error)) from error
            for line in self._differences:
                log.warning("%s", line)
            plane.run_background()
            loop, driver = asyncio.get_running_loop(), RolloutDriver(plane, clock)
            self._working = [
                loop.create_task(driver.run(), name="control-rollouts"),
                loop.create_task(notifier.run(), name="control-notifications"),
            ]
            app = create_app(
                plane, auth, clock=clock, host=settings.host, port=settings.port, console_dir=settings.console_dir
            )
            self._server = _Server(uvicorn_config(app))
            self._serving = asyncio.get_running_loop().create_task(self._server.serve(sockets=[listener]))
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._server.up.wait()
            return plane
        except BaseException:
            listener.close()
            await self._stop()
            raise

    async def _stop(self) -> None:
        for task in self._working:
            task.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)
        if self._notifier is not None:
            await self._notifier.close()
        server, serving, plane = self._server, self._serving, self._plane
        self._server = self._serving = self._plane = None
        if plane is not None:
            plane.events.close()
        if server is not None and serving is not None:
            server.should_exit = True
            await asyncio.wait([serving], timeout=SHUTDOWN_S)
            serving.cancel()
        try:
            if plane is not None:
                await plane.close()
        finally:
            self._lock.release()

    def _hold(self) -> None:
        """Keep `state restore` and other control planes away from the files. Raises `StartError`."""
        paths = Paths.of(self._settings.state_dir)
        try:
            paths.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            held = self._lock.acquire()
        except OSError as error:
            raise StartError(f"state.dir: {paths.control_lock} cannot be used: {error.strerror or error}") from error
        if not held:
            raise StartError(f"state.dir: another control plane or a restore is at work in {paths.state_dir}")


def _open_store(settings: ControlSettings, config: Config) -> SqlStore:
    """The configured store. Raises `StartError`."""
    database = Database.of(config.state.database, settings.state_dir)
    holder = ONLY if database.path is not None else f"{socket.gethostname()}/{settings.instance}"
    return SqlStore(database, holder, seen_lease(Paths.of(settings.state_dir).snapshot_file))


def _failed(task: asyncio.Task[Plane]) -> bool:
    return task.cancelled() or task.exception() is not None


class _Server(uvicorn.Server):
    """uvicorn that says when it is up and leaves the process's signals alone: they are Ray's."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def uvicorn_config(app: Any) -> uvicorn.Config:
    """How the admin API is served."""
    return uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=1,
        log_config=None,
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise StartError(
            f"server.control_port: {host}:{port} cannot be used: {error.strerror or error}; "
            "end what listens there ('canarium down') or choose another port"
        ) from error
    return listener
