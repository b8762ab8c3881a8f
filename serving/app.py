"""Ray Serve deployments and the control actor: the only file that binds Canarium to Ray."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from pathlib import Path
from typing import Any

import msgspec
import ray
from ray import serve
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from serving.clock import SystemClock
from serving.config import Config, VariantConfig
from serving.contract import ControlWord, Snapshot, VariantEntry
from serving.control.actor import ControlActor, ControlSettings
from serving.control.auth import Auth
from serving.errors import CanariumError
from serving.gateway.asgi import HttpGateway
from serving.gateway.dataplane import DataPlane
from serving.gateway.grpc import GrpcGateway
from serving.gateway.live import LiveRouting
from serving.gateway.recorder import Recorder
from serving.gateway.spool import SpoolWriter, latency_buckets_ms
from serving.gateway.variants import FrameCall, VariantPlane
from serving.gateway.worker_server import WorkerServer
from serving.paths import Paths
from serving.registry.store import Registry
from serving.runtimes.base import open_session

log = logging.getLogger(__name__)

CONTROL_NAME = "canarium-control"
NAMESPACE = "canarium"
GATEWAY_APP = "canarium"
#: Serve's own admission stays out of the way: the batcher's bounded queue is the one that decides.
SERVE_ONGOING = 100_000
TICK_S = 0.05


class GatewaySettings(msgspec.Struct, frozen=True):
    """What a gateway or variant process is started with; all paths absolute."""

    config: str  # JSON of `Config`
    state_dir: str
    unit_secret: str

    def parsed(self) -> Config:
        return Config.model_validate_json(self.config)


def variant_app_name(model: str, variant: str) -> str:
    """Name of the Serve application of an isolated variant."""
    return f"canarium-{model}-{variant}"


class Gateway:
    """One ingress replica: both protocols, the data plane, and the long-poll that keeps it current."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._clock = SystemClock()
        self._id = f"gateway-{secrets.token_hex(4)}"
        config = self._config = settings.parsed()
        self._settings = settings
        paths = self._paths = Paths.of(settings.state_dir)
        self._registry = Registry(config.registry.dir)
        spool = SpoolWriter.create(paths.spool_dir, self._id, self._clock)
        self._recorder = Recorder(spool, self._clock, settings.unit_secret)
        for name, model in config.models.items():
            thresholds = [slo.threshold_ms for slo in model.slo if slo.threshold_ms is not None]
            manifest = self._registry.resolve(model.variants[model.baseline].artifact)
            self._recorder.model(name, list(latency_buckets_ms(thresholds)), list(manifest.postprocess.labels))
        self._routing = LiveRouting(config, ControlWord.open(paths.word_path), self._clock)
        self._plane = DataPlane(config, self._routing, self._recorder, self._clock, self._make_plane)
        auth = Auth.from_config(config.auth.mode, config.auth.tokens_file)
        self._http = HttpGateway(config, self._plane, auth, self._clock)
        self._grpc = GrpcGateway(config, self._plane, auth, self._clock)
        self._tasks: list[asyncio.Task[None]] = []

    async def __serve_build_asgi_app__(self) -> HttpGateway:
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._follow()), loop.create_task(self._tick())]
        return self._http

    def _make_plane(self, model: str, entry: VariantEntry) -> VariantPlane:
        manifest, folder = self._registry.open(entry.artifact)
        configured = self._config.models[model]
        config = configured.variants.get(entry.name) or VariantConfig(artifact=entry.artifact)
        return VariantPlane(
            model,
            entry,
            manifest,
            folder,
            config=config,
            queue=configured.routing.queue,
            recorder=self._recorder,
            clock=self._clock,
            socket_dir=self._paths.worker_dir(model, entry.name, entry.version),
            remote=self._remote(model, entry, config),
        )

    def _remote(self, model: str, entry: VariantEntry, config: VariantConfig) -> FrameCall | None:
        if entry.placement != "isolated":
            return None
        alone = len([node for node in ray.nodes() if node["Alive"]]) < 2  # type: ignore[no-untyped-call]
        if config.transport == "auto" and alone:
            return None
        app = variant_app_name(model, entry.name)

        async def call(frame: bytes) -> bytes:
            answer: bytes = await serve.get_app_handle(app).handle_frame.remote(frame)
            return answer

        return call

    async def _follow(self) -> None:
        """Long-poll the control plane; while it is silent the last snapshot stays in force."""
        rev = 0
        actor: Any = None
        me = {"id": self._id, "node": ray.get_runtime_context().get_node_id(), "pid": os.getpid()}
        while True:
            try:
                actor = actor or ray.get_actor(CONTROL_NAME, namespace=NAMESPACE)
                encoded: bytes = await asyncio.wait_for(actor.poll.remote(rev, {**me, "rev": rev}), 60)
                snapshot = msgspec.json.decode(encoded, type=Snapshot)
                if snapshot.rev != rev:
                    await self._plane.apply(snapshot)
                    rev = snapshot.rev
            except asyncio.CancelledError:
                raise
            except Exception as error:
                log.warning("control plane unreachable, keeping rev %s: %s", rev, error)
                actor = None
                await asyncio.sleep(0.25)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            try:
                self._plane.enforce()
            except Exception:
                log.exception("tick failed")

    async def check_health(self) -> None:
        """Called by Serve: unhealthy when one of the loops has ended."""
        for task in self._tasks:
            if task.done():
                raise RuntimeError("a gateway loop has ended")

    async def __del__(self) -> None:
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(Exception):
            await self._plane.close()

    # The names of the RPCs; Serve's gRPC ingress calls them.

    async def ServerLive(self, request: Any, grpc_context: Any) -> Any:
        return await self._grpc.call(self._grpc.server_live, request, grpc_context)

    async def ServerReady(self, request: Any, grpc_context: Any) -> Any:
        return await self._grpc.call(self._grpc.server_ready, request, grpc_context)

    async def ServerMetadata(self, request: Any, grpc_context: Any) -> Any:
        return await self._grpc.call(self._grpc.server_metadata, request, grpc_context)

    async def ModelReady(self, request: Any, grpc_context: Any) -> Any:
        return await self._grpc.call(self._grpc.model_ready, request, grpc_context)

    async def ModelMetadata(self, request: Any, grpc_context: Any) -> Any:
        return await self._grpc.call(self._grpc.model_metadata, request, grpc_context)

    async def ModelConfig(self, request: Any, grpc_context: Any) -> Any:
        return await self._grpc.call(self._grpc.model_config, request, grpc_context)

    async def ModelStatistics(self, request: Any, grpc_context: Any) -> Any:
        return await self._grpc.call(self._grpc.model_statistics, request, grpc_context)

    async def ModelInfer(self, request: Any, grpc_context: Any) -> Any:
        return await self._grpc.call(self._grpc.model_infer, request, grpc_context)

    async def RepositoryIndex(self, request: Any, grpc_context: Any) -> Any:
        return await self._grpc.call(self._grpc.repository_index, request, grpc_context)


