"""The two kinds of replica that Ray Serve hosts: a gateway, and one process of an isolated variant."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from typing import Any

import msgspec
import ray
from ray import serve

from serving.clock import SystemClock
from serving.config import Config, Started, VariantConfig
from serving.contract import Cause, ControlWord, Snapshot, VariantEntry
from serving.control.auth import VISITOR, Auth
from serving.errors import RegistryError
from serving.gateway.auditor import auditor_of
from serving.gateway.budget import InflightBudget
from serving.gateway.caller import RequestIds
from serving.gateway.dataplane import DataPlane
from serving.gateway.drain import Drain
from serving.gateway.grpc import GrpcGateway
from serving.gateway.http import HttpGateway
from serving.gateway.kept import KeptSnapshot
from serving.gateway.live import LiveRouting
from serving.gateway.payloads import PayloadLog
from serving.gateway.recorder import Recorder
from serving.gateway.spool import SpoolWriter, latency_buckets_ms
from serving.gateway.variants import FrameCall, VariantPlane
from serving.gateway.worker_server import WorkerServer
from serving.gateway.workers import WorkerFailure
from serving.loading import Loader
from serving.paths import Paths
from serving.registry.store import Registry
from serving.runtimes.base import open_session
from serving.transport.http1 import Http1Server
from serving.transport.http2 import Http2Server
from serving.transport.listeners import BACKLOG, Sockets, claim

log = logging.getLogger(__name__)

#: Name and namespace of the control plane's detached actor.
CONTROL_NAME = "canarium-control"
NAMESPACE = "canarium"
#: How often a gateway looks at the control word and tells the monitor that it lives, seconds.
TICK_S = 0.05
#: How long a new gateway waits for the control plane before it takes the kept table, then for any table; and
#: before it asks again (seconds).
PATIENCE_S, FIRST_TABLE_S, RETRY_S = 5.0, 25.0, 0.25
#: A closing gateway answers what it was asked for this long, seconds.
CLOSE_S = 4.0
#: A closing variant replica finishes what it has for this long, seconds.
DRAIN_S = 1.5


class GatewaySettings(msgspec.Struct, frozen=True):
    """What a gateway or variant process is started with; all paths absolute."""

    config: str  # JSON of `Started`
    state_dir: str
    unit_secret: str

    @classmethod
    def of(cls, config: Config, paths: Paths) -> GatewaySettings:
        """For a configuration with absolute paths."""
        return cls(config.model_dump_json(), str(paths.state_dir), paths.unit_key())

    def parsed(self) -> Started:
        return Started.model_validate_json(self.config)


class Gateway:
    """One gateway process: both protocols, the data plane, and the long-poll that keeps it current.

    Ray Serve hosts it, checks its health, replaces and scales it. Its sockets are its own.
    """

    async def __init__(self, settings: GatewaySettings) -> None:  # type: ignore[misc]
        self._clock = SystemClock()
        self._id = f"gateway-{secrets.token_hex(4)}"
        config = self._config = settings.parsed()
        self._settings = settings
        paths = self._paths = Paths.of(settings.state_dir)
        paths.create()
        registry = Registry(config.registry.dir)
        self._loader = Loader(config, registry)
        spool = SpoolWriter.create(paths.spool_dir, self._id, self._clock)
        self._recorder = Recorder(spool, self._clock, settings.unit_secret)
        for name, model in config.models.items():
            thresholds = [slo.threshold_ms for slo in model.slo if slo.threshold_ms is not None]
            labels = _labels(registry, model.variants[model.baseline].artifact)
            self._recorder.model(name, list(latency_buckets_ms(thresholds)), labels)
        self._routing = LiveRouting(config, ControlWord.open(paths.word_path), self._clock)
        sampled = {name: model.payloads for name, model in config.models.items()}
        payloads = PayloadLog(paths.payload_dir, self._id, sampled, self._recorder, self._clock, config.server.gateways)
        self._plane = DataPlane(config, self._routing, self._recorder, self._clock, self._make_plane, payloads)
        visitor = VISITOR if config.auth.data_plane == "open" else None
        auth = Auth.from_config(config.auth.mode, config.auth.tokens_file, visitor=visitor)
        budget = InflightBudget(config.server.max_inflight_mib << 20)
        ids = RequestIds()
        self._http = Http1Server(HttpGateway(config, self._plane, auth, self._clock, budget, ids))
        self._grpc = Http2Server(GrpcGateway(config, self._plane, auth, self._clock, budget, ids))
        self._servers: list[asyncio.Server] = []
        self._sockets: Sockets | None = None
        self._drain = Drain(paths.drain_file, self._plane, self._http, self._finish)
        self._kept = KeptSnapshot(paths.snapshot_file)
        self._applied = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._follow()), loop.create_task(self._tick())]
        # Clients are let in only now that there is a table. A gateway that starts while the control plane is dead
        # serves by the last table that any gateway of this node was given.
        if not await self._table_within(PATIENCE_S):
            await self._take_over_kept()
            await self._table_within(FIRST_TABLE_S)
        await self._listen()

    async def _listen(self) -> None:
        server, loop = self._config.server, asyncio.get_running_loop()
        sockets = self._sockets = await asyncio.to_thread(
            claim, self._paths.listeners_socket, server.host, server.http_port, server.grpc_port
        )
        self._servers = [
            await loop.create_server(self._http.connection, sock=sockets.http, backlog=BACKLOG),
            await loop.create_server(self._grpc.connection, sock=sockets.grpc, backlog=BACKLOG),
        ]

    async def _table_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._applied.wait()
        return self._applied.is_set()

    async def _take_over_kept(self) -> None:
        try:
            kept = await asyncio.to_thread(self._paths.snapshot_file.read_bytes)
            await self._plane.apply(msgspec.json.decode(kept, type=Snapshot))
        except FileNotFoundError:
            return  # the first start of all
        except Exception:
            log.exception("cannot use the kept snapshot %s", self._paths.snapshot_file)
            return
        log.warning("the control plane is silent: starting with the kept snapshot")
        self._applied.set()

    def _make_plane(self, model: str, entry: VariantEntry) -> VariantPlane:
        manifest, folder = self._loader.open(
            model, entry.name, entry.artifact, runs_here=entry.placement == "colocated", warn=log.warning
        )
        configured = self._config.models[model]
        config = configured.variants.get(entry.name) or VariantConfig(artifact=entry.artifact)
        return VariantPlane(
            model,
            entry,
            manifest,
            folder,
            config=config,
            queue=configured.queue,
            recorder=self._recorder,
            clock=self._clock,
            socket_dir=self._paths.worker_dir(model, entry.name, entry.version),
            remote=lambda: self._remote(entry, config),
            gateways=self._config.server.gateways,
            guards=configured.guards,
            dropped=lambda: self._killed(model, entry.name),
        )

    def _killed(self, model: str, variant: str) -> WorkerFailure | None:
        view = self._routing.view(model)
        if view is None or not view.killed or variant == view.table.baseline:
            return None
        return WorkerFailure(Cause.KILLED, "killed while it was queued")

    def _remote(self, entry: VariantEntry, config: VariantConfig) -> FrameCall | None:
        if entry.placement != "isolated":
            return None
        alone = len([node for node in ray.nodes() if node["Alive"]]) < 2  # type: ignore[no-untyped-call]
        if config.transport == "auto" and alone:
            return None
        # Made once: looking an application up by name asks the Serve controller, synchronously.
        handle = serve.get_deployment_handle(entry.name, entry.app, _check_exists=False)

        async def call(frame: bytes) -> bytes:
            answer: bytes = await handle.handle_frame.remote(frame)
            return answer

        return call

    async def _follow(self) -> None:
        """Long-poll the control plane; while it is silent the last snapshot stays in force."""
        actor: Any = None
        me = {"id": self._id, "node": ray.get_runtime_context().get_node_id(), "pid": os.getpid()}
        while True:
            now = self._routing.snapshot
            rev = now.rev if now is not None else 0
            try:
                actor = actor or await asyncio.to_thread(ray.get_actor, CONTROL_NAME, NAMESPACE)
                encoded: bytes = await asyncio.wait_for(actor.poll.remote(rev, {**me, "rev": rev}), 60)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                log.warning("control plane unreachable, keeping rev %s: %s", rev, error)
                actor = None
                await asyncio.sleep(RETRY_S)
                continue
            try:
                await self._plane.apply(msgspec.json.decode(encoded, type=Snapshot))
                self._applied.set()
                self._kept.keep(encoded)
            except Exception:
                log.exception("cannot take over a snapshot, keeping rev %s", rev)
                await asyncio.sleep(RETRY_S)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            try:
                self._plane.enforce()
                self._drain.look()
            except Exception:
                log.exception("tick failed")

    async def check_health(self) -> None:
        """Called by Serve: unhealthy when one of the loops has ended."""
        for task in self._tasks:
            if task.done():
                raise RuntimeError("a gateway loop has ended")

    async def __del__(self) -> None:
        """Called by Serve at the end: take no more connections, answer what was asked, let go of everything."""
        with contextlib.suppress(Exception):
            await self._finish(CLOSE_S)
        self._drain.close()
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(Exception):
            await self._plane.close()

    async def _finish(self, limit_s: float) -> None:
        """Take no more connections, answer what was asked, hang up after `limit_s` seconds."""
        for server in self._servers:
            server.close()
        if self._sockets is not None:
            self._sockets.close()
        await asyncio.gather(self._http.drain(limit_s), self._grpc.drain(limit_s))


def _labels(registry: Registry, artifact: str) -> list[str]:
    """The artifact's class names; none if it cannot be read, which stops its own model and no other."""
    try:
        return list(registry.resolve(artifact).postprocess.labels)
    except RegistryError:
        log.exception("cannot read %s", artifact)
        return []


class VariantReplica:
    """One process of an isolated variant: a session behind a Unix socket, health-checked by Serve."""

    async def __init__(  # type: ignore[misc]
        self, settings: GatewaySettings, model: str, entry: VariantEntry
    ) -> None:
        config = settings.parsed()
        variant = config.models[model].variants[entry.name]
        loader = Loader(config, Registry(config.registry.dir))
        manifest, folder = loader.open(model, entry.name, entry.artifact, warn=log.warning)
        session = open_session(manifest, folder, runtime=entry.runtime, threads=variant.threads)
        paths = Paths.of(settings.state_dir)
        socket_dir = paths.make_worker_dir(model, entry.name, entry.version)
        self._clock = SystemClock()
        self._hang_ns = int(variant.hang_timeout_s * 1e9)
        auditor = auditor_of(manifest, folder, config.models[model].guards, self._clock)
        self._server = WorkerServer(session, socket_dir / f"{secrets.token_hex(4)}.sock", auditor=auditor)
        await self._server.start()

    async def handle_frame(self, frame: bytes) -> bytes:
        """One batch over the Serve handle: the path between nodes."""
        return await self._server.handle_frame(frame)

    async def check_health(self) -> None:
        """Called by Serve: a batch that hangs makes the replica unhealthy, and Serve replaces it."""
        since = self._server.busy_since_ns
        if since and self._clock.monotonic_ns() - since > self._hang_ns:
            raise RuntimeError(f"a batch has been running for over {self._hang_ns / 1e9:g} s")

    async def __del__(self) -> None:
        with contextlib.suppress(Exception):
            await self._server.close(drain_s=DRAIN_S)