class VariantReplica:
    """One process of an isolated variant: a session behind a Unix socket, health-checked by Serve."""

    async def __init__(  # type: ignore[misc]
        self, settings: GatewaySettings, model: str, entry: VariantEntry
    ) -> None:
        config = settings.parsed()
        variant = config.models[model].variants[entry.name]
        manifest, folder = Registry(config.registry.dir).open(entry.artifact)
        session = open_session(manifest, folder, runtime=entry.runtime, threads=variant.threads)
        socket_dir = Paths.of(settings.state_dir).worker_dir(model, entry.name, entry.version)
        self._clock = SystemClock()
        self._hang_ns = int(variant.hang_timeout_s * 1e9)
        self._server = WorkerServer(session, socket_dir / f"{secrets.token_hex(4)}.sock")
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
            await self._server.close()


def gateway_deployment(settings: GatewaySettings) -> Any:
    """The ingress application."""
    config = settings.parsed()
    deployment: Any = serve.deployment(
        serve.ingress()(Gateway),
        name="Gateway",
        num_replicas=config.server.gateways,
        max_ongoing_requests=SERVE_ONGOING,
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=2,
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=5,
        graceful_shutdown_wait_loop_s=0.2,
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    return deployment.bind(settings)


def variant_deployment(settings: GatewaySettings, model: str, entry: VariantEntry) -> Any:
    """The application of one isolated variant. It has no route: only gateways talk to it."""
    deployment: Any = serve.deployment(
        VariantReplica,
        name=entry.name,
        num_replicas=entry.replicas,
        max_ongoing_requests=SERVE_ONGOING,
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=1,
        health_check_timeout_s=5,
        graceful_shutdown_timeout_s=2,
        graceful_shutdown_wait_loop_s=0.2,
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    return deployment.bind(settings, model, entry)


def start_control(settings: ControlSettings) -> Any:
    """Start (or find) the detached control actor on this node and wait until it answers.

    Raises:
        CanariumError: the actor did not start; carries its own words.
    """
    node = ray.get_runtime_context().get_node_id()
    remote: Any = ray.remote(ControlActor)
    actor = remote.options(
        name=CONTROL_NAME,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_task_retries=0,
        max_concurrency=1000,
        num_cpus=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
    ).remote(settings)
    try:
        ray.get(actor.ready.remote(), timeout=60)
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise CanariumError(f"the control plane did not start: {reason}") from None
    return actor


def tables(config: Config, registry: Registry) -> dict[str, dict[str, VariantEntry]]:
    """The configured variants of every model as gateways know them. Raises `RegistryError`."""
    entries: dict[str, dict[str, VariantEntry]] = {}
    for model, settings in config.models.items():
        entries[model] = {}
        for name, variant in settings.variants.items():
            manifest = registry.resolve(variant.artifact)
            entries[model][name] = VariantEntry(
                name=name,
                version=manifest.version,
                artifact=manifest.ref,
                placement=variant.placement,
                runtime=variant.runtime,
                max_batch=variant.max_batch,
                replicas=variant.replicas,
                app=variant_app_name(model, name) if variant.placement == "isolated" else "",
            )
    return entries


def absolute(config: Config) -> Config:
    """The configuration with every path absolute, for processes with another working directory."""
    auth = config.auth
    if auth.tokens_file:
        auth = auth.model_copy(update={"tokens_file": str(Path(auth.tokens_file).resolve())})
    return config.model_copy(
        update={
            "state": config.state.model_copy(update={"dir": str(Path(config.state.dir).resolve())}),
            "registry": config.registry.model_copy(update={"dir": str(Path(config.registry.dir).resolve())}),
            "auth": auth,
        }
    )
